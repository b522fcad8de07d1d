//! The message in a body, as every publishing call takes it, and the checks that all share.
//! `http-api.md` 2, rulings R1, R4, R10, R24.

use std::borrow::Cow;

use carillon_protocol::envelope::Refusal;
use carillon_protocol::publication::Exclude;
use carillon_protocol::session::{is_control, is_reserved};
use carillon_protocol::{ChannelName, ConnectionId, ErrorCode, UserId};
use http::HeaderMap;
use serde::Deserialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::body::{self, wrong};
use crate::auth::Caller;
use crate::node::{Node, Outgoing};

/// Longest idempotency key, in bytes (R24: ids).
const KEY_BYTES_MAX: usize = 256;

/// Who must not hear a message.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(expecting = "an object of connections and users")]
#[schema(as = Exclude)]
pub(super) struct ExcludeBody {
    /// Connection ids.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub connections: Vec<ConnectionId>,
    /// User ids.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub users: Vec<UserId>,
}

impl From<ExcludeBody> for Exclude {
    fn from(body: ExcludeBody) -> Self {
        Self { connections: body.connections, users: body.users }
    }
}

/// A message.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = Message)]
pub(super) struct MessageBody<'a> {
    /// Message type.
    #[serde(rename = "type", borrow)]
    #[schema(value_type = String)]
    pub kind: Cow<'a, str>,
    /// Any JSON; absent is `null`.
    #[serde(borrow)]
    #[schema(value_type = Option<serde_json::Value>)]
    pub payload: Option<&'a RawValue>,
    /// The publisher's id of the message; repeating it is harmless.
    pub id: Option<String>,
    /// Makes repeating it harmless.
    pub idempotency_key: Option<String>,
    /// Whom it is from.
    #[schema(value_type = Option<String>)]
    pub user_id: Option<UserId>,
    /// Who must not hear it.
    pub exclude: Option<ExcludeBody>,
    /// A JSON object that travels beside the payload.
    #[serde(borrow)]
    #[schema(value_type = Option<Object>)]
    pub meta: Option<&'a RawValue>,
}

/// A message and its channel.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = Publish)]
pub(super) struct PublishBody<'a> {
    /// Where.
    #[serde(borrow)]
    #[schema(value_type = String)]
    pub channel: Cow<'a, str>,
    /// Message type.
    #[serde(rename = "type", borrow)]
    #[schema(value_type = String)]
    pub kind: Cow<'a, str>,
    /// Any JSON; absent is `null`.
    #[serde(borrow)]
    #[schema(value_type = Option<serde_json::Value>)]
    pub payload: Option<&'a RawValue>,
    /// The publisher's id of the message; repeating it is harmless.
    pub id: Option<String>,
    /// Makes repeating it harmless.
    pub idempotency_key: Option<String>,
    /// Whom it is from; a user may name themself alone.
    #[schema(value_type = Option<String>)]
    pub user_id: Option<UserId>,
    /// Who must not hear it.
    pub exclude: Option<ExcludeBody>,
    /// A JSON object that travels beside the payload.
    #[serde(borrow)]
    #[schema(value_type = Option<Object>)]
    pub meta: Option<&'a RawValue>,
}

impl<'a> PublishBody<'a> {
    /// Channel and message apart. (`serde(flatten)` cannot hold raw payloads.)
    #[must_use]
    pub(super) fn split(self) -> (Cow<'a, str>, MessageBody<'a>) {
        let message = MessageBody {
            kind: self.kind,
            payload: self.payload,
            id: self.id,
            idempotency_key: self.idempotency_key,
            user_id: self.user_id,
            exclude: self.exclude,
            meta: self.meta,
        };
        (self.channel, message)
    }
}

impl MessageBody<'_> {
    /// The message as the node publishes it. Whether the caller may is judged elsewhere.
    ///
    /// # Errors
    /// `INVALID_MESSAGE`, `PAYLOAD_TOO_LARGE`.
    pub(super) fn outgoing(
        self,
        node: &Node,
        channel: ChannelName,
        caller: &Caller,
        headers: &HeaderMap,
    ) -> Result<Outgoing, Refusal> {
        let kind = body::name(&self.kind, "type")?;
        if self
            .idempotency_key
            .as_ref()
            .is_some_and(|key| key.is_empty() || key.len() > KEY_BYTES_MAX)
        {
            return Err(wrong("idempotency_key", "must be 1 to 256 bytes"));
        }
        Ok(Outgoing {
            channel,
            payload: body::payload(node, self.payload, "payload")?,
            id: self.id.map(String::into_boxed_str),
            idempotency_key: self.idempotency_key.map(String::into_boxed_str),
            user_id: self.user_id,
            exclude: self.exclude.unwrap_or_default().into(),
            meta: body::object(node, self.meta, "meta")?,
            sender: caller.sender_key(),
            // Typing is never in history (R10).
            history: !kind.starts_with("typing"),
            traceparent: traceparent(headers),
            kind,
        })
    }
}

/// Refuses types that not even a backend may send (R1).
///
/// # Errors
/// `FORBIDDEN`.
pub(super) fn check_backend_type(kind: &str) -> Result<(), Refusal> {
    if is_control(kind) { Err(server_type(kind)) } else { Ok(()) }
}

/// Refuses types that a user may not send (R1).
///
/// # Errors
/// `FORBIDDEN`.
pub(super) fn check_user_type(kind: &str) -> Result<(), Refusal> {
    if is_reserved(kind) { Err(server_type(kind)) } else { Ok(()) }
}

fn server_type(kind: &str) -> Refusal {
    Refusal::new(ErrorCode::Forbidden, "This type is the server's").with("type", kind)
}

/// The caller's W3C trace context, if it is one.
#[must_use]
pub(crate) fn traceparent(headers: &HeaderMap) -> Option<Box<str>> {
    let text = headers.get("traceparent")?.to_str().ok()?;
    let mut parts = text.split('-');
    let sane = [2, 32, 16, 2].into_iter().all(|length| {
        let lower_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        parts.next().is_some_and(|part| part.len() == length && part.bytes().all(lower_hex))
    });
    (sane && parts.next().is_none() && !text.starts_with("ff")).then(|| text.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace(text: &'static str) -> Option<Box<str>> {
        traceparent(&HeaderMap::from_iter([(
            "traceparent".parse().expect("a name"),
            http::HeaderValue::from_static(text),
        )]))
    }

    #[test]
    fn only_a_whole_trace_context_goes_on() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert_eq!(trace(good).as_deref(), Some(good));
        assert_eq!(trace("00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01"), None);
        assert_eq!(trace("00-short-b7ad6b7169203331-01"), None);
        assert_eq!(trace("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x"), None);
    }
}
