//! What a node stores beyond channels: notifications and persistent subscriptions, in Redis or in
//! this process. It must not know who asks.

use std::sync::Arc;

use carillon_broker_client::{
    Clock, MemoryNotifications, MemorySubscriptions, NotificationLimits, NotificationStore,
    RedisBroker, RedisCommands, RedisNotifications, RedisSubscriptions, SubscriptionLimits,
    SubscriptionStore,
};

/// The stores of a cluster. Cheap to clone; clones are the same stores.
#[derive(Clone)]
pub struct Stores {
    /// Notifications and their outbox.
    pub notifications: Arc<dyn NotificationStore>,
    /// Persistent subscriptions.
    pub subscriptions: Arc<dyn SubscriptionStore>,
}

impl Stores {
    /// Stores that end with the process. Several nodes in one process share clones of one.
    #[must_use]
    pub fn memory() -> Self {
        Self {
            notifications: Arc::new(MemoryNotifications::default()),
            subscriptions: Arc::new(MemorySubscriptions::default()),
        }
    }

    /// Stores over the connections of a broker.
    #[must_use]
    pub fn redis(broker: &RedisBroker) -> Self {
        let commands: Arc<dyn RedisCommands> = Arc::new(broker.clone());
        let notifications = RedisNotifications::new(
            Arc::clone(&commands),
            NotificationLimits::default(),
            Clock::system(),
        );
        let subscriptions =
            RedisSubscriptions::new(commands, SubscriptionLimits::default(), Clock::system());
        Self { notifications: Arc::new(notifications), subscriptions: Arc::new(subscriptions) }
    }
}
