//! The embedded broker: the words of `broker.rs` kept within one process, for `redis.mode = memory`,
//! tests and simulation. Several nodes join one [`MemoryCluster`]; faults are injected there.
//!
//! * One lock of a channel's shard covers append and delivery, so order is the same everywhere.
//! * A node's queue is bounded: publishers wait for room up to the command time-out, then the node is behind:
//!   its events are dropped and it is told to audit, as after a lost Redis connection.
//! * No task and no timer: what expires is judged when it is looked at and swept in passing.
//!
//! What it must not know: Redis, sockets, what a payload says.

mod application;
mod channels;
mod counters;
mod ear;
mod line;
mod log;
mod polls;
mod presence;
mod registry;
mod revocations;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use carillon_protocol::{ChannelName, ConnectionId, Position, UserId};
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tokio::time::Instant;

use self::channels::{Attempt, Channels};
use self::counters::Windows;
use self::ear::{Ear, Kept};
use self::line::{Line, Lines};
use self::polls::Polls;
use self::registry::Registry;
use crate::polls::{CountedPoll, NewPollPage, PollPage, PollState, PollStore};
use crate::{
    Admission, Broker, BrokerError, ConnectionRecord, Event, Events, Health, HistoryPage,
    HistoryQuery, InboundEntry, NodeId, NodeRecord, Publish, RateCount, Receipt, Target,
};

/// How long a publisher waits for a node that does not drain its events.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(1);

/// The state that all nodes of one embedded cluster share. Cheap to clone.
#[derive(Clone)]
pub struct MemoryCluster(Arc<Shared>);

struct Shared {
    channels: Channels,
    ears: RwLock<BTreeMap<NodeId, Arc<Ear>>>,
    /// Who is told things by its name alone.
    backends: RwLock<BTreeMap<NodeId, Arc<Ear>>>,
    registry: Mutex<Registry>,
    presence: Mutex<presence::Presence>,
    /// Held from a change of presence until it is announced.
    announcing: tokio::sync::Mutex<()>,
    windows: Mutex<Windows>,
    application: Mutex<application::Application>,
    revoked: Mutex<revocations::Revoked>,
    polls: Mutex<Polls>,
    lines: Lines,
}

/// One node's handle. Cheap to clone.
#[derive(Clone)]
pub struct MemoryBroker(Arc<Node>);

struct Node {
    id: NodeId,
    cluster: MemoryCluster,
    ear: Arc<Ear>,
    line: Arc<Line>,
    /// What this node registered, to restore it after the cluster lost it (R43).
    registered: Mutex<HashMap<ConnectionId, UserId>>,
    /// What must not stay registered, and could not be taken back yet.
    owed: Mutex<HashMap<ConnectionId, UserId>>,
    /// Some of them the cluster was not told of.
    unwritten: AtomicBool,
    /// The same for presence.
    presence: Mutex<presence::Held>,
    /// The same for what it reported.
    reported: Mutex<application::Reported>,
}

impl Default for MemoryCluster {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryCluster {
    /// An empty, available cluster.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(Shared {
            channels: Channels::default(),
            ears: RwLock::default(),
            backends: RwLock::default(),
            registry: Mutex::default(),
            presence: Mutex::default(),
            announcing: tokio::sync::Mutex::default(),
            windows: Mutex::default(),
            application: Mutex::default(),
            revoked: Mutex::default(),
            polls: Mutex::default(),
            lines: Lines::default(),
        }))
    }

    /// Adds a node. Dropping the [`Events`] makes it deaf for good, as a crash does; its lease stays
    /// until it is swept.
    #[must_use]
    pub fn join(&self, node: NodeId) -> (MemoryBroker, Events) {
        self.join_among(&self.0.ears, node)
    }

    /// Adds a backend: it hears what it is told by name and what it subscribes to, and is not counted
    /// among the nodes.
    #[must_use]
    pub fn join_backend(&self, backend: NodeId) -> (MemoryBroker, Events) {
        self.join_among(&self.0.backends, backend)
    }

    fn join_among(
        &self,
        ears: &RwLock<BTreeMap<NodeId, Arc<Ear>>>,
        node: NodeId,
    ) -> (MemoryBroker, Events) {
        let (ear, events) = Ear::new();
        let mut ears = ears.write();
        ears.retain(|_, ear| !ear.is_closed());
        ears.insert(node.clone(), ear.clone());
        drop(ears);
        let line = self.0.lines.join(&node);
        let node = Node {
            id: node,
            cluster: self.clone(),
            ear,
            line,
            registered: Mutex::default(),
            owed: Mutex::default(),
            unwritten: AtomicBool::new(false),
            presence: Mutex::default(),
            reported: Mutex::default(),
        };
        (MemoryBroker(Arc::new(node)), events)
    }

    /// Fault: events to this node are dropped until [`MemoryCluster::restore`]. Its commands work.
    pub fn interrupt(&self, node: &NodeId) {
        if let Some(ear) = self.0.ears.read().get(node) {
            ear.interrupt();
        }
    }

    /// Ends [`MemoryCluster::interrupt`]: the node hears `Interrupted` and `Restored`, then events.
    pub fn restore(&self, node: &NodeId) {
        if let Some(ear) = self.0.ears.read().get(node) {
            ear.restore();
        }
    }

    /// Fault: while `false`, health is down and every command answers
    /// [`BrokerError::Unavailable`]. Interest stays, and nothing is said on the event queues.
    pub fn set_available(&self, available: bool) {
        self.0.lines.set_outage(!available);
    }

    /// Fault: while `false`, every command of this node answers [`BrokerError::Unavailable`], and its health is down.
    pub fn set_reachable(&self, node: &NodeId, reachable: bool) {
        self.0.lines.set_cut(node, !reachable);
    }

    /// Fault: all history, receipts, leases, registrations, windows and inbound entries are gone;
    /// epochs begin anew. Interest stays. Nodes are told nothing: combine with
    /// [`MemoryCluster::interrupt`] and [`MemoryCluster::restore`].
    pub fn lose_data(&self) {
        self.0.channels.lose_data();
        *self.0.registry.lock() = Registry::default();
        *self.0.presence.lock() = presence::Presence::default();
        *self.0.windows.lock() = Windows::default();
        self.0.application.lock().lose();
        *self.0.revoked.lock() = revocations::Revoked::default();
        *self.0.polls.lock() = Polls::default();
    }

    /// Fault: the channel's history ends at `keep_offset`, in the same epoch, as after the promotion
    /// of a replica that had not seen the rest; receipts of the rest are gone too. The next publication reuses
    /// the offset with another tag.
    pub fn fork(&self, channel: &ChannelName, keep_offset: u64) {
        self.0.channels.fork(channel, keep_offset);
    }

    /// The newest messages of the `inbound` stream with their ids, oldest first; no events.
    #[must_use]
    pub fn inbound(&self) -> Vec<(String, InboundEntry)> {
        self.0.application.lock().messages()
    }
}

impl Node {
    fn available(&self) -> Result<&Shared, BrokerError> {
        self.line.check()?;
        Ok(&*self.cluster.0)
    }

    async fn publish(&self, request: Publish) -> Result<Receipt, BrokerError> {
        let mut attempt = Attempt::new(request);
        let mut deadline = None;
        loop {
            match self.available()?.channels.publish(&mut attempt) {
                Ok(receipt) => return Ok(receipt),
                Err(full) => {
                    let deadline =
                        *deadline.get_or_insert_with(|| Instant::now() + COMMAND_TIMEOUT);
                    full.wait_until(deadline, &mut attempt.kept).await;
                }
            }
        }
    }
}

async fn tell_one(ear: &Arc<Ear>, message: &Bytes, deadline: Instant) {
    let mut kept = Kept::new();
    while !ear.is_closed() {
        if let Ok(room) = ear.room(&mut kept) {
            return ear.deliver(room, || Event::Told(message.clone()));
        }
        ear.wait_until(deadline, &mut kept).await;
    }
}

#[async_trait]
impl Broker for MemoryBroker {
    async fn publish(&self, request: Publish) -> Result<Receipt, BrokerError> {
        self.0.publish(request).await
    }

    async fn publish_batch(&self, requests: Vec<Publish>) -> Vec<Result<Receipt, BrokerError>> {
        let mut results = Vec::with_capacity(requests.len());
        for request in requests {
            results.push(self.0.publish(request).await);
        }
        results
    }

    async fn subscribe(&self, channels: &[ChannelName]) -> Result<(), BrokerError> {
        let shared = self.0.available()?;
        for channel in channels {
            shared.channels.subscribe(channel, &self.0.ear);
        }
        Ok(())
    }

    async fn unsubscribe(&self, channels: &[ChannelName]) -> Result<(), BrokerError> {
        let shared = self.0.available()?;
        for channel in channels {
            shared.channels.unsubscribe(channel, &self.0.ear);
        }
        Ok(())
    }

    async fn tops(&self, channels: &[ChannelName]) -> Result<Vec<Position>, BrokerError> {
        let shared = self.0.available()?;
        Ok(channels.iter().map(|channel| shared.channels.top(channel)).collect())
    }

    async fn history(
        &self,
        channel: &ChannelName,
        query: HistoryQuery,
    ) -> Result<HistoryPage, BrokerError> {
        Ok(self.0.available()?.channels.history(channel, query))
    }

    async fn fence(&self, known: &[(ChannelName, Position)]) -> Result<Vec<bool>, BrokerError> {
        let shared = self.0.available()?;
        let lost =
            known.iter().map(|(channel, position)| shared.channels.fence(channel, *position));
        Ok(lost.collect())
    }

    async fn clear_history(&self, channel: &ChannelName) -> Result<Position, BrokerError> {
        Ok(self.0.available()?.channels.clear(channel))
    }

    async fn register(
        &self,
        record: &ConnectionRecord,
        limit: u64,
    ) -> Result<Admission, BrokerError> {
        let shared = self.0.available()?;
        let mut registry = shared.registry.lock();
        let admission = registry.register(&self.0.id, record, limit, Instant::now());
        if admission == Admission::Admitted {
            self.0.owed.lock().remove(&record.id);
            self.0.registered.lock().insert(record.id.clone(), record.user.clone());
        }
        Ok(admission)
    }

    fn register_later(&self, record: &ConnectionRecord) {
        self.0.registered.lock().insert(record.id.clone(), record.user.clone());
        self.0.unwritten.store(true, Ordering::Release);
    }

    async fn deregister(&self, record: &ConnectionRecord) -> Result<(), BrokerError> {
        // Known even when the answer is no: a restored registry must not hold what has ended.
        self.0.registered.lock().remove(&record.id);
        let removed = self.0.available().map(|shared| shared.registry.lock().deregister(record));
        if removed.is_err() {
            self.0.owed.lock().insert(record.id.clone(), record.user.clone());
        }
        removed
    }

    async fn connections_of(&self, user: &UserId) -> Result<Vec<ConnectionId>, BrokerError> {
        Ok(self.0.available()?.registry.lock().connections_of(user, Instant::now()))
    }

    async fn beat(&self, record: &NodeRecord) -> Result<Vec<NodeRecord>, BrokerError> {
        let shared = self.0.available()?;
        self.0.ear.settle();
        let now = Instant::now();
        let mut registry = shared.registry.lock();
        for (id, user) in self.0.owed.lock().drain() {
            registry.deregister(&ConnectionRecord { id, user });
        }
        let (living, lease_is_new) = registry.beat(record, now);
        if self.0.unwritten.swap(false, Ordering::AcqRel) || lease_is_new {
            for (id, user) in self.0.registered.lock().iter() {
                let record = ConnectionRecord { id: id.clone(), user: user.clone() };
                registry.restore(&self.0.id, &record, now);
            }
        }
        Ok(living)
    }

    async fn retire(&self) -> Result<(), BrokerError> {
        let shared = self.0.available()?;
        self.0.registered.lock().clear();
        shared.registry.lock().retire(&self.0.id);
        self.0.retire_presence().await
    }

    async fn tell(&self, target: &Target, message: Bytes) -> Result<u64, BrokerError> {
        let ears: Vec<Arc<Ear>> = {
            let shared = self.0.available()?;
            let ears = shared.ears.read();
            match target {
                Target::Node(node) => {
                    let backend = || shared.backends.read().get(node).cloned();
                    ears.get(node).cloned().or_else(backend).into_iter().collect()
                }
                Target::All => ears.values().cloned().collect(),
            }
        };
        let deadline = Instant::now() + COMMAND_TIMEOUT;
        let mut listening = 0;
        for ear in ears.iter().filter(|ear| ear.is_listening()) {
            tell_one(ear, &message, deadline).await;
            listening += 1;
        }
        Ok(listening)
    }

    async fn append_inbound(&self, entry: &InboundEntry) -> Result<String, BrokerError> {
        Ok(self.0.available()?.application.lock().append_message(entry))
    }

    async fn count(&self, key: &str, window: Duration) -> Result<RateCount, BrokerError> {
        Ok(self.0.available()?.windows.lock().count(key, window, Instant::now()))
    }

    fn generation(&self) -> u64 {
        self.0.line.generation()
    }

    fn node(&self) -> &NodeId {
        &self.0.id
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.0.line.watch()
    }
}

#[async_trait]
impl PollStore for MemoryBroker {
    async fn count_poll(
        &self,
        user: &UserId,
        window: Option<Duration>,
        asked: Option<(u64, &str)>,
    ) -> Result<CountedPoll, BrokerError> {
        let (shared, now) = (self.0.available()?, Instant::now());
        let count = |window| shared.windows.lock().count(&format!("poll {user}"), window, now);
        let answered =
            |(after, question)| shared.polls.lock().answered(user.as_str(), after, question, now);
        Ok(CountedPoll { rate: window.map(count), answered: asked.and_then(answered) })
    }

    async fn find_poll_pages(
        &self,
        user: &UserId,
        id: u64,
        question: &str,
    ) -> Result<PollState, BrokerError> {
        Ok(self.0.available()?.polls.lock().find(user.as_str(), id, question, Instant::now()))
    }

    async fn keep_poll_page(
        &self,
        user: &UserId,
        page: NewPollPage,
    ) -> Result<PollPage, BrokerError> {
        Ok(self.0.available()?.polls.lock().keep(user.as_str(), page, unix_ms(), Instant::now()))
    }
}

fn unix_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

impl fmt::Debug for MemoryCluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryCluster").finish_non_exhaustive()
    }
}

impl fmt::Debug for MemoryBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("MemoryBroker").field(&self.0.id).finish()
    }
}
