//! Users who poll on this node, and what is theirs between two polls: they are online, they are present where they joined,
//! and what is said on channels without history is heard for them until they ask again, here at the seats that their polls left. `protocol.md` 6, ruling R31.
//!
//! In the registry a user who polls stands once a node, so that the node's death tells of it and two polls at a time are
//! one presence. It must not know what a poll answers.

use std::sync::Arc;
use std::time::Duration;

use carillon_broker_client::{ConnectionRecord, POLLER_PREFIX};
use carillon_protocol::{ChannelName, ConnectionId, Profile, UserId};
use foldhash::HashMap;
use futures_util::StreamExt as _;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::connection::outbox::{Outbox, Wire};
use crate::connection::{Connection, Transport};
use crate::dispatch::{Dress, Medium};
use crate::node::Node;
use crate::transport::poll::{Seat, Stretch};

/// How long the seat of a poll that ended is kept for the next one.
const LINGER: Duration = Duration::from_secs(10);
/// Lingering polls of one user; the oldest goes first.
const LINGERING_MAX: usize = 8;
/// How often idle users are looked at.
const TICK: Duration = Duration::from_secs(1);
/// Notice that the others give a user to come back, of the whole delay before they are offline.
const FAREWELL: Duration = Duration::from_secs(1);
/// How long a user who stopped polling is remembered, where silence never ends a presence.
const REMEMBERED: Duration = Duration::from_secs(30);
/// Registrations on their way at once.
const PARALLEL: usize = 32;

/// See the module.
#[derive(Default)]
pub struct Pollers {
    users: Mutex<HashMap<UserId, Poller>>,
}

struct Poller {
    /// What holds the user at resources; no socket, no subscriptions.
    connection: Arc<Connection>,
    /// Polls that are being answered.
    polls: usize,
    idle_since_ms: u64,
    /// Whether the registry knows. The lock is held while it is told, so that it hears of it in order.
    registered: Arc<tokio::sync::Mutex<bool>>,
    lingering: Vec<Lingering>,
}

struct Lingering {
    /// The poll number that goes on from here.
    id: u64,
    until_ms: u64,
    seat: Seat,
}

/// A poll is being answered; until this is dropped.
pub(crate) struct Polling {
    node: Arc<Node>,
    user: UserId,
    /// What holds the user at resources.
    pub(crate) connection: Arc<Connection>,
}

impl Drop for Polling {
    fn drop(&mut self) {
        if let Some(poller) = self.node.pollers.users.lock().get_mut(&self.user) {
            poller.polls = poller.polls.saturating_sub(1);
            poller.idle_since_ms = clock::monotonic_ms();
        }
    }
}

impl Poller {
    fn new(node: &Node, user: &UserId) -> Self {
        let id = format!("{POLLER_PREFIX}{}", crate::ids::connection_id(&node.id));
        let id = ConnectionId::new(&id).expect("34 ASCII characters");
        let dress = Dress { medium: Medium::Poll, profile: Profile::Social, compressed: false };
        let outbox = Outbox::new(Wire::Pulled, 0);
        let connection =
            Connection::new(id, Some(user.clone()), Transport::Poll, dress, None, outbox);
        Self {
            connection,
            polls: 0,
            idle_since_ms: clock::monotonic_ms(),
            registered: Arc::default(),
            lingering: Vec::new(),
        }
    }

    fn idle_ms(&self, now_ms: u64) -> u64 {
        if self.polls > 0 { 0 } else { now_ms.saturating_sub(self.idle_since_ms) }
    }

    fn is_here(&self, node: &Node, now_ms: u64) -> bool {
        let patience = node.config.load().presence.offline_delay.saturating_sub(FAREWELL);
        self.polls > 0 || self.idle_ms(now_ms) < patience.as_millis() as u64
    }

    /// `None` while the registry is being told.
    fn is_settled(&self, node: &Node, now_ms: u64) -> Option<bool> {
        let registered = *self.registered.try_lock().ok()?;
        Some(registered == self.is_here(node, now_ms))
    }
}

impl Pollers {
    /// A poll begins.
    pub(crate) fn enter(&self, node: &Arc<Node>, user: &UserId) -> Polling {
        let now_ms = clock::monotonic_ms();
        let (connection, settled) = {
            let mut users = self.users.lock();
            let poller = users.entry(user.clone()).or_insert_with(|| Poller::new(node, user));
            poller.polls += 1;
            poller.connection.spoke(now_ms);
            (Arc::clone(&poller.connection), poller.is_settled(node, now_ms) == Some(true))
        };
        if !settled {
            let (node, user) = (Arc::clone(node), user.clone());
            node.tasks.clone().spawn(async move { settle(&node, &user).await });
        }
        Polling { node: Arc::clone(node), user: user.clone(), connection }
    }

    /// A poll ended that listened; `id` goes on from here.
    pub(crate) fn linger(&self, user: &UserId, id: u64, seat: Seat) {
        let until_ms = clock::monotonic_ms() + LINGER.as_millis() as u64;
        let dropped = {
            let mut users = self.users.lock();
            let Some(poller) = users.get_mut(user) else { return };
            poller.lingering.push(Lingering { id, until_ms, seat });
            (poller.lingering.len() > LINGERING_MAX).then(|| poller.lingering.remove(0))
        };
        drop(dropped);
    }

    /// What was heard since the poll ended whose number goes on, by each that lingers under it; they end here.
    pub(crate) fn take_linger(&self, user: &UserId, id: u64) -> Vec<Stretch> {
        let taken: Vec<Lingering> = match self.users.lock().get_mut(user) {
            Some(poller) => {
                let meant = |left: &mut Lingering| left.id == id && left.seat.is_fleeting();
                poller.lingering.extract_if(.., meant).collect()
            }
            None => Vec::new(),
        };
        taken.into_iter().map(|lingering| lingering.seat.into_heard()).collect()
    }

    /// The seat under a number, if it fits the next poll; whose it is.
    pub(crate) fn take_seat(
        &self,
        user: &str,
        id: u64,
        fits: impl Fn(&Seat) -> bool,
    ) -> Option<(UserId, Seat)> {
        let mut users = self.users.lock();
        let (known, _) = users.get_key_value(user)?;
        let known = known.clone();
        let lingering = &mut users.get_mut(user)?.lingering;
        let at = lingering.iter().position(|left| left.id == id && fits(&left.seat))?;
        Some((known, lingering.swap_remove(at).seat))
    }

    /// Polls that are being answered.
    #[cfg(test)]
    pub(crate) fn answering(&self) -> usize {
        self.users.lock().values().map(|poller| poller.polls).sum()
    }

    /// Nobody is expected to go on here.
    pub(crate) fn clear_seats(&self) {
        let left: Vec<Lingering> = {
            let mut users = self.users.lock();
            users.values_mut().flat_map(|poller| std::mem::take(&mut poller.lingering)).collect()
        };
        drop(left);
    }

    /// The user left a resource: on every node that held them there for their polls.
    pub(crate) fn leave(&self, node: &Node, user: &UserId, resource: ChannelName) {
        let connection = self.users.lock().get(user).map(|poller| Arc::clone(&poller.connection));
        if let Some(connection) = connection {
            let presence = node.presence.clone();
            node.tasks.spawn(async move { presence.leave(&connection, &resource).await });
        }
    }
}

/// Tells the registry whether the user is here, until it knows the truth.
async fn settle(node: &Arc<Node>, user: &UserId) {
    let found = {
        let users = node.pollers.users.lock();
        users.get(user).map(|poller| (Arc::clone(&poller.registered), poller.connection.id.clone()))
    };
    let Some((registered, id)) = found else { return };
    let mut registered = registered.lock().await;
    let is_here = {
        let users = node.pollers.users.lock();
        users.get(user).is_some_and(|poller| poller.is_here(node, clock::monotonic_ms()))
    };
    let record = ConnectionRecord { id, user: user.clone() };
    if is_here && !*registered {
        // Without Redis it is tried again with the next look.
        if let Ok(arrival) = node.broker.arrive(&record, 0).await {
            *registered = true;
            if !arrival.seen {
                node.presence.arrived(user);
            }
        }
    } else if !is_here && *registered {
        // One step with the farewell: whoever looks in between would find the user here, and nobody would look again.
        let delay = node.config.load().presence.offline_delay.min(FAREWELL);
        node.presence.departed_within(&record, delay).await;
        *registered = false;
    }
}

/// Looks after those who stopped polling, until `stop`.
pub(crate) async fn run(node: Arc<Node>, stop: CancellationToken) {
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = stop.cancelled() => break,
        }
        let unsettled = look(&node);
        futures_util::stream::iter(unsettled)
            .for_each_concurrent(PARALLEL, |user| {
                let node = &node;
                async move { settle(node, &user).await }
            })
            .await;
    }
    // What lingers holds the node.
    let rest = std::mem::take(&mut *node.pollers.users.lock());
    drop(rest);
}

/// Ends what lingered long enough, forgets who is long gone; those whom the registry must be told of.
fn look(node: &Node) -> Vec<UserId> {
    let now_ms = clock::monotonic_ms();
    let silence = node.config.load().presence.timeout;
    let remembered = if silence.is_zero() { REMEMBERED } else { silence }.as_millis() as u64;
    let (mut over, mut unsettled, mut gone) = (Vec::new(), Vec::new(), Vec::new());
    {
        let mut users = node.pollers.users.lock();
        for (user, poller) in users.iter_mut() {
            if poller.polls > 0 {
                // Waiting for an answer is no silence.
                poller.connection.spoke(now_ms);
            }
            let is_over = |left: &mut Lingering| left.until_ms <= now_ms || left.seat.is_deaf();
            over.extend(poller.lingering.extract_if(.., is_over));
            match poller.is_settled(node, now_ms) {
                Some(false) => unsettled.push(user.clone()),
                Some(true)
                    if poller.idle_ms(now_ms) > remembered && !poller.is_here(node, now_ms) =>
                {
                    gone.push(user.clone());
                }
                _ => {}
            }
        }
        for user in &gone {
            if let Some(poller) = users.remove(user) {
                node.presence.ended(&poller.connection);
                over.extend(poller.lingering);
            }
        }
    }
    drop(over);
    unsettled
}
