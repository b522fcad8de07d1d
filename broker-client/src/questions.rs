//! What nodes and backends ask nodes, and the shapes of the answers. Plain data.

use carillon_protocol::publication::Exclude;
use carillon_protocol::{ChannelName, ConnectionId, UserId};

use crate::Revocation;

/// A message for connections rather than a channel.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Announcement {
    /// Message id, the same on every connection.
    pub id: String,
    /// Message type.
    pub kind: String,
    /// Payload, JSON text.
    pub payload: String,
    /// Unix milliseconds.
    pub timestamp_ms: i64,
    /// `meta`, JSON text (`retry` and `comment` of an event).
    pub meta: Option<String>,
}

/// Who hears an announcement.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Audience {
    /// These connections only; `None` for all.
    pub connections: Option<Vec<ConnectionId>>,
    /// Not these connections.
    pub exclude_connections: Vec<ConnectionId>,
    /// Not these users.
    pub exclude_users: Vec<UserId>,
    /// Event streams only.
    pub sse_only: bool,
}

impl Audience {
    /// Everybody but the excluded.
    #[must_use]
    pub fn all_but(exclude: Exclude) -> Self {
        Self {
            exclude_connections: exclude.connections,
            exclude_users: exclude.users,
            ..Self::default()
        }
    }

    /// One connection.
    #[must_use]
    pub fn one(connection: ConnectionId) -> Self {
        Self { connections: Some(vec![connection]), ..Self::default() }
    }
}

/// Which connections a list wants.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct ConnectionFilter {
    /// Of this user.
    pub user: Option<String>,
    /// Of this transport.
    pub transport: Option<String>,
    /// Dressed in this profile.
    #[serde(default)]
    pub profile: Option<String>,
    /// On the node of this name.
    #[serde(default)]
    pub node: Option<String>,
    /// Subscribed to this channel.
    pub channel: Option<String>,
    /// Ids greater than this.
    pub after: Option<String>,
    /// At most so many, in order of id.
    pub limit: usize,
}

/// A connection as lists show it.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct ConnectionView {
    /// Its id.
    pub id: String,
    /// Its user; null when anonymous.
    pub user_id: Option<String>,
    /// `websocket`, `sse` or `poll`.
    pub transport: String,
    /// The profile's name.
    pub profile: String,
    /// The node's name.
    pub node: String,
    /// RFC 3339.
    pub connected_at: String,
    /// Its address, as trusted proxies say it; absent from nodes that do not know.
    #[serde(default)]
    pub remote: Option<String>,
    /// Channels it is subscribed to.
    pub channels: Vec<String>,
}

/// A channel and its listeners.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct ChannelCount {
    /// The channel.
    pub channel: String,
    /// Connections that listen.
    pub subscribers: u64,
}

/// What one node asks another. The answer's type is named with each.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub enum Question {
    /// Deliver this: `u64`, connections reached.
    Announce(Announcement, Audience),
    /// Close these with 4403: `u64`, connections closed.
    Disconnect {
        /// This connection, or
        connection: Option<ConnectionId>,
        /// all of this user's.
        user: Option<UserId>,
    },
    /// The user's event streams do not come back for a minute (R26); no answer.
    Banish(UserId),
    /// What was heard for a poll that ended and may go on here: `Vec<Vec<String>>`, the documents that
    /// each of those heard who lingered for it.
    TakeLinger {
        /// Who polls.
        user: UserId,
        /// The poll number that goes on.
        id: u64,
    },
    /// The user, who polls, leaves a resource; no answer.
    PollerLeaves {
        /// Who polls.
        user: UserId,
        /// The presence channel.
        resource: ChannelName,
    },
    /// Channels in order of name: `Vec<ChannelCount>`.
    Channels {
        /// Names that begin with it.
        prefix: String,
        /// Names greater than this.
        after: Option<String>,
        /// At most so many.
        limit: usize,
    },
    /// Listeners of one channel: `u64`.
    Listeners(String),
    /// Connections in order of id: `Vec<ConnectionView>`.
    Connections(ConnectionFilter),
    /// A user's persistent subscriptions are about to change; no answer. Whoever changes them may die before it can say
    /// that it did.
    SubscriptionsChanging(UserId),
    /// A user's persistent subscriptions changed; no answer.
    SubscriptionsChanged(UserId),
    /// Tokens were revoked; the version before and after: `u64`, connections closed.
    Revoked(Revocation, u64, u64),
    /// There is something in the notifications' outbox; no answer.
    OutboxFilled,
    /// One connection: `Option<ConnectionView>`.
    Connection(ConnectionId),
}
