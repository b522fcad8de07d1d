//! The broker over Redis. One supervised connection for commands, one of our own for what is heard;
//! each promise of `broker.rs` is kept by a script in `redis/*.lua` or by the two links.
//!
//! Keys of a channel share the hash tag `{channel}`; everything begins with the configured prefix.

mod address;
mod commands;
mod hearing;
mod names;
mod presence;
mod publishing;
mod registry;
mod resp;
mod scripts;
mod settings;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use carillon_protocol::{ChannelName, ConnectionId, Position, UserId};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::{
    Admission, Broker, BrokerError, ConnectionRecord, Events, Health, HistoryPage, HistoryQuery, InboundEntry, NodeId,
    NodeRecord, Publish, RateCount, Receipt, Target,
};
use commands::Commands;
use hearing::Hearing;
use names::Names;
use registry::Registry;

pub use settings::{RedisMode, RedisSettings, RedisTls};

/// Events that wait for the node; then this side stops reading.
const EVENTS_MAX: usize = 8192;

/// One node's handle. Cheap to clone; the connections end when the last handle is dropped.
#[derive(Clone)]
pub struct RedisBroker {
    inner: Arc<Inner>,
}

struct Inner {
    node: NodeId,
    names: Names,
    commands: Arc<Commands>,
    hearing: Hearing,
    registry: Registry,
    held: presence::Held,
    _stop: DropGuard,
}

impl std::fmt::Debug for RedisBroker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisBroker").field("node", &self.inner.node).finish_non_exhaustive()
    }
}

impl RedisBroker {
    /// Begins to connect and returns at once; [`Broker::health`] says when Redis was reached. Keeps trying
    /// for as long as the handle lives. Must be called inside a tokio runtime.
    #[must_use]
    pub fn connect(settings: RedisSettings, node: NodeId) -> (Self, Events) {
        let (events, receiver) = mpsc::channel(EVENTS_MAX);
        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        let names = Names::new(&settings.prefix, &node);
        let settings = Arc::new(settings);
        let commands = Commands::start(Arc::clone(&settings), &tasks, &stop);
        let hearing = Hearing::start(settings, names.clone(), Arc::clone(&commands), events, &tasks, &stop);
        tasks.close();
        let registry = Registry::new(node.clone());
        let inner = Inner { node, names, commands, hearing, registry, held: presence::Held::default(), _stop: stop.drop_guard() };
        (Self { inner: Arc::new(inner) }, receiver)
    }

    /// How long ago the node last heard itself through its own pub/sub connection; `None` before the first time.
    #[must_use]
    pub fn canary_age(&self) -> Option<Duration> {
        self.inner.hearing.canary_age()
    }
}

#[async_trait]
impl Broker for RedisBroker {
    async fn publish(&self, request: Publish) -> Result<Receipt, BrokerError> {
        publishing::publish(&self.inner.commands, &self.inner.names, request).await
    }

    async fn publish_batch(&self, requests: Vec<Publish>) -> Vec<Result<Receipt, BrokerError>> {
        publishing::publish_batch(&self.inner.commands, &self.inner.names, requests).await
    }

    async fn subscribe(&self, channels: &[ChannelName]) -> Result<(), BrokerError> {
        self.inner.hearing.subscribe(channels).await
    }

    async fn unsubscribe(&self, channels: &[ChannelName]) -> Result<(), BrokerError> {
        self.inner.hearing.unsubscribe(channels).await
    }

    async fn tops(&self, channels: &[ChannelName]) -> Result<Vec<Position>, BrokerError> {
        publishing::tops(&self.inner.commands, &self.inner.names, channels).await
    }

    async fn history(&self, channel: &ChannelName, query: HistoryQuery) -> Result<HistoryPage, BrokerError> {
        publishing::history(&self.inner.commands, &self.inner.names, channel, query).await
    }

    async fn clear_history(&self, channel: &ChannelName) -> Result<Position, BrokerError> {
        publishing::clear(&self.inner.commands, &self.inner.names, channel).await
    }

    async fn register(&self, record: &ConnectionRecord, limit: u64) -> Result<Admission, BrokerError> {
        self.inner.registry.register(&self.inner.commands, &self.inner.names, record, limit).await
    }

    async fn deregister(&self, record: &ConnectionRecord) -> Result<(), BrokerError> {
        self.inner.registry.deregister(&self.inner.commands, &self.inner.names, record).await
    }

    async fn connections_of(&self, user: &UserId) -> Result<Vec<ConnectionId>, BrokerError> {
        self.inner.registry.connections_of(&self.inner.commands, &self.inner.names, user).await
    }

    async fn beat(&self, record: &NodeRecord) -> Result<Vec<NodeRecord>, BrokerError> {
        self.inner.registry.beat(&self.inner.commands, &self.inner.names, record).await
    }

    async fn retire(&self) -> Result<(), BrokerError> {
        let presence = self.inner.retire_presence().await;
        self.inner.registry.retire(&self.inner.commands, &self.inner.names).await.and(presence)
    }

    async fn tell(&self, target: &Target, message: Bytes) -> Result<u64, BrokerError> {
        let channel = match target {
            Target::Node(node) => self.inner.names.node_channel(node),
            Target::All => self.inner.names.all_channel(),
        };
        let mut command = ::redis::cmd("PUBLISH");
        command.arg(channel).arg(&message[..]);
        self.inner.commands.run(&command).await
    }

    async fn append_inbound(&self, entry: &InboundEntry) -> Result<String, BrokerError> {
        let mut command = ::redis::cmd("XADD");
        command.arg(self.inner.names.inbound()).arg("MAXLEN").arg("~").arg(100_000).arg("*");
        command.arg("type").arg(&entry.kind).arg("data").arg(&entry.json);
        self.inner.commands.run(&command).await
    }

    async fn count(&self, key: &str, window: Duration) -> Result<RateCount, BrokerError> {
        let key = self.inner.names.counter(key);
        let window_ms = window.as_millis().max(1) as u64;
        let (count, left): (u64, u64) =
            self.inner.commands.script(&scripts::COUNT, |command| command.arg(1).arg(&key).arg(window_ms)).await?;
        Ok(RateCount { count, reset_in: Duration::from_millis(left) })
    }

    fn node(&self) -> &NodeId {
        &self.inner.node
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.inner.commands.health()
    }
}
