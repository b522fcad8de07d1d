//! What a client says, in any codec, before anybody acts on it. `protocol.md` 2, ruling R24.

use crate::codec::strict;
use crate::envelope::{Correlation, Refusal};
use crate::ids::ID_BYTES_MAX;
use crate::{Codec, ErrorCode, Payload};

/// One message from a client. Only `type` is required; unknown fields are ignored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientMessage {
    /// The message type, 1–256 bytes without control characters.
    pub kind: Box<str>,
    /// The sender's own id for the message: makes publishing it again harmless.
    pub id: Option<Box<str>>,
    /// Channel at top level; not yet checked against the alphabet.
    pub channel: Option<Box<str>>,
    /// Opaque payload; `null` when absent.
    pub payload: Payload,
    /// The new token of `auth`, where it stands beside the type.
    pub token: Option<Box<str>>,
    /// `ack_id` and `requestId`.
    pub correlation: Correlation,
}

/// A message could not be read: the refusal, and the correlation if that much could be read, so
/// that the error reaches the request that caused it.
#[derive(Clone, Debug, PartialEq)]
pub struct Unreadable {
    /// What is wrong and where.
    pub refusal: Refusal,
    /// What the sender may be waiting for.
    pub correlation: Correlation,
}

impl ClientMessage {
    /// Reads one message. For [`Codec::Ndjson`] the caller splits lines first.
    ///
    /// # Errors
    /// `INVALID_MESSAGE` with the place in `details`.
    pub fn parse(codec: Codec, bytes: &[u8]) -> Result<Self, Unreadable> {
        let document = match codec {
            Codec::Json | Codec::Ndjson => strict::read_json(bytes),
            Codec::MessagePack => strict::read_msgpack(bytes),
        };
        let correlation = correlation(&document.fields);
        let read = match document.problem {
            None => Self::from_fields(document.fields, correlation.clone()),
            Some(problem) => {
                let message = format!("The message cannot be read: {}", problem.reason);
                Err(Refusal::new(ErrorCode::InvalidMessage, message)
                    .with("reason", problem.reason)
                    .with("at", format!("byte {}", problem.byte)))
            }
        };
        read.map_err(|refusal| Unreadable { refusal, correlation })
    }

    fn from_fields(fields: strict::Fields<'_>, correlation: Correlation) -> Result<Self, Refusal> {
        let Some(kind) = text(&fields.kind, "type", ID_BYTES_MAX)? else {
            return Err(Refusal::new(ErrorCode::InvalidMessage, "Message type is required")
                .with("field", "type"));
        };
        text(&fields.ack_id, "ack_id", ID_BYTES_MAX)?;
        text(&fields.request_id, "requestId", ID_BYTES_MAX)?;
        let id = text(&fields.id, "id", ID_BYTES_MAX)?;
        // Too long a channel is told by the channel's own rule; here only the shape counts.
        let channel = text(&fields.channel, "channel", usize::MAX)?;
        // No business of other types: there it is an unknown field.
        let token = if &*kind == "auth" { text(&fields.token, "token", usize::MAX)? } else { None };
        Ok(Self {
            kind,
            id,
            channel,
            payload: fields.payload.unwrap_or(Payload::NULL),
            token,
            correlation,
        })
    }
}

/// The correlation that may come back: never one that is itself against the rules.
fn correlation(fields: &strict::Fields<'_>) -> Correlation {
    let of = |field: &strict::Field<'_>| text(field, "", ID_BYTES_MAX).ok().flatten();
    Correlation { ack_id: of(&fields.ack_id), request_id: of(&fields.request_id) }
}

fn text(
    field: &strict::Field<'_>,
    name: &'static str,
    bytes_max: usize,
) -> Result<Option<Box<str>>, Refusal> {
    match field {
        strict::Field::Absent | strict::Field::Null => Ok(None),
        strict::Field::Text(text) if text.is_empty() => Err(invalid("must not be empty", name)),
        strict::Field::Text(text) if text.len() > bytes_max => {
            Err(invalid("must be at most 256 bytes", name))
        }
        strict::Field::Text(text) if text.chars().any(char::is_control) => {
            Err(invalid("must not hold control characters", name))
        }
        strict::Field::Text(text) => Ok(Some(Box::from(&**text))),
        strict::Field::Other => Err(invalid("must be a string", name)),
    }
}

fn invalid(what: &'static str, field: &'static str) -> Refusal {
    Refusal::new(ErrorCode::InvalidMessage, format!("{field} {what}")).with("field", field)
}
