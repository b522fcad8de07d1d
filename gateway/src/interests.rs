//! Persistent subscriptions on live connections: what of a user's stored subscriptions listens on a
//! channel, which of them match an event, and how a change reaches every connection of the user.
//! `channels.md` 5, ruling R16.
//!
//! A connection joins the channels of its user's active subscriptions by itself, within the channel
//! policy, and once more whenever one of them changed on any node. An event is heard once, with the ids
//! of all that match. A node that may have missed a change looks at all its users' subscriptions
//! again.
//!
//! It must not know: how subscriptions are stored, frames, HTTP.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use carillon_broker_client::Subscription;
use carillon_protocol::{ChannelName, Filter, UserId};
use foldhash::HashMap;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::cluster::Question;
use crate::filters::{Filters, Verdicts};
use crate::node::Node;

/// Pause before a change that could not be told is told again.
const TELL_AGAIN: Duration = Duration::from_secs(1);
/// A change that was about to be made is made, or given up, within this.
const TOLD_BY: Duration = Duration::from_secs(5);
/// How often expected changes are looked for.
const LOOK: Duration = Duration::from_secs(1);
/// Changes expected at one time; those beyond are only looked at when they are told.
const EXPECTED_MAX: usize = 50_000;
/// Users whose change could not be told yet. Beyond it, every connection looks again.
const UNTOLD_MAX: usize = 10_000;
/// Counters of changes that users share.
const LOOKS: usize = 1_024;
/// Connections that look at their subscriptions at the same time after something was missed, and the
/// pause before the next: 5,000 questions a second to the store at most.
const AUDIT_CONNECTIONS: usize = 250;
const AUDIT_PAUSE: Duration = Duration::from_millis(50);

/// One stored subscription as a channel's deliveries see it.
#[derive(Clone, Debug)]
pub struct Interest {
    id: Box<str>,
    filter: Option<Arc<Filter>>,
    /// Unix milliseconds.
    expires_at_ms: Option<i64>,
    /// It listens on the channel of the entity's kind: here it counts for the events that go to both
    /// (R14), so that the one delivery names it.
    twin: bool,
}

/// All of a user's that listen on one channel.
pub type Interests = Arc<[Interest]>;

/// Sorts active subscriptions by the channels that they listen on.
#[must_use]
pub fn by_channel(
    active: &[Subscription],
    filters: &Filters,
) -> HashMap<ChannelName, Vec<Interest>> {
    let mut sorted: HashMap<ChannelName, Vec<Interest>> = HashMap::default();
    for subscription in active {
        let interest = Interest {
            id: subscription.id.as_str().into(),
            filter: subscription.filter().map(|filter| filters.share(filter)),
            expires_at_ms: subscription.expires_at.map(carillon_broker_client::Moment::unix_ms),
            twin: false,
        };
        for channel in subscription.channels() {
            // A user's own stream reaches every connection anyway.
            if channel.as_str() != crate::dispatch::NOTIFICATIONS
                && !crate::dispatch::is_user_stream(&channel)
            {
                sorted.entry(channel).or_default().push(interest.clone());
            }
        }
    }
    let twins: Vec<(ChannelName, Vec<Interest>)> = sorted
        .keys()
        .filter_map(|one| {
            let kind = kind_of(one)?;
            let of_kind = sorted.get(kind)?;
            let twin = |interest: &Interest| Interest { twin: true, ..interest.clone() };
            Some((one.clone(), of_kind.iter().map(twin).collect()))
        })
        .collect();
    for (one, of_kind) in twins {
        let own = sorted.entry(one).or_default();
        for twin in of_kind {
            // A query may name both channels: it is one subscription.
            if own.iter().all(|interest| interest.id != twin.id) {
                own.push(twin);
            }
        }
    }
    sorted
}

/// `entity:{kind}` of `entity:{kind}:{id}`.
fn kind_of(channel: &ChannelName) -> Option<&str> {
    let rest = channel.as_str().strip_prefix("entity:")?;
    let end = rest.find(':')?;
    channel.as_str().get(.."entity:".len() + end)
}

/// Ids of those that match a publication of this message type now.
#[must_use]
pub fn matching(interests: &[Interest], kind: &str, verdicts: &mut Verdicts<'_>) -> Vec<Box<str>> {
    let now = clock::unix_ms();
    let both = kind.starts_with("entity:");
    interests
        .iter()
        .filter(|interest| {
            (both || !interest.twin)
                && interest.expires_at_ms.is_none_or(|expires| expires > now)
                && interest.filter.as_ref().is_none_or(|filter| verdicts.passes(filter))
        })
        .map(|interest| interest.id.clone())
        .collect()
}

/// Changes that are still to be told, and those that are expected to be.
#[derive(Debug, Default)]
pub struct News {
    untold: Mutex<HashSet<UserId>>,
    told_again: Notify,
    /// Users whose subscriptions were about to change then, oldest first.
    expected: Mutex<VecDeque<(Instant, UserId)>>,
    /// How often those of some users had to be looked at again: what was read before is outdated.
    looks: Looks,
}

/// Counters that users share by hash.
#[derive(Debug)]
struct Looks([AtomicU32; LOOKS]);

impl Default for Looks {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU32::new(0)))
    }
}

impl News {
    /// A user's subscriptions are about to change: this node looks at them after a while, told of it or not.
    pub fn expect(&self, user: UserId) {
        let mut expected = self.expected.lock();
        if expected.len() < EXPECTED_MAX {
            expected.push_back((Instant::now() + TOLD_BY, user));
        }
    }

    /// A number that is another one once this user's subscriptions may have changed.
    #[must_use]
    pub fn edition(&self, user: &UserId) -> u32 {
        self.look(user).load(Ordering::Acquire)
    }

    fn look(&self, user: &UserId) -> &AtomicU32 {
        use std::hash::BuildHasher;
        let hash = foldhash::fast::FixedState::default().hash_one(user);
        &self.looks.0[hash as usize % LOOKS]
    }

    fn due(&self) -> HashSet<UserId> {
        let (now, mut expected) = (Instant::now(), self.expected.lock());
        let due = expected.iter().take_while(|(due, _)| *due <= now).count();
        expected.drain(..due).map(|(_, user)| user).collect()
    }

    fn owe(&self, user: UserId) {
        let mut untold = self.untold.lock();
        if untold.len() < UNTOLD_MAX {
            untold.insert(user);
        }
        drop(untold);
        self.told_again.notify_one();
    }
}

/// Tells every node that a user's subscriptions are about to change: they look in a while, should this node die before it
/// can [`announce`] the change.
pub async fn prepare(node: &Node, user: &UserId) {
    if let Err(error) = node.cluster.tell_all(Question::SubscriptionsChanging(user.clone())).await {
        // The change itself is about to fail as well.
        tracing::debug!(%error, "nobody was told that a subscription is about to change");
    }
}

/// Tells every node that a user's subscriptions changed. What cannot be told now is told as soon as
/// the broker answers.
pub async fn announce(node: &Node, user: &UserId) {
    if let Err(error) = node.cluster.tell_all(Question::SubscriptionsChanged(user.clone())).await {
        tracing::debug!(%error, "a changed subscription is told later");
        node.interest_news.owe(user.clone());
    }
}

/// Has this node's connections of a user look at their subscriptions again. Never waits.
pub fn refresh(node: &Node, user: &UserId) {
    node.interest_news.look(user).fetch_add(1, Ordering::AcqRel);
    let Some(stream) = ChannelName::user_stream(user.as_str()) else { return };
    for connection in node.hub.listeners(stream.as_str()) {
        connection.refresh_interests();
    }
}

/// Tells what could not be told, and makes up for what was missed, until `stop`.
pub async fn follow(node: Arc<Node>, stop: CancellationToken) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = tell_untold(&node) => {}
        () = audit(&node) => {}
        () = look_at_expected(&node) => {}
    }
}

async fn tell_untold(node: &Node) {
    let news = &node.interest_news;
    loop {
        news.told_again.notified().await;
        loop {
            let Some(user) = news.untold.lock().iter().next().cloned() else { break };
            let question = Question::SubscriptionsChanged(user.clone());
            match node.cluster.tell_all(question).await {
                Ok(()) => drop(news.untold.lock().remove(&user)),
                Err(_) => tokio::time::sleep(TELL_AGAIN).await,
            }
        }
    }
}

async fn look_at_expected(node: &Node) {
    let mut tick = tokio::time::interval(LOOK);
    loop {
        tick.tick().await;
        node.interest_news.due().iter().for_each(|user| refresh(node, user));
    }
}

/// After an interruption every connection with a user looks at its subscriptions again, some at a time.
async fn audit(node: &Node) {
    let missed = node.relay.missed();
    loop {
        missed.notified().await;
        for look in &node.interest_news.looks.0 {
            look.fetch_add(1, Ordering::AcqRel);
        }
        let mut connections = node.hub.connections();
        connections.retain(|connection| connection.user.is_some());
        for some in connections.chunks(AUDIT_CONNECTIONS) {
            some.iter().for_each(|connection| connection.refresh_interests());
            tokio::time::sleep(AUDIT_PAUSE).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use carillon_broker_client::{MemorySubscriptions, NewSubscription, SubscriptionStore};
    use carillon_protocol::Payload;
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn one_delivery_of_an_entity_event_names_the_subscriptions_of_both_channels() {
        let store = MemorySubscriptions::default();
        let user = UserId::new("ann").expect("an id");
        let new = NewSubscription::resource(user.clone(), "Task", "7");
        let one = store.create(new).await.expect("stored");
        let kind: NewSubscription = serde_json::from_value(
            json!({"user_id": "ann", "query": {"channels": ["entity:Task", "entity:Task:7"]}}),
        )
        .expect("a subscription");
        let kind = kind.of_kind(carillon_broker_client::SubscriptionType::Query);
        let both = store.create(kind).await.expect("stored");
        let kind: NewSubscription = serde_json::from_value(
            json!({"user_id": "ann", "query": {"channels": ["entity:Task"], "where": {"n": 1}}}),
        )
        .expect("a subscription");
        let kind = kind.of_kind(carillon_broker_client::SubscriptionType::Query);
        let filtered = store.create(kind).await.expect("stored");
        let active = store.active_for(&user).await.expect("read");
        let sorted = by_channel(&active, &Filters::default());
        let named = |channel: &str, kind: &str, payload: serde_json::Value| {
            let payload = Payload::of(&payload);
            let ids = matching(&sorted[channel], kind, &mut Verdicts::on(&payload));
            ids.iter().map(ToString::to_string).collect::<HashSet<_>>()
        };
        let ids = |of: &[&Subscription]| of.iter().map(|s| s.id.to_string()).collect();
        let hit = json!({"n": 1});
        assert_eq!(
            named("entity:Task:7", "entity:updated", hit.clone()),
            ids(&[&one, &both, &filtered])
        );
        assert_eq!(named("entity:Task:7", "entity:updated", json!({})), ids(&[&one, &both]));
        // What was published on the one channel alone is none of the other's.
        assert_eq!(named("entity:Task:7", "note", hit.clone()), ids(&[&one, &both]));
        assert_eq!(named("entity:Task", "entity:updated", hit), ids(&[&both, &filtered]));
    }
}
