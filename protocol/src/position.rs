//! Positions in a channel's history: epoch, offset, tag. Source: `protocol.md` 6, `cluster.md` 1, ruling R3.

use std::fmt;

macro_rules! token {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name([u8; 8]);

        impl $name {
            /// Makes one from 48 random bits (the upper 16 bits of `random` are not used).
            #[must_use]
            pub fn from_random(random: u64) -> Self {
                const ALPHABET: &[u8; 64] =
                    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
                let mut text = [0; 8];
                for (index, byte) in text.iter_mut().enumerate() {
                    *byte = ALPHABET[(random >> (6 * index)) as usize & 63];
                }
                Self(text)
            }
            /// Reads the eight characters; anything else is `None`.
            #[must_use]
            pub fn parse(text: &str) -> Option<Self> {
                let bytes: [u8; 8] = text.as_bytes().try_into().ok()?;
                bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_')).then_some(Self(bytes))
            }
            /// The eight characters.
            #[must_use]
            pub fn as_str(&self) -> &str {
                std::str::from_utf8(&self.0).expect("made of ASCII only")
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(self.as_str()) }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(self.as_str()) }
        }
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> { s.serialize_str(self.as_str()) }
        }
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(d)?;
                Self::parse(&text).ok_or_else(|| serde::de::Error::custom("expected eight characters of A–Z a–z 0–9 - _"))
            }
        }
    };
}

token! {
    /// The life of a channel's history; a new one begins when the old one was lost.
    Epoch
}
token! {
    /// Random mark of one publication: two histories that reuse an offset differ in it.
    Tag
}

impl Epoch {
    /// An epoch that no history has.
    pub const NONE: Epoch = Epoch(*b"--------");
}

/// Where a publication stands in its channel's history. `offset` 0 with [`Position::START_TAG`] is
/// the place before the first publication.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct Position {
    /// The history's life.
    pub epoch: Epoch,
    /// Grows by one a publication; the first has 1.
    pub offset: u64,
    /// The publication's mark.
    pub tag: Tag,
}

impl Position {
    /// The tag that stands for "nothing published yet" at offset 0.
    pub const START_TAG: Tag = Tag(*b"--------");
}

/// What a client says it has seen. A tag may be missing (trusted less, R3); an epoch that is not
/// one of ours is kept as `None` and never matches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Since {
    /// `None` when the text was not an epoch of this product.
    pub epoch: Option<Epoch>,
    /// The last offset seen.
    pub offset: u64,
    /// The last tag seen; `None` when the client gave none.
    pub tag: Option<Tag>,
    /// The client gave a tag that is not one of ours: certainly a fork.
    pub foreign_tag: bool,
}

impl Since {
    /// Builds from the texts a client sent.
    #[must_use]
    pub fn new(epoch: &str, offset: u64, tag: Option<&str>) -> Self {
        let parsed = tag.and_then(Tag::parse);
        Self {
            epoch: Epoch::parse(epoch),
            offset,
            tag: parsed,
            foreign_tag: tag.is_some() && parsed.is_none(),
        }
    }
}

impl From<Position> for Since {
    fn from(position: Position) -> Self {
        Self {
            epoch: Some(position.epoch),
            offset: position.offset,
            tag: Some(position.tag),
            foreign_tag: false,
        }
    }
}
