//! Publishing for many callers at a time: where one server has all keys, what all who are ready to run want published leaves
//! together, so that a script carries several messages.
//! Elsewhere each goes its own way, for a server that hangs must not hold up the others' channels.

use std::sync::Arc;

use super::super::Inner;
use super::super::crowd::{Asked, Crowd, Waiting, carry};
use super::{TOGETHER_MAX, TURN_MAX, may_join};
use crate::{BrokerError, Publish, Receipt};

type Receipts = Vec<Result<Receipt, BrokerError>>;

/// Where callers ask for what they want published, in order.
pub(in crate::redis) type Publishers = Crowd<Vec<Publish>, Receipts>;

impl Inner {
    /// Publishes one.
    pub(in crate::redis) async fn publish(&self, request: Publish) -> Result<Receipt, BrokerError> {
        if !self.layout.is_one_server() || !may_join(&request) {
            return super::publish(&self.layout, &self.shared.names, &request).await;
        }
        let receipts = self.publishers.ask(vec![request]).await?;
        receipts.into_iter().next().unwrap_or_else(|| Err(super::missing()))
    }

    /// Publishes several in their order; an answer each.
    pub(in crate::redis) async fn publish_batch(&self, requests: Vec<Publish>) -> Receipts {
        let is_small = requests.len() < TOGETHER_MAX && requests.iter().all(may_join);
        if !self.layout.is_one_server() || !is_small || requests.is_empty() {
            return super::publish_batch(&self.layout, &self.shared.names, &requests).await;
        }
        let count = requests.len();
        let receipts = self.publishers.ask(requests).await;
        receipts.unwrap_or_else(|error| (0..count).map(|_| Err(error.clone())).collect())
    }

    /// One round trip for all of them.
    async fn publish_asked(&self, asked: Vec<Asked<Vec<Publish>, Receipts>>) {
        let mut requests = Vec::with_capacity(asked.len());
        let mut replies = Vec::with_capacity(asked.len());
        for one in asked {
            let (own, reply) = one.into_parts();
            replies.push((own.len(), reply));
            requests.extend(own);
        }
        let (layout, names) = (&self.layout, &self.shared.names);
        let mut receipts = super::publish_batch(layout, names, &requests).await.into_iter();
        for (count, reply) in replies {
            // Whoever gave up needs no answer.
            let _gone = reply.send(receipts.by_ref().take(count).collect());
        }
    }
}

/// Spawned under the broker's tasks; it must not keep the broker alive.
pub(in crate::redis) fn spawn(inner: &Arc<Inner>, waiting: Waiting<Vec<Publish>, Receipts>) {
    let weak = Arc::downgrade(inner);
    let leave = move |asked| {
        let inner = weak.upgrade()?;
        Some(async move { inner.publish_asked(asked).await })
    };
    inner.shared.tasks.spawn(carry(inner.stop.clone(), waiting, TURN_MAX, leave));
}
