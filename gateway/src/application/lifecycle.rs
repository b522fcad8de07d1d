//! Lifecycle events of this node: what happens to its connections and channels is queued here and reported to the
//! broker in order, which tells each change once over the cluster. `channels.md` 6.
//!
//! While the broker is away the queue holds [`QUEUE_MAX`] happenings; what is beyond shows as a hole in the sequence.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use carillon_broker_client::{EventKind, EventKinds, Happening};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::occupancy::Occupancy;
use crate::clock;
use crate::connection::{Connection, Transport};
use crate::metrics::Metrics;
use crate::node::Node;

/// Happenings that wait for the broker.
const QUEUE_MAX: usize = 100_000;
/// Happenings reported in one go.
const BATCH: usize = 500;
/// How often channels are looked at, and a report that failed is tried again.
const TICK: Duration = Duration::from_millis(250);
/// How long a node that ends waits for its last reports.
const LAST_REPORTS: Duration = Duration::from_secs(2);

/// See the module. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Lifecycle {
    inner: Arc<Inner>,
}

struct Inner {
    kinds: EventKinds,
    occupancy: Option<Occupancy>,
    metrics: Arc<Metrics>,
    queue: Mutex<VecDeque<Happening>>,
    lost: AtomicBool,
    reporting: AtomicBool,
    wake: Notify,
}

impl Lifecycle {
    pub(super) fn new(kinds: EventKinds, metrics: &Arc<Metrics>) -> Self {
        let channels =
            kinds.contains(EventKind::ChannelOccupied) || kinds.contains(EventKind::ChannelVacated);
        let inner = Inner {
            kinds,
            occupancy: channels.then(Occupancy::default),
            metrics: Arc::clone(metrics),
            queue: Mutex::default(),
            lost: AtomicBool::new(false),
            reporting: AtomicBool::new(false),
            wake: Notify::new(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// The events that are told.
    pub(crate) fn kinds(&self) -> EventKinds {
        self.inner.kinds
    }

    /// Wants to know of listeners, where channels are told of.
    pub(crate) fn occupancy(&self) -> Option<Occupancy> {
        self.inner.occupancy.clone()
    }

    /// A connection began. Polls are none. Never waits.
    pub(crate) fn opened(&self, node: &str, connection: &Connection) {
        if self.tells_connections(connection) {
            let about = about(node, connection).to_string();
            self.push(Happening::Opened { connection: connection.id.clone(), about });
        }
    }

    /// A connection ended. Never waits.
    pub(crate) fn closed(&self, node: &str, connection: &Connection, reason: &str) {
        if self.tells_connections(connection) {
            let mut about = about(node, connection);
            about["reason"] = reason.into();
            about["duration_ms"] = (clock::unix_ms() - connection.connected_at_ms).max(0).into();
            let about = about.to_string();
            self.push(Happening::Closed { connection: connection.id.clone(), about });
        }
    }

    fn tells_connections(&self, connection: &Connection) -> bool {
        let kinds = self.inner.kinds;
        (kinds.contains(EventKind::ConnectionOpened) || kinds.contains(EventKind::ConnectionClosed))
            && connection.transport != Transport::Poll
    }

    fn push(&self, happening: Happening) {
        let mut queue = self.inner.queue.lock();
        if queue.len() >= QUEUE_MAX {
            self.inner.lost.store(true, Ordering::Relaxed);
            self.inner.metrics.event_lost();
            return;
        }
        queue.push_back(happening);
        drop(queue);
        self.inner.wake.notify_one();
    }

    fn look_at_channels(&self) {
        let Some(occupancy) = &self.inner.occupancy else { return };
        let (occupied, vacated) = occupancy.news(Instant::now());
        // What is vacated now was occupied before: the other order would end with the channel vacant.
        occupied.into_iter().map(Happening::Occupied).for_each(|news| self.push(news));
        vacated.into_iter().map(Happening::Vacated).for_each(|news| self.push(news));
    }

    /// The next happenings, in order, each connection and channel once: that makes repeating the report safe.
    fn batch(&self) -> Vec<Happening> {
        let mut queue = self.inner.queue.lock();
        let (mut batch, mut seen) = (Vec::new(), HashSet::new());
        while batch.len() < BATCH {
            let Some(next) = queue.front() else { break };
            let is_new = match next {
                Happening::Opened { connection, .. } | Happening::Closed { connection, .. } => {
                    seen.insert(connection.as_str().to_owned())
                }
                Happening::Occupied(channel) | Happening::Vacated(channel) => {
                    seen.insert(channel.as_str().to_owned())
                }
                Happening::Lost => true,
            };
            if !is_new {
                break;
            }
            batch.extend(queue.pop_front());
        }
        if queue.is_empty() && self.inner.lost.swap(false, Ordering::Relaxed) {
            batch.push(Happening::Lost);
        }
        self.inner.reporting.store(!batch.is_empty(), Ordering::Release);
        batch
    }

    /// Waits until everything is reported, or a moment.
    pub(crate) async fn flushed(&self) {
        self.inner.wake.notify_one();
        let flushed = async {
            while !self.inner.queue.lock().is_empty()
                || self.inner.reporting.load(Ordering::Acquire)
            {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if tokio::time::timeout(LAST_REPORTS, flushed).await.is_err() {
            tracing::warn!("the last lifecycle events were not reported in time");
        }
    }
}

fn about(node: &str, connection: &Connection) -> serde_json::Value {
    serde_json::json!({
        "connection_id": connection.id,
        "user_id": connection.user,
        "transport": connection.transport.name(),
        "profile": connection.dress.profile.name(),
        "node": node,
    })
}

/// Reports until `stop`.
pub(super) async fn report(node: &Node, stop: &CancellationToken) {
    let lifecycle = &node.application.lifecycle;
    if lifecycle.inner.kinds == EventKinds::NONE {
        return;
    }
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = lifecycle.inner.wake.notified() => {}
            () = stop.cancelled() => return,
        }
        lifecycle.look_at_channels();
        loop {
            let batch = lifecycle.batch();
            if batch.is_empty() {
                break;
            }
            while let Err(error) = node.broker.report(&batch).await {
                tracing::debug!(%error, happenings = batch.len(), "lifecycle events wait for the broker");
                tokio::select! {
                    () = tokio::time::sleep(TICK) => {}
                    () = stop.cancelled() => return,
                }
            }
        }
    }
}
