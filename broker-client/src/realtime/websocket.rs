//! Messages to one connection, to all of a user's, to everybody; with counts.

use std::sync::Arc;

use carillon_protocol::{ConnectionId, MessageId, UserId};

use super::{Core, Message, NotFound, RealtimeError, message_id};
use crate::asking::node_of;
use crate::questions::{Announcement, Audience, Question};
use crate::{Clock, Receipt, Target};

/// See the module. Cheap to clone. In spite of the document's name it reaches all transports.
///
/// ```
/// # use carillon_broker_client::MemoryCluster;
/// # use carillon_broker_client::realtime::{Message, NotFound, Realtime, RealtimeError};
/// # use carillon_protocol::{ConnectionId, UserId};
/// # let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
/// # runtime.block_on(async {
/// # let realtime = Realtime::memory(&MemoryCluster::new());
/// let websocket = realtime.websocket();
/// let connection = ConnectionId::new("connection-123")?;
/// match websocket.send(&connection, Message::text("Hello, client!")).await {
///     Ok(id) => println!("sent as {id}"),
///     Err(RealtimeError::NotFound(NotFound::Connection)) => println!("it has gone"),
///     Err(error) => println!("error: {error}"),
/// }
/// let reached = websocket.broadcast(Message::text("Hello, all!")).await?;
/// println!("broadcast to {reached} connections");
/// // Kept in the user's history, so that a connection that comes back hears it too.
/// let receipt = websocket.send_to_user(&UserId::new("user-456")?, Message::text("Hello!")).await?;
/// assert_eq!(receipt.position.map(|position| position.offset), Some(1));
/// # realtime.close().await;
/// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
/// ```
#[derive(Clone)]
pub struct WebSocketService {
    core: Arc<Core>,
}

impl WebSocketService {
    pub(super) fn of(core: &Arc<Core>) -> Self {
        Self { core: Arc::clone(core) }
    }

    /// Sends to one connection; the message's id.
    ///
    /// # Errors
    /// [`NotFound::Connection`]; [`RealtimeError::Unavailable`].
    pub async fn send(
        &self,
        connection: &ConnectionId,
        message: Message,
    ) -> Result<MessageId, RealtimeError> {
        let missing = RealtimeError::NotFound(NotFound::Connection);
        let Some(node) = node_of(connection) else { return Err(missing) };
        let (id, announcement, _) = announcement(message);
        let question = Question::Announce(announcement, Audience::one(connection.clone()));
        match self.core.sum(&Target::Node(node), question).await? {
            0 => Err(missing),
            _ => Ok(id),
        }
    }

    /// Sends to every connection of a user, and keeps it for those to come.
    ///
    /// # Errors
    /// [`RealtimeError::Invalid`] for a user whose id is too long; [`RealtimeError::Unavailable`].
    pub async fn send_to_user(
        &self,
        user: &UserId,
        message: Message,
    ) -> Result<Receipt, RealtimeError> {
        let (kind, payload, exclude) = message.into_parts();
        self.core.to_user(user, message_id(), kind.as_str(), payload, exclude).await
    }

    /// Sends to every connection of the cluster; how many it reached.
    ///
    /// # Errors
    /// [`RealtimeError::Unavailable`].
    pub async fn broadcast(&self, message: Message) -> Result<u64, RealtimeError> {
        let (_, announcement, audience) = announcement(message);
        self.core.sum(&Target::All, Question::Announce(announcement, audience)).await
    }
}

fn announcement(message: Message) -> (MessageId, Announcement, Audience) {
    let (kind, payload, exclude) = message.into_parts();
    let id = message_id();
    let announcement = Announcement {
        id: id.as_str().to_owned(),
        kind: kind.as_str().to_owned(),
        payload: payload.json_str().to_owned(),
        timestamp_ms: Clock::system().now().unix_ms(),
        meta: None,
    };
    (id, announcement, Audience::all_but(exclude))
}
