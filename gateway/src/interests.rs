//! Persistent subscriptions on live connections: what of a user's stored subscriptions listens on a
//! channel, and which of them match an event. `channels.md` 5, ruling R16.
//!
//! A connection joins the channels of its user's active subscriptions by itself, within the channel
//! policy, and once more whenever one of them changed on any node. An event is heard once, with the ids
//! of all that match.

use std::sync::Arc;

use carillon_broker_client::Subscription;
use carillon_protocol::{ChannelName, Filter, UserId};
use foldhash::HashMap;
use serde_json::Value;

use crate::clock;
use crate::cluster::Question;
use crate::node::Node;

/// One stored subscription as a channel's deliveries see it.
#[derive(Clone, Debug)]
pub struct Interest {
    id: Box<str>,
    filter: Option<Arc<Filter>>,
    /// Unix milliseconds.
    expires_at_ms: Option<i64>,
}

/// All of a user's that listen on one channel.
pub type Interests = Arc<[Interest]>;

/// Sorts active subscriptions by the channels that they listen on.
#[must_use]
pub fn by_channel(active: &[Subscription]) -> HashMap<ChannelName, Vec<Interest>> {
    let mut sorted: HashMap<ChannelName, Vec<Interest>> = HashMap::default();
    for subscription in active {
        let interest = Interest {
            id: subscription.id.as_str().into(),
            filter: subscription.filter().map(Arc::new),
            expires_at_ms: subscription.expires_at.map(carillon_broker_client::Moment::unix_ms),
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
    sorted
}

/// Ids of those that match a payload now.
#[must_use]
pub fn matching<'a>(interests: &[Interest], payload: impl FnOnce() -> &'a Value) -> Vec<Box<str>> {
    let now = clock::unix_ms();
    let mut payload = Some(payload);
    let mut value = None;
    let mut ids = Vec::new();
    for interest in interests {
        if interest.expires_at_ms.is_some_and(|expires| expires <= now) {
            continue;
        }
        let matches = interest.filter.as_ref().is_none_or(|filter| {
            if let Some(payload) = payload.take() {
                value = Some(payload());
            }
            value.is_some_and(|payload| filter.matches(payload))
        });
        if matches {
            ids.push(interest.id.clone());
        }
    }
    ids
}

/// Tells every node that a user's subscriptions changed. A node that cannot be told finds out when
/// the user's connections come back.
pub async fn announce(node: &Node, user: &UserId) {
    if let Err(error) = node.cluster.tell_all(Question::SubscriptionsChanged(user.clone())).await {
        tracing::debug!(%error, "live connections were not told of a changed subscription");
    }
}

/// Has this node's connections of a user look at their subscriptions again. Never waits.
pub fn refresh(node: &Node, user: &UserId) {
    let Some(stream) = ChannelName::user_stream(user.as_str()) else { return };
    for connection in node.hub.listeners(stream.as_str()) {
        connection.refresh_interests();
    }
}
