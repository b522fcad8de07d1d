//! Channel names and namespace patterns. Knows nothing of what a namespace permits.
//! Source: contract, `channels.md` 1 and ruling R13.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

/// The longest channel name, in bytes.
pub const CHANNEL_BYTES_MAX: usize = 255;

/// A channel name of 1–255 bytes of the contract's alphabet. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChannelName(Arc<str>);

/// The text is no channel name: wrong length or alphabet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a channel name is 1 to {CHANNEL_BYTES_MAX} bytes of A–Z a–z 0–9 _ - . : / @ = + ~ ! $ ; %"
)]
pub struct InvalidChannel;

const fn is_channel_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'_' | b'-'
                | b'.'
                | b':'
                | b'/'
                | b'@'
                | b'='
                | b'+'
                | b'~'
                | b'!'
                | b'$'
                | b';'
                | b'%'
        )
}

const fn is_plain_segment_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(byte, b'_' | b'-' | b'@' | b'=' | b'+' | b'~' | b'!' | b'$')
}

impl ChannelName {
    /// Takes the text if it is a channel name.
    pub fn new(text: &str) -> Result<Self, InvalidChannel> {
        if text.is_empty() || text.len() > CHANNEL_BYTES_MAX || !text.bytes().all(is_channel_byte) {
            return Err(InvalidChannel);
        }
        Ok(Self(text.into()))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The one stream of a user (R7): `user:{id}`, the id escaped by [`escape_segment`].
    /// `None` where the escaped id does not fit a channel name.
    #[must_use]
    pub fn user_stream(user: &str) -> Option<Self> {
        Self::new(&format!("user:{}", escape_segment(user))).ok()
    }
}

/// Writes a name as one segment: every byte outside `A–Z a–z 0–9 _ - @ = + ~ ! $` becomes `%XX`.
#[must_use]
pub fn escape_segment(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if is_plain_segment_byte(byte) {
            escaped.push(byte as char);
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

/// Undoes [`escape_segment`]; malformed escapes stay as they are.
#[must_use]
pub fn unescape_segment(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escaped = (bytes[at] == b'%')
            .then(|| text.get(at + 1..at + 3))
            .flatten()
            // `from_str_radix` alone would take a sign.
            .filter(|hex| hex.bytes().all(|digit| digit.is_ascii_hexdigit()))
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        if let Some(byte) = escaped {
            plain.push(byte);
            at += 3;
        } else {
            plain.push(bytes[at]);
            at += 1;
        }
    }
    String::from_utf8(plain).unwrap_or_else(|_| text.to_owned())
}

impl Borrow<str> for ChannelName {
    fn borrow(&self) -> &str {
        &self.0
    }
}
impl fmt::Display for ChannelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl fmt::Debug for ChannelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}
impl serde::Serialize for ChannelName {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.0)
    }
}
impl<'de> serde::Deserialize<'de> for ChannelName {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(d)?;
        Self::new(&text).map_err(serde::de::Error::custom)
    }
}

/// A namespace pattern: literal text, `{x}` for one segment (the last one of a pattern takes the
/// rest), `**` for the rest. Segments end at `:` or `.`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    text: String,
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Literal(String),
    Segment(String),
    Rest,
}

/// What a pattern's `{x}` matched, in order of appearance, already unescaped.
pub type Captures = smallvec::SmallVec<[(String, String); 2]>;

/// A pattern could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("pattern {pattern:?}: {problem}")]
pub struct InvalidPattern {
    /// The pattern as written.
    pub pattern: String,
    /// What is wrong with it.
    pub problem: &'static str,
}

impl Pattern {
    /// Reads a pattern as the configuration writes it.
    pub fn new(text: &str) -> Result<Self, InvalidPattern> {
        let fail = |problem| Err(InvalidPattern { pattern: text.to_owned(), problem });
        let mut parts = Vec::new();
        let mut rest = text;
        if rest.is_empty() {
            return fail("is empty");
        }
        while !rest.is_empty() {
            if let Some(after) = rest.strip_prefix("**") {
                if !after.is_empty() {
                    return fail("`**` must stand last");
                }
                parts.push(Part::Rest);
                rest = after;
            } else if let Some(after) = rest.strip_prefix('{') {
                let Some(end) = after.find('}') else { return fail("`{` without `}`") };
                let name = &after[..end];
                if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
                {
                    return fail("a placeholder is `{name}`");
                }
                parts.push(Part::Segment(name.to_owned()));
                rest = &after[end + 1..];
            } else {
                let end =
                    rest.find("**").into_iter().chain(rest.find('{')).min().unwrap_or(rest.len());
                let literal = &rest[..end];
                if !literal.bytes().all(is_channel_byte) {
                    return fail("holds a character that no channel name may hold");
                }
                parts.push(Part::Literal(literal.to_owned()));
                rest = &rest[end..];
            }
        }
        Ok(Self { text: text.to_owned(), parts })
    }

    /// The pattern as written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Matches a whole channel name; the captures of `{x}` parts, or `None`.
    /// `**` matches at least one byte, as does `{x}`.
    #[must_use]
    pub fn matches(&self, channel: &str) -> Option<Captures> {
        let mut captures = Captures::new();
        let mut rest = channel;
        for (index, part) in self.parts.iter().enumerate() {
            match part {
                Part::Literal(literal) => rest = rest.strip_prefix(literal.as_str())?,
                Part::Rest => {
                    return (!rest.is_empty()).then_some(captures);
                }
                Part::Segment(name) => {
                    let last = index + 1 == self.parts.len();
                    let end =
                        if last { rest.len() } else { rest.find([':', '.']).unwrap_or(rest.len()) };
                    if end == 0 {
                        return None;
                    }
                    captures.push((name.clone(), unescape_segment(&rest[..end])));
                    rest = &rest[end..];
                }
            }
        }
        rest.is_empty().then_some(captures)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn captured(pattern: &str, channel: &str) -> Option<Vec<String>> {
        let captures = Pattern::new(pattern).expect("pattern").matches(channel)?;
        Some(captures.into_iter().map(|(_, value)| value).collect())
    }

    #[test]
    fn names_keep_to_the_alphabet_and_length() {
        assert!(ChannelName::new("user:a-b_c.d/e@f=g+h~i!j$k;l%20").is_ok());
        assert!(ChannelName::new(&"x".repeat(255)).is_ok());
        for bad in ["", " ", "a b", "ü", "a\n", "a*", "a{b}", &"x".repeat(256)] {
            assert_eq!(ChannelName::new(bad), Err(InvalidChannel), "{bad:?}");
        }
    }

    #[test]
    fn a_last_placeholder_takes_the_rest_and_others_one_segment() {
        assert_eq!(
            captured("entity:{name}:{id}", "entity:Task:v1.2"),
            Some(vec!["Task".into(), "v1.2".into()])
        );
        assert_eq!(captured("user.{id}.**", "user.42.messages"), Some(vec!["42".into()]));
        assert_eq!(captured("user.{id}.**", "user.42."), None);
        assert_eq!(captured("user:{id}", "user:"), None);
        assert_eq!(captured("user:{id}", "user:a%3Ab"), Some(vec!["a:b".into()]));
        assert_eq!(captured("presence:**", "presence"), None);
        assert_eq!(captured("news", "newsy"), None);
    }

    #[test]
    fn escaping_round_trips() {
        for name in ["plain", "a:b.c/d", "ü%", "100%"] {
            assert_eq!(unescape_segment(&escape_segment(name)), name);
        }
        for malformed in ["%", "%4", "%+A", "%zz", "%ü"] {
            assert_eq!(unescape_segment(malformed), malformed);
        }
    }

    proptest::proptest! {
        #[test]
        fn a_user_stream_gives_the_user_back_whatever_they_are_called(user in "\\PC{1,60}") {
            let Some(stream) = ChannelName::user_stream(&user) else { return Ok(()) };
            proptest::prop_assert_eq!(captured("user:{id}", stream.as_str()), Some(vec![user.clone()]));
            let below = format!("{stream}:x");
            proptest::prop_assert_eq!(captured("user:{id}:**", &below), Some(vec![user]));
        }

        #[test]
        fn matching_never_panics_and_captures_nothing_empty(pattern in "[a-z:.{}*é]{1,20}", channel in "\\PC{0,40}") {
            let Ok(pattern) = Pattern::new(&pattern) else { return Ok(()) };
            for (_, value) in pattern.matches(&channel).into_iter().flatten() {
                proptest::prop_assert!(!value.is_empty());
            }
        }

        #[test]
        fn a_literal_pattern_matches_itself_alone(name in "[a-z:.]{1,20}", other in "[a-z:.]{1,20}") {
            proptest::prop_assert!(captured(&name, &name).is_some());
            proptest::prop_assert_eq!(captured(&name, &other).is_some(), name == other);
            let any_rest = format!("{name}**");
            proptest::prop_assert_eq!(captured(&any_rest, &other).is_some(), other.len() > name.len() && other.starts_with(&name));
        }
    }
}
