//! From stored notifications to user channels: the outbox is carried out by every node together,
//! what reached a live connection is marked delivered, and marks are told to a user's devices.
//! `channels.md` 4, rulings R33–R35.
//!
//! An entry is claimed under a lease, published recipient by recipient under an idempotency key made
//! of its id, advanced as it goes, acknowledged at the end. A node that dies in between leaves its
//! lease to run out; the next one goes on where it stopped.
//!
//! A publication counts as delivered when the hub has queued it for a connection of the user on this
//! node: each node marks what its own connections got, in batches.
//!
//! It must not know: HTTP, frames, how notifications are stored.

use std::sync::Arc;
use std::time::Duration;

use carillon_broker_client::{
    BrokerError, Clock, Idempotency, Moment, Notification, NotificationId, OutboxEntry, Publish,
};
use carillon_protocol::channel::unescape_segment;
use carillon_protocol::publication::Exclude;
use carillon_protocol::{ChannelName, MessageId, Payload, Publication, UserId};
use foldhash::HashMap;
use futures_util::StreamExt;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::dispatch::Dispatch;
use crate::node::Node;

/// Message type of a stored notification on its way to a user.
pub const NOTIFICATION: &str = "notification";

/// How often the outbox is looked at when nobody says that there is something in it.
const LOOK: Duration = Duration::from_secs(1);
/// How long a claimed entry is this node's own without a sign of life.
const LEASE: Duration = Duration::from_secs(10);
/// How long an entry waits whose publishing failed.
const PAUSE: Duration = Duration::from_secs(1);
/// Entries claimed in one go.
const CLAIM: usize = 32;
/// Recipients published to in one batch.
const BATCH: usize = 500;
/// Deliveries that wait to be marked. Beyond it they stay pending, and the user gets them once more
/// on the next connect.
const DELIVERED_MAX: usize = 65_536;
/// Users whose deliveries are marked at the same time.
const MARKS_AT_ONCE: usize = 32;
/// How long the last marks of a stopping node may take.
const LAST_MARKS: Duration = Duration::from_millis(500);

/// What wakes the node's two notification tasks. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Courier {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    created: Notify,
    reached: Notify,
    delivered: Mutex<Vec<Arc<Dispatch>>>,
}

impl Courier {
    /// Something was put into the outbox: carry it out now.
    pub fn kick(&self) {
        self.inner.created.notify_one();
    }

    /// A notification was queued for a connection of its user. Never waits.
    pub fn delivered(&self, dispatch: &Arc<Dispatch>) {
        let mut delivered = self.inner.delivered.lock();
        if delivered.len() >= DELIVERED_MAX {
            return;
        }
        delivered.push(Arc::clone(dispatch));
        drop(delivered);
        self.inner.reached.notify_one();
    }
}

/// Whether a publication is a stored notification on its way to its user.
#[must_use]
pub fn is_notification(publication: &Publication) -> bool {
    &*publication.kind == NOTIFICATION && crate::dispatch::is_user_stream(&publication.channel)
}

/// Whether a publication stopped mattering: who comes back later is not sent it, as who connects is not (`http-api.md` 3).
#[must_use]
pub fn is_expired(publication: &Publication) -> bool {
    publication.expires_at_ms.is_some_and(|expires_at_ms| expires_at_ms <= clock::unix_ms())
}

/// Carries the outbox and marks deliveries until `stop`.
pub async fn carry(node: Arc<Node>, stop: CancellationToken) {
    let mut backlog = HashMap::default();
    tokio::select! {
        () = stop.cancelled() => {}
        () = carry_outbox(&node) => {}
        () = mark_delivered(&node, &mut backlog) => {}
    }
    let last = async {
        collect(&node, &mut backlog);
        mark(&node, &mut backlog).await;
    };
    if tokio::time::timeout(LAST_MARKS, last).await.is_err() {
        tracing::debug!("the last deliveries were not marked in time");
    }
}

async fn carry_outbox(node: &Node) {
    let mut tick = tokio::time::interval(LOOK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = node.courier.inner.created.notified() => {}
        }
        loop {
            let entries = match node.notifications.claim_outbox(CLAIM, LEASE).await {
                Ok(entries) => entries,
                Err(error) => {
                    tracing::debug!(%error, "the outbox cannot be read");
                    break;
                }
            };
            if entries.is_empty() {
                break;
            }
            for entry in entries {
                carry_entry(node, &entry).await;
            }
        }
    }
}

/// Publishes what was created just now before its creator is answered, so that what they do next comes behind it. What is for
/// many, or fails, is left to the outbox; so is all of it where the caller is gone in the middle.
pub async fn carry_now(node: &Node, notification: &Notification) {
    let id = &notification.id;
    if notification.recipients.len() <= BATCH && !notification.is_expired(Clock::system().now()) {
        let payload = Payload::of(&notification.pushed(false));
        let (_, whole) = publish_to(node, notification, &payload, &notification.recipients).await;
        if whole {
            if let Err(error) = node.notifications.ack_outbox(id).await {
                tracing::debug!(%error, "an outbox entry is done twice");
            }
            return;
        }
    }
    node.courier.kick();
}

/// Publishes one entry to those who wait for it. What fails is tried again after [`PAUSE`], by
/// whoever claims it then.
async fn carry_entry(node: &Node, entry: &OutboxEntry) {
    let notification = &entry.notification;
    let id = &notification.id;
    let mut published = entry.published;
    if !notification.is_expired(Clock::system().now()) {
        let payload = Payload::of(&notification.pushed(false));
        for recipients in entry.waiting().chunks(BATCH) {
            let (served, whole) = publish_to(node, notification, &payload, recipients).await;
            published += served;
            let lease = if whole { LEASE } else { PAUSE };
            match node.notifications.advance_outbox(id, published, lease).await {
                Ok(true) if whole => {}
                // Not whole, or deleted meanwhile, or another node has it.
                Ok(_) => return,
                Err(error) => {
                    tracing::debug!(%error, "an outbox entry waits for its lease to run out");
                    return;
                }
            }
        }
    }
    if let Err(error) = node.notifications.ack_outbox(id).await {
        tracing::debug!(%error, "an outbox entry is done twice");
    }
}

/// How many of these, from the first, have it; and whether all of them do.
async fn publish_to(
    node: &Node,
    notification: &Notification,
    payload: &Payload,
    recipients: &[UserId],
) -> (usize, bool) {
    let id = &notification.id;
    let message = MessageId::new(id.as_str()).unwrap_or_else(|_| crate::ids::message_id());
    let requests: Vec<Publish> = recipients
        .iter()
        .filter_map(|user| {
            let mut request =
                to_user(node, user, NOTIFICATION, payload.clone(), Exclude::default())?;
            request.publication.id = message.clone();
            request.publication.expires_at_ms = notification.expires_at.map(Moment::unix_ms);
            // No caller's key begins so: see `Caller::sender_key`.
            request.idempotency = Some(Idempotency::new("n:notifications", id.as_str()));
            Some(request)
        })
        .collect();
    // Recipients were checked when it was stored: each has a channel.
    let asked = requests.len();
    node.metrics.published(asked as u64);
    let channels: Vec<ChannelName> =
        requests.iter().map(|request| request.publication.channel.clone()).collect();
    let generation = node.broker.generation();
    let results = node.broker.publish_batch(requests).await;
    for (channel, receipt) in channels.iter().zip(&results) {
        if let Ok(receipt) = receipt {
            node.relay.acknowledged(channel, receipt, generation);
        }
    }
    let served = results
        .iter()
        .take_while(|result| !matches!(result, Err(BrokerError::Unavailable(_))))
        .count();
    if served == asked { (recipients.len(), true) } else { (served, false) }
}

/// A message of the server's own on a user's stream. No publish limit applies.
fn to_user(
    node: &Node,
    user: &UserId,
    kind: &str,
    payload: Payload,
    exclude: Exclude,
) -> Option<Publish> {
    let channel = ChannelName::user_stream(user.as_str())?;
    let retention = node.policy.load().find(&channel).and_then(|found| found.namespace.retention);
    Some(Publish {
        publication: Publication {
            channel,
            position: None,
            previous_tag: None,
            stamp: 0,
            id: crate::ids::message_id(),
            kind: kind.into(),
            timestamp_ms: clock::unix_ms(),
            user_id: None,
            meta: None,
            exclude,
            expires_at_ms: None,
            traceparent: None,
            payload,
        },
        retention,
        idempotency: None,
    })
}

/// What a user's devices are told about reading.
#[derive(Clone, Debug)]
pub struct Mark {
    kind: &'static str,
    /// The message's payload.
    pub payload: Value,
}

impl Mark {
    /// One was read just now.
    #[must_use]
    pub fn one(id: &NotificationId) -> Self {
        Self {
            kind: "notification_read",
            payload: json!({"notification_id": id, "read_at": now()}),
        }
    }

    /// All were read just now.
    #[must_use]
    pub fn all() -> Self {
        Self { kind: "notification_read_all", payload: json!({"read_at": now()}) }
    }
}

fn now() -> String {
    carillon_protocol::time::rfc3339(clock::unix_ms())
}

/// Tells a user's devices that something was read. The mark stands whether or not they hear of it.
pub async fn tell_devices(node: &Node, user: &UserId, mark: &Mark, exclude: Exclude) {
    let payload = Payload::of(&mark.payload);
    let Some(request) = to_user(node, user, mark.kind, payload, exclude) else { return };
    node.metrics.published(1);
    let channel = request.publication.channel.clone();
    let generation = node.broker.generation();
    match node.broker.publish(request).await {
        Ok(receipt) => node.relay.acknowledged(&channel, &receipt, generation),
        Err(error) => tracing::debug!(%error, "a user's devices were not told what was read"),
    }
}

type Backlog = HashMap<UserId, Vec<NotificationId>>;

async fn mark_delivered(node: &Node, backlog: &mut Backlog) {
    loop {
        if backlog.is_empty() {
            node.courier.inner.reached.notified().await;
        } else {
            // The store failed: what waits is tried again.
            tokio::time::sleep(PAUSE).await;
        }
        collect(node, backlog);
        mark(node, backlog).await;
    }
}

/// Sorts what was delivered by user.
fn collect(node: &Node, backlog: &mut Backlog) {
    let delivered = std::mem::take(&mut *node.courier.inner.delivered.lock());
    if backlog.len() >= DELIVERED_MAX {
        return;
    }
    for dispatch in delivered {
        let publication = &dispatch.publication;
        let user = publication.channel.as_str().strip_prefix("user:").map(unescape_segment);
        let user = user.and_then(|user| UserId::new(&user).ok());
        let (Some(user), Ok(id)) = (user, NotificationId::new(publication.id.as_str())) else {
            continue;
        };
        let ids: &mut Vec<NotificationId> = backlog.entry(user).or_default();
        // Several connections of one user are one delivery.
        if ids.last() != Some(&id) {
            ids.push(id);
        }
    }
}

async fn mark(node: &Node, backlog: &mut Backlog) {
    let work = std::mem::take(backlog);
    let marks = futures_util::stream::iter(work).map(|(user, ids)| async move {
        let marked = node.notifications.mark_delivered(&user, &ids).await;
        (user, ids, marked)
    });
    let mut marks = std::pin::pin!(marks.buffer_unordered(MARKS_AT_ONCE));
    while let Some((user, ids, marked)) = marks.next().await {
        if let Err(error) = marked {
            tracing::debug!(%error, "deliveries are marked later");
            backlog.insert(user, ids);
        }
    }
}
