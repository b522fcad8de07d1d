//! Every key and channel of Redis that this product uses. Nobody else writes such a name.

use carillon_protocol::channel::escape_segment;
use carillon_protocol::{ChannelName, UserId};

use crate::NodeId;

#[derive(Clone, Debug)]
pub(super) struct Names {
    prefix: String,
    node: NodeId,
}

impl Names {
    pub(super) fn new(prefix: &str, node: &NodeId) -> Self {
        Self { prefix: prefix.to_owned(), node: node.clone() }
    }

    /// Pub/sub channel of a channel's publications. Braces cannot be part of a channel's name, so
    /// the hash tag is the whole name.
    pub(super) fn publications(&self, channel: &ChannelName) -> String {
        format!("{}:{{{channel}}}", self.prefix)
    }

    /// The channel's name of a pub/sub channel made by [`Names::publications`].
    pub(super) fn channel_of<'a>(&self, heard: &'a str) -> Option<&'a str> {
        heard.strip_prefix(&self.prefix)?.strip_prefix(":{")?.strip_suffix('}')
    }

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

    pub(super) fn nodes(&self) -> String {
        format!("{}:nodes", self.prefix)
    }

    /// A node's connections: id to user.
    pub(super) fn node_connections(&self, node: &str) -> String {
        format!("{}:n:{node}", self.prefix)
    }

    /// A user's connections: id to node.
    pub(super) fn user_connections(&self, user: &UserId) -> String {
        format!("{}:u:{{{}}}", self.prefix, escape_segment(user.as_str()))
    }

    pub(super) fn node_channel(&self, node: &NodeId) -> String {
        format!("{}:node:{node}", self.prefix)
    }

    pub(super) fn own_channel(&self) -> String {
        self.node_channel(&self.node)
    }

    pub(super) fn all_channel(&self) -> String {
        format!("{}:all", self.prefix)
    }

    pub(super) fn canary(&self) -> String {
        format!("{}:canary:{}", self.prefix, self.node)
    }

    pub(super) fn inbound(&self) -> String {
        format!("{}:inbound", self.prefix)
    }

    /// A key of presence; `redis/presence.rs` knows which.
    pub(super) fn presence(&self, key: &str) -> String {
        format!("{}:{key}", self.prefix)
    }

    pub(super) fn counter(&self, key: &str) -> String {
        format!("{}:c:{key}", self.prefix)
    }
}
