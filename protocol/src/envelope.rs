//! What a listener hears, before a codec writes it. `protocol.md` 2.

use std::borrow::Cow;

use crate::{ErrorCode, Payload, Position};

/// The client's correlation id in either spelling; comes back under the same name (R20).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Correlation {
    /// `ack_id`: asks for exactly one `ack` or `error`.
    pub ack_id: Option<Box<str>>,
    /// `requestId`: comes back on the request's own reply, or on an ack where there is none.
    pub request_id: Option<Box<str>>,
}

impl Correlation {
    /// The correlation on a request's own reply: never the `ack_id`, which only the ack carries.
    #[must_use]
    pub fn for_own_reply(&self) -> Correlation {
        Correlation { ack_id: None, request_id: self.request_id.clone() }
    }

    /// Whether the request asked for no correlation.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ack_id.is_none() && self.request_id.is_none()
    }
}

/// A borrowed view of one server-to-client message. Codecs write it field by field.
#[derive(Clone, Copy, Debug)]
pub struct Envelope<'a> {
    /// Always there.
    pub id: &'a str,
    /// The message type.
    pub kind: &'a str,
    /// The channel as the client subscribed to it.
    pub channel: Option<&'a str>,
    /// Opaque payload.
    pub payload: &'a Payload,
    /// Unix milliseconds; the profile decides how it is written.
    pub timestamp_ms: i64,
    /// `ack_id` of the request that this answers.
    pub ack_id: Option<&'a str>,
    /// `requestId` of the request that this answers.
    pub request_id: Option<&'a str>,
    /// Position on channels with history.
    pub position: Option<Position>,
    /// The authenticated sender.
    pub user_id: Option<&'a str>,
    /// The application's `meta`, JSON text.
    pub meta: Option<&'a str>,
    /// Persistent subscriptions of the user that matched (`channels.md` 5).
    pub subscription_ids: &'a [Box<str>],
}

static NO_PAYLOAD: Payload = Payload::NULL;

impl Envelope<'_> {
    /// A value to start from with `..Envelope::EMPTY`.
    pub const EMPTY: Envelope<'static> = Envelope {
        id: "",
        kind: "",
        channel: None,
        payload: &NO_PAYLOAD,
        timestamp_ms: 0,
        ack_id: None,
        request_id: None,
        position: None,
        user_id: None,
        meta: None,
        subscription_ids: &[],
    };
}

/// A message that the server itself makes for one connection: a reply, an error, a welcome.
/// Its id and time are stamped when it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerMessage {
    /// The message type.
    pub kind: Cow<'static, str>,
    /// The channel, where the message is about one.
    pub channel: Option<Box<str>>,
    /// Payload.
    pub payload: Payload,
    /// Correlation that comes back.
    pub correlation: Correlation,
}

impl ServerMessage {
    /// A message with a serializable payload.
    #[must_use]
    pub fn new(kind: impl Into<Cow<'static, str>>, payload: &impl serde::Serialize) -> Self {
        Self {
            kind: kind.into(),
            channel: None,
            payload: Payload::of(payload),
            correlation: Correlation::default(),
        }
    }

    /// Names the channel that the message is about.
    #[must_use]
    pub fn on(mut self, channel: &str) -> Self {
        self.channel = Some(channel.into());
        self
    }

    /// Carries the correlation back.
    #[must_use]
    pub fn answering(mut self, correlation: Correlation) -> Self {
        self.correlation = correlation;
        self
    }

    /// `ack` with `status: success`; `data` is any serializable value. The payload names the `ack_id`
    /// where the request had one: a `requestId` comes back under its own name alone (R20).
    #[must_use]
    pub fn ack(correlation: Correlation, data: &impl serde::Serialize) -> Self {
        let mut payload = serde_json::json!({"status": "success", "data": data});
        if let Some(ack_id) = correlation.ack_id.as_deref() {
            payload["ack_id"] = ack_id.into();
        }
        Self::new("ack", &payload).answering(correlation)
    }

    /// `error` with code, message and details.
    #[must_use]
    pub fn error(correlation: Correlation, refusal: &Refusal) -> Self {
        Self::new("error", &refusal.payload()).answering(correlation)
    }

    /// The envelope, stamped.
    #[must_use]
    pub fn envelope<'a>(&'a self, id: &'a str, timestamp_ms: i64) -> Envelope<'a> {
        Envelope {
            id,
            kind: &self.kind,
            channel: self.channel.as_deref(),
            payload: &self.payload,
            timestamp_ms,
            ack_id: self.correlation.ack_id.as_deref(),
            request_id: self.correlation.request_id.as_deref(),
            ..Envelope::EMPTY
        }
    }
}

/// A request was refused: the one shape behind `error` messages and REST error bodies.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Refusal {
    /// Which error.
    pub code: ErrorCode,
    /// One sentence for people.
    pub message: Cow<'static, str>,
    /// A JSON object with what helps; empty for none.
    pub details: serde_json::Map<String, serde_json::Value>,
}

impl Refusal {
    /// A refusal without details.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<Cow<'static, str>>) -> Self {
        Self { code, message: message.into(), details: serde_json::Map::new() }
    }

    /// Adds a detail.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<serde_json::Value>) -> Self {
        self.details.insert(key.to_owned(), value.into());
        self
    }

    /// `{code, message, details}`.
    #[must_use]
    pub fn payload(&self) -> serde_json::Value {
        serde_json::json!({"code": self.code.name(), "message": self.message, "details": self.details})
    }
}
