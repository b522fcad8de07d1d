//! The connection of the uno document: who is connected, how, and what they listen to.

use std::collections::BTreeSet;

use carillon_protocol::{ConnectionId, UserId};
use serde::{Deserialize, Serialize};

use crate::questions::ConnectionView;
use crate::{Moment, SubscriptionId};

/// How far a connection is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ConnectionState {
    /// It was accepted, and not greeted yet.
    #[default]
    Initializing,
    /// It is live.
    Connected,
    /// It is over.
    Disconnected,
}

/// How a connection is connected.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// WebSocket.
    WebSocket,
    /// Server-sent events.
    Sse,
    /// Long poll, while a poll is held.
    Poll,
}

impl Transport {
    /// The word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::WebSocket => "websocket",
            Self::Sse => "sse",
            Self::Poll => "poll",
        }
    }

    /// The transport of that name.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        [Self::WebSocket, Self::Sse, Self::Poll].into_iter().find(|it| it.as_str() == word)
    }
}

/// A connection, as it was when it was looked at.
///
/// ```
/// use carillon_broker_client::SubscriptionId;
/// use carillon_broker_client::realtime::{Connection, ConnectionState};
/// use carillon_protocol::{ConnectionId, UserId};
///
/// let mut connection = Connection::new(ConnectionId::new("connection-123")?);
/// assert_eq!(connection.state, ConnectionState::Initializing);
/// assert!(!connection.is_active() && !connection.is_authenticated());
///
/// connection.associate_user(UserId::new("user-456")?);
/// connection.update_state(ConnectionState::Connected);
/// assert!(connection.is_active() && connection.is_authenticated());
///
/// assert!(connection.add_subscription(SubscriptionId::new("subscription-789")?));
/// assert!(!connection.add_subscription(SubscriptionId::new("subscription-789")?));
/// # Ok::<(), carillon_protocol::ids::InvalidId>(())
/// ```
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Connection {
    /// Its id.
    pub id: ConnectionId,
    /// How far it is.
    pub state: ConnectionState,
    /// Its user; `None` when anonymous.
    pub user_id: Option<UserId>,
    /// How it is connected, once it is.
    pub transport: Option<Transport>,
    /// The profile that dresses its messages.
    pub profile: Option<String>,
    /// `node.id` of the node that holds it.
    pub node: Option<String>,
    /// Since when.
    pub connected_at: Option<Moment>,
    /// Channels it is subscribed to, in order of name.
    pub channels: BTreeSet<String>,
    /// The user's persistent subscriptions that act on it.
    pub subscriptions: BTreeSet<SubscriptionId>,
}

impl Connection {
    /// One that was just accepted.
    #[must_use]
    pub fn new(id: ConnectionId) -> Self {
        Self {
            id,
            state: ConnectionState::Initializing,
            user_id: None,
            transport: None,
            profile: None,
            node: None,
            connected_at: None,
            channels: BTreeSet::new(),
            subscriptions: BTreeSet::new(),
        }
    }

    /// As a node showed it; `None` for an id that no program of ours makes.
    pub(super) fn seen(view: ConnectionView) -> Option<Self> {
        Some(Self {
            id: ConnectionId::new(&view.id).ok()?,
            state: ConnectionState::Connected,
            user_id: view.user_id.and_then(|user| UserId::new(&user).ok()),
            transport: Transport::parse(&view.transport),
            profile: Some(view.profile),
            node: Some(view.node),
            connected_at: view.connected_at.parse().ok(),
            channels: view.channels.into_iter().collect(),
            subscriptions: BTreeSet::new(),
        })
    }

    /// It is this user's.
    pub fn associate_user(&mut self, user: UserId) {
        self.user_id = Some(user);
    }

    /// Changes the state.
    pub fn update_state(&mut self, state: ConnectionState) {
        self.state = state;
    }

    /// A persistent subscription acts on it; `false` when it did.
    pub fn add_subscription(&mut self, subscription: SubscriptionId) -> bool {
        self.subscriptions.insert(subscription)
    }

    /// A persistent subscription acts on it no more; `false` when it did not.
    pub fn remove_subscription(&mut self, subscription: &SubscriptionId) -> bool {
        self.subscriptions.remove(subscription)
    }

    /// Whether it is live.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.state == ConnectionState::Connected
    }

    /// Whether it has a user.
    #[must_use]
    pub fn is_authenticated(&self) -> bool {
        self.user_id.is_some()
    }
}
