//! Joins local interest to the broker, and guards the order of what comes back.
//!
//! The node hears a channel while one of its connections listens, and a little longer. For each
//! channel with history the relay knows the last position handed to the hub; a publication that
//! does not follow it (by offset and by its predecessor's tag) opens a repair: the gap is read from
//! history and handed over first. After an interruption every channel is audited at once.
//! Clients never see a gap; what cannot be repaired becomes a `resync`.
//! Source: `cluster.md` 1–2, `protocol.md` 6.
//!
//! It must not know: connections, frames, profiles.

mod evidence;
mod interest;
mod repair;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use carillon_broker_client::{
    Broker, BrokerError, Event, Events, HistoryPage, HistoryQuery, Receipt, Start,
};
use carillon_protocol::{ChannelName, Position, Publication};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::application::Occupancy;
use crate::dispatch::Dispatch;
use crate::hub::{Hub, Notice};
use crate::metrics::Metrics;
use evidence::Evidence;
use interest::{Admitted, Interest, Wanted};
use repair::Flights;
pub use repair::{Bridge, PAGE};

/// Events taken from the broker in one go.
const EVENTS_MAX: usize = 256;
/// Requests to open a channel that wait for the interest task.
const REQUESTS_MAX: usize = 8192;
/// How long a channel without listeners is still heard.
const LINGER: Duration = Duration::from_secs(5);

/// What the relay needs to know of a channel's namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelTraits {
    /// Age of its history; `None` for no history.
    pub history_age: Option<Duration>,
}

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct Relay {
    inner: Arc<Inner>,
}

struct Inner {
    broker: Arc<dyn Broker>,
    hub: Hub,
    metrics: Arc<Metrics>,
    interest: Interest,
    requests: mpsc::Sender<Request>,
    flights: Flights,
    evidence: Evidence,
    /// What was acknowledged must be held against history before anything else is believed.
    doubted: AtomicBool,
    occupancy: OnceLock<Occupancy>,
    /// Messages of other nodes may have been lost.
    missed: Arc<Notify>,
}

enum Request {
    Open(ChannelName),
    Repair(ChannelName),
    Audit,
}

/// Bytes that another node sent to this one.
pub type Told = mpsc::Receiver<Bytes>;

impl Relay {
    /// Starts the relay's tasks under `tasks`; they end with `stop`. The receiver yields what
    /// other nodes tell this one.
    #[must_use]
    pub fn start(
        broker: Arc<dyn Broker>,
        events: Events,
        hub: Hub,
        metrics: Arc<Metrics>,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> (Self, Told) {
        let (requests, receiver) = mpsc::channel(REQUESTS_MAX);
        let (told, heard) = mpsc::channel(1024);
        let inner = Inner {
            broker,
            hub,
            metrics,
            interest: Interest::default(),
            requests,
            flights: Flights::default(),
            evidence: Evidence::default(),
            doubted: AtomicBool::new(false),
            occupancy: OnceLock::new(),
            missed: Arc::default(),
        };
        let relay = Self { inner: Arc::new(inner) };
        tasks.spawn(relay.clone().listen(events, told, stop.clone()));
        tasks.spawn(relay.clone().keep_interest(receiver, stop.clone()));
        (relay, heard)
    }

    /// From now on, says who listens where. Once.
    pub fn tell_listeners(&self, occupancy: Occupancy) {
        let _ = self.inner.occupancy.set(occupancy);
    }

    /// Wakes whoever waits when messages of other nodes may have been lost: after every interruption.
    #[must_use]
    pub fn missed(&self) -> Arc<Notify> {
        Arc::clone(&self.inner.missed)
    }

    /// Adds a listener to a channel; returns when the node hears it. Every `Ok` **and** every `Err` counts
    /// as one listener until [`Relay::leave`]: after an `Err` the channel opens by itself when the broker is back.
    /// Who stays says so with [`Relay::expect_resync`].
    pub async fn join(
        &self,
        channel: &ChannelName,
        traits: ChannelTraits,
    ) -> Result<(), BrokerError> {
        if let Some(occupancy) = self.inner.occupancy.get() {
            occupancy.joined(channel);
        }
        let waiter = match self.inner.interest.join(channel, traits) {
            Wanted::Open => return Ok(()),
            Wanted::Wait(waiter) => waiter,
            Wanted::Request(waiter) => {
                if self.inner.requests.send(Request::Open(channel.clone())).await.is_err() {
                    return Err(BrokerError::unavailable("the node is stopping"));
                }
                waiter
            }
        };
        waiter.await.unwrap_or_else(|_: oneshot::error::RecvError| {
            Err(BrokerError::unavailable("the node is stopping"))
        })
    }

    /// A listener whose join failed stays; it is told `resync` when the channel opens.
    pub fn expect_resync(&self, channel: &ChannelName) {
        self.inner.interest.expect_resync(channel);
    }

    /// A publish of this node was acknowledged. `generation` is the broker's from before it was sent.
    pub fn acknowledged(&self, channel: &ChannelName, receipt: &Receipt, generation: u64) {
        if let Some(position) = receipt.position.filter(|_| !receipt.duplicate) {
            self.inner.evidence.note(channel, position, generation);
        }
    }

    /// Takes a listener back.
    pub fn leave(&self, channel: &ChannelName) {
        self.inner.interest.leave(channel);
        if let Some(occupancy) = self.inner.occupancy.get() {
            occupancy.left(channel);
        }
    }

    /// The last position handed to the hub; `None` without history or when not open.
    #[must_use]
    pub fn position(&self, channel: &ChannelName) -> Option<Position> {
        self.inner.interest.position(channel)
    }

    /// Whether the node hears a channel, so that what is read from history can be joined to what comes.
    #[must_use]
    pub fn hears(&self, channel: &ChannelName) -> bool {
        self.inner.interest.is_open(channel)
    }

    /// Reads history for a listener; equal reads at the same time are one read (`cluster.md` 2).
    pub async fn history(
        &self,
        channel: &ChannelName,
        start: Start,
        limit: u32,
        age: Duration,
    ) -> Result<Arc<HistoryPage>, BrokerError> {
        let query = HistoryQuery { start, limit, age };
        self.inner.flights.read(&self.inner.broker, channel, query).await
    }

    /// Channels that the node hears.
    #[must_use]
    pub fn channels_heard(&self) -> usize {
        self.inner.interest.len()
    }

    /// Hands the broker's events to the hub, in order.
    async fn listen(self, mut events: Events, told: mpsc::Sender<Bytes>, stop: CancellationToken) {
        let mut batch = Vec::with_capacity(EVENTS_MAX);
        // Something is queued that is not written yet.
        let mut owed = false;
        loop {
            if owed {
                while batch.len() < EVENTS_MAX
                    && let Ok(event) = events.try_recv()
                {
                    batch.push(event);
                }
            } else {
                let received = tokio::select! {
                    received = events.recv_many(&mut batch, EVENTS_MAX) => received,
                    () = stop.cancelled() => 0,
                };
                if received == 0 {
                    return;
                }
            }
            let mut notices = Vec::with_capacity(batch.len());
            let mut letters = Vec::new();
            for event in batch.drain(..) {
                match event {
                    Event::Publication(publication) => self.admit(publication, &mut notices),
                    Event::Told(bytes) => letters.push(bytes),
                    Event::Renewed(channel) => {
                        // Where the queue is full, the tick finds it among the damaged.
                        if self.inner.interest.doubt(&channel) {
                            let _ = self.inner.requests.try_send(Request::Repair(channel));
                        }
                    }
                    Event::Interrupted => self.inner.interest.mark_interrupted(),
                    // A full request queue already holds work that ends in a look at history.
                    Event::Restored => {
                        self.inner.missed.notify_one();
                        let _ = self.inner.requests.send(Request::Audit).await;
                    }
                }
            }
            if !notices.is_empty() {
                owed |= self.inner.hub.notify(notices).await;
            }
            // After the publications that came before them: who asks what a listener has heard asks about those, too.
            for bytes in letters {
                if told.try_send(bytes).is_err() {
                    tracing::warn!(
                        "node messages come faster than they are handled; one was dropped"
                    );
                    self.inner.missed.notify_one();
                }
            }
            if owed {
                owed = self.inner.hub.write_some();
            }
            // Saturated, one batch after the other would starve everybody else on this core; and what they
            // publish meanwhile leaves together with what still waits.
            tokio::task::yield_now().await;
        }
    }

    fn admit(&self, publication: Publication, notices: &mut Vec<Notice>) {
        match self.inner.interest.admit(&publication) {
            Admitted::Deliver => {
                notices.push(Notice::Dispatch(Arc::new(Dispatch::new(publication))));
            }
            Admitted::Drop => {}
            Admitted::Repair => {
                self.inner.metrics.gap();
                if self
                    .inner
                    .requests
                    .try_send(Request::Repair(publication.channel.clone()))
                    .is_err()
                {
                    // The next publication, or the next audit, asks again.
                    self.inner.interest.forget_repair(&publication.channel);
                }
            }
        }
    }

    /// Opens and closes channels at the broker and repairs them; one task, so that an unsubscribe
    /// never overtakes a subscribe.
    async fn keep_interest(self, mut requests: mpsc::Receiver<Request>, stop: CancellationToken) {
        let mut batch = Vec::new();
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                received = requests.recv_many(&mut batch, 1024) => if received == 0 { return },
                _ = tick.tick() => {
                    self.close_idle().await;
                    self.inner.evidence.forget_old();
                    if self.inner.doubted.load(Ordering::Relaxed) {
                        self.audit().await;
                    }
                    let waiting = self.inner.interest.unopened();
                    if !waiting.is_empty() {
                        self.open(waiting).await;
                    }
                    self.repair(self.inner.interest.damaged()).await;
                }
                () = stop.cancelled() => return,
            }
            let mut opens = Vec::new();
            let mut repairs = Vec::new();
            let mut audit = false;
            for request in batch.drain(..) {
                match request {
                    Request::Open(channel) => opens.push(channel),
                    Request::Repair(channel) => repairs.push(channel),
                    Request::Audit => audit = true,
                }
            }
            if audit {
                self.audit().await;
            }
            if !opens.is_empty() {
                self.open(opens).await;
            }
            self.repair(repairs).await;
        }
    }

    async fn open(&self, channels: Vec<ChannelName>) {
        let outcome = self.open_at_broker(&channels).await;
        if let Err(error) = &outcome {
            tracing::debug!(%error, channels = channels.len(), "channels cannot be opened yet");
        }
        let (late, damaged) = self.inner.interest.opened(&channels, &outcome);
        let notices: Vec<Notice> = late
            .into_iter()
            .map(|(channel, position)| Notice::Resync(channel, "unavailable", position))
            .collect();
        if !notices.is_empty() {
            self.inner.hub.settle(notices).await;
        }
        self.repair(damaged).await;
    }

    async fn open_at_broker(
        &self,
        channels: &[ChannelName],
    ) -> Result<Vec<Option<Position>>, BrokerError> {
        self.inner.broker.subscribe(channels).await?;
        // Read the top only after the broker delivers: what is published between is heard and
        // dropped by offset. The other order would lose it.
        let with_history: Vec<ChannelName> = channels
            .iter()
            .filter(|channel| self.inner.interest.history_age(channel).is_some())
            .cloned()
            .collect();
        let mut tops = self.inner.broker.tops(&with_history).await?.into_iter();
        Ok(channels
            .iter()
            .map(|channel| self.inner.interest.history_age(channel).and_then(|_| tops.next()))
            .collect())
    }

    async fn close_idle(&self) {
        let idle = self.inner.interest.close_idle(LINGER);
        if idle.is_empty() {
            return;
        }
        if let Err(error) = self.inner.broker.unsubscribe(&idle).await {
            tracing::debug!(%error, channels = idle.len(), "channels could not be closed at the broker");
        }
        let wanted_again = self.inner.interest.closed(&idle);
        if !wanted_again.is_empty() {
            self.open(wanted_again).await;
        }
    }
}
