//! A payload that the server writes into on its way (routes, relays, the sender's true id): JSON fields, and beside
//! each that came binary its MessagePack original, so that a MessagePack listener hears binary again (R24).
//! It knows nothing of what the fields mean.

use serde_json::{Map, Value};

use crate::Payload;
use crate::codec::strict::binary_members;
use crate::codec::{Member, msgpack_map};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Draft<'a> {
    fields: Map<String, Value>,
    /// MessagePack of fields that hold binary; always of fields that are there.
    binary: Vec<(String, &'a [u8])>,
    /// The same of the payload that came.
    came: Vec<(&'a str, &'a [u8])>,
}

impl<'a> Draft<'a> {
    /// Nothing yet; fields of the payload that came can be copied.
    pub(super) fn empty(came: &'a Payload) -> Self {
        let came = came.msgpack().map_or_else(Vec::new, |original| binary_members(original));
        Self { came, ..Self::default() }
    }

    /// Begins with all `fields` of the payload that came.
    pub(super) fn keeping(came: &'a Payload, fields: Map<String, Value>) -> Self {
        let mut draft = Self { fields, ..Self::empty(came) };
        draft.binary =
            draft.came.iter().map(|(name, bytes)| ((*name).to_owned(), *bytes)).collect();
        draft
    }

    pub(super) fn fields(&self) -> &Map<String, Value> {
        &self.fields
    }

    pub(super) fn set(&mut self, name: &str, value: Value) {
        self.forget(name);
        self.fields.insert(name.to_owned(), value);
    }

    /// Sets a field to one of the payload that came.
    pub(super) fn copy(&mut self, name: &str, source: &str, value: Value) {
        self.set(name, value);
        if let Some((_, bytes)) = self.came.iter().find(|(came, _)| *came == source) {
            self.binary.push((name.to_owned(), bytes));
        }
    }

    pub(super) fn remove(&mut self, name: &str) {
        self.forget(name);
        self.fields.remove(name);
    }

    fn forget(&mut self, name: &str) {
        self.binary.retain(|(field, _)| field != name);
    }

    pub(super) fn finish(self) -> Payload {
        let json = Payload::of(&self.fields);
        if self.binary.is_empty() {
            return json;
        }
        let members = self.fields.iter().map(|(name, value)| {
            let original = self.binary.iter().find(|(field, _)| field == name);
            let member = match original {
                Some((_, bytes)) => Member::Original(bytes),
                None => Member::Json(Payload::of(value)),
            };
            (name.as_str(), member)
        });
        let msgpack = msgpack_map(members);
        Payload::with_msgpack(json.json().clone(), msgpack)
    }
}
