//! One channel as a shard knows it: its listeners, the last position delivered, a hot tail.

use std::collections::VecDeque;
use std::sync::Arc;

use carillon_protocol::{Filter, Position};
use slab::Slab;

use crate::connection::Connection;
use crate::dispatch::Dispatch;
use crate::interests::Interests;

/// Publications kept for joining history to live messages.
const TAIL_MAX: usize = 64;
/// Bytes of publications kept for the same.
const TAIL_BYTES_MAX: usize = 64 * 1024;
/// Up to so many subscriptions room is made one by one: a user's own stream has one or two.
const EXACT_MAX: usize = 4;

/// Which messages of a channel a subscription hears: on a user stream notifications and the rest
/// are two labels (R7); on other channels always both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Labels {
    /// Messages of type `notification*`.
    pub notifications: bool,
    /// All others.
    pub others: bool,
}

impl Labels {
    /// Everything.
    pub const ALL: Labels = Labels { notifications: true, others: true };
    /// Nothing.
    pub const NONE: Labels = Labels { notifications: false, others: false };

    /// Whether a message stands under one of these labels.
    #[must_use]
    pub fn admit(self, dispatch: &Dispatch) -> bool {
        if self == Self::ALL {
            return true;
        }
        if dispatch.is_notification() { self.notifications } else { self.others }
    }
}

/// One connection's interest in one channel.
#[derive(Clone, Debug)]
pub struct Subscription {
    /// Who listens.
    pub connection: Arc<Connection>,
    /// `Some`: not live.
    pub behind: Option<Box<Behind>>,
    /// Labels heard.
    pub labels: Labels,
    /// Payload filter.
    pub filter: Option<Arc<Filter>>,
    /// The channel keeps only the newest message for slow readers.
    pub conflate: bool,
    /// The client itself listens, not only the user's persistent subscriptions.
    pub asked: bool,
    /// Its owner reads what is new by [`crate::hub::Hub::since`]: it is only woken.
    pub wakes: bool,
    /// The user's persistent subscriptions on this channel.
    pub interests: Option<Interests>,
}

impl Subscription {
    /// Sends the connection's task to history once more; it may be there already.
    pub(super) fn look_again(&mut self, behind: Behind) {
        self.behind = Some(Behind::at(behind.from));
        self.connection.outbox.mark_behind();
    }

    /// Whether this listener hears the publication at all.
    #[must_use]
    pub fn admits(&self, dispatch: &Dispatch) -> bool {
        let publication = &dispatch.publication;
        self.labels.admit(dispatch)
            && (publication.exclude.is_empty()
                || !publication.exclude.covers(&self.connection.id, self.connection.user.as_ref()))
    }
}

/// A subscription that is not live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Behind {
    /// The last position that the connection has seen (or has queued).
    pub from: Position,
    /// Everything up to `from` is queued: the publication after it makes the subscription live.
    pub joining: bool,
}

impl Behind {
    /// Whether this is the publication right after what is queued.
    pub(super) fn is_followed_by(&self, dispatch: &Dispatch) -> bool {
        let publication = &dispatch.publication;
        publication.previous_tag == Some(self.from.tag)
            && publication.position.is_some_and(|here| {
                here.epoch == self.from.epoch && here.offset == self.from.offset + 1
            })
    }

    /// Behind, with history still to be read. Boxed: nearly all subscriptions are live, and there are many.
    #[must_use]
    pub fn at(from: Position) -> Box<Self> {
        Box::new(Self { from, joining: false })
    }
}

/// Names a subscription within its channel and shard; stale keys are recognised by generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubscriptionKey {
    pub(super) slot: u32,
    pub(super) generation: u32,
}

/// What to do for a subscription that is behind.
#[derive(Debug)]
pub enum Next {
    /// It is live now: nothing was missing.
    Live,
    /// These came after its position; push them, then ask again.
    Tail(Vec<Arc<Dispatch>>),
    /// The tail does not reach back: read history.
    History,
    /// The subscription is gone.
    Gone,
}

#[derive(Debug, Default)]
pub(super) struct Channel {
    /// Last position delivered; `None` without history or before the relay opened it.
    pub(super) position: Option<Position>,
    pub(super) subscriptions: Slab<(u32, Subscription)>,
    /// Publications handled since the channel is here.
    pub(super) heard: u64,
    /// Boxed: most channels are a user's own and silent.
    tail: Option<Box<Tail>>,
}

/// The last publications, oldest first.
#[derive(Debug, Default)]
struct Tail {
    publications: VecDeque<Arc<Dispatch>>,
    bytes: usize,
}

impl Channel {
    pub(super) fn at(position: Option<Position>) -> Self {
        Self { position, ..Self::default() }
    }

    pub(super) fn get(&mut self, key: SubscriptionKey) -> Option<&mut Subscription> {
        self.subscriptions
            .get_mut(key.slot as usize)
            .filter(|(generation, _)| *generation == key.generation)
            .map(|(_, subscription)| subscription)
    }

    pub(super) fn reset(&mut self, position: Option<Position>) {
        self.position = position;
        self.tail = None;
    }

    /// Adds a subscription; its place.
    pub(super) fn add(&mut self, generation: u32, subscription: Subscription) -> SubscriptionKey {
        if self.subscriptions.len() < EXACT_MAX {
            self.subscriptions.reserve_exact(1);
        }
        let slot = self.subscriptions.insert((generation, subscription)) as u32;
        SubscriptionKey { slot, generation }
    }

    pub(super) fn remember(&mut self, dispatch: &Arc<Dispatch>) {
        if dispatch.publication.position.is_none() {
            return;
        }
        self.position = dispatch.publication.position;
        let tail = self.tail.get_or_insert_default();
        tail.bytes += dispatch.publication.weight_bytes();
        tail.publications.push_back(Arc::clone(dispatch));
        while tail.publications.len() > TAIL_MAX
            || (tail.bytes > TAIL_BYTES_MAX && tail.publications.len() > 1)
        {
            if let Some(oldest) = tail.publications.pop_front() {
                tail.bytes -= oldest.publication.weight_bytes();
            }
        }
    }

    /// The publications after `from`, none where it is the last one; `None` where only history can tell.
    pub(super) fn since(&self, from: Position) -> Option<Vec<Arc<Dispatch>>> {
        if self.position == Some(from) { Some(Vec::new()) } else { self.after(from) }
    }

    /// The publications after `from`, if the tail reaches back to it on the same history.
    pub(super) fn after(&self, from: Position) -> Option<Vec<Arc<Dispatch>>> {
        let tail = &self.tail.as_ref()?.publications;
        let first = tail.front()?.publication.position?;
        let top = self.position?;
        if from.epoch != top.epoch || from.offset + 1 < first.offset || from.offset >= top.offset {
            return None;
        }
        let skip = (from.offset + 1 - first.offset) as usize;
        let next = tail.get(skip)?;
        (next.publication.previous_tag == Some(from.tag))
            .then(|| tail.iter().skip(skip).cloned().collect())
    }
}
