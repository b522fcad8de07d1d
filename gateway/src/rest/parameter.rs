//! What stands in the URL: path parameters (percent-decoded, `%2F` allowed, R38) and paging.

use axum::extract::{FromRequestParts, Path};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use carillon_protocol::envelope::Refusal;
use carillon_protocol::{ChannelName, ConnectionId, ErrorCode, UserId};
use http::request::Parts;
use serde::de::DeserializeOwned;

use super::body::wrong;
use super::error::ApiError;
use crate::transport::handshake::Query;

/// Most items of a list.
pub(super) const LIMIT_MAX: usize = 1_000;
/// Items of a list where the caller does not say.
pub(super) const LIMIT_DEFAULT: usize = 100;

/// Path parameters, decoded.
#[derive(Clone, Debug)]
pub(super) struct Parameters<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Parameters<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Path(values) = Path::<T>::from_request_parts(parts, state).await.map_err(|_| {
            ApiError(Refusal::new(
                ErrorCode::InvalidMessage,
                "A path parameter is not percent-encoded UTF-8",
            ))
        })?;
        Ok(Self(values))
    }
}

/// The query, decoded.
#[derive(Debug)]
pub(super) struct Search(pub Query);

impl<S: Send + Sync> FromRequestParts<S> for Search {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        let query = parts.uri.query();
        if !Query::is_text(query.unwrap_or_default()) {
            let what = "A query parameter is not percent-encoded UTF-8";
            return Err(ApiError(
                Refusal::new(ErrorCode::InvalidMessage, what).with("field", "query"),
            ));
        }
        Ok(Self(Query::parse(query)))
    }
}

impl Search {
    /// A parameter's text.
    #[must_use]
    pub(super) fn text(&self, name: &str) -> Option<String> {
        self.0.get(name).map(str::to_owned)
    }

    /// `limit`: 1 or more, clamped to [`LIMIT_MAX`].
    ///
    /// # Errors
    /// `INVALID_MESSAGE`.
    pub(super) fn limit(&self) -> Result<usize, Refusal> {
        match self.0.get("limit") {
            None => Ok(LIMIT_DEFAULT),
            Some(text) => match whole(text) {
                Some(limit) if limit >= 1 => Ok(limit.min(LIMIT_MAX as i64) as usize),
                _ => Err(wrong("limit", "must be a whole number from 1")),
            },
        }
    }

    /// `cursor`, as [`cursor`] made it; an empty one is the beginning.
    ///
    /// # Errors
    /// `INVALID_MESSAGE` for one that is none of ours.
    pub(super) fn cursor(&self) -> Result<Option<String>, Refusal> {
        let text = self.text("cursor").filter(|text| !text.is_empty());
        let Some(text) = text else { return Ok(None) };
        let bytes = URL_SAFE_NO_PAD.decode(text).ok();
        let after = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
        after.map(Some).ok_or_else(|| wrong("cursor", "must be the `next` of a list"))
    }
}

/// A whole number, however large: what does not fit is the nearest that does.
pub(super) fn whole(text: &str) -> Option<i64> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let limit = if digits.len() < text.len() { i64::MIN } else { i64::MAX };
    Some(text.parse().unwrap_or(limit))
}

/// The opaque cursor behind an item.
#[must_use]
pub(super) fn cursor(last: &str) -> String {
    URL_SAFE_NO_PAD.encode(last)
}

/// Cuts a list that was read one item too long; the cursor of the next page.
pub(super) fn page<T>(
    items: &mut Vec<T>,
    limit: usize,
    key: impl Fn(&T) -> &str,
) -> Option<String> {
    let more = items.len() > limit;
    items.truncate(limit);
    items.last().filter(|_| more).map(|last| cursor(key(last)))
}

/// A user id from the path.
///
/// # Errors
/// `INVALID_MESSAGE`.
pub(super) fn user(text: &str) -> Result<UserId, Refusal> {
    UserId::new(text).map_err(|invalid| {
        Refusal::new(ErrorCode::InvalidMessage, invalid.to_string()).with("field", "user_id")
    })
}

/// A connection id from the path; ids that are none of ours are unknown connections.
///
/// # Errors
/// `NOT_FOUND`.
pub(super) fn connection(text: &str) -> Result<ConnectionId, Refusal> {
    ConnectionId::new(text).map_err(|_| no_connection())
}

/// `NOT_FOUND` for a connection.
#[must_use]
pub(super) fn no_connection() -> Refusal {
    Refusal::new(ErrorCode::NotFound, "No such connection")
}

/// A channel name from path or body.
///
/// # Errors
/// `INVALID_MESSAGE` (R13).
pub(super) fn channel(text: &str) -> Result<ChannelName, Refusal> {
    ChannelName::new(text).map_err(|invalid| {
        Refusal::new(ErrorCode::InvalidMessage, invalid.to_string()).with("field", "channel")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_text_is_noticed() {
        assert!(Query::is_text("a=%C3%A9&b=100%&c=+"));
        assert!(!Query::is_text("a=b&user_id=%ff"));
    }

    #[test]
    fn numbers_of_any_length_are_whole_and_words_are_not() {
        assert_eq!(whole("20"), Some(20));
        assert_eq!(whole("99999999999999999999999"), Some(i64::MAX));
        assert_eq!(whole("-99999999999999999999999"), Some(i64::MIN));
        for text in ["", "-", "+1", "1.5", "one", "1 "] {
            assert_eq!(whole(text), None, "{text:?}");
        }
    }
}
