//! What the application's backends are told: messages that clients address to it and lifecycle events, in one
//! stream called `inbound`. Source: `channels.md` 6.
//!
//! * A lifecycle event has the next `sequence` number, from 1. A backend that finds a hole missed something; a number
//!   that went back says that the broker lost its data. Messages carry none.
//! * An event is told once over the cluster, in the same step as the change that it tells of. What a dead node left
//!   open is closed by whoever sweeps the node ([`crate::PresenceStore::tend`]). With several Redis servers
//!   (`shards`, `cluster`) presence and status live elsewhere than the stream: there the event follows the change, and
//!   a node that dies between the two leaves it untold.
//! * A reader belongs to a group, and each entry goes to one consumer of a group until it is acknowledged. A group
//!   begins with the oldest entry that the stream still holds.
//! * The stream is trimmed to about [`INBOUND_MAX`] entries, dead letters to [`DEAD_LETTERS_MAX`].
//!
//! What it must not know: sockets, HTTP, how an entry is signed or sent.

mod consumer;

use std::time::Duration;

use async_trait::async_trait;
use carillon_protocol::{ChannelName, ConnectionId};

use crate::BrokerError;

pub use consumer::InboundConsumer;

/// Entries of the `inbound` stream, roughly.
pub const INBOUND_MAX: u32 = 100_000;

/// Entries that could not be delivered by webhook and are kept, roughly.
pub const DEAD_LETTERS_MAX: u32 = 10_000;

macro_rules! event_kinds {
    ($($variant:ident $name:literal $meaning:literal;)*) => {
        /// A kind of lifecycle event. Its name is its switch's in the configuration and its `type` on the stream.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum EventKind { $(#[doc = $meaning] $variant,)* }

        impl EventKind {
            /// Every kind.
            pub const ALL: &'static [EventKind] = &[$(EventKind::$variant,)*];

            /// The name.
            #[must_use]
            pub const fn name(self) -> &'static str { match self { $(EventKind::$variant => $name,)* } }
        }
    };
}

event_kinds! {
    ChannelOccupied "channel_occupied" "A channel has a listener, after it had none in the cluster.";
    ChannelVacated "channel_vacated" "A channel's last listener in the cluster is gone.";
    PresenceJoin "presence_join" "A user is at a resource.";
    PresenceLeave "presence_leave" "A user is no more at a resource.";
    UserOnline "user_online" "A user's first connection.";
    UserOffline "user_offline" "A user's last connection is gone, and did not come back in time.";
    ConnectionOpened "connection_opened" "A connection began.";
    ConnectionClosed "connection_closed" "A connection ended, or its node did.";
}

/// Some kinds of events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventKinds(u8);

impl EventKinds {
    /// None.
    pub const NONE: EventKinds = EventKinds(0);

    /// These and one more.
    #[must_use]
    pub const fn with(self, kind: EventKind) -> Self {
        Self(self.0 | 1 << kind as u8)
    }

    /// Whether a kind is among them.
    #[must_use]
    pub const fn contains(self, kind: EventKind) -> bool {
        self.0 & 1 << kind as u8 != 0
    }

    /// As a number, for an atomic.
    pub(crate) const fn bits(self) -> u8 {
        self.0
    }

    pub(crate) const fn from_bits(bits: u8) -> Self {
        Self(bits)
    }
}

impl FromIterator<EventKind> for EventKinds {
    fn from_iter<I: IntoIterator<Item = EventKind>>(kinds: I) -> Self {
        kinds.into_iter().fold(Self::NONE, Self::with)
    }
}

/// What a node has to report of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Happening {
    /// A connection began.
    Opened {
        /// Which.
        connection: ConnectionId,
        /// The event's data: a JSON object. Also the beginning of what is told should this node die.
        about: String,
    },
    /// A connection ended.
    Closed {
        /// Which.
        connection: ConnectionId,
        /// The event's data: a JSON object.
        about: String,
    },
    /// Somebody on this node listens to a channel.
    Occupied(ChannelName),
    /// Nobody on this node listens to it any more.
    Vacated(ChannelName),
    /// Things happened that are not known any more: a number of the sequence is left out, so that backends see a hole.
    Lost,
}

/// An entry as a consumer gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InboundMessage {
    /// Its place in the stream; acknowledge it with this.
    pub id: String,
    /// Whether it is a lifecycle event; otherwise a client's message. A client cannot make an event.
    pub is_event: bool,
    /// Message type, or the event's name.
    pub kind: String,
    /// Number of an event.
    pub sequence: Option<u64>,
    /// The whole entry as JSON text: a message is `{kind, type, id, user_id, connection_id, channel, payload, timestamp}`,
    /// an event `{kind, type, sequence, timestamp, data}`.
    pub json: String,
    /// How often it was handed out, this time included.
    pub deliveries: u64,
}

impl InboundMessage {
    /// Reads the entry.
    ///
    /// # Errors
    /// It has another shape than `T`.
    pub fn read<T: serde::de::DeserializeOwned>(&self) -> serde_json::Result<T> {
        serde_json::from_str(&self.json)
    }
}

/// Which entries a consumer wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InboundFrom {
    /// Those that nobody of the group had.
    New,
    /// Those that this consumer had and has not acknowledged, after an id (`0` for all).
    Own(String),
    /// Those that any consumer of the group has had for so long without acknowledging them.
    Abandoned(Duration),
}

/// A consumer's question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InboundRead {
    /// The group; made when it is read first.
    pub group: String,
    /// The consumer's name in the group.
    pub consumer: String,
    /// At most so many entries.
    pub limit: usize,
    /// Which.
    pub from: InboundFrom,
}

/// See the module. Part of [`crate::Broker`].
#[async_trait]
pub trait ApplicationStore: Send + Sync + 'static {
    /// Which events this node tells from now on; none before. All nodes of a cluster should agree.
    fn tell_events(&self, kinds: EventKinds);

    /// Tells what happened on this node, in order. A connection or channel stands in it once, so that repeating the
    /// call after an error is safe.
    async fn report(&self, happenings: &[Happening]) -> Result<(), BrokerError>;

    /// Hands out entries, oldest first, without waiting for new ones.
    async fn read_inbound(&self, read: &InboundRead) -> Result<Vec<InboundMessage>, BrokerError>;

    /// Entries are done. Idempotent.
    async fn ack_inbound(&self, group: &str, ids: &[String]) -> Result<(), BrokerError>;

    /// An entry is given up: acknowledged, and kept among the dead letters with the reason.
    async fn bury_inbound(
        &self,
        group: &str,
        message: &InboundMessage,
        reason: &str,
    ) -> Result<(), BrokerError>;

    /// The newest dead letters with their reasons, oldest first.
    async fn dead_letters(
        &self,
        limit: usize,
    ) -> Result<Vec<(InboundMessage, String)>, BrokerError>;

    /// Takes or keeps a lease of the cluster for this node; `false` while another node has it.
    async fn hold_lease(&self, name: &str, lease: Duration) -> Result<bool, BrokerError>;

    /// Gives a lease back, if this node has it.
    async fn release_lease(&self, name: &str) -> Result<(), BrokerError>;
}

/// The data of `channel_occupied` and `channel_vacated`.
pub(crate) fn channel_data(channel: &ChannelName) -> String {
    serde_json::json!({"channel": channel}).to_string()
}

/// The data of `connection_closed` for a connection whose node died.
pub(crate) fn lost_data(opened: &str) -> String {
    let object = opened.strip_suffix('}').unwrap_or("{");
    let comma = if object.ends_with('{') { "" } else { "," };
    format!("{object}{comma}\"reason\":\"node lost\"}}")
}

/// The data of `presence_join` and `presence_leave`; `member` is JSON.
pub(crate) fn member_data(resource: &ChannelName, member: &str) -> String {
    format!("{{\"channel\":{},\"user\":{member}}}", serde_json::json!(resource))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_bit_of_its_own() {
        let mut kinds = EventKinds::NONE;
        for kind in EventKind::ALL {
            assert!(!kinds.contains(*kind));
            kinds = kinds.with(*kind);
            assert!(kinds.contains(*kind));
        }
        assert_eq!(EventKinds::from_bits(kinds.bits()), kinds);
    }

    #[test]
    fn a_lost_connection_is_told_with_what_was_known() {
        assert_eq!(lost_data(r#"{"a":1}"#), r#"{"a":1,"reason":"node lost"}"#);
        assert_eq!(lost_data("{}"), r#"{"reason":"node lost"}"#);
        assert_eq!(lost_data(""), r#"{"reason":"node lost"}"#);
    }
}
