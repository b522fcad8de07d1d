//! Server-sent events: made, then sent to one stream, to a user's, or to many; with counts.

use std::sync::Arc;

use carillon_protocol::{ConnectionId, UserId};

use super::{Core, Event, NewEvent, NotFound, RealtimeError, Transport};
use crate::Target;
use crate::asking::node_of;
use crate::questions::{Audience, ConnectionFilter, ConnectionView, Question};

/// Event streams of one user that an event reaches at most; far over any limit a user.
const USER_STREAMS_MAX: usize = 1_000;

/// See the module. Cheap to clone.
///
/// ```
/// # use carillon_broker_client::MemoryCluster;
/// # use carillon_broker_client::realtime::{EventPriority, NewEvent, Realtime};
/// # use carillon_protocol::ConnectionId;
/// # let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
/// # runtime.block_on(async {
/// # let realtime = Realtime::memory(&MemoryCluster::new());
/// let events = realtime.events();
/// let event = events.create(
///     NewEvent::new("update", r#"{"resource_id":"post-789","action":"update"}"#)
///         .priority(EventPriority::Normal),
/// )?;
/// match events.send(&ConnectionId::new("connection-123")?, &event).await {
///     Ok(()) => println!("Event sent successfully"),
///     Err(error) => println!("Error: {error}"),
/// }
/// let reached = events.broadcast(&event, &[ConnectionId::new("connection-789")?]).await?;
/// println!("{reached} event streams");
/// # realtime.close().await;
/// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
/// ```
#[derive(Clone)]
pub struct EventService {
    core: Arc<Core>,
}

impl EventService {
    pub(super) fn of(core: &Arc<Core>) -> Self {
        Self { core: Arc::clone(core) }
    }

    /// Makes an event; nobody hears it yet.
    ///
    /// # Errors
    /// [`RealtimeError::Invalid`] for a name that stands for the server's own messages, or breaks the
    /// stream's lines.
    pub fn create(&self, new: NewEvent) -> Result<Event, RealtimeError> {
        new.made()
    }

    /// Sends to one event stream.
    ///
    /// # Errors
    /// [`NotFound::Connection`], also for a connection that is no event stream;
    /// [`RealtimeError::Unavailable`].
    pub async fn send(
        &self,
        connection: &ConnectionId,
        event: &Event,
    ) -> Result<(), RealtimeError> {
        let missing = RealtimeError::NotFound(NotFound::Connection);
        let Some(node) = node_of(connection) else { return Err(missing) };
        let audience = Audience { sse_only: true, ..Audience::one(connection.clone()) };
        match self.announce(&Target::Node(node), event, audience).await? {
            0 => Err(missing),
            _ => Ok(()),
        }
    }

    /// Sends to a user's event streams; how many it reached.
    ///
    /// # Errors
    /// [`RealtimeError::Unavailable`].
    pub async fn send_to_user(&self, user: &UserId, event: &Event) -> Result<u64, RealtimeError> {
        let streams = ConnectionFilter {
            user: Some(user.as_str().to_owned()),
            transport: Some(Transport::Sse.as_str().to_owned()),
            limit: USER_STREAMS_MAX,
            ..ConnectionFilter::default()
        };
        let found: Vec<Vec<ConnectionView>> =
            self.core.asker.ask(&Target::All, Question::Connections(streams)).await?;
        let streams: Vec<ConnectionId> = found
            .into_iter()
            .flatten()
            .filter_map(|view| ConnectionId::new(&view.id).ok())
            .collect();
        self.broadcast_to(event, streams, &[]).await
    }

    /// Sends to every event stream but these; how many it reached.
    ///
    /// # Errors
    /// [`RealtimeError::Unavailable`].
    pub async fn broadcast(
        &self,
        event: &Event,
        exclude: &[ConnectionId],
    ) -> Result<u64, RealtimeError> {
        let audience = Audience {
            exclude_connections: exclude.to_vec(),
            sse_only: true,
            ..Audience::default()
        };
        self.announce(&Target::All, event, audience).await
    }

    /// Sends to these event streams, each once, less `exclude`; how many it reached.
    ///
    /// # Errors
    /// [`RealtimeError::Unavailable`].
    pub async fn broadcast_to(
        &self,
        event: &Event,
        recipients: impl IntoIterator<Item = ConnectionId> + Send,
        exclude: &[ConnectionId],
    ) -> Result<u64, RealtimeError> {
        let recipients: std::collections::BTreeSet<ConnectionId> = recipients.into_iter().collect();
        let audience = Audience {
            connections: Some(recipients.into_iter().collect()),
            exclude_connections: exclude.to_vec(),
            sse_only: true,
            ..Audience::default()
        };
        self.announce(&Target::All, event, audience).await
    }

    async fn announce(
        &self,
        target: &Target,
        event: &Event,
        audience: Audience,
    ) -> Result<u64, RealtimeError> {
        self.core.sum(target, Question::Announce(event.announcement(), audience)).await
    }
}
