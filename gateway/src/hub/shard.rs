//! A shard of the hub: some connections and all their subscriptions, behind one short lock.
//! The lock is held while frames are queued, never while they are written to sockets.
//!
//! Queueing and writing are two steps. What was queued for stands in a ring, and is written a stretch at a
//! time; publications that arrive between two stretches are queued behind what still waits for the same
//! sockets, and leave with it in one write. So a busy node makes fewer system calls than deliveries, a quiet
//! one waits for nothing, and a fan-out to many thousands does not hold up everybody else on its core.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use carillon_protocol::{ChannelName, ConnectionId, Position};
use foldhash::{HashMap, HashMapExt};
use parking_lot::Mutex;
use smallvec::SmallVec;

use super::Notice;
use super::channel::{Behind, Channel, Next, Subscription, SubscriptionKey};
use super::delivery::{deliver, resync};
use crate::connection::Connection;
use crate::connection::outbox::Outbox;
use crate::dispatch::Dispatch;
use crate::metrics::Metrics;
use crate::notifications::{Courier, is_notification};

/// Connections written to in one stretch: some 300 µs of system calls.
const STRETCH: usize = 64;
/// Capacity of an empty ring that is kept for the next fan-out.
const RING_KEPT: usize = 65_536;

#[derive(Debug)]
pub(super) struct Shard {
    state: Mutex<State>,
    ring: Mutex<Ring>,
    metrics: Arc<Metrics>,
    courier: Courier,
}

#[derive(Debug)]
struct State {
    /// Boxed: as many as there are users, in a table that is half empty.
    channels: HashMap<ChannelName, Box<Channel>>,
    connections: HashMap<ConnectionId, Arc<Connection>>,
    generation: u32,
    /// Connections that a batch queued something for, on their way to the ring.
    dirty: Vec<Arc<Connection>>,
}

/// Connections that wait to be written to, each as often as something was queued for it afresh.
#[derive(Debug, Default)]
struct Ring {
    waiting: VecDeque<Arc<Connection>>,
    /// Connections taken out since the node began.
    taken: u64,
    /// Batches whose last listener has not been written to: the count of `taken` that ends each, and when
    /// its publications were made.
    unmeasured: VecDeque<(u64, Vec<i64>)>,
}

impl Shard {
    pub(super) fn new(metrics: Arc<Metrics>, courier: Courier) -> Self {
        let state = State {
            channels: HashMap::new(),
            connections: HashMap::new(),
            generation: 0,
            dirty: Vec::new(),
        };
        Self { state: Mutex::new(state), ring: Mutex::default(), metrics, courier }
    }

    /// Queues a batch for its listeners. [`Shard::write_some`] is owed until it says that nothing waits.
    pub(super) fn queue(&self, notices: &[Notice]) {
        let mut deliveries = 0;
        // Held over both locks, or a later batch could be measured before an earlier one.
        let mut state = self.state.lock();
        let mut dirty = std::mem::take(&mut state.dirty);
        {
            for notice in notices {
                match notice {
                    Notice::Dispatch(dispatch) => {
                        let Some(channel) = state.channels.get_mut(&dispatch.publication.channel)
                        else {
                            continue;
                        };
                        channel.heard += 1;
                        let reached = deliver(channel, dispatch, &mut dirty, &self.metrics);
                        if reached > 0 && is_notification(&dispatch.publication) {
                            self.courier.delivered(dispatch);
                        }
                        deliveries += reached;
                    }
                    Notice::Resync(channel_name, reason, position) => {
                        if let Some(channel) = state.channels.get_mut(channel_name) {
                            resync(channel, channel_name, reason, *position, &mut dirty);
                        }
                    }
                    Notice::Mark(_) => {}
                }
            }
        }
        let mut ring = self.ring.lock();
        ring.waiting.extend(dirty.drain(..));
        if deliveries > 0 {
            self.metrics.delivered(deliveries);
            let made_at = notices.iter().filter_map(Notice::made_at_ms).collect();
            let ends_at = ring.taken + ring.waiting.len() as u64;
            ring.unmeasured.push_back((ends_at, made_at));
        }
        drop(ring);
        state.dirty = dirty;
    }

    /// Writes to the next connections of the ring; whether others wait.
    pub(super) fn write_some(&self) -> bool {
        let mut stretch: SmallVec<[Arc<Connection>; STRETCH]> = SmallVec::new();
        {
            let mut ring = self.ring.lock();
            let count = ring.waiting.len().min(STRETCH);
            stretch.extend(ring.waiting.drain(..count));
            ring.taken += count as u64;
        }
        let outboxes: SmallVec<[&Outbox; STRETCH]> =
            stretch.iter().map(|connection| &connection.outbox).collect();
        Outbox::flush_all(&outboxes);
        let mut ring = self.ring.lock();
        while let Some((_, made_at)) =
            ring.unmeasured.front().filter(|(ends_at, _)| *ends_at <= ring.taken)
        {
            self.metrics.reached_sockets(made_at);
            ring.unmeasured.pop_front();
        }
        if ring.waiting.is_empty() && ring.waiting.capacity() > RING_KEPT {
            ring.waiting = VecDeque::new();
        }
        !ring.waiting.is_empty()
    }

    pub(super) fn attach(&self, connection: &Arc<Connection>) {
        self.state.lock().connections.insert(connection.id.clone(), Arc::clone(connection));
    }

    pub(super) fn detach(&self, connection: &ConnectionId) {
        self.state.lock().connections.remove(connection);
    }

    pub(super) fn find(&self, connection: &ConnectionId) -> Option<Arc<Connection>> {
        self.state.lock().connections.get(connection).cloned()
    }

    pub(super) fn connections(&self) -> Vec<Arc<Connection>> {
        self.state.lock().connections.values().cloned().collect()
    }

    pub(super) fn subscribe(
        &self,
        name: &ChannelName,
        subscription: Subscription,
        relay_position: impl FnOnce() -> Option<Position>,
        begun: impl FnOnce(Option<Position>),
    ) -> SubscriptionKey {
        let mut state = self.state.lock();
        state.generation = state.generation.wrapping_add(1);
        let generation = state.generation;
        // The relay's lock is taken inside the shard's, never the other way round.
        let channel = state
            .channels
            .entry(name.clone())
            .or_insert_with(|| Box::new(Channel::at(relay_position())));
        begun(channel.position);
        channel.add(generation, subscription)
    }

    pub(super) fn unsubscribe(&self, name: &ChannelName, key: SubscriptionKey) {
        let mut state = self.state.lock();
        let Some(channel) = state.channels.get_mut(name) else { return };
        if channel.get(key).is_some() {
            channel.subscriptions.remove(key.slot as usize);
        }
        if channel.subscriptions.is_empty() {
            state.channels.remove(name);
        }
    }

    pub(super) fn with_subscription(
        &self,
        name: &ChannelName,
        key: SubscriptionKey,
        change: impl FnOnce(&mut Subscription),
    ) {
        let mut state = self.state.lock();
        if let Some(subscription) =
            state.channels.get_mut(name).and_then(|channel| channel.get(key))
        {
            change(subscription);
        }
    }

    pub(super) fn fall_behind(
        &self,
        name: &ChannelName,
        key: SubscriptionKey,
        from: Position,
    ) -> Option<Position> {
        let mut state = self.state.lock();
        let channel = state.channels.get_mut(name)?;
        let top = channel.position;
        let subscription = channel.get(key)?;
        let before = subscription.behind.replace(Behind::at(from));
        before.map_or(top, |behind| Some(behind.from))
    }

    pub(super) fn since(&self, name: &ChannelName, from: Position) -> Option<Vec<Arc<Dispatch>>> {
        self.state.lock().channels.get(name)?.since(from)
    }

    pub(super) fn behind_at(&self, name: &ChannelName, key: SubscriptionKey) -> Option<Position> {
        self.state
            .lock()
            .channels
            .get_mut(name)?
            .get(key)?
            .behind
            .as_ref()
            .map(|behind| behind.from)
    }

    pub(super) fn next(
        &self,
        name: &ChannelName,
        key: SubscriptionKey,
        from: Position,
        from_is_top: bool,
    ) -> Next {
        let mut state = self.state.lock();
        let Some(channel) = state.channels.get_mut(name) else { return Next::Gone };
        let top = channel.position;
        let tail = channel.after(from);
        let Some(subscription) = channel.get(key) else { return Next::Gone };
        subscription.behind = Some(Behind::at(from));
        match top {
            // Equal offsets of one epoch with another tag are a fork, which only history can tell.
            Some(top) if top == from => {
                subscription.behind = None;
                Next::Live
            }
            Some(top) if from_is_top && top.epoch == from.epoch && top.offset < from.offset => {
                subscription.behind = Some(Box::new(Behind { from, joining: true }));
                Next::Live
            }
            _ => tail.map_or(Next::History, Next::Tail),
        }
    }

    pub(super) fn go_live(
        &self,
        name: &ChannelName,
        key: SubscriptionKey,
        begun: impl FnOnce(Option<Position>),
    ) {
        let mut state = self.state.lock();
        let Some(channel) = state.channels.get_mut(name) else { return };
        let position = channel.position;
        if let Some(subscription) = channel.get(key) {
            subscription.behind = None;
            begun(position);
        }
    }

    pub(super) fn at_position(
        &self,
        name: &ChannelName,
        key: SubscriptionKey,
        now: impl FnOnce(Option<Position>),
    ) {
        let mut state = self.state.lock();
        let Some(channel) = state.channels.get_mut(name) else { return };
        let position = channel.position;
        if channel.get(key).is_some() {
            now(position);
        }
    }

    pub(super) fn heard(&self, name: &ChannelName, key: SubscriptionKey) -> u64 {
        let mut state = self.state.lock();
        let Some(channel) = state.channels.get_mut(name) else { return 0 };
        if channel.get(key).is_some() { channel.heard } else { 0 }
    }

    pub(super) fn unless_heard(
        &self,
        name: &ChannelName,
        key: SubscriptionKey,
        heard: u64,
        now: impl FnOnce(),
    ) -> Result<(), u64> {
        let mut state = self.state.lock();
        let Some(channel) = state.channels.get_mut(name) else { return Ok(()) };
        if channel.get(key).is_none() {
            return Ok(());
        }
        if channel.heard != heard {
            return Err(channel.heard);
        }
        now();
        Ok(())
    }

    pub(super) fn count_channels(&self, prefix: &str, all: &mut BTreeMap<ChannelName, u64>) {
        let state = self.state.lock();
        for (name, channel) in &state.channels {
            if name.as_str().starts_with(prefix) {
                *all.entry(name.clone()).or_default() += channel.subscriptions.len() as u64;
            }
        }
    }

    pub(super) fn subscriptions(&self) -> usize {
        self.state.lock().channels.values().map(|channel| channel.subscriptions.len()).sum()
    }

    pub(super) fn queued_bytes(&self) -> usize {
        self.state
            .lock()
            .connections
            .values()
            .map(|connection| connection.outbox.queued_bytes())
            .sum()
    }

    /// Walks all channels: for the few lists that show one connection.
    pub(super) fn channels_of(&self, connection: &ConnectionId) -> Vec<String> {
        let state = self.state.lock();
        let mut names = Vec::new();
        for (name, channel) in &state.channels {
            for (_, (_, subscription)) in &channel.subscriptions {
                if subscription.connection.id != *connection {
                    continue;
                }
                if crate::dispatch::is_user_stream(name) && subscription.labels.notifications {
                    names.push(crate::dispatch::NOTIFICATIONS.to_owned());
                }
                if !crate::dispatch::is_user_stream(name) || subscription.labels.others {
                    names.push(name.as_str().to_owned());
                }
            }
        }
        names.sort_unstable();
        names
    }

    pub(super) fn listeners(&self, channel: &str, each: &mut dyn FnMut(&Arc<Connection>)) {
        let state = self.state.lock();
        if let Some(channel) = state.channels.get(channel) {
            for (_, (_, subscription)) in &channel.subscriptions {
                each(&subscription.connection);
            }
        }
    }
}
