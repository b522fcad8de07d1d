//! The broker over Redis: one server, sentinels, a cluster, or several servers by hashing.
//!
//! A [`link::Link`] is one server with a supervised command connection and a pub/sub connection of our own; a
//! [`layout::Layout`] says which link serves what. Each promise of `broker.rs` is kept by a script in `redis/*.lua`.
//! What must not be known here: connections of clients, profiles, tokens, HTTP.

mod answer;
mod application;
mod arrivals;
mod batch;
mod cluster;
mod crowd;
mod dial;
mod endpoint;
mod gathered;
mod health;
mod hearing;
mod history;
mod layout;
mod link;
mod mark;
mod message;
mod names;
mod polls;
mod presence;
mod publishing;
mod registry;
mod resp;
mod revocations;
mod scripts;
mod sentinel;
mod settings;
mod status;
mod stores;
mod tls;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use carillon_protocol::{ChannelName, ConnectionId, Position, UserId};
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::{
    Admission, Arrival, Broker, BrokerError, ConnectionRecord, Events, Health, HistoryPage,
    HistoryQuery, InboundEntry, NodeId, NodeRecord, Publish, RateCount, Receipt, Target,
};
use arrivals::{Arriving, Departing, Queues};
use cluster::Cluster;
use crowd::Crowd;
use dial::{DialError, Dialer};
use endpoint::Endpoint;
use health::{Board, Ears};
use hearing::Wish;
use layout::Layout;
use link::{Counters, Link, Shared};
use mark::Marks;
use names::{ALL, Names};
use publishing::together;
use registry::Registry;
use sentinel::Source;

pub use health::RedisStats;
pub use settings::{RedisMode, RedisSettings, RedisTls};

/// Events that wait for the node; then this side stops reading from Redis.
const EVENTS_MAX: usize = 8192;

/// One node's handle. Cheap to clone; the connections end with [`RedisBroker::close`], or when the last handle is
/// dropped.
#[derive(Clone)]
pub struct RedisBroker {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    layout: Layout,
    registry: Registry,
    marks: Marks,
    held: presence::Held,
    reported: application::Reported,
    queues: Queues,
    publishers: together::Publishers,
    keepers: polls::Keepers,
    stop: CancellationToken,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl std::fmt::Debug for RedisBroker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisBroker").field("node", &self.inner.shared.node).finish_non_exhaustive()
    }
}

impl RedisBroker {
    /// Begins to connect and returns at once; [`Broker::health`] says when Redis was reached, or why it refuses us.
    /// Keeps trying for as long as the handle lives. Must be called inside a tokio runtime. A node must
    /// drain the events, or drop them (a backend that only publishes).
    #[must_use]
    #[expect(clippy::needless_pass_by_value, reason = "settings are made for one broker")]
    pub fn connect(settings: RedisSettings, node: NodeId) -> (Self, Events) {
        Self::connect_as(&settings, node, true)
    }

    /// The same for an application's backend: it hears what it is told by name and what it subscribes
    /// to, and is not counted among the nodes that are asked.
    #[must_use]
    #[expect(clippy::needless_pass_by_value, reason = "settings are made for one broker")]
    pub fn connect_backend(settings: RedisSettings) -> (Self, Events) {
        Self::connect_as(&settings, NodeId::random(), false)
    }

    fn connect_as(settings: &RedisSettings, node: NodeId, is_node: bool) -> (Self, Events) {
        let (events, receiver) = mpsc::channel(EVENTS_MAX);
        let needs_tls = settings.urls.iter().any(|url| url.starts_with("rediss://"));
        let shared = Arc::new(Shared {
            names: Names::new(&settings.prefix, &node),
            node: node.clone(),
            dialer: Arc::new(Dialer::new(&settings.tls, settings.command_timeout, needs_tls)),
            timeout: settings.command_timeout,
            sharded: settings.mode == RedisMode::Cluster,
            is_node,
            board: Board::new(),
            ears: Ears::new(events),
            counters: Counters::default(),
            tasks: TaskTracker::new(),
            layout_doubted: Notify::new(),
        });
        let stop = CancellationToken::new();
        let layout = lay_out(settings, &shared, &stop).unwrap_or_else(|reason| {
            shared.board.add(0);
            shared.board.commands(0, Some(&DialError::Refused(reason)));
            Layout::Servers(Vec::new())
        });
        let (queues, carried) = arrivals::queues();
        let (publishers, published) = Crowd::new(settings.command_timeout);
        let (keepers, kept) = Crowd::new(settings.command_timeout);
        let inner = Arc::new(Inner {
            shared,
            layout,
            registry: Registry::new(node),
            marks: Marks::default(),
            held: presence::Held::default(),
            reported: application::Reported::default(),
            queues,
            publishers,
            keepers,
            stop,
        });
        arrivals::spawn(&inner, carried);
        together::spawn(&inner, published);
        polls::spawn(&inner, kept);
        (Self { inner }, receiver)
    }

    /// Ends all connections and waits for their tasks. Calls fail from now on.
    pub async fn close(&self) {
        self.inner.stop.cancel();
        self.inner.layout.links().iter().for_each(|link| link.stop());
        self.inner.shared.tasks.close();
        self.inner.shared.tasks.wait().await;
    }

    /// How long ago the node last heard itself through its pub/sub connections, the oldest; `None` before the first
    /// time on any of them.
    #[must_use]
    pub fn canary_age(&self) -> Option<Duration> {
        let links = self.inner.layout.links();
        let ages: Option<Vec<Duration>> =
            links.iter().map(|link| link.hearing.canary_age()).collect();
        ages?.into_iter().max()
    }

    /// Counters for metrics.
    #[must_use]
    pub fn stats(&self) -> RedisStats {
        let counters = &self.inner.shared.counters;
        RedisStats {
            canary_age: self.canary_age(),
            command_reconnects: counters.command_reconnects.load(Ordering::Relaxed),
            hearing_reconnects: counters.hearing_reconnects.load(Ordering::Relaxed),
            round_trips: counters.round_trips.load(Ordering::Relaxed),
            round_trip_time: Duration::from_nanos(counters.round_trip_ns.load(Ordering::Relaxed)),
        }
    }

    fn keys(&self, channels: &[ChannelName]) -> impl Iterator<Item = Bytes> {
        channels.iter().map(|channel| self.inner.shared.names.publications(channel).into())
    }
}

fn lay_out(
    settings: &RedisSettings,
    shared: &Arc<Shared>,
    stop: &CancellationToken,
) -> Result<Layout, String> {
    let endpoints =
        settings.urls.iter().map(|url| Endpoint::parse(url)).collect::<Result<Vec<_>, _>>()?;
    let Some(first) = endpoints.first().cloned() else {
        return Err("no redis.url is configured".to_owned());
    };
    let sources = match settings.mode {
        RedisMode::Cluster => return Ok(Layout::Cluster(Cluster::start(endpoints, shared, stop))),
        RedisMode::Standalone => vec![(0, Source::Fixed(first))],
        RedisMode::Sentinel => {
            let master_name = settings
                .master_name
                .clone()
                .ok_or("redis.master_name is required with sentinels")?;
            vec![(0, Source::Sentinels { sentinels: endpoints, master_name })]
        }
        RedisMode::Shards => {
            let named = endpoints.into_iter().map(|endpoint| {
                (layout::stable_hash(endpoint.to_string().as_bytes()), Source::Fixed(endpoint))
            });
            named.collect()
        }
    };
    let mut servers = Vec::with_capacity(sources.len());
    for (id, (name, source)) in (1..).zip(sources) {
        servers.push((name, Link::start(id, source, shared, stop)));
    }
    // What is told to nodes lives where `Layout::common` looks for it.
    for own in shared.told_on() {
        servers[0].1.hearing.always(own.into(), Wish::Told);
    }
    Ok(Layout::Servers(servers))
}

#[async_trait]
impl Broker for RedisBroker {
    async fn publish(&self, request: Publish) -> Result<Receipt, BrokerError> {
        self.inner.publish(request).await
    }

    async fn publish_batch(&self, requests: Vec<Publish>) -> Vec<Result<Receipt, BrokerError>> {
        self.inner.publish_batch(requests).await
    }

    async fn subscribe(&self, channels: &[ChannelName]) -> Result<(), BrokerError> {
        let wishes = self.keys(channels).zip(channels.iter().cloned().map(Wish::Channel)).collect();
        let standing = self.inner.layout.wish(wishes);
        let all = async {
            for stands in standing {
                let lost = || {
                    BrokerError::unavailable("not connected to Redis' pub/sub; the wish is kept")
                };
                stands.ok_or_else(lost)?.await.map_err(|_| lost())?;
            }
            Ok(())
        };
        let late =
            |_| Err(BrokerError::unavailable("Redis did not confirm in time; the wish is kept"));
        tokio::time::timeout(self.inner.shared.timeout, all).await.unwrap_or_else(late)
    }

    async fn unsubscribe(&self, channels: &[ChannelName]) -> Result<(), BrokerError> {
        self.inner.layout.forget(self.keys(channels).collect());
        Ok(())
    }

    async fn tops(&self, channels: &[ChannelName]) -> Result<Vec<Position>, BrokerError> {
        history::tops(&self.inner.layout, &self.inner.shared.names, channels).await
    }

    async fn history(
        &self,
        channel: &ChannelName,
        query: HistoryQuery,
    ) -> Result<HistoryPage, BrokerError> {
        history::history(&self.inner.layout, &self.inner.shared.names, channel, query).await
    }

    async fn fence(&self, known: &[(ChannelName, Position)]) -> Result<Vec<bool>, BrokerError> {
        history::fence(&self.inner.layout, &self.inner.shared.names, known).await
    }

    async fn clear_history(&self, channel: &ChannelName) -> Result<Position, BrokerError> {
        history::clear(&self.inner.layout, &self.inner.shared.names, channel).await
    }

    async fn register(
        &self,
        record: &ConnectionRecord,
        limit: u64,
    ) -> Result<Admission, BrokerError> {
        self.inner
            .registry
            .register(&self.inner.layout, &self.inner.shared.names, record, limit)
            .await
    }

    async fn arrive(&self, record: &ConnectionRecord, limit: u64) -> Result<Arrival, BrokerError> {
        let admission = self.inner.arrive(Arriving { record: record.clone(), limit }).await?;
        Ok(Arrival { admission, seen: admission == Admission::Admitted })
    }

    async fn depart(&self, record: &ConnectionRecord, delay: Duration) -> Result<(), BrokerError> {
        self.inner.depart(Departing { record: record.clone(), delay }).await
    }

    fn register_later(&self, record: &ConnectionRecord) {
        self.inner.registry.register_later(record);
    }

    async fn deregister(&self, record: &ConnectionRecord) -> Result<(), BrokerError> {
        self.inner.registry.deregister(&self.inner.layout, &self.inner.shared.names, record).await
    }

    async fn connections_of(&self, user: &UserId) -> Result<Vec<ConnectionId>, BrokerError> {
        self.inner.registry.connections_of(&self.inner.layout, &self.inner.shared.names, user).await
    }

    async fn beat(&self, record: &NodeRecord) -> Result<Vec<NodeRecord>, BrokerError> {
        let Inner { shared, layout, registry, marks, .. } = &*self.inner;
        let lost = marks.lost(layout, &shared.names).await;
        if lost > 0 {
            tracing::warn!(servers = lost, "Redis lost its data");
            shared.counters.losses.fetch_add(lost as u64, Ordering::AcqRel);
            shared.ears.doubted().await;
        }
        registry.beat(layout, &shared.names, record, shared.counters.generation()).await
    }

    async fn retire(&self) -> Result<(), BrokerError> {
        let presence = self.inner.retire_presence().await;
        self.inner.registry.retire(&self.inner.layout, &self.inner.shared.names).await.and(presence)
    }

    async fn tell(&self, target: &Target, message: Bytes) -> Result<u64, BrokerError> {
        let (names, layout) = (&self.inner.shared.names, &self.inner.layout);
        let (channel, place) = match target {
            Target::Node(node) => (names.node_channel(node), layout.common(node.as_str())),
            Target::All => (names.all_channel(), layout.common(ALL)),
        };
        let mut command = ::redis::cmd(layout.publish_verb());
        command.arg(channel).arg(&message[..]);
        answer::read(layout.run(&place, &command).await?)
    }

    async fn append_inbound(&self, entry: &InboundEntry) -> Result<String, BrokerError> {
        self.inner.append_message(entry).await
    }

    async fn count(&self, key: &str, window: Duration) -> Result<RateCount, BrokerError> {
        let mut command = scripts::COUNT.call(&[&self.inner.shared.names.counter(key)]);
        command.arg(u64::try_from(window.as_millis()).unwrap_or(u64::MAX).max(1));
        let place = self.inner.layout.place(&carillon_protocol::channel::escape_segment(key));
        let (count, left): (u64, i64) =
            answer::read(self.inner.layout.run(&place, &command).await?)?;
        Ok(RateCount { count, reset_in: Duration::from_millis(u64::try_from(left).unwrap_or(0)) })
    }

    fn generation(&self) -> u64 {
        self.inner.shared.counters.generation()
    }

    fn node(&self) -> &NodeId {
        &self.inner.shared.node
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.inner.shared.board.watch()
    }
}
