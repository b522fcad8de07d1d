//! Publishing for many callers at a time: where one server has all keys, what all who are ready to run want published leaves
//! together, so that a script carries several messages.
//! Elsewhere each goes its own way, for a server that hangs must not hold up the others' channels.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use super::super::Inner;
use super::super::crowd::carry;
use super::{TOGETHER_MAX, TURN_MAX, may_join};
use crate::{BrokerError, Publish, Receipt};

type Receipts = Vec<Result<Receipt, BrokerError>>;

/// What one caller wants published, in order, and who waits for it.
pub(in crate::redis) struct Parcel {
    requests: Vec<Publish>,
    reply: oneshot::Sender<Receipts>,
}

/// Where parcels are given up.
pub(in crate::redis) type Counter = mpsc::Sender<Parcel>;

impl Inner {
    /// Publishes one. A caller who gives up does not know whether it happened.
    pub(in crate::redis) async fn publish(&self, request: Publish) -> Result<Receipt, BrokerError> {
        if !self.layout.is_one_server() || !may_join(&request) {
            return super::publish(&self.layout, &self.shared.names, &request).await;
        }
        self.give_up(vec![request]).await.pop().unwrap_or_else(|| Err(super::missing()))
    }

    /// Publishes several in their order; an answer each.
    pub(in crate::redis) async fn publish_batch(&self, requests: Vec<Publish>) -> Receipts {
        let is_small = requests.len() < TOGETHER_MAX && requests.iter().all(may_join);
        if !self.layout.is_one_server() || !is_small || requests.is_empty() {
            return super::publish_batch(&self.layout, &self.shared.names, &requests).await;
        }
        self.give_up(requests).await
    }

    async fn give_up(&self, requests: Vec<Publish>) -> Receipts {
        let count = requests.len();
        let ended = || (0..count).map(|_| Err(BrokerError::unavailable("the broker is closed")));
        let (reply, answered) = oneshot::channel();
        if self.counter.send(Parcel { requests, reply }).await.is_err() {
            return ended().collect();
        }
        answered.await.unwrap_or_else(|_| ended().collect())
    }

    /// One round trip for all of them.
    async fn publish_parcels(&self, parcels: Vec<Parcel>) {
        let mut requests = Vec::with_capacity(parcels.len());
        let mut replies = Vec::with_capacity(parcels.len());
        for parcel in parcels {
            replies.push((parcel.requests.len(), parcel.reply));
            requests.extend(parcel.requests);
        }
        let (layout, names) = (&self.layout, &self.shared.names);
        let mut receipts = super::publish_batch(layout, names, &requests).await.into_iter();
        for (count, reply) in replies {
            // Whoever gave up needs no answer.
            let _ = reply.send(receipts.by_ref().take(count).collect());
        }
    }
}

/// Spawned under the broker's tasks; it must not keep the broker alive.
pub(in crate::redis) fn spawn(inner: &Arc<Inner>, waiting: mpsc::Receiver<Parcel>) {
    let weak = Arc::downgrade(inner);
    let leave = move |parcels| {
        let inner = weak.upgrade()?;
        Some(async move { inner.publish_parcels(parcels).await })
    };
    inner.shared.tasks.spawn(carry(inner.stop.clone(), waiting, TURN_MAX, leave));
}
