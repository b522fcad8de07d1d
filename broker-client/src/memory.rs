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
mod broker;
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
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use carillon_protocol::{ChannelName, ConnectionId, UserId};
use parking_lot::{Mutex, RwLock};
use tokio::time::Instant;

use self::channels::{Attempt, Channels};
use self::counters::Windows;
use self::ear::Ear;
use self::line::{Line, Lines};
use self::polls::Polls;
use self::registry::Registry;
use crate::{BrokerError, Events, InboundEntry, NodeId, Publish, Receipt};

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
