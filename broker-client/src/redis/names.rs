//! Every key and channel of Redis that this product uses. Nobody else writes such a name. What stands in
//! braces decides the cluster slot, and the shard.

use carillon_protocol::channel::escape_segment;
use carillon_protocol::{ChannelName, UserId};

use crate::NodeId;

#[derive(Clone, Debug)]
pub(super) struct Names {
    prefix: String,
    node: NodeId,
}

/// Hash tag of what the nodes share.
pub(super) const NODES: &str = "nodes";
/// Hash tag of the channel that every node hears.
pub(super) const ALL: &str = "all";

impl Names {
    /// The prefix of every key and channel.
    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Braces in the prefix would become the hash tag of every key: they are written `_`.
    pub(super) fn new(prefix: &str, node: &NodeId) -> Self {
        Self { prefix: prefix.replace(['{', '}'], "_"), node: node.clone() }
    }

    /// Pub/sub channel of a channel's publications. Braces cannot be part of a channel's name, so
    /// the hash tag is the whole name.
    pub(super) fn publications(&self, channel: &ChannelName) -> String {
        format!("{}:{{{channel}}}", self.prefix)
    }

    /// Epoch, tag, offset, size of a channel.
    pub(super) fn meta(&self, channel: &ChannelName) -> String {
        format!("{}:{{{channel}}}:m", self.prefix)
    }

    pub(super) fn history(&self, channel: &ChannelName) -> String {
        format!("{}:{{{channel}}}:h", self.prefix)
    }

    pub(super) fn idempotency(&self, channel: &ChannelName, sender: &str, key: &str) -> String {
        // The length keeps sender and key apart whatever they hold.
        format!("{}:{{{channel}}}:i:{}:{sender}:{key}", self.prefix, sender.len())
    }

    /// Node to Unix milliseconds of its last beat; with a `!` in front while it is swept.
    pub(super) fn beats(&self) -> String {
        format!("{}:{{{NODES}}}:beats", self.prefix)
    }

    /// Node to its record.
    pub(super) fn records(&self) -> String {
        format!("{}:{{{NODES}}}:records", self.prefix)
    }

    /// A node's connections: id to user.
    pub(super) fn node_connections(&self, node: &str) -> String {
        format!("{}:n:{{{node}}}", self.prefix)
    }

    /// A user's connections: id to node.
    pub(super) fn user_connections(&self, user: &UserId) -> String {
        format!("{}:u:{{{}}}", self.prefix, Self::user_tag(user))
    }

    /// Hash tag of a user's keys.
    pub(super) fn user_tag(user: &UserId) -> String {
        escape_segment(user.as_str())
    }

    pub(super) fn node_channel(&self, node: &NodeId) -> String {
        format!("{}:node:{{{node}}}", self.prefix)
    }

    pub(super) fn own_channel(&self) -> String {
        self.node_channel(&self.node)
    }

    pub(super) fn all_channel(&self) -> String {
        format!("{}:nodes:{{{ALL}}}", self.prefix)
    }

    pub(super) fn canary(&self, link: u64) -> String {
        format!("{}:canary:{}:{link}", self.prefix, self.node)
    }

    /// The mark of a server (`redis/mark.rs`).
    pub(super) fn mark(&self, tag: &str) -> String {
        format!("{}:mark:{{{tag}}}", self.prefix)
    }

    /// The stream that backends read. Its whole name is the hash tag of what goes with it.
    pub(super) fn inbound(&self) -> String {
        format!("{}:inbound", self.prefix)
    }

    /// A key in the slot of [`Names::inbound`]; `redis/application.rs` knows which.
    pub(super) fn beside_inbound(&self, key: &str) -> String {
        format!("{}:{key}:{{{}}}", self.prefix, self.inbound())
    }

    /// A key of revocations; `redis/revocations.rs` knows which.
    pub(super) fn revocations(&self, key: &str) -> String {
        format!("{}:{{{NODES}}}:revoked:{key}", self.prefix)
    }

    /// A user's poll answers, and the count of their polls.
    pub(super) fn polls(&self, user: &UserId) -> (String, String) {
        let key = format!("{}:polls:{{{}}}", self.prefix, Self::user_tag(user));
        let count = format!("{key}:c");
        (key, count)
    }

    /// A key of presence; `redis/presence.rs` knows which.
    pub(super) fn presence(&self, key: &str) -> String {
        format!("{}:{key}", self.prefix)
    }

    pub(super) fn counter(&self, key: &str) -> String {
        format!("{}:c:{{{}}}", self.prefix, escape_segment(key))
    }
}

/// The hash tag of a name that this file made.
pub(super) fn tag_of(name: &[u8]) -> &[u8] {
    let Some(open) = name.iter().position(|byte| *byte == b'{') else { return name };
    let after = &name[open + 1..];
    let close = after.iter().position(|byte| *byte == b'}').unwrap_or(after.len());
    &after[..close]
}
