//! One publication to all of a channel's listeners: who hears it, who is behind, whose queue is full.
//!
//! It must not know: shards, locks, sockets.

use std::sync::Arc;

use carillon_protocol::envelope::ServerMessage;
use carillon_protocol::{ChannelName, CloseCode, Position};

use super::channel::{Behind, Channel};
use crate::connection::Connection;
use crate::connection::outbox::Pushed;
use crate::dispatch::Dispatch;
use crate::filters::Verdicts;
use crate::interests::matching;
use crate::metrics::Metrics;

/// Queues one publication for everyone who hears it; how many.
pub(super) fn deliver(
    channel: &mut Channel,
    dispatch: &Arc<Dispatch>,
    dirty: &mut Vec<Arc<Connection>>,
    metrics: &Metrics,
) -> u64 {
    let before = channel.position;
    let here = dispatch.publication.position;
    if let (Some(here), Some(before)) = (here, before)
        && here.epoch == before.epoch
        && here.offset <= before.offset
    {
        return 0;
    }
    channel.remember(dispatch);
    let mut deliveries = 0;
    let mut verdicts = Verdicts::on(&dispatch.publication.payload);
    let mut conflate_hash = None;
    for (_, (_, subscription)) in &mut channel.subscriptions {
        if let Some(behind) = subscription.behind.as_deref().copied() {
            if !behind.joining
                || here.is_none_or(|here| {
                    here.epoch == behind.from.epoch && here.offset <= behind.from.offset
                })
            {
                continue;
            }
            if !behind.is_followed_by(dispatch) {
                // Something lies between, or this is another history: only a look at it can tell.
                subscription.look_again(behind);
                continue;
            }
            subscription.behind = None;
        }
        if !subscription.admits(dispatch) {
            continue;
        }
        let asked = subscription.asked
            && subscription.filter.as_ref().is_none_or(|filter| verdicts.passes(filter));
        let ids = subscription.interests.as_ref().map_or_else(Vec::new, |interests| {
            matching(interests, &dispatch.publication.kind, &mut verdicts)
        });
        if !asked && ids.is_empty() {
            continue;
        }
        let connection = &subscription.connection;
        if subscription.wakes {
            nudge(connection, dirty);
            continue;
        }
        let conflate = if subscription.conflate {
            *conflate_hash.get_or_insert_with(|| conflation(dispatch))
        } else {
            0
        };
        match connection.outbox.push_for(dispatch, connection.dress, conflate, &ids) {
            Pushed::First => {
                dirty.push(Arc::clone(connection));
                deliveries += 1;
            }
            Pushed::Queued => deliveries += 1,
            Pushed::Closed => {}
            Pushed::Full => {
                metrics.slow_consumer(before.is_some());
                match before {
                    Some(position) => {
                        subscription.behind = Some(Behind::at(position));
                        connection.outbox.mark_behind();
                    }
                    None => connection.outbox.close(CloseCode::SlowConsumer),
                }
            }
        }
    }
    deliveries
}

/// Wakes who reads for itself.
fn nudge(connection: &Arc<Connection>, dirty: &mut Vec<Arc<Connection>>) {
    if connection.outbox.nudge() {
        dirty.push(Arc::clone(connection));
    }
}

/// What a conflated message replaces in a slow reader's queue: never 0.
fn conflation(dispatch: &Dispatch) -> u64 {
    use std::hash::BuildHasher;
    let key = dispatch.publication.conflate_key();
    foldhash::fast::FixedState::default().hash_one((&dispatch.publication.channel, key)) | 1
}

/// Tells every live listener that the channel cannot go on from where it stood. One that is behind stands elsewhere:
/// its own reading of history finds out, and says so in its turn among what it still has to send.
pub(super) fn resync(
    channel: &mut Channel,
    name: &ChannelName,
    reason: &'static str,
    position: Option<Position>,
    dirty: &mut Vec<Arc<Connection>>,
) {
    channel.reset(position);
    for (_, (_, subscription)) in &mut channel.subscriptions {
        if let Some(behind) = subscription.behind.as_deref().copied() {
            subscription.look_again(behind);
            continue;
        }
        let connection = &subscription.connection;
        if subscription.wakes {
            nudge(connection, dirty);
            continue;
        }
        if let Some(position) = position {
            connection.outbox.set_position(name, position);
        }
        connection.push(&resync_message(name, reason, position));
        dirty.push(Arc::clone(connection));
    }
}

/// `resync`; a user stream is known to its listeners as their notifications.
#[must_use]
pub(crate) fn resync_message(
    name: &ChannelName,
    reason: &str,
    position: Option<Position>,
) -> ServerMessage {
    let label = if crate::dispatch::is_user_stream(name) {
        crate::dispatch::NOTIFICATIONS
    } else {
        name.as_str()
    };
    let payload = serde_json::json!({
        // An event stream of payloads alone has no other place for it.
        "channel": label,
        "reason": reason,
        "offset": position.map(|position| position.offset),
        "epoch": position.map(|position| position.epoch),
        "tag": position.map(|position| position.tag),
    });
    ServerMessage::new("resync", &payload).on(label)
}
