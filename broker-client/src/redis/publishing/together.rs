//! Publishing for many callers at a time: where one server has all keys, what all who are ready to run want published leaves
//! together, so that a script carries several messages. Nobody waits for more to come, nor for what is on its way already.
//! Elsewhere each goes its own way, for a server that hangs must not hold up the others' channels.

use std::sync::{Arc, Weak};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot};

use super::super::Inner;
use super::super::gathered::behind_the_ready;
use super::{TOGETHER_MAX, TURN_MAX, may_join};
use crate::{BrokerError, Publish, Receipt};

/// Callers who wait for their turn; the next ones wait for a place here.
const WAITING_MAX: usize = 1_024;
/// Round trips on their way at once.
const ON_THEIR_WAY_MAX: usize = 64;

type Receipts = Vec<Result<Receipt, BrokerError>>;

/// What one caller wants published, in order, and who waits for it.
pub(in crate::redis) struct Parcel {
    requests: Vec<Publish>,
    reply: oneshot::Sender<Receipts>,
}

/// Where parcels are given up.
pub(in crate::redis) type Counter = mpsc::Sender<Parcel>;

pub(in crate::redis) fn counter() -> (Counter, mpsc::Receiver<Parcel>) {
    mpsc::channel(WAITING_MAX)
}

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

/// Carries parcels to Redis until the broker ends, or until nobody has it any more.
async fn carry(inner: Weak<Inner>, mut waiting: mpsc::Receiver<Parcel>) {
    let Some(stop) = inner.upgrade().map(|inner| inner.stop.clone()) else { return };
    let mut on_their_way = FuturesUnordered::new();
    let mut parcels = Vec::new();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            Some(()) = on_their_way.next() => {}
            received = waiting.recv_many(&mut parcels, TURN_MAX), if on_their_way.len() < ON_THEIR_WAY_MAX => {
                if received == 0 {
                    return;
                }
                behind_the_ready().await;
                while parcels.len() < TURN_MAX && let Ok(more) = waiting.try_recv() {
                    parcels.push(more);
                }
                let Some(inner) = inner.upgrade() else { return };
                let parcels = std::mem::take(&mut parcels);
                on_their_way.push(async move { inner.publish_parcels(parcels).await });
            }
        }
    }
}

/// Spawned under the broker's tasks; it must not keep the broker alive.
pub(in crate::redis) fn spawn(inner: &Arc<Inner>, waiting: mpsc::Receiver<Parcel>) {
    inner.shared.tasks.spawn(carry(Arc::downgrade(inner), waiting));
}
