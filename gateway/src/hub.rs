//! Who on this node hears what. A cloneable handle over private shards; a connection lives in one
//! shard with all its subscriptions, so a delivery touches one lock for a thousand listeners.
//!
//! The hub does not know the broker, and the relay does not know connections: the relay hands over
//! publications in order, the hub remembers per channel the last one it delivered and a short hot
//! tail, and that is all that recovery needs to join history to live messages without a gap.

mod channel;
mod delivery;
mod shard;

use std::collections::HashSet;
use std::sync::Arc;

use carillon_protocol::{ChannelName, ConnectionId, Filter, Position};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::connection::Connection;
use crate::dispatch::Dispatch;
use crate::interests::Interests;
use crate::metrics::Metrics;
use crate::notifications::Courier;

pub use channel::{Behind, Labels, Next, Subscription, SubscriptionKey};
pub(crate) use delivery::resync_message;
use shard::Shard;

/// Batches waiting for a shard before the relay waits.
const INGRESS_BATCHES_MAX: usize = 64;

/// What the relay tells the hub, in a channel's order.
#[derive(Clone, Debug)]
pub enum Notice {
    /// A publication, next in order.
    Dispatch(Arc<Dispatch>),
    /// Messages were lost or history forked: listeners must be told, and go on from here.
    Resync(ChannelName, &'static str, Option<Position>),
    /// Nothing to hear: who holds the other end learns that all before it is queued, when this is dropped.
    Mark(mpsc::Sender<()>),
}

impl Notice {
    /// When a publication was made, Unix milliseconds.
    fn made_at_ms(&self) -> Option<i64> {
        match self {
            Self::Dispatch(dispatch) => Some(dispatch.publication.timestamp_ms),
            Self::Resync(..) | Self::Mark(_) => None,
        }
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Hub {
    shards: Arc<[Arc<Shard>]>,
    ingress: Arc<[mpsc::Sender<Arc<[Notice]>>]>,
    /// One at a time: a mark must not reach one shard behind a notice and another shard before it.
    entry: Arc<tokio::sync::Mutex<()>>,
}

impl Hub {
    /// A hub of `shards` shards. With more than one, each is driven by a task under `tasks`.
    #[must_use]
    pub fn new(
        shards: usize,
        metrics: &Arc<Metrics>,
        courier: &Courier,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Self {
        let shards: Arc<[Arc<Shard>]> = (0..shards.max(1))
            .map(|_| Arc::new(Shard::new(Arc::clone(metrics), courier.clone())))
            .collect();
        let mut ingress = Vec::new();
        if shards.len() > 1 {
            for shard in shards.iter() {
                let (sender, receiver) = mpsc::channel(INGRESS_BATCHES_MAX);
                ingress.push(sender);
                tasks.spawn(drive(Arc::clone(shard), receiver, stop.clone()));
            }
        }
        Self { shards, ingress: ingress.into(), entry: Arc::default() }
    }

    fn shard(&self, connection: &ConnectionId) -> &Arc<Shard> {
        use std::hash::BuildHasher;
        let hash = foldhash::fast::FixedState::default().hash_one(connection);
        &self.shards[hash as usize % self.shards.len()]
    }

    /// Takes notices in order. Waits while a shard is behind. `true`: the caller owes [`Hub::write_some`].
    pub async fn notify(&self, notices: Vec<Notice>) -> bool {
        if self.ingress.is_empty() {
            self.shards[0].queue(&notices);
            return true;
        }
        let notices: Arc<[Notice]> = notices.into();
        let _entry = self.entry.lock().await;
        for sender in self.ingress.iter() {
            // A closed ingress means that the node is stopping.
            let _ = sender.send(Arc::clone(&notices)).await;
        }
        false
    }

    /// Returns when every notice that was taken before is queued for its listeners. Cancel safe.
    pub async fn caught_up(&self) {
        let (mark, mut passed) = mpsc::channel(1);
        // Without tasks of its own it queues as it takes.
        if !self.ingress.is_empty() {
            let notices: Arc<[Notice]> = [Notice::Mark(mark)].into();
            let entry = self.entry.lock().await;
            for sender in self.ingress.iter() {
                let _ = sender.send(Arc::clone(&notices)).await;
            }
            drop((entry, notices));
            // Ends when the last shard has dropped the mark.
            let _ = passed.recv().await;
        }
    }

    /// Writes a stretch of what a hub without tasks of its own has queued; whether more waits.
    #[must_use]
    pub fn write_some(&self) -> bool {
        self.ingress.is_empty() && self.shards[0].write_some()
    }

    /// Takes notices and sees them written.
    pub async fn settle(&self, notices: Vec<Notice>) {
        let mut owed = self.notify(notices).await;
        while owed {
            owed = self.write_some();
            if owed {
                tokio::task::yield_now().await;
            }
        }
    }

    /// Adds a connection.
    pub fn attach(&self, connection: &Arc<Connection>) {
        self.shard(&connection.id).attach(connection);
    }

    /// Removes a connection; its subscriptions must be removed before.
    pub fn detach(&self, connection: &ConnectionId) {
        self.shard(connection).detach(connection);
    }

    /// A live connection of this node.
    #[must_use]
    pub fn find(&self, connection: &str) -> Option<Arc<Connection>> {
        let id = ConnectionId::new(connection).ok()?;
        self.shard(&id).find(&id)
    }

    /// All live connections of this node, in no order.
    #[must_use]
    pub fn connections(&self) -> Vec<Arc<Connection>> {
        self.shards.iter().flat_map(|shard| shard.connections()).collect()
    }

    /// Adds a subscription. `begun` runs under the shard's lock with the position at which live
    /// delivery begins (`None` without history), before anything is delivered: what it pushes to the
    /// connection's outbox comes first. `relay_position` is asked, under the same lock, only when the
    /// channel is new to the shard: publications up to it that are still on their way are dropped by offset.
    ///
    /// With `behind`, nothing is delivered until [`Hub::next`] has led the connection up to live.
    pub fn subscribe(
        &self,
        channel: &ChannelName,
        subscription: Subscription,
        relay_position: impl FnOnce() -> Option<Position>,
        begun: impl FnOnce(Option<Position>),
    ) -> SubscriptionKey {
        let shard = Arc::clone(self.shard(&subscription.connection.id));
        shard.subscribe(channel, subscription, relay_position, begun)
    }

    /// Removes a subscription.
    pub fn unsubscribe(
        &self,
        connection: &ConnectionId,
        channel: &ChannelName,
        key: SubscriptionKey,
    ) {
        self.shard(connection).unsubscribe(channel, key);
    }

    /// Changes which labels of a user stream a subscription hears.
    pub fn relabel(
        &self,
        connection: &ConnectionId,
        channel: &ChannelName,
        key: SubscriptionKey,
        labels: Labels,
    ) {
        self.shard(connection)
            .with_subscription(channel, key, |subscription| subscription.labels = labels);
    }

    /// Replaces a subscription's filter.
    pub fn refilter(
        &self,
        connection: &ConnectionId,
        channel: &ChannelName,
        key: SubscriptionKey,
        filter: Option<Arc<Filter>>,
    ) {
        self.shard(connection)
            .with_subscription(channel, key, |subscription| subscription.filter = filter);
    }

    /// Says whether the client itself listens, and which persistent subscriptions do.
    pub fn interest(
        &self,
        connection: &ConnectionId,
        channel: &ChannelName,
        key: SubscriptionKey,
        asked: bool,
        interests: Option<Interests>,
    ) {
        self.shard(connection).with_subscription(channel, key, |subscription| {
            subscription.asked = asked;
            subscription.interests = interests;
        });
    }

    /// The next step of a subscription that is behind: see [`Next`]. `from_is_top` says that history
    /// was just read and holds nothing after `from`; if publications up to `from` are still on their
    /// way to this shard, they are dropped and the first one after it makes the subscription live.
    #[must_use]
    pub fn next(
        &self,
        connection: &ConnectionId,
        channel: &ChannelName,
        key: SubscriptionKey,
        from: Position,
        from_is_top: bool,
    ) -> Next {
        self.shard(connection).next(channel, key, from, from_is_top)
    }

    /// Publications after `from` on a channel that a connection listens to, as far as this node has heard them: none where
    /// `from` is the last one, `None` where only history can tell.
    #[must_use]
    pub fn since(
        &self,
        connection: &ConnectionId,
        channel: &ChannelName,
        from: Position,
    ) -> Option<Vec<Arc<Dispatch>>> {
        self.shard(connection).since(channel, from)
    }

    /// Where a subscription stands that fell behind; `None` when it is live.
    #[must_use]
    pub fn behind_at(
        &self,
        connection: &ConnectionId,
        channel: &ChannelName,
        key: SubscriptionKey,
    ) -> Option<Position> {
        self.shard(connection).behind_at(channel, key)
    }

    /// Sets a subscription live where the channel stands now; `begun` as in [`Hub::subscribe`].
    pub fn go_live(
        &self,
        connection: &ConnectionId,
        channel: &ChannelName,
        key: SubscriptionKey,
        begun: impl FnOnce(Option<Position>),
    ) {
        self.shard(connection).go_live(channel, key, begun);
    }

    /// Runs `now` under the shard's lock with the channel's position, if the subscription lives.
    pub fn at_position(
        &self,
        connection: &ConnectionId,
        channel: &ChannelName,
        key: SubscriptionKey,
        now: impl FnOnce(Option<Position>),
    ) {
        self.shard(connection).at_position(channel, key, now);
    }

    /// Publications that its shard has handled on a subscription's channel: see [`Hub::unless_heard`].
    #[must_use]
    pub fn heard(
        &self,
        connection: &ConnectionId,
        channel: &ChannelName,
        key: SubscriptionKey,
    ) -> u64 {
        self.shard(connection).heard(channel, key)
    }

    /// Runs `now` under the shard's lock if nothing was heard on the channel since [`Hub::heard`] said `heard`.
    ///
    /// # Errors
    /// The present count, when something was.
    pub fn unless_heard(
        &self,
        connection: &ConnectionId,
        channel: &ChannelName,
        key: SubscriptionKey,
        heard: u64,
        now: impl FnOnce(),
    ) -> Result<(), u64> {
        self.shard(connection).unless_heard(channel, key, heard, now)
    }

    /// Stops live delivery to a subscription until [`Hub::next`] has led it up again; where it stood.
    pub fn fall_behind(
        &self,
        connection: &ConnectionId,
        channel: &ChannelName,
        key: SubscriptionKey,
        from: Position,
    ) -> Option<Position> {
        self.shard(connection).fall_behind(channel, key, from)
    }

    /// Channels with listeners on this node and how many connections listen.
    #[must_use]
    pub fn channels(&self, prefix: &str) -> Vec<(ChannelName, u64)> {
        let mut all: std::collections::BTreeMap<ChannelName, u64> =
            std::collections::BTreeMap::new();
        for shard in self.shards.iter() {
            shard.count_channels(prefix, &mut all);
        }
        all.into_iter().collect()
    }

    /// Channels that one connection listens to, as it knows them, in order of name.
    #[must_use]
    pub fn channels_of(&self, connection: &ConnectionId) -> Vec<String> {
        self.shard(connection).channels_of(connection)
    }

    /// Live subscriptions on this node.
    #[must_use]
    pub fn subscriptions(&self) -> usize {
        self.shards.iter().map(|shard| shard.subscriptions()).sum()
    }

    /// Bytes that wait for the sockets of this node.
    #[must_use]
    pub fn queued_bytes(&self) -> usize {
        self.shards.iter().map(|shard| shard.queued_bytes()).sum()
    }

    /// Connections that listen to one channel on this node.
    #[must_use]
    pub fn listeners(&self, channel: &str) -> Vec<Arc<Connection>> {
        let mut seen = HashSet::new();
        let mut listeners = Vec::new();
        for shard in self.shards.iter() {
            shard.listeners(channel, &mut |connection| {
                if seen.insert(connection.id.clone()) {
                    listeners.push(Arc::clone(connection));
                }
            });
        }
        listeners
    }
}

async fn drive(
    shard: Arc<Shard>,
    mut ingress: mpsc::Receiver<Arc<[Notice]>>,
    stop: CancellationToken,
) {
    let mut batches = Vec::with_capacity(INGRESS_BATCHES_MAX);
    let mut owed = false;
    loop {
        if owed {
            // Whatever arrived meanwhile is queued before the next stretch is written.
            while batches.len() < INGRESS_BATCHES_MAX
                && let Ok(batch) = ingress.try_recv()
            {
                batches.push(batch);
            }
        } else {
            let received = tokio::select! {
                received = ingress.recv_many(&mut batches, INGRESS_BATCHES_MAX) => received,
                () = stop.cancelled() => 0,
            };
            if received == 0 {
                return;
            }
        }
        for batch in batches.drain(..) {
            shard.queue(&batch);
        }
        owed = shard.write_some();
        tokio::task::yield_now().await;
    }
}
