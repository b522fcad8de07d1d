//! Reading what a peer sent: JSON or MessagePack, checked for everything that R24 refuses
//! (duplicate keys, depth over 128, numbers that JSON cannot hold), payload kept as bytes.

use crate::Payload;

/// Deepest nesting of arrays and objects, the document itself counted.
pub(crate) const DEPTH_MAX: usize = 128;

/// The envelope's fields as found; unknown ones are checked and dropped.
#[derive(Debug, Default)]
pub(crate) struct Fields {
    pub(crate) kind: Field,
    pub(crate) id: Field,
    pub(crate) channel: Field,
    pub(crate) ack_id: Field,
    pub(crate) request_id: Field,
    pub(crate) payload: Option<Payload>,
}

/// One field that should be text.
#[derive(Debug, Default, PartialEq)]
pub(crate) enum Field {
    #[default]
    Absent,
    Null,
    Text(String),
    Other,
}

impl Field {
    pub(crate) fn as_text(&self) -> Option<&str> {
        match self {
            Field::Text(text) => Some(text),
            _ => None,
        }
    }
}

/// Why and where a document is refused.
#[derive(Debug, PartialEq)]
pub(crate) struct Problem {
    /// One sentence.
    pub(crate) reason: String,
    /// `byte 17`, or a path such as `payload.items`.
    pub(crate) at: String,
}

/// Reads one JSON document that must be an object.
pub(crate) fn read_json(_bytes: &[u8]) -> Result<Fields, Problem> {
    todo!()
}

/// Reads one MessagePack document that must be a map.
pub(crate) fn read_msgpack(_bytes: &[u8]) -> Result<Fields, Problem> {
    todo!()
}
