//! The services of the uno document for an application's backend, over the same Redis as the nodes and
//! without HTTP: notifications, persistent subscriptions, connections, messages to WebSockets, and
//! server-sent events.
//!
//! What is stored here acts on live connections as if it had come by REST: nodes are told. Every
//! future may be dropped at any await; a change may then have happened or not.
//!
//! ```
//! use carillon_broker_client::realtime::{NotFound, Realtime, RealtimeError};
//! use carillon_broker_client::{MemoryCluster, NewNotification, NotificationType};
//! use carillon_protocol::UserId;
//!
//! # let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
//! # runtime.block_on(async {
//! // Over Redis: `Realtime::redis(settings, RealtimeOptions::default())`.
//! let realtime = Realtime::memory(&MemoryCluster::new());
//! let (jane, bob) = (UserId::new("user-456")?, UserId::new("user-789")?);
//!
//! let notifications = realtime.notifications();
//! let new = NewNotification::new("New message", "You have a new message", [jane.clone()])
//!     .kind(NotificationType::MESSAGE);
//! let stored = notifications.create(new).await?;
//! assert_eq!(notifications.unread_count(&jane).await?, 1);
//! assert!(notifications.mark_read(&jane, &stored.id).await?.is_read_by(&jane));
//!
//! // One error for all services: each variant is a different act for the caller.
//! let refused = notifications.mark_read(&bob, &stored.id).await;
//! assert_eq!(refused, Err(RealtimeError::NotFound(NotFound::Notification)));
//! realtime.close().await;
//! # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
//! ```
//!
//! What it must not know: who may do what (a backend may do all), HTTP, sockets.

mod connection;
mod connections;
mod error;
mod event;
mod events;
mod message;
mod notifications;
mod subscriptions;
mod websocket;

use std::sync::Arc;
use std::time::Duration;

use carillon_protocol::publication::Exclude;
use carillon_protocol::{ChannelName, MessageId, Payload, Publication, UserId};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use connection::{Connection, ConnectionState, Transport};
pub use connections::{ConnectionService, ConnectionsQuery};
pub use error::{NotFound, RealtimeError};
pub use event::{Event, EventPriority, NewEvent};
pub use events::EventService;
pub use message::{Message, MessageType};
pub use notifications::NotificationService;
pub use subscriptions::SubscriptionService;
pub use websocket::WebSocketService;

use crate::asking::{Asker, Letter};
use crate::questions::Question;
use crate::{
    Broker, Clock, Events, MemoryCluster, MemoryNotifications, MemorySubscriptions, NodeId,
    NotificationLimits, NotificationStore, Publish, RedisBroker, RedisCommands, RedisNotifications,
    RedisSettings, RedisSubscriptions, Retention, SubscriptionLimits, SubscriptionStore, Target,
};

/// What a backend must agree on with the nodes' configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RealtimeOptions {
    /// History of user channels: the namespace `user:{id}`.
    pub user_history: Retention,
}

impl Default for RealtimeOptions {
    /// As shipped: 1,000 messages, 24 hours.
    fn default() -> Self {
        Self { user_history: Retention { size: 1_000, age: Duration::from_secs(24 * 3600) } }
    }
}

/// All services over one broker. Cheap to clone; ends with [`Realtime::close`], or when the last clone
/// and the last service are dropped.
#[derive(Clone)]
pub struct Realtime {
    core: Arc<Core>,
}

/// What the services share.
struct Core {
    broker: Arc<dyn Broker>,
    asker: Asker,
    notifications: Arc<dyn NotificationStore>,
    subscriptions: Arc<dyn SubscriptionStore>,
    options: RealtimeOptions,
    redis: Option<RedisBroker>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Drop for Core {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Realtime {
    /// Over the nodes' Redis, with the same prefix. Begins to connect and returns at once; calls fail
    /// as [`RealtimeError::Unavailable`] until Redis was reached. Must be called inside a tokio runtime.
    #[must_use]
    pub fn redis(settings: RedisSettings, options: RealtimeOptions) -> Self {
        let (broker, events) = RedisBroker::connect_backend(settings);
        let commands: Arc<dyn RedisCommands> = Arc::new(broker.clone());
        let notifications = RedisNotifications::new(
            Arc::clone(&commands),
            NotificationLimits::default(),
            Clock::system(),
        );
        let subscriptions =
            RedisSubscriptions::new(commands, SubscriptionLimits::default(), Clock::system());
        Self::start(
            Arc::new(broker.clone()),
            events,
            (Arc::new(notifications), Arc::new(subscriptions)),
            options,
            Some(broker),
        )
    }

    /// Over an embedded cluster, with stores of its own: for tests of an application. Must be called
    /// inside a tokio runtime.
    #[must_use]
    pub fn memory(cluster: &MemoryCluster) -> Self {
        Self::memory_with(
            cluster,
            Arc::new(MemoryNotifications::default()),
            Arc::new(MemorySubscriptions::default()),
        )
    }

    /// The same with stores that nodes in this process share.
    #[must_use]
    pub fn memory_with(
        cluster: &MemoryCluster,
        notifications: Arc<dyn NotificationStore>,
        subscriptions: Arc<dyn SubscriptionStore>,
    ) -> Self {
        let (broker, events) = cluster.join_backend(NodeId::random());
        let stores = (notifications, subscriptions);
        Self::start(Arc::new(broker), events, stores, RealtimeOptions::default(), None)
    }

    fn start(
        broker: Arc<dyn Broker>,
        events: Events,
        (notifications, subscriptions): (Arc<dyn NotificationStore>, Arc<dyn SubscriptionStore>),
        options: RealtimeOptions,
        redis: Option<RedisBroker>,
    ) -> Self {
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let asker = Asker::new(Arc::clone(&broker));
        tasks.spawn(read_mail(asker.clone(), events, stop.clone()));
        let core =
            Core { broker, asker, notifications, subscriptions, options, redis, tasks, stop };
        Self { core: Arc::new(core) }
    }

    /// Notifications: create, list, count, mark read.
    #[must_use]
    pub fn notifications(&self) -> NotificationService {
        NotificationService::of(&self.core)
    }

    /// Persistent subscriptions.
    #[must_use]
    pub fn subscriptions(&self) -> SubscriptionService {
        SubscriptionService::of(&self.core)
    }

    /// Live connections of the cluster, all transports.
    #[must_use]
    pub fn connections(&self) -> ConnectionService {
        ConnectionService::of(&self.core)
    }

    /// Messages to connections, users, everybody.
    #[must_use]
    pub fn websocket(&self) -> WebSocketService {
        WebSocketService::of(&self.core)
    }

    /// Server-sent events.
    #[must_use]
    pub fn events(&self) -> EventService {
        EventService::of(&self.core)
    }

    /// Ends the connections and waits for their tasks. Calls fail from now on.
    pub async fn close(&self) {
        self.core.stop.cancel();
        self.core.tasks.close();
        self.core.tasks.wait().await;
        if let Some(redis) = &self.core.redis {
            redis.close().await;
        }
    }
}

impl std::fmt::Debug for Realtime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Realtime").field("options", &self.core.options).finish_non_exhaustive()
    }
}

/// Takes the nodes' answers in, until `stop`.
async fn read_mail(asker: Asker, mut events: Events, stop: CancellationToken) {
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            () = stop.cancelled() => None,
        };
        match event {
            None => return,
            Some(crate::Event::Told(bytes)) => match Letter::read(&bytes) {
                Ok(Letter::Answer { number, answer }) => asker.answered(number, answer),
                // A backend holds no connections: it has nothing to answer.
                Ok(Letter::Ask { .. } | Letter::Tell { .. }) => {}
                Err(error) => tracing::debug!(%error, "a node's answer cannot be read"),
            },
            // It hears no channel, and who asked waits no longer than its patience.
            Some(
                crate::Event::Publication(_)
                | crate::Event::Renewed(_)
                | crate::Event::Interrupted
                | crate::Event::Restored,
            ) => {}
        }
    }
}

impl Core {
    /// Asks nodes, and adds up the numbers that they answer.
    async fn sum(&self, target: &Target, question: Question) -> Result<u64, RealtimeError> {
        let counts: Vec<u64> = self.asker.ask(target, question).await?;
        Ok(counts.iter().sum())
    }

    /// Publishes on a user's stream: all their connections hear it, and those to come within the history.
    async fn to_user(
        &self,
        user: &UserId,
        id: MessageId,
        kind: &str,
        payload: Payload,
        exclude: Exclude,
    ) -> Result<crate::Receipt, RealtimeError> {
        let channel = ChannelName::user_stream(user.as_str())
            .ok_or_else(|| RealtimeError::invalid("user_id", "is too long for a channel name"))?;
        let publication = Publication {
            channel,
            position: None,
            previous_tag: None,
            stamp: 0,
            id,
            kind: kind.into(),
            timestamp_ms: Clock::system().now().unix_ms(),
            user_id: None,
            meta: None,
            exclude,
            expires_at_ms: None,
            traceparent: None,
            payload,
        };
        let retention = Some(self.options.user_history);
        Ok(self.broker.publish(Publish { publication, retention, idempotency: None }).await?)
    }
}

/// A new message id: UUIDv7.
fn message_id() -> MessageId {
    MessageId::new(&uuid::Uuid::now_v7().to_string()).expect("36 ASCII characters")
}
