//! What was acknowledged, delivered and kept, as plain records: all that the judge ever sees.
//!
//! Knows no sockets, no clocks, no Carillon. Places are fingerprints: only their equality and the
//! order of offsets mean anything.

use std::hash::{DefaultHasher, Hash, Hasher};

/// Index of a channel in this run.
pub(crate) type Channel = u32;
/// Number of a message within its channel, given by who published it; unique for the run.
pub(crate) type Number = u32;

/// A place in a channel's history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Place {
    /// Which life of the channel.
    pub(crate) epoch: u64,
    /// Grows by one a message.
    pub(crate) offset: u64,
    /// The message's own mark; `None` where the server did not say.
    pub(crate) tag: Option<u64>,
}

impl Place {
    /// Of the texts that a server sends.
    pub(crate) fn of(epoch: &str, offset: u64, tag: Option<&str>) -> Self {
        Self { epoch: fingerprint(epoch), offset, tag: tag.map(fingerprint) }
    }
}

/// Equal for equal texts within one run.
pub(crate) fn fingerprint(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

/// One message that somebody published. Milliseconds count from the run's beginning.
#[derive(Debug, Clone)]
pub(crate) struct Published {
    pub(crate) channel: Channel,
    pub(crate) number: Number,
    /// When it was sent for the first time.
    pub(crate) sent_ms: u64,
    /// When it was sent for the last time: an acknowledgement answers that or an earlier one.
    pub(crate) sent_last_ms: u64,
    /// Where the server said that it stands.
    pub(crate) acknowledged: Option<Place>,
}

/// How a subscription began or went on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Beginning {
    /// The client gave no position: it has none.
    First,
    /// The client gave its position and was told that nothing is missing.
    Recovered,
    /// The client gave its position and was told, with this reason, that something may be missing.
    Refused(String),
}

/// What one client heard on one channel, in order.
#[derive(Debug, Clone)]
pub(crate) enum Heard {
    /// Delivery begins behind `place`; `None` where the transport does not say (the first long poll).
    Begun { at_ms: u64, place: Option<Place>, how: Beginning },
    /// A message.
    Message { number: Number, place: Place },
    /// The server said, mid-connection, that something may be missing up to `place`.
    Resync { at_ms: u64, place: Option<Place>, reason: String },
}

/// What one client heard on one channel.
#[derive(Debug, Clone)]
pub(crate) struct Lane {
    /// Who, and how connected: for the reader of a verdict.
    pub(crate) client: String,
    pub(crate) channel: Channel,
    pub(crate) heard: Vec<Heard>,
    /// The client was there to the end, so that it must have everything up to the top.
    pub(crate) stayed: bool,
}

/// What a channel's history holds when everything is at rest, oldest first.
#[derive(Debug, Clone)]
pub(crate) struct History {
    pub(crate) channel: Channel,
    pub(crate) epoch: u64,
    pub(crate) top: u64,
    pub(crate) messages: Vec<(Place, Number)>,
}

/// A count at rest.
#[derive(Debug, Clone)]
pub(crate) struct Count {
    pub(crate) what: String,
    pub(crate) expected: u64,
    pub(crate) found: u64,
}

/// Everything of one run.
#[derive(Debug, Clone, Default)]
pub(crate) struct Log {
    pub(crate) published: Vec<Published>,
    pub(crate) lanes: Vec<Lane>,
    pub(crate) histories: Vec<History>,
    pub(crate) counts: Vec<Count>,
    /// Users shown as present who left.
    pub(crate) ghosts: Vec<String>,
    /// Users who are present and not shown.
    pub(crate) missing: Vec<String>,
    /// When Redis lost data, oldest first. What was acknowledged before the last time may be gone.
    pub(crate) losses_ms: Vec<u64>,
}
