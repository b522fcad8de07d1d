//! Codecs: how an envelope becomes bytes, chosen by WebSocket subprotocol. `protocol.md` 1–2.

pub mod gzip;
mod json;
mod msgpack;
mod sse;
pub(crate) mod strict;
#[cfg(test)]
mod tests;

pub use json::{push_json_string, write_json};
pub use msgpack::write_msgpack;
pub(crate) use msgpack::{Member, msgpack_map};
pub use sse::{write_sse, write_sse_body};

use crate::Payload;

/// A JSON value is refused: malformed, or against the rules of R24.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason} at byte {byte}")]
pub struct InvalidJson {
    /// What is wrong, a few words.
    pub reason: &'static str,
    /// Where, in bytes from the start of the value.
    pub byte: usize,
}

/// Takes the JSON text of one value, which stood inside a body, as a payload: byte for byte without
/// the whitespace around it, or without any whitespace between tokens where that holds line breaks
/// (which neither SSE nor newline-delimited JSON can carry).
///
/// # Errors
/// What a client's message is refused for too (R24): duplicate keys, depth over 128 with the body
/// counted, numbers out of range, malformed text.
pub fn compact_json(raw: &str) -> Result<Payload, InvalidJson> {
    strict::compact_json(raw)
        .map_err(|problem| InvalidJson { reason: problem.reason, byte: problem.byte })
}

/// The codec of a WebSocket connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Codec {
    /// One JSON document a text frame.
    Json,
    /// JSON documents a line, several may share a text frame.
    Ndjson,
    /// One MessagePack document a binary frame.
    MessagePack,
}

impl Codec {
    /// The codec for a requested subprotocol, if it is one of ours.
    #[must_use]
    pub fn from_subprotocol(name: &str) -> Option<Self> {
        Some(match name {
            "carillon.json" => Self::Json,
            "carillon.ndjson" => Self::Ndjson,
            "carillon.msgpack" => Self::MessagePack,
            _ => return None,
        })
    }

    /// The subprotocol's name.
    #[must_use]
    pub const fn subprotocol(self) -> &'static str {
        match self {
            Self::Json => "carillon.json",
            Self::Ndjson => "carillon.ndjson",
            Self::MessagePack => "carillon.msgpack",
        }
    }

    /// Whether messages travel in binary frames.
    #[must_use]
    pub const fn is_binary(self) -> bool {
        matches!(self, Self::MessagePack)
    }
}
