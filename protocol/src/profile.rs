//! Profiles: how the same messages are dressed for clients of the source documents. `protocol.md` 1.

/// The dress of a connection's messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Profile {
    /// SocialHub: welcome `connect`, RFC 3339 times.
    Social,
    /// uno: welcome `connection`, RFC 3339 times, SSE data is the payload alone.
    Uno,
    /// DNR: no welcome, times in integer milliseconds.
    Dnr,
    /// ExCore: welcome `connected`, RFC 3339 times, SSE data is the payload alone.
    Excore,
}

impl Profile {
    /// Reads `profile=` from a query.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "social" => Self::Social,
            "uno" => Self::Uno,
            "dnr" => Self::Dnr,
            "excore" => Self::Excore,
            _ => return None,
        })
    }

    /// The name in queries, lists and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Social => "social",
            Self::Uno => "uno",
            Self::Dnr => "dnr",
            Self::Excore => "excore",
        }
    }

    /// Whether `timestamp` is integer Unix milliseconds instead of RFC 3339.
    #[must_use]
    pub const fn integer_time(self) -> bool {
        matches!(self, Self::Dnr)
    }

    /// Whether SSE `data:` is the payload alone instead of the whole envelope.
    #[must_use]
    pub const fn sse_payload_only(self) -> bool {
        matches!(self, Self::Uno | Self::Excore)
    }

    /// Whether pings on SSE are `event: ping` instead of a comment line.
    #[must_use]
    pub const fn sse_ping_event(self) -> bool {
        matches!(self, Self::Uno)
    }
}
