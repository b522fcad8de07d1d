//! What happened in a run, as storage, clients and the nemesis saw it, in order. The checker reads
//! nothing else. It must not know: the gateway.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Place of a message in a channel's history, as it stands on the wire.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) epoch: String,
    pub(crate) offset: u64,
    pub(crate) tag: String,
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.epoch, self.offset, self.tag)
    }
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    /// Storage took a message. `before` is the tag of the message in front of it; both are `None` on a
    /// channel without history.
    Appended { channel: String, id: String, place: Option<Place>, before: Option<String> },
    /// Storage lost the end of a channel's history.
    Forked { channel: String },
    /// Storage lost everything.
    Lost,
    /// A node died without a word.
    Killed { node: usize },
    /// A client read the acknowledgement of its publish from a node.
    Acknowledged { channel: String, id: String, place: Option<Place>, node: usize },
    /// A client's connection is over for it; what it had subscribed to it will resume.
    Gone { client: usize },
    /// A client read `subscribed`. `since` is the position that it had given.
    Subscribed {
        client: usize,
        channel: String,
        since: Option<Place>,
        place: Option<Place>,
        recovered: bool,
        reason: String,
    },
    /// A client read `unsubscribed`.
    Unsubscribed { client: usize, channel: String },
    /// A client read a message.
    Delivered { client: usize, channel: String, id: String, place: Option<Place> },
    /// A client read `resync`.
    Resynced { client: usize, channel: String, place: Option<Place>, reason: String },
}

/// What is true when everything was quiet and whole for a while.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rest {
    /// Where each channel with history stands in storage.
    pub(crate) tops: BTreeMap<String, Place>,
    /// Channels that each client wants to hear.
    pub(crate) wanted: BTreeMap<usize, BTreeSet<String>>,
    /// Connections that each user's clients hold, and how many the cluster counts.
    pub(crate) connections: BTreeMap<String, (u64, u64)>,
    /// The same over all users, as the nodes' records add up.
    pub(crate) connections_of_nodes: (u64, u64),
    /// Users who joined each resource and did not leave, and who is listed there.
    pub(crate) present: BTreeMap<String, (BTreeSet<String>, BTreeSet<String>)>,
    /// Users who are connected, and whom the cluster shows as online.
    pub(crate) online: (BTreeSet<String>, BTreeSet<String>),
}

/// What the checker must know of the channels.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rules {
    /// Messages that each channel's history keeps.
    pub(crate) history_size: BTreeMap<String, u64>,
}
