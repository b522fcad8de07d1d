//! Gap refill, audit and shared history reads.
//!
//! A repair reads history from the last position handed over, verifies by tag that it is the same
//! history, and hands the missing publications to the hub before anything newer. When history cannot
//! bridge the gap, listeners are told `resync` and go on from the top.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use carillon_broker_client::{Broker, BrokerError, HistoryPage, HistoryQuery, Start};
use carillon_protocol::ChannelName;
use foldhash::HashMap;
use futures_util::future::{BoxFuture, FutureExt, Shared};
use parking_lot::Mutex;

use super::Relay;
use super::interest::Advance;
use crate::dispatch::Dispatch;
use crate::hub::Notice;

/// Publications read in one go.
pub const PAGE: u32 = 256;

/// How a position relates to a page of history that was read from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bridge {
    /// Same history, nothing missing before the page.
    Whole,
    /// Same history, but what followed the position was trimmed.
    Trimmed,
    /// Another life of the channel: its data was lost.
    Epoch,
    /// The position belongs to a history that this one forked from.
    Fork,
}

impl Bridge {
    /// The `reason` that clients read.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Whole => "recovered",
            Self::Trimmed => "trimmed",
            Self::Epoch => "epoch",
            Self::Fork => "fork",
        }
    }

    /// Judges a position by a page read with [`Start::After`] of its offset.
    #[must_use]
    pub fn judge(since: &carillon_protocol::Since, page: &HistoryPage) -> Self {
        if since.epoch != Some(page.top.epoch) {
            return Self::Epoch;
        }
        let next = page.publications.first().and_then(|first| first.position);
        if since.offset > page.top.offset || since.foreign_tag {
            return Self::Fork;
        }
        match (since.tag, page.tag_at_start) {
            (Some(seen), Some(held)) if seen != held => return Self::Fork,
            _ => {}
        }
        match next {
            None if since.offset == page.top.offset => Self::Whole,
            Some(next) if next.offset == since.offset + 1 => Self::Whole,
            _ => Self::Trimmed,
        }
    }
}

impl Relay {
    /// Holds what was acknowledged here against history, so that a loss becomes a new epoch; then compares every channel
    /// with history to its top, pipelined, and repairs those that moved.
    pub(super) async fn audit(&self) {
        self.inner.doubted.store(true, Ordering::Relaxed);
        if let Err(error) = self.hold_evidence().await {
            // Every channel was marked when deliveries stopped; the tick asks again.
            tracing::warn!(%error, "audit interrupted");
            return;
        }
        self.inner.doubted.store(false, Ordering::Relaxed);
        let affected = self.inner.interest.begin_audit();
        self.inner.metrics.audit();
        for chunk in affected.chunks(1_000) {
            let channels: Vec<ChannelName> =
                chunk.iter().map(|(channel, _)| channel.clone()).collect();
            let tops = match self.inner.broker.tops(&channels).await {
                Ok(tops) => tops,
                Err(error) => {
                    // They stay marked as repairing; the tick or the next Restored asks again.
                    tracing::warn!(%error, "audit interrupted");
                    return;
                }
            };
            let mut moved = Vec::new();
            for ((channel, position), top) in chunk.iter().zip(tops) {
                let same = top == *position
                    && self.inner.interest.advance(channel, top, true) == Advance::Whole;
                if !same {
                    moved.push(channel.clone());
                }
            }
            self.repair(moved).await;
        }
    }

    async fn hold_evidence(&self) -> Result<(), BrokerError> {
        for known in self.inner.evidence.all().chunks(1_000) {
            let lost = self.inner.broker.fence(known).await?;
            for ((channel, position), _) in known.iter().zip(lost).filter(|(_, lost)| *lost) {
                tracing::warn!(%channel, offset = position.offset, "history lost what it had acknowledged");
            }
            self.inner.evidence.settled(known);
        }
        Ok(())
    }

    /// Repairs channels one after the other; a failed read leaves the rest for the next tick.
    pub(super) async fn repair(&self, channels: Vec<ChannelName>) {
        for channel in channels {
            if let Err(error) = self.repair_one(&channel).await {
                tracing::debug!(%error, %channel, "repair postponed");
                return;
            }
        }
    }

    async fn repair_one(&self, channel: &ChannelName) -> Result<(), BrokerError> {
        while let Some((from, age)) = self.inner.interest.repairing_from(channel) {
            let query = HistoryQuery { start: Start::After(from.offset), limit: PAGE, age };
            let page = self.inner.broker.history(channel, query).await?;
            let bridge = Bridge::judge(&from.into(), &page);
            if bridge != Bridge::Whole {
                tracing::warn!(%channel, reason = bridge.reason(), "history cannot bridge the gap");
                let mut top = page.top;
                if bridge == Bridge::Fork {
                    // This node heard what is gone. Others and resuming clients may not have: a new epoch tells them.
                    let known = [(channel.clone(), from)];
                    self.inner.broker.fence(&known).await?;
                    let tops = self.inner.broker.tops(std::slice::from_ref(channel)).await?;
                    top = tops.first().copied().unwrap_or(top);
                }
                self.inner.metrics.resync();
                // Position first: a subscriber that comes between begins at the new top, and the hub drops
                // nothing that it should have.
                self.inner.interest.advance(channel, top, true);
                let notice = Notice::Resync(channel.clone(), bridge.reason(), Some(top));
                self.inner.hub.settle(vec![notice]).await;
                continue;
            }
            let last = page.publications.last().and_then(|last| last.position).unwrap_or(from);
            let notices: Vec<Notice> = page
                .publications
                .into_iter()
                .map(|publication| Notice::Dispatch(Arc::new(Dispatch::new(publication))))
                .collect();
            self.inner.metrics.refilled(notices.len() as u64);
            // Hand over before the channel opens: what is heard after that must come behind.
            let caught_up = last.offset >= page.top.offset;
            self.inner.interest.advance(channel, last, false);
            self.inner.hub.settle(notices).await;
            if caught_up && self.inner.interest.advance(channel, last, true) == Advance::Whole {
                return Ok(());
            }
        }
        Ok(())
    }
}

type Flight = Shared<BoxFuture<'static, Result<Arc<HistoryPage>, BrokerError>>>;
type FlightKey = (ChannelName, Option<u64>, u32);

/// History reads under way: equal ones are shared.
#[derive(Default)]
pub(super) struct Flights {
    under_way: Mutex<HashMap<FlightKey, Flight>>,
}

impl Flights {
    pub(super) async fn read(
        &self,
        broker: &Arc<dyn Broker>,
        channel: &ChannelName,
        query: HistoryQuery,
    ) -> Result<Arc<HistoryPage>, BrokerError> {
        let after = match query.start {
            Start::After(offset) => Some(offset),
            Start::Last => None,
        };
        let key = (channel.clone(), after, query.limit);
        let flight = {
            let mut under_way = self.under_way.lock();
            let flight = under_way.entry(key.clone()).or_insert_with(|| {
                let (broker, channel) = (Arc::clone(broker), channel.clone());
                async move { broker.history(&channel, query).await.map(Arc::new) }.boxed().shared()
            });
            flight.clone()
        };
        let page = flight.clone().await;
        let mut under_way = self.under_way.lock();
        if under_way.get(&key).is_some_and(|current| current.ptr_eq(&flight)) {
            under_way.remove(&key);
        }
        page
    }
}
