//! Where the facts play: two nodes' handles of one fresh store, and a clock moved by hand.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use carillon_broker_client::{
    BrokerError, Clock, MemoryNotifications, MemorySubscriptions, Moment, NewNotification,
    Notification, NotificationLimits, NotificationQuery, NotificationStore, RedisCommands,
    RedisNotifications, RedisSubscriptions, ScriptCall, SubscriptionLimits, SubscriptionStore,
};
use carillon_protocol::UserId;
use redis::aio::MultiplexedConnection;
use redis::{Cmd, Value};

use crate::redis_server::RedisServer;

/// A wall clock that only the test moves. It begins at the present, so that Redis' own expiry lies ahead.
#[derive(Clone)]
pub(crate) struct HandClock(Arc<AtomicI64>);

impl HandClock {
    fn new() -> Self {
        Self(Arc::new(AtomicI64::new(Clock::system().now().unix_ms())))
    }

    pub(crate) fn clock(&self) -> Clock {
        let ms = self.0.clone();
        Clock::from_fn(move || Moment::from_unix_ms(ms.load(Ordering::SeqCst)))
    }

    pub(crate) fn now(&self) -> Moment {
        self.clock().now()
    }

    pub(crate) fn pass(&self, time: Duration) {
        self.0.fetch_add(i64::try_from(time.as_millis()).expect("a span"), Ordering::SeqCst);
    }
}

/// Bounds small enough to reach.
pub(crate) const LIMITS: NotificationLimits = NotificationLimits {
    recipients_max: 10_000,
    bytes_max: 64 * 1024,
    age_max: Duration::from_secs(30 * 24 * 3600),
    expired_kept: Duration::from_secs(3600),
    entries_max: 200,
};

/// Bounds small enough to reach.
pub(crate) const SUBSCRIPTION_LIMITS: SubscriptionLimits =
    SubscriptionLimits { per_user: 5, bytes_max: 4 * 1024, ended_kept: Duration::from_secs(3600) };

pub(crate) struct Stage {
    /// One node.
    pub(crate) here: Arc<dyn NotificationStore>,
    /// Another.
    pub(crate) there: Arc<dyn NotificationStore>,
    /// Subscriptions on the one node and on the other.
    pub(crate) subscriptions: [Arc<dyn SubscriptionStore>; 2],
    pub(crate) clock: HandClock,
    _server: Option<Arc<RedisServer>>,
}

impl Stage {
    pub(crate) fn memory() -> Self {
        let clock = HandClock::new();
        let store = MemoryNotifications::new(LIMITS, clock.clock());
        let subscriptions = MemorySubscriptions::new(SUBSCRIPTION_LIMITS, clock.clock());
        Self {
            here: Arc::new(store.clone()),
            there: Arc::new(store),
            subscriptions: [Arc::new(subscriptions.clone()), Arc::new(subscriptions)],
            clock,
            _server: None,
        }
    }

    pub(crate) async fn redis_standalone() -> Self {
        Self::redis(RedisServer::shared(), true).await
    }

    pub(crate) async fn redis_cluster() -> Self {
        Self::redis(cluster_of_one().await, false).await
    }

    async fn redis(server: Arc<RedisServer>, one_slot: bool) -> Self {
        let clock = HandClock::new();
        let prefix = RedisServer::prefix();
        let one = Arc::new(Link::to(&server, &prefix, one_slot).await);
        let other = Arc::new(Link::to(&server, &prefix, one_slot).await);
        let notifications = |link| Arc::new(RedisNotifications::new(link, LIMITS, clock.clock()));
        let subscriptions = |link| -> Arc<dyn SubscriptionStore> {
            Arc::new(RedisSubscriptions::new(link, SUBSCRIPTION_LIMITS, clock.clock()))
        };
        Self {
            here: notifications(one.clone()),
            there: notifications(other.clone()),
            subscriptions: [subscriptions(one), subscriptions(other)],
            clock,
            _server: Some(server),
        }
    }

    /// Creates one per title for these users, a second apart.
    pub(crate) async fn create(&self, titles: &[&str], users: &[UserId]) -> Vec<Notification> {
        let mut created = Vec::new();
        for title in titles {
            let new = NewNotification::new(*title, "text", users.iter().cloned());
            created.push(self.here.create(new).await.expect("created"));
            self.clock.pass(Duration::from_secs(1));
        }
        created
    }

    /// Titles of the user's list.
    pub(crate) async fn titles(&self, user: &UserId, query: &NotificationQuery) -> Vec<String> {
        let page = self.there.list(user, query).await.expect("a page");
        page.notifications.into_iter().map(|notification| notification.title).collect()
    }
}

pub(crate) fn user(name: &str) -> UserId {
    UserId::new(name).expect("a user id")
}

/// A server that takes part in a cluster alone, and so refuses scripts whose keys lie in several slots.
pub(crate) async fn cluster_of_one() -> Arc<RedisServer> {
    static SHARED: Mutex<Weak<RedisServer>> = Mutex::new(Weak::new());
    let (server, fresh) = {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        match shared.upgrade() {
            Some(server) => (server, false),
            None => {
                let server = Arc::new(RedisServer::start(&["--cluster-enabled", "yes"]));
                *shared = Arc::downgrade(&server);
                (server, true)
            }
        }
    };
    let mut connection = connect(&server).await;
    if fresh {
        let command = redis::cmd("CLUSTER").arg("ADDSLOTSRANGE").arg(0).arg(16_383).to_owned();
        let _: Value = command.query_async(&mut connection).await.expect("slots");
    }
    for _ in 0..1_000 {
        let info: String =
            redis::cmd("CLUSTER").arg("INFO").query_async(&mut connection).await.expect("info");
        if info.contains("cluster_state:ok") {
            return server;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the cluster of one did not come up");
}

async fn connect(server: &RedisServer) -> MultiplexedConnection {
    let client = redis::Client::open(server.url()).expect("an address");
    let config =
        redis::AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_secs(20)));
    client.get_multiplexed_async_connection_with_config(&config).await.expect("a connection")
}

/// What the Redis broker does for the stores, over one connection.
pub(crate) struct Link {
    connection: MultiplexedConnection,
    prefix: String,
    one_slot: bool,
    /// Scripts that still succeed; then all fail, as after the node's death.
    left: AtomicI64,
}

impl Link {
    pub(crate) async fn to(server: &RedisServer, prefix: &str, one_slot: bool) -> Self {
        let connection = connect(server).await;
        Self { connection, prefix: prefix.to_owned(), one_slot, left: AtomicI64::new(i64::MAX) }
    }

    /// Dies after so many scripts.
    pub(crate) fn die_after(self, scripts: i64) -> Self {
        self.left.store(scripts, Ordering::SeqCst);
        self
    }

    pub(crate) fn connection(&self) -> MultiplexedConnection {
        self.connection.clone()
    }
}

#[async_trait]
impl RedisCommands for Link {
    async fn script(&self, call: ScriptCall) -> Result<Value, BrokerError> {
        if self.left.fetch_sub(1, Ordering::SeqCst) <= 0 {
            return Err(BrokerError::unavailable("the node is dead"));
        }
        let mut connection = self.connection.clone();
        match call.command().query_async(&mut connection).await {
            Err(error) if error.code() == Some("NOSCRIPT") => {
                call.teaching_command().query_async(&mut connection).await
            }
            other => other,
        }
        .map_err(BrokerError::unavailable)
    }

    async fn command(&self, _key: &str, command: Cmd) -> Result<Value, BrokerError> {
        if self.left.fetch_sub(1, Ordering::SeqCst) <= 0 {
            return Err(BrokerError::unavailable("the node is dead"));
        }
        let mut connection = self.connection.clone();
        command.query_async(&mut connection).await.map_err(BrokerError::unavailable)
    }

    fn prefix(&self) -> &str {
        &self.prefix
    }

    fn one_slot(&self) -> bool {
        self.one_slot
    }
}
