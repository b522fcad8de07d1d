//! Ids of stored things. Ours sort by the time they were made; any other text finds nothing.

use std::fmt;
use std::sync::Arc;

use carillon_protocol::ids::{ID_BYTES_MAX, InvalidId};

use super::Moment;

const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";

/// Nine digits of time (until the year 5188) and eleven random ones (56 bits).
pub(crate) fn sortable(now: Moment) -> String {
    use rand::Rng;
    let mut text = [b'0'; 20];
    let mut ms = now.unix_ms().max(0).unsigned_abs();
    for digit in text[..9].iter_mut().rev() {
        *digit = DIGITS[(ms % 36) as usize];
        ms /= 36;
    }
    let mut rng = rand::rng();
    for digit in &mut text[9..] {
        *digit = DIGITS[rng.random_range(0..36)];
    }
    text.iter().map(|&byte| char::from(byte)).collect()
}

/// The same on every node and in every version: it decides where a key lives.
pub(crate) fn spread(text: &str) -> u32 {
    // FNV-1a, 32 bits.
    text.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// Two digits that name one of 1,296 buckets.
pub(crate) fn bucket_digits(bucket: u32) -> String {
    [bucket / 36 % 36, bucket % 36].iter().map(|&at| char::from(DIGITS[at as usize])).collect()
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Takes the text if the contract allows it as an id.
            ///
            /// # Errors
            /// When it is empty, too long or holds control characters.
            pub fn new(text: &str) -> Result<Self, InvalidId> {
                if text.is_empty() || text.len() > ID_BYTES_MAX || text.chars().any(char::is_control) {
                    return Err(InvalidId { what: $what });
                }
                Ok(Self(text.into()))
            }

            pub(crate) fn made(text: &str) -> Self {
                Self(text.into())
            }

            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                Self::new(&text).map_err(serde::de::Error::custom)
            }
        }
    };
}

id! {
    /// A stored notification.
    NotificationId "a notification id"
}
id! {
    /// A persistent subscription.
    SubscriptionId "a subscription id"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_sort_by_the_time_they_were_made() {
        let early = sortable(Moment::from_unix_ms(1_700_000_000_000));
        let late = sortable(Moment::from_unix_ms(1_700_000_000_001));
        assert_eq!((early.len(), late.len()), (20, 20));
        assert!(early < late);
        assert_ne!(early, sortable(Moment::from_unix_ms(1_700_000_000_000)));
    }
}
