//! Node to node: questions that one node asks another or all, and the answers; the lease that says
//! which nodes are alive. What is asked is performed in `cluster/answers.rs`.
//!
//! Answers are awaited for a bounded time; a node that does not answer is left out.

mod answers;
mod questions;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use carillon_broker_client::{Broker, BrokerError, NodeId, NodeRecord, Target};
use foldhash::HashMap;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::connection::Transport;
use crate::node::Node;
use crate::relay::Told;

pub use questions::{
    Announcement, Audience, ChannelCount, ConnectionFilter, ConnectionView, Question,
};

/// How long answers are awaited.
const PATIENCE: Duration = Duration::from_millis(800);
/// How often the lease is refreshed.
const BEAT: Duration = Duration::from_secs(1);

#[derive(serde::Serialize, serde::Deserialize)]
enum Letter {
    Ask { from: NodeId, number: u64, question: Question },
    Tell { question: Question },
    Answer { number: u64, answer: serde_json::Value },
}

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct Cluster {
    inner: Arc<Inner>,
}

struct Inner {
    broker: Arc<dyn Broker>,
    next: AtomicU64,
    waiting: Mutex<HashMap<u64, mpsc::Sender<serde_json::Value>>>,
    nodes: ArcSwap<Vec<NodeRecord>>,
}

impl Cluster {
    /// A handle; [`answer`] and [`beat`] make it work.
    #[must_use]
    pub fn new(broker: Arc<dyn Broker>) -> Self {
        let inner = Inner {
            broker,
            next: AtomicU64::new(1),
            waiting: Mutex::default(),
            nodes: ArcSwap::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// The nodes alive at the last beat.
    #[must_use]
    pub fn nodes(&self) -> Arc<Vec<NodeRecord>> {
        self.inner.nodes.load_full()
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
        let number = self.inner.next.fetch_add(1, Ordering::Relaxed);
        let (sender, mut receiver) = mpsc::channel(256);
        self.inner.waiting.lock().insert(number, sender);
        let _forget = Forget { inner: &self.inner, number };
        let letter = Letter::Ask { from: self.inner.broker.node().clone(), number, question };
        let asked = self.inner.broker.tell(target, post(&letter)).await? as usize;
        let mut answers = Vec::new();
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while answers.len() < asked {
            match tokio::time::timeout_at(deadline, receiver.recv()).await {
                Ok(Some(answer)) => answers.push(serde_json::from_value(answer).ok()),
                Ok(None) | Err(_) => break,
            }
        }
        Ok(answers.into_iter().flatten().collect())
    }

    /// Tells all nodes something that needs no answer.
    ///
    /// # Errors
    /// When the broker is unavailable.
    pub async fn tell_all(&self, question: Question) -> Result<(), BrokerError> {
        self.inner.broker.tell(&Target::All, post(&Letter::Tell { question })).await.map(|_| ())
    }
}

struct Forget<'a> {
    inner: &'a Inner,
    number: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.inner.waiting.lock().remove(&self.number);
    }
}

fn post(letter: &Letter) -> Bytes {
    serde_json::to_vec(letter).expect("letters are plain data").into()
}

/// Answers what other nodes ask, until `stop`.
pub async fn answer(node: Arc<Node>, mut told: Told, stop: CancellationToken) {
    loop {
        let bytes = tokio::select! {
            bytes = told.recv() => bytes,
            () = stop.cancelled() => None,
        };
        let Some(bytes) = bytes else { return };
        match serde_json::from_slice::<Letter>(&bytes) {
            Ok(Letter::Ask { from, number, question }) => {
                let answer = answers::perform(&node, question);
                let letter = post(&Letter::Answer { number, answer });
                if let Err(error) = node.broker.tell(&Target::Node(from), letter).await {
                    tracing::debug!(%error, "an answer could not be sent");
                }
            }
            Ok(Letter::Tell { question }) => {
                answers::perform(&node, question);
            }
            Ok(Letter::Answer { number, answer }) => {
                if let Some(waiting) = node.cluster.inner.waiting.lock().get(&number) {
                    // A full queue means that nobody reads: the asker gave up.
                    let _ = waiting.try_send(answer);
                }
            }
            Err(error) => tracing::warn!(%error, "a node message cannot be read"),
        }
    }
}

/// Keeps the node's lease until `stop`.
pub async fn beat(node: Arc<Node>, stop: CancellationToken) {
    let mut tick = tokio::time::interval(BEAT);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut health = node.broker.health();
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            // At once when the broker is there: connections of a node without a lease count for nobody.
            Ok(()) = health.changed() => {}
            () = stop.cancelled() => return,
        }
        match node.broker.beat(&record(&node)).await {
            Ok(nodes) => {
                node.cluster.inner.nodes.store(Arc::new(nodes));
                node.register_late().await;
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
        draining: node.is_draining(),
    }
}

/// Milliseconds since the node started.
#[must_use]
pub fn uptime_ms(record: &NodeRecord) -> i64 {
    (clock::unix_ms() - record.started_at_ms).max(0)
}
