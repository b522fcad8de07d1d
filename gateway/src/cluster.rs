//! Node to node: answering what other nodes and backends ask (`broker-client/src/asking.rs` has the
//! letters), and the lease that says which nodes are alive. What is asked is performed in
//! `cluster/answers.rs`.

mod answers;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use carillon_broker_client::asking::{Asker, Letter};
use carillon_broker_client::{Broker, BrokerError, NodeRecord, Target};
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::connection::Transport;
use crate::node::Node;
use crate::process::Load;
use crate::relay::Told;

pub use carillon_broker_client::questions::{
    Announcement, Audience, ChannelCount, ConnectionFilter, ConnectionView, Question,
};

/// How often the lease is refreshed.
const BEAT: Duration = Duration::from_secs(1);

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct Cluster {
    asker: Asker,
    nodes: Arc<ArcSwap<Vec<NodeRecord>>>,
    load_millicores: Arc<AtomicU32>,
}

impl Cluster {
    /// A handle; [`answer`] and [`beat`] make it work.
    #[must_use]
    pub fn new(broker: Arc<dyn Broker>) -> Self {
        Self { asker: Asker::new(broker), nodes: Arc::default(), load_millicores: Arc::default() }
    }

    /// The nodes alive at the last beat.
    #[must_use]
    pub fn nodes(&self) -> Arc<Vec<NodeRecord>> {
        self.nodes.load_full()
    }

    /// Asks one node or all, and collects the answers that come in time.
    ///
    /// # Errors
    /// When the broker is unavailable.
    pub async fn ask<A: serde::de::DeserializeOwned>(
        &self,
        target: &Target,
        question: Question,
    ) -> Result<Vec<A>, BrokerError> {
        self.asker.ask(target, question).await
    }

    /// Tells all nodes something that needs no answer.
    ///
    /// # Errors
    /// When the broker is unavailable.
    pub async fn tell_all(&self, question: Question) -> Result<(), BrokerError> {
        self.asker.tell_all(question).await
    }
}

/// Answers what other nodes ask, until `stop`.
pub async fn answer(node: Arc<Node>, mut told: Told, stop: CancellationToken) {
    loop {
        let bytes = tokio::select! {
            bytes = told.recv() => bytes,
            () = stop.cancelled() => None,
        };
        let Some(bytes) = bytes else { return };
        match Letter::read(&bytes) {
            Ok(Letter::Ask { from, number, question }) => {
                if matches!(question, Question::TakeLinger { .. }) {
                    // What was said before the question was asked is part of the answer.
                    node.hub.caught_up().await;
                }
                let answer = Letter::Answer { number, answer: answers::perform(&node, question) };
                if let Err(error) = node.broker.tell(&Target::Node(from), answer.post()).await {
                    tracing::debug!(%error, "an answer could not be sent");
                }
            }
            Ok(Letter::Tell { question }) => {
                answers::perform(&node, question);
            }
            Ok(Letter::Answer { number, answer }) => node.cluster.asker.answered(number, answer),
            Err(error) => tracing::warn!(%error, "a node message cannot be read"),
        }
    }
}

/// Keeps the node's lease until `stop`.
pub async fn beat(node: Arc<Node>, stop: CancellationToken) {
    let mut tick = tokio::time::interval(BEAT);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut health = node.broker.health();
    let mut load = Load::new();
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            // At once when the broker is there: connections of a node without a lease count for nobody.
            Ok(()) = health.changed() => {}
            () = stop.cancelled() => return,
        }
        node.cluster.load_millicores.store(load.look(), Ordering::Relaxed);
        let asked_at = Instant::now();
        match node.broker.beat(&record(&node)).await {
            Ok(nodes) => {
                node.metrics.redis_answered(asked_at.elapsed(), node.broker.generation());
                node.cluster.nodes.store(Arc::new(nodes));
            }
            Err(error) => tracing::debug!(%error, "the lease was not refreshed"),
        }
        let (subscriptions, queued) = (node.hub.subscriptions(), node.hub.queued_bytes());
        node.metrics.observe(
            node.broker_is_up(),
            node.relay.channels_heard(),
            subscriptions,
            queued,
        );
    }
}

/// What this node tells the others.
#[must_use]
pub fn record(node: &Node) -> NodeRecord {
    let (messages_in, messages_out) = node.metrics.totals();
    NodeRecord {
        id: node.id.clone(),
        name: node.name.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started_at_ms: node.started_at_ms,
        connections: Transport::ALL
            .iter()
            .map(|transport| (transport.name().to_owned(), node.metrics.connections_of(*transport)))
            .collect(),
        messages_in,
        messages_out,
        load_millicores: node.cluster.load_millicores.load(Ordering::Relaxed),
        draining: node.is_draining(),
    }
}

/// Milliseconds since the node started.
#[must_use]
pub fn uptime_ms(record: &NodeRecord) -> i64 {
    (clock::unix_ms() - record.started_at_ms).max(0)
}
