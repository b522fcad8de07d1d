//! What a poll asks, read from query and body. `protocol.md` 6, `http-api.md` 1.

use std::time::Duration;

use carillon_protocol::client_message::Unreadable;
use carillon_protocol::envelope::Refusal;
use carillon_protocol::{ClientMessage, Codec, Cursor, ErrorCode, Profile};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::auth::Claims;
use crate::rest::BatchBody;
use crate::transport::handshake::Query;

/// Longest a poll is held.
const TIMEOUT_MAX: Duration = Duration::from_secs(30);
/// Most messages that one poll may send.
const MESSAGES_MAX: usize = 1_000;

/// See the module.
#[derive(Debug)]
pub(super) struct Question {
    /// Dress of the answer.
    pub(super) profile: Profile,
    /// Where the client stopped; 0 starts now, with what is pending first.
    pub(super) last_poll_id: u64,
    /// How long it waits.
    pub(super) timeout: Duration,
    /// Channels beside the user's own.
    pub(super) channels: Vec<String>,
    /// Where a client of another transport stopped; counts only without a poll id.
    pub(super) since: Option<Result<Cursor, ()>>,
    /// What the client sends; `None` without `messages`.
    pub(super) messages: Option<Vec<Result<ClientMessage, Unreadable>>>,
}

#[derive(Deserialize)]
struct Body<'a> {
    user_id: Option<Value>,
    last_poll_id: Option<Value>,
    timeout: Option<Value>,
    channels: Option<Value>,
    #[serde(borrow)]
    messages: Option<Vec<&'a RawValue>>,
}

impl Question {
    /// Reads a `GET`.
    ///
    /// # Errors
    /// `INVALID_MESSAGE`, `FORBIDDEN` for another user.
    pub(super) fn of_query(query: &Query, claims: &Claims) -> Result<Self, Refusal> {
        check_user(query.get("user_id"), claims)?;
        let profile = match query.get("profile") {
            None => Profile::Social,
            Some(name) => Profile::parse(name)
                .ok_or_else(|| wrong("profile", "is one of social, uno, dnr, excore"))?,
        };
        let given = |name| query.get(name).map(str::trim).filter(|text| !text.is_empty());
        let last_poll_id = given("last_poll_id").map_or(Ok(0), |text| id(text, "last_poll_id"))?;
        let timeout = given("timeout").map_or(Ok(TIMEOUT_MAX), |text| {
            text.parse()
                .map_err(|_| wrong("timeout", "must be a number of seconds"))
                .and_then(seconds)
        })?;
        let mut channels = query.list("channels");
        channels.extend(query.list("channel"));
        let since = query.get("since").map(|text| Cursor::parse(text).map_err(|_| ()));
        Ok(Self { profile, last_poll_id, timeout, channels, since, messages: None })
    }

    /// Reads a `POST`; what the body does not say, the query may.
    ///
    /// # Errors
    /// As [`Question::of_query`].
    pub(super) fn of_body(
        query: &Query,
        body: &BatchBody,
        claims: &Claims,
    ) -> Result<Self, Refusal> {
        let body: Body<'_> = body.read()?;
        let user = match &body.user_id {
            None | Some(Value::Null) => query.get("user_id").map(str::to_owned),
            Some(Value::String(text)) => Some(text.clone()),
            Some(Value::Number(number)) => Some(number.to_string()),
            Some(_) => return Err(wrong("user_id", "must be a string")),
        };
        check_user(user.as_deref(), claims)?;
        let mut question = Self::of_query(&query.with("user_id", claims.user.as_str()), claims)?;
        match &body.last_poll_id {
            None | Some(Value::Null) => {}
            Some(value) => {
                question.last_poll_id = value
                    .as_u64()
                    .ok_or_else(|| wrong("last_poll_id", "must be a whole number from 0"))?;
            }
        }
        match &body.timeout {
            None | Some(Value::Null) => {}
            Some(value) => {
                let number = value
                    .as_f64()
                    .ok_or_else(|| wrong("timeout", "must be a number of seconds"))?;
                question.timeout = seconds(number)?;
            }
        }
        match body.channels {
            None | Some(Value::Null) => {}
            Some(Value::String(list)) => {
                let names = list.split(',').map(str::trim).filter(|name| !name.is_empty());
                question.channels.extend(names.map(str::to_owned));
            }
            Some(Value::Array(names)) => {
                for name in names {
                    let Value::String(name) = name else {
                        return Err(wrong("channels", "must be strings"));
                    };
                    question.channels.push(name);
                }
            }
            Some(_) => return Err(wrong("channels", "must be an array of strings")),
        }
        if let Some(messages) = body.messages {
            if messages.len() > MESSAGES_MAX {
                return Err(wrong("messages", "must be at most 1,000").with("limit", MESSAGES_MAX));
            }
            let read = |raw: &RawValue| ClientMessage::parse(Codec::Json, raw.get().as_bytes());
            question.messages = Some(messages.into_iter().map(read).collect());
        }
        Ok(question)
    }
}

/// Who asks and from which number on, as a query says before anything is checked; `None` for who begins.
pub(super) fn of_chain(query: &Query) -> Option<(&str, u64)> {
    let last = query.get("last_poll_id")?.trim().parse().ok()?;
    Some((query.get("user_id")?, last)).filter(|(_, last)| *last > 0)
}

/// `user_id` must be there and be the token's user.
///
/// # Errors
/// `INVALID_MESSAGE`, `FORBIDDEN`.
pub(super) fn check_user(user: Option<&str>, claims: &Claims) -> Result<(), Refusal> {
    match user.filter(|user| !user.is_empty()) {
        None => Err(wrong("user_id", "is required")),
        Some(user) if user == claims.user.as_str() => Ok(()),
        Some(_) => Err(Refusal::new(ErrorCode::Forbidden, "user_id is not the token's user")
            .with("field", "user_id")),
    }
}

/// A whole number of a query.
///
/// # Errors
/// `INVALID_MESSAGE`.
pub(super) fn id(text: &str, field: &'static str) -> Result<u64, Refusal> {
    text.parse().map_err(|_| wrong(field, "must be a whole number from 0"))
}

/// `INVALID_MESSAGE` about one field.
pub(super) fn wrong(field: &'static str, what: &str) -> Refusal {
    Refusal::new(ErrorCode::InvalidMessage, format!("{field} {what}")).with("field", field)
}

fn seconds(number: f64) -> Result<Duration, Refusal> {
    if number.is_nan() {
        return Err(wrong("timeout", "must be a number of seconds"));
    }
    Ok(Duration::from_secs_f64(number.clamp(0.0, TIMEOUT_MAX.as_secs_f64())))
}
