//! What a chain of polls begins with: the user's notifications that none of their connections and polls has yet, oldest
//! first. `http-api.md` 3, `channels.md` 4, ruling R33.
//!
//! They are kept with the page, like all that has no position; only then are they marked. Their live messages, should they
//! still come, are dropped as twins.

use carillon_broker_client::NotificationId;
use carillon_protocol::UserId;
use carillon_protocol::envelope::Refusal;
use serde_json::value::RawValue;

use super::gather::{EVENTS_MAX, Event, Gathered, hash};
use super::page::{Step, TWINS_MAX};
use super::seat::Seat;
use crate::clock;
use crate::connection::notifications::pending_document;
use crate::node::Node;
use crate::rest::store_refusal;

/// Bytes of notifications after which an answer ends early (but always with one): the store keeps them for a while.
const BYTES_MAX: usize = 128 * 1024;

/// How long a notification's live message may be on its way.
const CARRIED_MS: i64 = 10 * 60 * 1_000;

/// The next of them; `None` when all were sent, and the chain starts now.
///
/// # Errors
/// `UNAVAILABLE`.
pub(super) async fn find(
    node: &Node,
    user: &UserId,
    seat: &mut Seat,
) -> Result<Option<Gathered>, Refusal> {
    let waiting = node.notifications.pending(user, EVENTS_MAX).await;
    let waiting = waiting.map_err(|error| store_refusal(node, error))?;
    let (origin, dress) = (&mut seat.origin, seat.held.connection().dress);
    let mut more = waiting.len() >= EVENTS_MAX;
    let (mut events, mut pending, mut bytes) = (Vec::new(), Vec::new(), 0);
    let mut twins = origin.twins.clone();
    let recent = clock::unix_ms() - CARRIED_MS;
    for notification in waiting {
        if bytes >= BYTES_MAX {
            more = true;
            break;
        }
        let id = hash(notification.id.as_str());
        pending.push(notification.id.clone());
        // Sent by this chain, and not marked since.
        if twins.contains(&id) {
            continue;
        }
        let document = pending_document(&notification, user, dress);
        let text = String::from_utf8(document.to_vec()).ok();
        let Some(kept) = text.and_then(|text| RawValue::from_string(text).ok()) else { continue };
        bytes += document.len();
        // Longer ago its live message went by; these go from page to page.
        if notification.created_at.unix_ms() > recent {
            twins.push(id);
        }
        events.push(Event { step: Step::Heard(kept), document });
    }
    if events.is_empty() {
        origin.pending = false;
        mark(node, user, &pending).await;
        return Ok(None);
    }
    twins.drain(..twins.len().saturating_sub(TWINS_MAX));
    let end = origin.cursor.clone();
    Ok(Some(Gathered {
        events,
        end,
        more,
        recovered: true,
        twins,
        notifications: Vec::new(),
        pending,
    }))
}

/// With the answer the user has them.
pub(super) async fn mark(node: &Node, user: &UserId, pending: &[NotificationId]) {
    if pending.is_empty() {
        return;
    }
    if let Err(error) = node.notifications.mark_delivered(user, pending).await {
        tracing::debug!(%error, "pending notifications may come twice");
    }
}
