//! One gateway node: the services that every transport and every REST call share.
//!
//! It owns no state of its own beyond handles: connections are the hub's, interest the relay's,
//! everything durable the broker's.

mod admission;
mod banished;
mod doors;
mod permission;
mod publish;
mod stores;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::ArcSwap;
use carillon_broker_client::{Broker, Health, NodeId, NotificationStore, SubscriptionStore};
use carillon_protocol::session::Routes;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::application::Application;
use crate::auth::{ApiKeys, TokenVerifier};
use crate::cluster::Cluster;
use crate::config::Config;
use crate::filters::Filters;
use crate::heartbeat::Heartbeat;
use crate::hub::Hub;
use crate::interests::News;
use crate::metrics::Metrics;
use crate::notifications::Courier;
use crate::policy::Policy;
use crate::pollers::Pollers;
use crate::presence::Presence;
use crate::relay::Relay;
use crate::revocations::Revoked;
use crate::socket::Tls;

pub use admission::Admitted;
pub use banished::Banished;
pub use doors::{Doors, Doorway};
pub(crate) use publish::channel_not_found;
pub use publish::{Outgoing, PublishLimits, RateState};
pub use stores::Stores;

/// See the module. Shared by reference.
pub struct Node {
    /// This life of the process.
    pub id: NodeId,
    /// What operators call it.
    pub name: String,
    /// Unix milliseconds.
    pub started_at_ms: i64,
    /// Settings; a reload replaces keys, namespaces, routes, limits and log level, and nothing else.
    pub config: ArcSwap<Config>,
    /// History, registry, node-to-node.
    pub broker: Arc<dyn Broker>,
    /// Stored notifications.
    pub notifications: Arc<dyn NotificationStore>,
    /// Stored subscriptions.
    pub subscriptions: Arc<dyn SubscriptionStore>,
    /// Carries stored notifications to user channels.
    pub courier: Courier,
    /// Changed subscriptions that are still to be told.
    pub interest_news: News,
    /// Payload filters, equal ones once.
    pub filters: Filters,
    /// Who on this node hears what.
    pub hub: Hub,
    /// Interest and order.
    pub relay: Relay,
    /// Namespaces; replaced on reload.
    pub policy: ArcSwap<Policy>,
    /// Token keys; replaced on reload.
    pub verifier: ArcSwap<TokenVerifier>,
    /// Backends' keys; replaced on reload.
    pub api_keys: ArcSwap<ApiKeys>,
    /// Tokens that are refused before they expire.
    pub revoked: Revoked,
    /// What is said between the node and the application's backends.
    pub application: Application,
    /// Re-typing table; replaced on reload.
    pub routes: ArcSwap<Routes>,
    /// Pings, silence and token expiry.
    pub heartbeat: Heartbeat,
    /// Who of this node is where.
    pub presence: Presence,
    /// Who polls here.
    pub pollers: Pollers,
    /// The other nodes.
    pub cluster: Cluster,
    /// TLS of the client port; `None` where it is ended elsewhere.
    pub tls: Option<Tls>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Publish rates of channels.
    pub publish_limits: PublishLimits,
    /// Handshakes under way.
    pub doors: Doors,
    /// Connections that were admitted, handshakes among them.
    pub places_taken: AtomicU64,
    /// Users that an operator disconnected a moment ago.
    pub banished: Banished,
    /// Every task of the node runs under it.
    pub tasks: TaskTracker,
    /// Ends every task.
    pub stop: CancellationToken,
    /// The node ends soon: not ready, but still accepting for the balancer's sake.
    pub draining: AtomicBool,
    /// New clients are refused.
    pub closing: AtomicBool,
}

impl Node {
    /// Whether the broker answers.
    #[must_use]
    pub fn broker_is_up(&self) -> bool {
        *self.broker.health().borrow() == Health::Up
    }

    /// Whether the node ends soon.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Whether the node takes no new clients.
    #[must_use]
    pub fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Relaxed)
    }
}
