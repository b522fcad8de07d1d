//! Reading what a peer sent: JSON or MessagePack, checked for everything that R24 refuses
//! (duplicate keys, depth over 128, numbers that JSON cannot hold), payload kept as bytes.
//!
//! One pass, no tree. A document that can be read but is refused is read to its end all the same,
//! so that its `ack_id` is known and the error reaches the request that caused it (R20).

mod json;
mod msgpack;

use std::borrow::Cow;

use crate::Payload;

pub(crate) use json::{compact_json, read_json};
pub(crate) use msgpack::{binary_members, read_msgpack};

/// Deepest nesting of arrays and objects, the document itself counted.
pub(crate) const DEPTH_MAX: usize = 128;

/// The envelope's fields as found; unknown ones are checked and dropped.
#[derive(Debug, Default)]
pub(crate) struct Fields<'a> {
    pub(crate) kind: Field<'a>,
    pub(crate) id: Field<'a>,
    pub(crate) channel: Field<'a>,
    pub(crate) ack_id: Field<'a>,
    pub(crate) request_id: Field<'a>,
    pub(crate) token: Field<'a>,
    pub(crate) payload: Option<Payload>,
}

impl<'a> Fields<'a> {
    fn named(&mut self, name: &str) -> Option<&mut Field<'a>> {
        Some(match name {
            "type" => &mut self.kind,
            "id" => &mut self.id,
            "channel" => &mut self.channel,
            "ack_id" => &mut self.ack_id,
            "requestId" => &mut self.request_id,
            "token" => &mut self.token,
            _ => return None,
        })
    }
}

/// One field that should be text.
#[derive(Debug, Default, PartialEq)]
pub(crate) enum Field<'a> {
    #[default]
    Absent,
    Null,
    Text(Cow<'a, str>),
    Other,
}

/// A document as far as it could be read.
#[derive(Debug)]
pub(crate) struct Document<'a> {
    pub(crate) fields: Fields<'a>,
    /// Why it is refused, if it is.
    pub(crate) problem: Option<Problem>,
}

impl<'a> Document<'a> {
    fn new(fields: Fields<'a>, read: Result<(), Problem>, objection: Option<Problem>) -> Self {
        Self { fields, problem: objection.or(read.err()) }
    }
}

/// Why and where a document is refused.
#[derive(Debug, PartialEq)]
pub(crate) struct Problem {
    /// One sentence.
    pub(crate) reason: &'static str,
    /// Where, in bytes from the start.
    pub(crate) byte: usize,
}

/// Keys of all the objects that are open, innermost last. One list serves the whole document.
#[derive(Debug, Default)]
struct Keys<'a> {
    open: smallvec::SmallVec<[(Cow<'a, str>, usize); 16]>,
}

impl<'a> Keys<'a> {
    fn len(&self) -> usize {
        self.open.len()
    }

    fn push(&mut self, key: Cow<'a, str>, byte: usize) {
        self.open.push((key, byte));
    }

    /// Ends the object whose first key is number `from`; where a key stands twice, the place of
    /// its second appearance.
    fn close(&mut self, from: usize) -> Result<(), Problem> {
        let keys = &mut self.open[from..];
        let twice = if keys.len() <= 8 {
            // Comparing each with each beats sorting for the usual handful.
            (1..keys.len()).find(|&at| keys[..at].iter().any(|(key, _)| *key == keys[at].0))
        } else {
            keys.sort_unstable();
            (1..keys.len()).find(|&at| keys[at - 1].0 == keys[at].0)
        };
        let problem =
            twice.map(|at| Problem { reason: "a key stands twice in an object", byte: keys[at].1 });
        self.open.truncate(from);
        problem.map_or(Ok(()), Err)
    }
}
