//! A moment: Unix milliseconds inside, RFC 3339 UTC outside.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A moment to the millisecond, in the years 0 to 9999. JSON: RFC 3339 in UTC, the
/// fraction only where it is not zero (`2025-04-16T10:30:00Z`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Moment(i64);

/// The text is no RFC 3339 time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be a time as RFC 3339 writes it, such as 2025-04-16T10:30:00Z")]
pub struct InvalidMoment;

impl Moment {
    /// 0000-01-01T00:00:00Z: RFC 3339 has four digits for the year.
    const MIN_MS: i64 = -62_167_219_200_000;
    /// 9999-12-30T22:00:00Z: the last that can be written in every zone.
    const MAX_MS: i64 = 253_402_207_200_000;

    /// From Unix milliseconds; beyond the range, the nearest end of it.
    #[must_use]
    pub fn from_unix_ms(unix_ms: i64) -> Self {
        Self(unix_ms.clamp(Self::MIN_MS, Self::MAX_MS))
    }

    /// Unix milliseconds.
    #[must_use]
    pub fn unix_ms(self) -> i64 {
        self.0
    }

    /// So much later.
    #[must_use]
    pub fn after(self, time: Duration) -> Self {
        let ms = i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
        Self::from_unix_ms(self.0.saturating_add(ms))
    }
}

impl FromStr for Moment {
    type Err = InvalidMoment;

    fn from_str(text: &str) -> Result<Self, InvalidMoment> {
        // RFC 3339 has no `[zone]` suffix, which jiff would read.
        if text.contains('[') {
            return Err(InvalidMoment);
        }
        let read: jiff::Timestamp = text.parse().map_err(|_| InvalidMoment)?;
        Ok(Self::from_unix_ms(read.as_millisecond()))
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let moment = jiff::Timestamp::from_millisecond(self.0).map_err(|_| fmt::Error)?;
        // Three digits or none: not every reader of RFC 3339 takes another number of them.
        if self.0 % 1_000 == 0 { write!(f, "{moment}") } else { write!(f, "{moment:.3}") }
    }
}

impl fmt::Debug for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl serde::Serialize for Moment {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Moment {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_seconds_are_written_without_a_fraction_and_others_with_three_digits() {
        for text in ["2025-05-16T10:30:00Z", "2025-05-16T10:30:00.250Z", "1969-12-31T23:59:59Z"] {
            let moment: Moment = text.parse().expect("a moment");
            assert_eq!(moment.to_string(), text);
        }
        let moved: Moment = "2025-05-16T12:30:00+02:00".parse().expect("a moment");
        assert_eq!(moved.to_string(), "2025-05-16T10:30:00Z");
    }

    #[test]
    fn what_is_no_time_is_refused_and_the_ends_of_the_range_are_written() {
        for text in
            ["", "tomorrow", "2025-05-16", "2025-05-16T10:30:00", "2025-05-16T10:30:00Z[UTC]"]
        {
            assert_eq!(text.parse::<Moment>(), Err(InvalidMoment), "{text:?}");
        }
        for ms in [i64::MIN, i64::MAX] {
            let written = Moment::from_unix_ms(ms).to_string();
            assert!(written.ends_with('Z'), "{written}");
        }
    }
}
