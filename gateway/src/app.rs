//! Building a node from its configuration, running it, and ending it politely.
//!
//! `App::bind` binds every socket before anything starts, so that a second node on the same port fails
//! at once and tests may bind port 0. `App::run` serves until the shutdown is asked for, then drains.

mod common;
mod drain;
mod journal;
mod reload;
mod router;
mod signals;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use arc_swap::ArcSwap;
use carillon_broker_client::{Broker, Events, MemoryCluster, NodeId, RedisBroker};
use carillon_protocol::session::Routes;
use tokio::net::{TcpListener, TcpSocket};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::application::{self, Application};
use crate::auth::{ApiKeys, TokenVerifier};
use crate::cluster::{self, Cluster};
use crate::config::Config;
use crate::filters::Filters;
use crate::heartbeat::Heartbeat;
use crate::hub::Hub;
use crate::interests::{self, News};
use crate::metrics::Metrics;
use crate::node::{Banished, Doors, Node, PublishLimits, Stores};
use crate::notifications::{self, Courier};
use crate::policy::Policy;
use crate::pollers::{self, Pollers};
use crate::presence::Presence;
use crate::relay::{Relay, Told};
use crate::revocations::{self, Revoked};
use crate::socket::{Tls, burst};
use crate::{clock, operator, transport};

#[cfg(test)]
pub(crate) use router::client as client_routes;
pub use signals::run;

/// Handshakes that the kernel keeps for us while all tasks are busy.
const BACKLOG: u32 = 4096;

/// Why a node cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A port is taken or not ours.
    #[error("cannot listen on {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// A setting that only shows its mistake when it is used.
    #[error("{0}")]
    Setting(String),
}

/// A node that is bound and ready to run.
pub struct App {
    node: Arc<Node>,
    told: Told,
    client: TcpListener,
    operator: TcpListener,
}

impl App {
    /// Binds the sockets and builds the node; its tasks start, its sockets do not accept yet.
    ///
    /// # Errors
    /// A taken port, or keys and namespaces that cannot be used.
    pub async fn bind(config: Config) -> Result<Self, StartError> {
        let id = NodeId::random();
        let (broker, events, stores): (Arc<dyn Broker>, Events, Stores) =
            match config.redis.settings() {
                None => {
                    let (broker, events) = MemoryCluster::new().join(id.clone());
                    (Arc::new(broker), events, Stores::memory())
                }
                Some(settings) => {
                    let (broker, events) = RedisBroker::connect(settings, id.clone());
                    let stores = Stores::redis(&broker);
                    (Arc::new(broker), events, stores)
                }
            };
        Self::with_stores(config, id, broker, events, stores).await
    }

    /// The same over a broker that exists already; what the node stores, it keeps to itself.
    ///
    /// # Errors
    /// As [`App::bind`].
    pub async fn with_broker(
        config: Config,
        id: NodeId,
        broker: Arc<dyn Broker>,
        events: Events,
    ) -> Result<Self, StartError> {
        Self::with_stores(config, id, broker, events, Stores::memory()).await
    }

    /// The same over a broker and stores that exist already: several nodes in one process share them.
    ///
    /// # Errors
    /// As [`App::bind`].
    pub async fn with_stores(
        config: Config,
        id: NodeId,
        broker: Arc<dyn Broker>,
        events: Events,
        stores: Stores,
    ) -> Result<Self, StartError> {
        let (client, operator) = (listen(config.server.listen)?, listen(config.operator.listen)?);
        let (node, told) = assemble(config, id, broker, events, stores)?;
        Ok(Self { node, told, client, operator })
    }

    /// Where clients connect.
    #[must_use]
    pub fn client_address(&self) -> Option<SocketAddr> {
        self.client.local_addr().ok()
    }

    /// Where operators look.
    #[must_use]
    pub fn operator_address(&self) -> Option<SocketAddr> {
        self.operator.local_addr().ok()
    }

    /// The node's services.
    #[must_use]
    pub fn node(&self) -> Arc<Node> {
        Arc::clone(&self.node)
    }

    /// Serves until `shutdown` completes, then drains (`app/drain.rs`). When `hurry` completes, ends at once.
    pub async fn run(self, shutdown: impl Future<Output = ()>, hurry: CancellationToken) {
        let Self { node, told, client, operator } = self;
        let accepting = CancellationToken::new();
        let serving = node.stop.child_token();
        work(&node, told);
        let routes = router::client(&node);
        node.tasks.spawn(transport::accept::accept(
            Arc::clone(&node),
            client,
            routes,
            accepting.clone(),
        ));
        let operators = axum::serve(operator, operator::router(Arc::clone(&node)))
            .with_graceful_shutdown(serving.cancelled_owned());
        node.tasks.spawn(async move {
            if let Err(error) = operators.await {
                tracing::error!(%error, "the operators' port failed");
            }
        });
        tokio::select! {
            () = shutdown => {}
            () = hurry.cancelled() => {}
        }
        tokio::select! {
            () = drain::drain(&node, &accepting) => {}
            () = hurry.cancelled() => tracing::warn!("asked twice: ending at once"),
        }
        accepting.cancel();
        drain::end(&node, &hurry).await;
    }
}

/// Builds a node without sockets; the tasks that hear the broker start. [`work`] starts the others.
///
/// # Errors
/// Keys, routes and namespaces that cannot be used.
pub fn assemble(
    config: Config,
    id: NodeId,
    broker: Arc<dyn Broker>,
    events: Events,
    stores: Stores,
) -> Result<(Arc<Node>, Told), StartError> {
    let setting = |error: &dyn std::fmt::Display| StartError::Setting(error.to_string());
    let tls =
        config.server.tls.as_ref().map(Tls::new).transpose().map_err(|error| setting(&error))?;
    let policy = Policy::new(&config).map_err(|error| setting(&error))?;
    let verifier = TokenVerifier::new(&config.auth.jwt).map_err(|error| setting(&error))?;
    let api_keys = ApiKeys::new(&config.auth.api_keys);
    let routes = Routes::with(config.routes.clone()).map_err(|error| setting(&error))?;
    let metrics = Metrics::new();
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let shards = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let application = Application::new(&config, &metrics).map_err(|error| setting(&error))?;
    broker.tell_events(application.lifecycle.kinds());
    let courier = Courier::default();
    burst::allow(config.server.io_uring);
    let hub = Hub::new(shards, &metrics, &courier, &tasks, &stop);
    let (relay, told) =
        Relay::start(Arc::clone(&broker), events, hub.clone(), Arc::clone(&metrics), &tasks, &stop);
    if let Some(occupancy) = application.lifecycle.occupancy() {
        relay.tell_listeners(occupancy);
    }
    let node = Node {
        name: config.node.id.clone().unwrap_or_else(|| id.to_string()),
        started_at_ms: clock::unix_ms(),
        courier,
        interest_news: News::default(),
        filters: Filters::default(),
        notifications: stores.notifications,
        subscriptions: stores.subscriptions,
        heartbeat: Heartbeat::new(config.heartbeat.interval, config.heartbeat.timeout),
        presence: Presence::new(
            Arc::clone(&broker),
            config.presence.timeout,
            config.presence.offline_delay,
            &tasks,
            &stop,
        ),
        pollers: Pollers::default(),
        cluster: Cluster::new(Arc::clone(&broker)),
        policy: ArcSwap::from_pointee(policy),
        verifier: ArcSwap::from_pointee(verifier),
        api_keys: ArcSwap::from_pointee(api_keys),
        routes: ArcSwap::from_pointee(routes),
        application,
        revoked: Revoked::default(),
        places_taken: AtomicU64::new(0),
        publish_limits: PublishLimits::default(),
        doors: Doors::default(),
        banished: Banished::default(),
        draining: AtomicBool::new(false),
        closing: AtomicBool::new(false),
        config: ArcSwap::from_pointee(config),
        id,
        broker,
        hub,
        relay,
        tls,
        metrics,
        tasks,
        stop,
    };
    Ok((Arc::new(node), told))
}

/// Starts the tasks that make a node work, sockets apart: lease, answers, pings, presence, outbox, keys.
pub fn work(node: &Arc<Node>, told: Told) {
    node.tasks.spawn(node.heartbeat.clone().run(node.stop.clone()));
    node.tasks.spawn(cluster::answer(Arc::clone(node), told, node.stop.clone()));
    node.tasks.spawn(cluster::beat(Arc::clone(node), node.stop.clone()));
    node.tasks.spawn(node.presence.clone().run(node.stop.clone()));
    node.tasks.spawn(pollers::run(Arc::clone(node), node.stop.clone()));
    node.tasks.spawn(notifications::carry(Arc::clone(node), node.stop.clone()));
    node.tasks.spawn(revocations::follow(Arc::clone(node), node.stop.clone()));
    node.tasks.spawn(application::run(Arc::clone(node), node.stop.clone()));
    node.tasks.spawn(interests::follow(Arc::clone(node), node.stop.clone()));
    node.tasks.spawn(keep_keys_fresh(Arc::clone(node)));
    if let Some(tls) = &node.tls {
        let watch = Arc::clone(&tls.certificates).watch(node.stop.clone());
        node.tasks.spawn(watch);
    }
}

/// Refreshes a configured JWK set; follows the verifier when a reload replaces it.
async fn keep_keys_fresh(node: Arc<Node>) {
    let mut look = tokio::time::interval(std::time::Duration::from_secs(5));
    loop {
        let verifier = node.verifier.load_full();
        let replaced = async {
            loop {
                look.tick().await;
                if !Arc::ptr_eq(&verifier, &node.verifier.load_full()) {
                    return;
                }
            }
        };
        tokio::select! {
            () = verifier.keep_fresh() => {}
            () = replaced => {}
            () = node.stop.cancelled() => return,
        }
    }
}

fn listen(address: SocketAddr) -> Result<TcpListener, StartError> {
    let bind = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    bind().map_err(|source| StartError::Listen { address, source })
}
