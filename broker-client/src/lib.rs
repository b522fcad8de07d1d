//! What crosses the cluster and what it keeps: publish with history, interest, node registry and
//! node-to-node messages — in memory for one process, in Redis for many.
//!
//! Backends use [`realtime::Realtime`], or [`RedisBroker`] (or [`MemoryBroker`] in tests), without a gateway; gateway nodes
//! use the same values through the [`Broker`] trait. One behaviour suite (`tests/behaviour.rs`)
//! holds both implementations to the trait's words.
//!
//! What this crate must not know: connections' sockets, profiles, codecs, tokens, HTTP.

mod application;
pub mod asking;
mod broker;
mod error;
mod memory;
mod node;
mod notifications;
mod polls;
pub mod presence;
pub mod questions;
pub mod realtime;
mod redis;
mod revocations;
mod store;
mod subscriptions;

pub use application::{
    ApplicationStore, DEAD_LETTERS_MAX, EventKind, EventKinds, Happening, INBOUND_MAX,
    InboundConsumer, InboundFrom, InboundMessage, InboundRead,
};
pub use broker::{
    Admission, Arrival, Broker, ConnectionRecord, EPOCH_LIFETIME, Event, Events, Health,
    HistoryPage, HistoryQuery, IDEMPOTENCY_WINDOW, Idempotency, InboundEntry, POLLER_PREFIX,
    Publish, RateCount, Receipt, Retention, Start, Target,
};
pub use error::BrokerError;
pub use memory::{MemoryBroker, MemoryCluster};
pub use node::{NodeId, NodeRecord};
pub use notifications::{
    MemoryNotifications, NewNotification, Notification, NotificationAction, NotificationLimits,
    NotificationPage, NotificationPriority, NotificationQuery, NotificationStatus,
    NotificationStore, NotificationType, OutboxEntry, RedisNotifications,
};
pub use polls::{
    CountedPage, CountedPoll, NewPollPage, POLL_LIFETIME, POLL_PAGES_BYTES_MAX, POLL_PAGES_MAX,
    PollLimit, PollPage, PollState, PollStore,
};
pub use presence::{Joined, Member, PresenceStore, UserPresence, UserStatus};
pub use redis::{RedisBroker, RedisMode, RedisSettings, RedisStats, RedisTls};
pub use revocations::{
    REVOCATION_LIFETIME_MAX, Revocation, RevocationStore, RevocationVersions, Revocations,
    RevokedTokens,
};
pub use store::{
    Clock, Invalid, InvalidMoment, Moment, NotificationId, Page, RedisCommands, ScriptCall,
    StoreError, SubscriptionId,
};
pub use subscriptions::{
    MemorySubscriptions, NewSubscription, RedisSubscriptions, Subscription, SubscriptionLimits,
    SubscriptionPage, SubscriptionPatch, SubscriptionQuery, SubscriptionStatus, SubscriptionStore,
    SubscriptionType,
};
