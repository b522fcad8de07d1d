//! Identifiers that cannot hold a forbidden value. They know nothing of where they are kept.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

/// The longest id of any kind, in bytes (R24).
pub const ID_BYTES_MAX: usize = 256;

/// An id was empty, longer than [`ID_BYTES_MAX`] or held a control character.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} must be 1 to {ID_BYTES_MAX} bytes without control characters")]
pub struct InvalidId {
    /// Which kind of id was refused.
    pub what: &'static str,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Takes the text if the contract allows it as an id.
            pub fn new(text: &str) -> Result<Self, InvalidId> {
                if text.is_empty() || text.len() > ID_BYTES_MAX || text.chars().any(char::is_control) {
                    return Err(InvalidId { what: $what });
                }
                Ok(Self(text.into()))
            }
            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str { &self.0 }
        }
        impl Borrow<str> for $name { fn borrow(&self) -> &str { &self.0 } }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(&self.0) }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { write!(f, "{:?}", &*self.0) }
        }
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> { s.serialize_str(&self.0) }
        }
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(d)?;
                Self::new(&text).map_err(serde::de::Error::custom)
            }
        }
    };
}

id! {
    /// A user, as the token names them.
    UserId "a user id"
}
id! {
    /// One live connection anywhere in the cluster.
    ConnectionId "a connection id"
}
id! {
    /// A message: the publisher's own id, or a UUIDv7.
    MessageId "a message id"
}
