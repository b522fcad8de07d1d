//! Live connections of the whole cluster: look, list, disconnect.

use std::sync::Arc;

use carillon_protocol::{ConnectionId, UserId};

use super::{Connection, Core, NotFound, RealtimeError, Transport};
use crate::asking::node_of;
use crate::questions::{ConnectionFilter, ConnectionView, Question};
use crate::{SubscriptionId, Target};

/// Most connections of one page.
const LIMIT_MAX: usize = 1_000;

/// Which connections a list wants; all where nothing is said.
///
/// ```
/// use carillon_broker_client::realtime::{ConnectionsQuery, Transport};
///
/// let query = ConnectionsQuery::new().transport(Transport::Sse).channel("news").limit(50);
/// # let _ = query;
/// ```
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct ConnectionsQuery {
    filter: ConnectionFilter,
}

impl ConnectionsQuery {
    /// All, the first 1,000.
    pub fn new() -> Self {
        Self { filter: ConnectionFilter { limit: LIMIT_MAX, ..ConnectionFilter::default() } }
    }

    /// Of this user.
    pub fn user(mut self, user: &UserId) -> Self {
        self.filter.user = Some(user.as_str().to_owned());
        self
    }

    /// Of this transport.
    pub fn transport(mut self, transport: Transport) -> Self {
        self.filter.transport = Some(transport.as_str().to_owned());
        self
    }

    /// Subscribed to this channel.
    pub fn channel(mut self, channel: impl Into<String>) -> Self {
        self.filter.channel = Some(channel.into());
        self
    }

    /// At most so many, 1 to 1,000.
    pub fn limit(mut self, limit: usize) -> Self {
        self.filter.limit = limit.clamp(1, LIMIT_MAX);
        self
    }

    /// Those after the last one of another page.
    pub fn after(mut self, connection: &ConnectionId) -> Self {
        self.filter.after = Some(connection.as_str().to_owned());
        self
    }
}

/// See the module. Cheap to clone.
///
/// ```
/// # use carillon_broker_client::MemoryCluster;
/// # use carillon_broker_client::realtime::{ConnectionsQuery, NotFound, Realtime, RealtimeError};
/// # use carillon_protocol::{ConnectionId, UserId};
/// # let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
/// # runtime.block_on(async {
/// # let realtime = Realtime::memory(&MemoryCluster::new());
/// let connections = realtime.connections();
/// let jane = UserId::new("user-456")?;
/// // No node, no connection:
/// assert!(connections.list(ConnectionsQuery::new().user(&jane)).await?.is_empty());
/// assert_eq!(connections.disconnect_user(&jane).await?, 0);
/// let unknown = connections.find(&ConnectionId::new("connection-123")?).await;
/// assert_eq!(unknown, Err(RealtimeError::NotFound(NotFound::Connection)));
/// # realtime.close().await;
/// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
/// ```
#[derive(Clone)]
pub struct ConnectionService {
    core: Arc<Core>,
}

impl ConnectionService {
    pub(super) fn of(core: &Arc<Core>) -> Self {
        Self { core: Arc::clone(core) }
    }

    /// One live connection, with the persistent subscriptions that act on it.
    ///
    /// # Errors
    /// [`NotFound::Connection`]; [`RealtimeError::Unavailable`].
    pub async fn find(&self, id: &ConnectionId) -> Result<Connection, RealtimeError> {
        let missing = RealtimeError::NotFound(NotFound::Connection);
        let Some(node) = node_of(id) else { return Err(missing) };
        let question = Question::Connection(id.clone());
        let found: Vec<Option<ConnectionView>> =
            self.core.asker.ask(&Target::Node(node), question).await?;
        let seen = found.into_iter().flatten().next().and_then(Connection::seen);
        let mut connection = seen.ok_or(missing)?;
        if let Some(user) = &connection.user_id {
            connection.subscriptions = self.active(user).await?.into_iter().collect();
        }
        Ok(connection)
    }

    async fn active(&self, user: &UserId) -> Result<Vec<SubscriptionId>, RealtimeError> {
        let active = self.core.subscriptions.active_for(user).await?;
        Ok(active.into_iter().map(|subscription| subscription.id).collect())
    }

    /// A page of live connections, in order of id. Nodes that do not answer in time are left out.
    ///
    /// # Errors
    /// [`RealtimeError::Unavailable`].
    pub async fn list(&self, query: ConnectionsQuery) -> Result<Vec<Connection>, RealtimeError> {
        let limit = query.filter.limit;
        let question = Question::Connections(query.filter);
        let found: Vec<Vec<ConnectionView>> = self.core.asker.ask(&Target::All, question).await?;
        let mut connections: Vec<Connection> =
            found.into_iter().flatten().filter_map(Connection::seen).collect();
        connections.sort_by(|one, other| one.id.cmp(&other.id));
        connections.truncate(limit);
        Ok(connections)
    }

    /// Closes one connection with 4403; an event stream is told not to come back for a minute.
    ///
    /// # Errors
    /// [`NotFound::Connection`]; [`RealtimeError::Unavailable`].
    pub async fn disconnect(&self, id: &ConnectionId) -> Result<(), RealtimeError> {
        let missing = RealtimeError::NotFound(NotFound::Connection);
        let Some(node) = node_of(id) else { return Err(missing) };
        let question = Question::Disconnect { connection: Some(id.clone()), user: None };
        match self.core.sum(&Target::Node(node), question).await? {
            0 => Err(missing),
            _ => Ok(()),
        }
    }

    /// Closes all connections of a user; how many.
    ///
    /// # Errors
    /// [`RealtimeError::Unavailable`].
    pub async fn disconnect_user(&self, user: &UserId) -> Result<u64, RealtimeError> {
        let question = Question::Disconnect { connection: None, user: Some(user.clone()) };
        self.core.sum(&Target::All, question).await
    }
}
