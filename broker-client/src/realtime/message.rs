//! A message for connections, users or everybody: a type and any JSON.

use std::borrow::Cow;

use carillon_protocol::publication::Exclude;
use carillon_protocol::session::is_control;
use carillon_protocol::{ConnectionId, Payload, UserId};

use super::RealtimeError;

/// Longest message type, in bytes.
const TYPE_BYTES_MAX: usize = 256;

/// What clients read as `type`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct MessageType(Cow<'static, str>);

impl MessageType {
    /// `message`: what the document calls a text.
    pub const TEXT: Self = Self(Cow::Borrowed("message"));
    /// `system`
    pub const SYSTEM: Self = Self(Cow::Borrowed("system"));

    /// Takes 1 to 256 bytes without control characters, none of the server's own types (R1).
    ///
    /// # Errors
    /// [`RealtimeError::Invalid`].
    pub fn new(kind: &str) -> Result<Self, RealtimeError> {
        if kind.is_empty() || kind.len() > TYPE_BYTES_MAX || kind.chars().any(char::is_control) {
            let problem = "must be 1 to 256 bytes without control characters";
            return Err(RealtimeError::invalid("type", problem));
        }
        if is_control(kind) {
            return Err(RealtimeError::invalid("type", "is the server's own"));
        }
        Ok(Self(Cow::Owned(kind.to_owned())))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A message to be sent.
///
/// ```
/// use carillon_broker_client::realtime::{Message, MessageType};
/// use carillon_protocol::UserId;
///
/// let hello = Message::text("Hello, client!");
/// assert_eq!(hello.payload().json_str(), "\"Hello, client!\"");
///
/// let maintenance = Message::new(MessageType::SYSTEM)
///     .json(&serde_json::json!({"type": "system", "message": "Server maintenance in 5 minutes"}))?
///     .except_user(UserId::new("operator")?);
/// assert_eq!(maintenance.kind().as_str(), "system");
/// assert!(MessageType::new("pong").is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, PartialEq, Debug)]
#[must_use]
pub struct Message {
    kind: MessageType,
    payload: Payload,
    exclude: Exclude,
}

impl Message {
    /// One without a payload.
    pub fn new(kind: MessageType) -> Self {
        Self { kind, payload: Payload::NULL, exclude: Exclude::default() }
    }

    /// A text.
    pub fn text(text: &str) -> Self {
        Self { payload: Payload::of(&text), ..Self::new(MessageType::TEXT) }
    }

    /// With this payload.
    ///
    /// # Errors
    /// [`RealtimeError::Invalid`] for what JSON cannot hold.
    pub fn json(mut self, payload: &impl serde::Serialize) -> Result<Self, RealtimeError> {
        let json = serde_json::to_vec(payload)
            .map_err(|_| RealtimeError::invalid("payload", "cannot be written as JSON"))?;
        self.payload = Payload::from_json(json);
        Ok(self)
    }

    /// This connection does not hear it.
    pub fn except_connection(mut self, connection: ConnectionId) -> Self {
        self.exclude.connections.push(connection);
        self
    }

    /// None of this user's connections hears it.
    pub fn except_user(mut self, user: UserId) -> Self {
        self.exclude.users.push(user);
        self
    }

    /// Its type.
    #[must_use]
    pub fn kind(&self) -> &MessageType {
        &self.kind
    }

    /// Its payload.
    #[must_use]
    pub fn payload(&self) -> &Payload {
        &self.payload
    }

    pub(super) fn into_parts(self) -> (MessageType, Payload, Exclude) {
        (self.kind, self.payload, self.exclude)
    }
}
