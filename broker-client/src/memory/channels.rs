//! Channels in shards: who hears them, their logs, and first receipts of idempotent publishes.
//! Append and delivery happen under one shard's lock, which makes the order of a channel the same
//! for history and every node. Locks are short and never held across an await.

use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::Duration;

use carillon_protocol::{ChannelName, Position, Publication};
use foldhash::fast::RandomState;
use parking_lot::{Mutex, MutexGuard};
use smallvec::SmallVec;
use tokio::time::Instant;

use super::ear::{Ear, Full, Kept, Room};
use super::log::Log;
use crate::broker::IDEMPOTENCY_WINDOW;
use crate::{Event, HistoryPage, HistoryQuery, Publish, Receipt, Retention};

const SHARDS: usize = 64;

/// How often a shard that is in use looks for what may be forgotten.
const SWEEP_EVERY: Duration = Duration::from_secs(60);

/// All channels of the cluster.
pub(super) struct Channels {
    hasher: RandomState,
    shards: Box<[Mutex<Shard>]>,
}

struct Shard {
    /// Boxed: there are as many channels as users, and a table is half empty.
    channels: HashMap<ChannelName, Box<Channel>, RandomState>,
    receipts: Receipts,
    /// Of the last message without history; outlives channels and what they lose.
    stamp: u64,
    sweep_at: Instant,
}

#[derive(Default)]
struct Channel {
    listeners: SmallVec<[Arc<Ear>; 1]>,
    log: Option<Log>,
}

/// A publish that may need several attempts, because a node's queue is full.
pub(super) struct Attempt {
    channel: ChannelName,
    publication: Option<Publication>,
    retention: Option<Retention>,
    keys: SmallVec<[Arc<ReceiptKey>; 1]>,
    /// Places awaited so far.
    pub(super) kept: Kept,
}

impl Attempt {
    pub(super) fn new(request: Publish) -> Self {
        let channel = request.publication.channel.clone();
        let once = request.idempotency.iter();
        let keys =
            once.flat_map(|once| once.keys().map(|key| (once.sender.clone(), key.to_owned())));
        let keys = keys
            .map(|(sender, key)| Arc::new(ReceiptKey { channel: channel.clone(), sender, key }))
            .collect();
        let publication = Some(request.publication);
        Self { channel, publication, retention: request.retention, keys, kept: Kept::new() }
    }
}

impl Default for Channels {
    fn default() -> Self {
        let shard = || {
            Mutex::new(Shard {
                channels: HashMap::default(),
                receipts: Receipts::default(),
                stamp: 0,
                sweep_at: Instant::now() + SWEEP_EVERY,
            })
        };
        Self { hasher: RandomState::default(), shards: (0..SHARDS).map(|_| shard()).collect() }
    }
}

impl Channels {
    fn shard(&self, channel: &ChannelName, now: Instant) -> MutexGuard<'_, Shard> {
        // Not the low bits: those choose the place inside the shard's own table.
        let index = (self.hasher.hash_one(channel) >> 48) as usize % SHARDS;
        let mut shard = self.shards[index].lock();
        if now >= shard.sweep_at {
            shard.sweep(now);
        }
        shard
    }

    /// Publishes, or names a node for whose queue the caller must wait first; nothing has happened
    /// then.
    pub(super) fn publish(&self, attempt: &mut Attempt) -> Result<Receipt, Arc<Ear>> {
        let now = Instant::now();
        let mut shard = self.shard(&attempt.channel, now);
        if let Some(first) = attempt.keys.iter().find_map(|key| shard.receipts.find(key, now)) {
            return Ok(first);
        }
        if attempt.retention.is_some() && !shard.channels.contains_key(&attempt.channel) {
            shard.channels.insert(attempt.channel.clone(), Box::default());
        }
        shard.stamp += 1;
        let stamp = shard.stamp;
        let receipt = match shard.channels.get_mut(&attempt.channel) {
            Some(channel) => channel.publish(attempt, stamp, now)?,
            None => receipt(attempt.publication.as_ref().expect("published once"), None),
        };
        for key in std::mem::take(&mut attempt.keys) {
            shard.receipts.keep(key, receipt.clone(), now);
        }
        Ok(receipt)
    }

    pub(super) fn subscribe(&self, channel: &ChannelName, ear: &Arc<Ear>) {
        let mut shard = self.shard(channel, Instant::now());
        let listeners = &mut shard.channels.entry(channel.clone()).or_default().listeners;
        if !listeners.iter().any(|listener| Arc::ptr_eq(listener, ear)) {
            listeners.push(ear.clone());
        }
    }

    pub(super) fn unsubscribe(&self, channel: &ChannelName, ear: &Arc<Ear>) {
        let mut shard = self.shard(channel, Instant::now());
        if let Some(state) = shard.channels.get_mut(channel) {
            state.listeners.retain(|listener| !Arc::ptr_eq(listener, ear));
            if state.is_idle() {
                shard.channels.remove(channel);
            }
        }
    }

    pub(super) fn top(&self, channel: &ChannelName) -> Position {
        let now = Instant::now();
        let mut shard = self.shard(channel, now);
        shard.channels.entry(channel.clone()).or_default().log(now).top(now)
    }

    pub(super) fn history(&self, channel: &ChannelName, query: HistoryQuery) -> HistoryPage {
        let now = Instant::now();
        let mut shard = self.shard(channel, now);
        shard.channels.entry(channel.clone()).or_default().log(now).read(query, now)
    }

    pub(super) fn clear(&self, channel: &ChannelName) -> Position {
        let now = Instant::now();
        let mut shard = self.shard(channel, now);
        let state = shard.channels.entry(channel.clone()).or_default();
        let top = state.log.insert(Log::begin(now)).top(now);
        state.announce_renewal(channel);
        top
    }

    /// Whether history lost the position; the channel has begun a new epoch then.
    pub(super) fn fence(&self, channel: &ChannelName, position: Position) -> bool {
        let mut shard = self.shard(channel, Instant::now());
        let Some(state) = shard.channels.get_mut(channel) else { return false };
        let lost = state.log.as_mut().is_some_and(|log| log.fence(position));
        if lost {
            state.announce_renewal(channel);
        }
        lost
    }

    pub(super) fn fork(&self, channel: &ChannelName, keep_offset: u64) {
        let mut shard = self.shard(channel, Instant::now());
        if let Some(log) = shard.channels.get_mut(channel).and_then(|state| state.log.as_mut()) {
            log.fork(keep_offset);
        }
        shard.receipts.forget_after(channel, keep_offset);
    }

    /// Forgets all history and receipts; who hears what stays.
    pub(super) fn lose_data(&self) {
        for shard in &self.shards {
            let mut shard = shard.lock();
            shard.receipts = Receipts::default();
            shard.channels.retain(|_, channel| {
                channel.log = None;
                !channel.is_idle()
            });
        }
    }
}

impl Shard {
    fn sweep(&mut self, now: Instant) {
        self.sweep_at = now + SWEEP_EVERY;
        self.receipts.expire(now);
        self.channels.retain(|_, channel| {
            channel.listeners.retain(|ear| !ear.is_closed());
            channel.log.take_if(|log| log.is_over(now));
            if let Some(log) = &mut channel.log {
                log.trim_aged(now);
            }
            !channel.is_idle()
        });
    }
}

impl Channel {
    fn is_idle(&self) -> bool {
        self.listeners.is_empty() && self.log.is_none()
    }

    fn log(&mut self, now: Instant) -> &mut Log {
        self.log.take_if(|log| log.is_over(now));
        self.log.get_or_insert_with(|| Log::begin(now))
    }

    /// Nobody waits for a full queue here: its node audits anyway.
    fn announce_renewal(&self, channel: &ChannelName) {
        for ear in &self.listeners {
            ear.deliver_or_miss(|| Event::Renewed(channel.clone()));
        }
    }

    fn publish(
        &mut self,
        attempt: &mut Attempt,
        stamp: u64,
        now: Instant,
    ) -> Result<Receipt, Arc<Ear>> {
        if self.listeners.iter().any(|ear| ear.is_closed()) {
            self.listeners.retain(|ear| !ear.is_closed());
        }
        // Logs need `self` whole; take the listeners out for the moment that their places are held.
        let listeners = std::mem::take(&mut self.listeners);
        let published = self.publish_to(&listeners, attempt, stamp, now);
        self.listeners = listeners;
        published
    }

    fn publish_to(
        &mut self,
        listeners: &[Arc<Ear>],
        attempt: &mut Attempt,
        stamp: u64,
        now: Instant,
    ) -> Result<Receipt, Arc<Ear>> {
        // Room first: a publish either reaches every queue in its turn or has not happened yet.
        let mut rooms: Vec<(&Arc<Ear>, Room<'_>)> = Vec::with_capacity(listeners.len());
        for ear in listeners {
            match ear.room(&mut attempt.kept) {
                Ok(room) => rooms.push((ear, room)),
                Err(Full) => {
                    // What was awaited for the others is kept; their turn in the queue is not lost.
                    for (ear, room) in rooms {
                        if let Room::Kept(permit) = room {
                            attempt.kept.push((ear.clone(), permit));
                        }
                    }
                    return Err(ear.clone());
                }
            }
        }
        let mut publication = attempt.publication.take().expect("published once");
        publication.position = None;
        publication.previous_tag = None;
        publication.stamp = stamp;
        if let Some(retention) = attempt.retention {
            publication.stamp = 0;
            self.log(now).append(&mut publication, retention, now);
        }
        let receipt = receipt(&publication, publication.position);
        let last = rooms.pop();
        for (ear, room) in rooms {
            ear.deliver(room, || Event::Publication(publication.clone()));
        }
        if let Some((ear, room)) = last {
            ear.deliver(room, || Event::Publication(publication));
        }
        Ok(receipt)
    }
}

fn receipt(publication: &Publication, position: Option<Position>) -> Receipt {
    Receipt { id: publication.id.clone(), position, duplicate: false }
}

#[derive(PartialEq, Eq, Hash)]
struct ReceiptKey {
    channel: ChannelName,
    sender: String,
    key: String,
}

/// First receipts for as long as repetitions are recognised. Every key lives equally long, so they expire
/// in the order they came.
#[derive(Default)]
struct Receipts {
    first: HashMap<Arc<ReceiptKey>, Receipt, RandomState>,
    expiring: VecDeque<(Instant, Arc<ReceiptKey>)>,
}

impl Receipts {
    fn find(&mut self, key: &Arc<ReceiptKey>, now: Instant) -> Option<Receipt> {
        self.expire(now);
        let first = self.first.get(key)?;
        Some(Receipt { duplicate: true, ..first.clone() })
    }

    fn keep(&mut self, key: Arc<ReceiptKey>, receipt: Receipt, now: Instant) {
        self.expiring.push_back((now + IDEMPOTENCY_WINDOW, key.clone()));
        self.first.insert(key, receipt);
    }

    /// Receipts are written in one step with what they are for, and lost with it.
    fn forget_after(&mut self, channel: &ChannelName, keep_offset: u64) {
        let is_lost = |receipt: &Receipt| {
            receipt.position.is_some_and(|position| position.offset > keep_offset)
        };
        self.first.retain(|key, receipt| key.channel != *channel || !is_lost(receipt));
        let first = &self.first;
        self.expiring.retain(|(_, key)| first.contains_key(key));
    }

    fn expire(&mut self, now: Instant) {
        while self.expiring.front().is_some_and(|(until, _)| *until <= now) {
            if let Some((_, key)) = self.expiring.pop_front() {
                self.first.remove(&key);
            }
        }
    }
}
