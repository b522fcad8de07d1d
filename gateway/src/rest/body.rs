//! Request bodies: JSON only, bounded while they are read, refused with the place of the mistake.
//! `http-api.md` 1, rulings R24 and R38. Payloads inside stay the bytes that they are.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use bytes::{Bytes, BytesMut};
use carillon_protocol::codec::compact_json;
use carillon_protocol::envelope::Refusal;
use carillon_protocol::{ErrorCode, Payload};
use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, EXPECT};
use http_body::Body as _;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::timeout;

use super::error::ApiError;
use super::place;
use crate::node::Node;

/// What an envelope may add to a payload of the greatest size, in bytes.
const ENVELOPE_BYTES: usize = 64 * 1024;
/// Greatest batch body, and greatest body at all where message size is not limited (R38).
pub(super) const BATCH_BYTES_MAX: usize = 16 * 1024 * 1024;
/// A body that has not arrived whole by then is refused, and its connection closed.
const ARRIVAL: Duration = Duration::from_secs(30);
/// So is one of which nothing came for so long.
const PAUSE: Duration = Duration::from_secs(10);
/// Of a body that is too large, as much is read and dropped.
const DISCARDED_BYTES_MAX: u64 = 64 << 20;
/// So long in all, and so long between two pieces.
const DISCARD: Duration = Duration::from_secs(5);
const DISCARD_PAUSE: Duration = Duration::from_secs(1);
/// Longest message type or key, in bytes.
const NAME_BYTES_MAX: usize = 256;

/// A JSON body of one message, unread.
#[derive(Clone, Debug)]
pub(super) struct JsonBody(Bytes);

/// A [`JsonBody`], or nothing at all or `null`, which read as an empty object.
#[derive(Clone, Debug)]
pub(super) struct OptionalBody(pub JsonBody);

/// A JSON body of many messages, unread; at most [`BATCH_BYTES_MAX`].
#[derive(Clone, Debug)]
pub(crate) struct BatchBody(Bytes);

impl FromRequest<Arc<Node>> for JsonBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, node: &Arc<Node>) -> Result<Self, ApiError> {
        let limit = match node.config.load().limits.max_message_size {
            0 => BATCH_BYTES_MAX,
            size => size.saturating_add(ENVELOPE_BYTES),
        };
        Ok(Self(collect(request, limit).await?))
    }
}

impl FromRequest<Arc<Node>> for OptionalBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, node: &Arc<Node>) -> Result<Self, ApiError> {
        let empty = || Self(JsonBody(Bytes::from_static(b"{}")));
        if request.body().is_end_stream() && !request.headers().contains_key(CONTENT_TYPE) {
            return Ok(empty());
        }
        let body = JsonBody::from_request(request, node).await?;
        Ok(if body.0.trim_ascii() == b"null" { empty() } else { Self(body) })
    }
}

impl FromRequest<Arc<Node>> for BatchBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, _node: &Arc<Node>) -> Result<Self, ApiError> {
        Ok(Self(collect(request, BATCH_BYTES_MAX).await?))
    }
}

impl JsonBody {
    /// Reads the body.
    ///
    /// # Errors
    /// `INVALID_MESSAGE` with the place.
    pub(super) fn read<'a, T: Deserialize<'a>>(&'a self) -> Result<T, Refusal> {
        parse(text_of(&self.0)?)
    }
}

impl BatchBody {
    /// Reads the body.
    ///
    /// # Errors
    /// `INVALID_MESSAGE` with the place.
    pub(crate) fn read<'a, T: Deserialize<'a>>(&'a self) -> Result<T, Refusal> {
        parse(text_of(&self.0)?)
    }
}

async fn collect(request: Request, limit: usize) -> Result<Bytes, Refusal> {
    check_type(request.headers())?;
    let announced = request
        .headers()
        .get(CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    // Who waits for our word before sending need not send at all.
    let waits = request.headers().contains_key(EXPECT);
    let mut body = request.into_body();
    if let Some(length) = announced.filter(|length| *length > limit as u64) {
        if !waits && length <= DISCARDED_BYTES_MAX {
            discard(&mut body).await;
        }
        return Err(too_large(limit));
    }
    let whole = arrive(Limited::new(&mut body, limit), limit);
    let arrived = timeout(ARRIVAL, whole).await.unwrap_or_else(|_| Err(late()));
    if arrived.as_ref().is_err_and(|refusal| refusal.code == ErrorCode::PayloadTooLarge) {
        discard(&mut body).await;
    }
    arrived
}

/// Reads a body to its end; one that came in one piece is not copied.
async fn arrive(mut body: Limited<&mut Body>, limit: usize) -> Result<Bytes, Refusal> {
    let (mut only, mut whole) = (Bytes::new(), BytesMut::new());
    while let Some(frame) = timeout(PAUSE, body.frame()).await.map_err(|_| late())? {
        let frame = frame.map_err(|error| match error.downcast_ref::<LengthLimitError>() {
            Some(_) => too_large(limit),
            None => Refusal::new(ErrorCode::InvalidMessage, "The body broke off"),
        })?;
        let Ok(piece) = frame.into_data() else { continue };
        if only.is_empty() && whole.is_empty() {
            only = piece;
            continue;
        }
        whole.extend_from_slice(&std::mem::take(&mut only));
        whole.extend_from_slice(&piece);
    }
    Ok(if whole.is_empty() { only } else { whole.freeze() })
}

fn late() -> Refusal {
    Refusal::new(ErrorCode::RequestTimeout, "The body did not arrive in time")
}

/// Reads the rest of a body and keeps nothing of it: closing on a client that still sends would reset the connection, and
/// it would never read why. Bounded in bytes and time; who sends more is cut off.
async fn discard(body: &mut Body) {
    let all = async {
        let mut left = DISCARDED_BYTES_MAX;
        while let Ok(Some(Ok(frame))) = timeout(DISCARD_PAUSE, body.frame()).await {
            let bytes = frame.data_ref().map_or(0, Bytes::len) as u64;
            let Some(rest) = left.checked_sub(bytes) else { return };
            left = rest;
        }
    };
    // Done or not: the answer is the same.
    let _ = timeout(DISCARD, all).await;
}

fn check_type(headers: &HeaderMap) -> Result<(), Refusal> {
    let content_type =
        headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let mut parts = content_type.split(';').map(str::trim);
    let json = parts.next().is_some_and(|kind| kind.eq_ignore_ascii_case("application/json"));
    let utf8 = parts.filter_map(|parameter| parameter.split_once('=')).all(|(name, value)| {
        !name.trim().eq_ignore_ascii_case("charset")
            || value.trim().trim_matches('"').eq_ignore_ascii_case("utf-8")
    });
    let plain = headers.get(CONTENT_ENCODING).is_none_or(|encoding| encoding == "identity");
    if json && utf8 && plain {
        return Ok(());
    }
    Err(Refusal::new(
        ErrorCode::UnsupportedMediaType,
        "The body must be application/json in UTF-8, not compressed",
    ))
}

fn too_large(limit: usize) -> Refusal {
    Refusal::new(ErrorCode::PayloadTooLarge, "The body is too large").with("limit_bytes", limit)
}

fn text_of(body: &[u8]) -> Result<&str, Refusal> {
    std::str::from_utf8(body).map_err(|error| {
        Refusal::new(ErrorCode::InvalidMessage, "The body is not UTF-8")
            .with("byte", error.valid_up_to())
    })
}

/// Reads one JSON object.
///
/// # Errors
/// `INVALID_MESSAGE`; `details` holds `line` and `column` from 1, and the path of the `field`.
pub(super) fn parse<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, Refusal> {
    // serde reads structs from arrays too; a body is an object.
    if !text.trim_start().starts_with('{') {
        return Err(Refusal::new(ErrorCode::InvalidMessage, "The body must be a JSON object")
            .with("line", 1)
            .with("column", 1));
    }
    serde_json::from_str::<DistinctKeys>(text).map_err(|error| unreadable(text, &error))?;
    serde_json::from_str(text).map_err(|error| unreadable(text, &error))
}

/// An object none of whose own keys stands twice, unknown ones included (R24). What lies in
/// payloads is checked where they are taken.
struct DistinctKeys;

impl<'a> Deserialize<'a> for DistinctKeys {
    fn deserialize<D: serde::Deserializer<'a>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(DistinctKeys)
    }
}

impl<'a> serde::de::Visitor<'a> for DistinctKeys {
    type Value = Self;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: serde::de::MapAccess<'a>>(self, mut map: A) -> Result<Self, A::Error> {
        let mut seen: std::collections::HashSet<std::borrow::Cow<'a, str>> =
            std::collections::HashSet::new();
        while let Some(Key(key)) = map.next_key()? {
            if seen.contains(&key) {
                return Err(serde::de::Error::custom(format_args!("duplicate field `{key}`")));
            }
            seen.insert(key);
            map.next_value::<serde::de::IgnoredAny>()?;
        }
        Ok(self)
    }
}

/// A key, borrowed where it has no escapes.
#[derive(Deserialize)]
struct Key<'a>(#[serde(borrow)] std::borrow::Cow<'a, str>);

fn unreadable(text: &str, error: &serde_json::Error) -> Refusal {
    let (line, column) = (error.line(), error.column());
    let reason = error.to_string();
    let reason =
        reason.rsplit_once(" at line ").map_or(reason.as_str(), |(reason, _)| reason).to_owned();
    let mut field = place::path_at(text, place::offset_of(text, line, column));
    if let Some(missing) =
        reason.strip_prefix("missing field `").and_then(|rest| rest.strip_suffix('`'))
    {
        // The place is the end of the object that lacks it: what stands last in it is not to blame.
        let parent = field.rsplit_once('.').map_or("", |(parent, _)| parent);
        field = if parent.is_empty() { missing.to_owned() } else { format!("{parent}.{missing}") };
    }
    let refusal =
        Refusal::new(ErrorCode::InvalidMessage, reason).with("line", line).with("column", column);
    if field.is_empty() { refusal } else { refusal.with("field", field) }
}

/// Takes a JSON value of a body as a payload; absent is `null`.
///
/// # Errors
/// `INVALID_MESSAGE` by R24, `PAYLOAD_TOO_LARGE` over `limits.max_message_size`.
pub(super) fn payload(
    node: &Node,
    raw: Option<&RawValue>,
    field: &'static str,
) -> Result<Payload, Refusal> {
    let Some(raw) = raw else { return Ok(Payload::NULL) };
    let limit = node.config.load().limits.max_message_size;
    if limit > 0 && raw.get().len() > limit {
        return Err(too_large(limit).with("field", field));
    }
    compact_json(raw.get()).map_err(|invalid| {
        Refusal::new(ErrorCode::InvalidMessage, invalid.reason)
            .with("field", field)
            .with("byte", invalid.byte)
    })
}

/// Takes a JSON object of a body as it is: `meta`.
///
/// # Errors
/// As [`payload`], and `INVALID_MESSAGE` for anything but an object.
pub(super) fn object(
    node: &Node,
    raw: Option<&RawValue>,
    field: &'static str,
) -> Result<Option<Bytes>, Refusal> {
    let Some(raw) = raw else { return Ok(None) };
    if !raw.get().starts_with('{') {
        return Err(wrong(field, "must be an object"));
    }
    Ok(Some(payload(node, Some(raw), field)?.json().clone()))
}

/// Checks a message type or event name: it stands on a line of its own in event streams.
///
/// # Errors
/// `INVALID_MESSAGE`.
pub(super) fn name(text: &str, field: &'static str) -> Result<Box<str>, Refusal> {
    if text.is_empty() || text.len() > NAME_BYTES_MAX || text.chars().any(char::is_control) {
        return Err(wrong(field, "must be 1 to 256 bytes without control characters"));
    }
    Ok(text.into())
}

/// Reads a whole number that is not negative, in either spelling of JSON: `3000` and `3000.0` are the same.
pub(super) fn whole<'a, D: serde::Deserializer<'a>>(
    deserializer: D,
) -> Result<Option<u64>, D::Error> {
    let Some(number) = Option::<serde_json::Number>::deserialize(deserializer)? else {
        return Ok(None);
    };
    let whole = number.as_u64().or_else(|| {
        let float = number.as_f64()?;
        (float.fract() == 0.0 && (0.0..u64::MAX as f64).contains(&float)).then_some(float as u64)
    });
    whole.map(Some).ok_or_else(|| serde::de::Error::custom("must be a whole number from 0"))
}

/// `INVALID_MESSAGE` about one field.
#[must_use]
pub(super) fn wrong(field: &str, what: &str) -> Refusal {
    Refusal::new(ErrorCode::InvalidMessage, format!("{field} {what}")).with("field", field)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "only refusals are looked at")]
    struct Sample {
        channel: String,
        inner: Option<Inner>,
    }

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "only refusals are looked at")]
    struct Inner {
        users: Vec<String>,
        name: String,
    }

    fn field(text: &str) -> String {
        let refusal = parse::<Sample>(text).expect_err("refused");
        assert_eq!(refusal.code, ErrorCode::InvalidMessage);
        refusal.details.get("field").and_then(|field| field.as_str()).unwrap_or_default().to_owned()
    }

    #[test]
    fn a_mistake_is_named_by_its_field() {
        assert_eq!(field("{}"), "channel");
        assert_eq!(field(r#"{"channel":5}"#), "channel");
        assert_eq!(
            field(r#"{"channel":"a","inner":{"users":["a",7],"name":"n"}}"#),
            "inner.users[1]"
        );
        assert_eq!(field(r#"{"channel":"a","inner":{"users":[]}}"#), "inner.name");
        assert_eq!(field(r#"{"channel":"a","channel":"b"}"#), "channel");
        assert_eq!(field(r#"{"channel":"a","unknown":1,"unknown":2}"#), "unknown");
    }

    #[test]
    fn anything_but_an_object_is_refused() {
        for text in ["", "  ", "null", "[\"a\"]", "5", "{\"channel\":\"a\"} x", "{"] {
            assert!(parse::<Sample>(text).is_err(), "{text:?}");
        }
    }

    /// What becomes of a body in so many pieces, one each five seconds, and when.
    async fn trickled(pieces: usize) -> (Result<Bytes, ErrorCode>, Duration) {
        let stream = futures_util::stream::unfold(pieces, |left| async move {
            tokio::time::sleep(Duration::from_secs(5)).await;
            let piece = Ok::<_, std::io::Error>(Bytes::from_static(b" "));
            (left > 0).then(|| (piece, left - 1))
        });
        let json = Request::builder().header(CONTENT_TYPE, "application/json");
        let request = json.body(Body::from_stream(stream)).expect("a request");
        let began = tokio::time::Instant::now();
        let arrived = collect(request, 1_000).await.map_err(|refusal| refusal.code);
        (arrived, began.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn body_that_goes_on_trickling_is_refused_after_thirty_seconds() {
        let (arrived, took) = trickled(4).await;
        assert_eq!((arrived, took.as_secs()), (Ok(Bytes::from_static(b"    ")), 25));
        let (refused, took) = trickled(usize::MAX).await;
        assert_eq!((refused, took.as_secs()), (Err(ErrorCode::RequestTimeout), 30));
    }

    #[test]
    fn only_json_in_utf8_is_understood() {
        let of = |value: &'static str| {
            HeaderMap::from_iter([(CONTENT_TYPE, http::HeaderValue::from_static(value))])
        };
        assert!(check_type(&of("application/json")).is_ok());
        assert!(check_type(&of("Application/JSON; charset=\"UTF-8\"")).is_ok());
        assert!(check_type(&of("application/json; charset=latin1")).is_err());
        assert!(check_type(&of("text/plain")).is_err());
        assert!(check_type(&HeaderMap::new()).is_err());
    }
}
