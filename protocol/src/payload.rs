//! A message's payload: opaque bytes. JSON text always; the MessagePack original beside it only
//! where it holds binary values, which JSON readers get as base64 text (R24).

use bytes::Bytes;

/// Opaque payload. Cloning shares the bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Payload {
    json: Bytes,
    msgpack: Option<Bytes>,
}

impl Payload {
    /// `null`.
    pub const NULL: Payload = Payload { json: Bytes::from_static(b"null"), msgpack: None };

    /// Wraps JSON text that is known to be valid.
    #[must_use]
    pub fn from_json(json: impl Into<Bytes>) -> Self {
        Self { json: json.into(), msgpack: None }
    }

    /// Wraps JSON text and the MessagePack bytes it was made from (they hold binary values).
    #[must_use]
    pub fn with_msgpack(json: impl Into<Bytes>, msgpack: impl Into<Bytes>) -> Self {
        Self { json: json.into(), msgpack: Some(msgpack.into()) }
    }

    /// Serializes a value.
    ///
    /// # Panics
    /// When `value` cannot be JSON (a map with keys that are no strings): a defect of the caller.
    #[must_use]
    pub fn of(value: &impl serde::Serialize) -> Self {
        Self::from_json(serde_json::to_vec(value).expect("our own payload types are JSON"))
    }

    /// The JSON text.
    #[must_use]
    pub fn json(&self) -> &Bytes {
        &self.json
    }

    /// The JSON text as `str`.
    #[must_use]
    pub fn json_str(&self) -> &str {
        std::str::from_utf8(&self.json).unwrap_or("null")
    }

    /// The MessagePack original, where the payload holds binary values.
    #[must_use]
    pub fn msgpack(&self) -> Option<&Bytes> {
        self.msgpack.as_ref()
    }

    /// Parses the JSON text; only for the few places that must look inside.
    #[must_use]
    pub fn to_value(&self) -> serde_json::Value {
        serde_json::from_slice(&self.json).unwrap_or(serde_json::Value::Null)
    }
}
