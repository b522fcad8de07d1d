//! What lies between a node and storage: a line that takes time, stalls, is cut, loses answers — in one order,
//! as one connection to Redis does — and an ear that may go deaf. What storage takes is recorded here, in the
//! moment it takes it. It must not know: nodes' insides, clients.

mod stores;

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use carillon_broker_client::{
    Admission, Broker, BrokerError, ConnectionRecord, Event, Events, Health, HistoryPage,
    HistoryQuery, InboundEntry, MemoryBroker, MemoryCluster, NodeId, NodeRecord, Publish,
    RateCount, Receipt, Target,
};
use carillon_protocol::{ChannelName, ConnectionId, Position, UserId};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::log::Log;
use crate::records::{Place, Record};

/// The gateway's patience with Redis.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest way of a command, of an answer and of an event, milliseconds.
const WAY_MS_MAX: u64 = 4;

/// A position as it stands on the wire.
pub(crate) fn place(position: Position) -> Place {
    Place {
        epoch: position.epoch.to_string(),
        offset: position.offset,
        tag: position.tag.to_string(),
    }
}

/// One node's way to storage. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Line(Arc<State>);

struct State {
    broker: MemoryBroker,
    log: Log,
    rng: Mutex<StdRng>,
    /// Commands reach storage in the order in which they were sent.
    turn: tokio::sync::Mutex<()>,
    /// Storage answers nobody at present.
    stalled: watch::Receiver<bool>,
    /// The node's process does not run at present.
    paused: watch::Receiver<bool>,
    dead: CancellationToken,
    deaf: AtomicBool,
    /// Publications to lose without a word.
    skips: AtomicU32,
    heard: OnceLock<mpsc::Sender<Event>>,
}

impl Line {
    /// Joins a node to the cluster.
    pub(crate) fn join(
        cluster: &MemoryCluster,
        id: &NodeId,
        log: &Log,
        seed: u64,
        stalled: watch::Receiver<bool>,
        paused: watch::Receiver<bool>,
    ) -> (Self, Events) {
        let (broker, events) = cluster.join(id.clone());
        let state = State {
            broker,
            log: log.clone(),
            rng: Mutex::new(StdRng::seed_from_u64(seed)),
            turn: tokio::sync::Mutex::new(()),
            stalled,
            paused,
            dead: CancellationToken::new(),
            deaf: AtomicBool::new(false),
            skips: AtomicU32::new(0),
            heard: OnceLock::new(),
        };
        let line = Self(Arc::new(state));
        let (heard, ears) = mpsc::channel(8192);
        let _ = line.0.heard.set(heard.clone());
        tokio::spawn(line.clone().carry(events, heard));
        (line, ears)
    }

    /// The process died: nothing is sent and nothing is heard any more.
    pub(crate) fn die(&self) {
        self.0.dead.cancel();
    }

    /// What is under way to the node is lost, until it hears `Interrupted`. `early` says so at once.
    pub(crate) fn deafen(&self, early: bool) {
        self.0.deaf.store(true, Ordering::Relaxed);
        if let Some(heard) = self.0.heard.get().filter(|_| early) {
            let _ = heard.try_send(Event::Interrupted);
        }
    }

    /// The next publications are lost, and nothing says so.
    pub(crate) fn skip(&self, publications: u32) {
        self.0.skips.store(publications, Ordering::Relaxed);
    }

    fn way(&self) -> Duration {
        let mut rng = self.0.rng.lock();
        // Most of the time two things happen in the same moment.
        Duration::from_millis(if rng.random_bool(0.6) {
            0
        } else {
            rng.random_range(1..=WAY_MS_MAX)
        })
    }

    async fn carry(self, mut events: Events, heard: mpsc::Sender<Event>) {
        let work = async {
            while let Some(event) = events.recv().await {
                if event == Event::Interrupted {
                    self.0.deaf.store(false, Ordering::Relaxed);
                }
                let skips = self.0.skips.load(Ordering::Relaxed);
                if skips > 0 && matches!(event, Event::Publication(_)) {
                    self.0.skips.store(skips - 1, Ordering::Relaxed);
                    continue;
                }
                runs(&self.0.paused).await;
                let way = self.way();
                if !way.is_zero() {
                    tokio::time::sleep(way).await;
                }
                if !self.0.deaf.load(Ordering::Relaxed) && heard.send(event).await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            () = work => {}
            () = self.0.dead.cancelled() => {}
        }
    }

    /// Sends one command and waits for its answer as a node would: storage may act on it and the answer be lost.
    async fn call<T, Answer>(
        &self,
        command: impl FnOnce(Arc<State>) -> Answer + Send + 'static,
    ) -> Result<T, BrokerError>
    where
        T: Send + 'static,
        Answer: Future<Output = Result<T, BrokerError>> + Send,
    {
        self.lives().await;
        let arrives = Instant::now() + self.way();
        let state = Arc::clone(&self.0);
        let acts = tokio::spawn(async move {
            let _turn = state.turn.lock().await;
            if arrives > Instant::now() {
                tokio::time::sleep_until(arrives).await;
            }
            runs(&state.stalled).await;
            command(Arc::clone(&state)).await
        });
        let answer = tokio::time::timeout(COMMAND_TIMEOUT, acts).await;
        let back = self.way();
        if !back.is_zero() {
            tokio::time::sleep(back).await;
        }
        self.lives().await;
        let answer = answer
            .map_err(|_| BrokerError::unavailable("no answer in time"))?
            .unwrap_or_else(|_| Err(BrokerError::unavailable("the command was never sent")))?;
        if *self.0.broker.health().borrow() != Health::Up {
            return Err(BrokerError::unavailable("the answer was lost"));
        }
        Ok(answer)
    }

    /// Returns while the node's process runs.
    async fn lives(&self) {
        if self.0.dead.is_cancelled() {
            std::future::pending::<()>().await;
        }
        runs(&self.0.paused).await;
    }
}

/// Waits until the word is `false`.
pub(crate) async fn runs(held: &watch::Receiver<bool>) {
    if *held.borrow() {
        // The nemesis gone means that the run is over.
        let _ = held.clone().wait_for(|held| !held).await;
    }
}

impl State {
    /// Publishes, and records what storage took. Nothing runs between the two.
    async fn publish(&self, request: Publish) -> Result<Receipt, BrokerError> {
        let channel = request.publication.channel.clone();
        let before = match request.retention {
            Some(_) => self.broker.tops(std::slice::from_ref(&channel)).await?.pop(),
            None => None,
        };
        let receipt = self.broker.publish(request).await?;
        if !receipt.duplicate {
            self.log.push(Record::Appended {
                channel: channel.to_string(),
                id: receipt.id.to_string(),
                place: receipt.position.map(place),
                before: before.map(|before| before.tag.to_string()),
            });
        }
        Ok(receipt)
    }
}

#[async_trait]
impl Broker for Line {
    async fn publish(&self, request: Publish) -> Result<Receipt, BrokerError> {
        self.call(move |storage| async move { storage.publish(request).await }).await
    }

    async fn publish_batch(&self, requests: Vec<Publish>) -> Vec<Result<Receipt, BrokerError>> {
        let count = requests.len();
        let all = self.call(move |storage| async move {
            let mut receipts = Vec::with_capacity(requests.len());
            for request in requests {
                receipts.push(storage.publish(request).await);
            }
            Ok(receipts)
        });
        match all.await {
            Ok(receipts) => receipts,
            Err(error) => vec![Err(error); count],
        }
    }

    async fn subscribe(&self, channels: &[ChannelName]) -> Result<(), BrokerError> {
        let channels = channels.to_vec();
        self.call(move |storage| async move { storage.broker.subscribe(&channels).await }).await
    }

    async fn unsubscribe(&self, channels: &[ChannelName]) -> Result<(), BrokerError> {
        let channels = channels.to_vec();
        self.call(move |storage| async move { storage.broker.unsubscribe(&channels).await }).await
    }

    async fn tops(&self, channels: &[ChannelName]) -> Result<Vec<Position>, BrokerError> {
        let channels = channels.to_vec();
        self.call(move |storage| async move { storage.broker.tops(&channels).await }).await
    }

    async fn history(
        &self,
        channel: &ChannelName,
        query: HistoryQuery,
    ) -> Result<HistoryPage, BrokerError> {
        let channel = channel.clone();
        self.call(move |storage| async move { storage.broker.history(&channel, query).await }).await
    }

    async fn fence(&self, known: &[(ChannelName, Position)]) -> Result<Vec<bool>, BrokerError> {
        let known = known.to_vec();
        self.call(move |storage| async move { storage.broker.fence(&known).await }).await
    }

    async fn clear_history(&self, channel: &ChannelName) -> Result<Position, BrokerError> {
        let channel = channel.clone();
        self.call(move |storage| async move { storage.broker.clear_history(&channel).await }).await
    }

    async fn register(
        &self,
        record: &ConnectionRecord,
        limit: u64,
    ) -> Result<Admission, BrokerError> {
        let record = record.clone();
        self.call(move |storage| async move { storage.broker.register(&record, limit).await }).await
    }

    fn register_later(&self, record: &ConnectionRecord) {
        self.0.broker.register_later(record);
    }

    async fn deregister(&self, record: &ConnectionRecord) -> Result<(), BrokerError> {
        let record = record.clone();
        self.call(move |storage| async move { storage.broker.deregister(&record).await }).await
    }

    async fn connections_of(&self, user: &UserId) -> Result<Vec<ConnectionId>, BrokerError> {
        let user = user.clone();
        self.call(move |storage| async move { storage.broker.connections_of(&user).await }).await
    }

    async fn beat(&self, record: &NodeRecord) -> Result<Vec<NodeRecord>, BrokerError> {
        let record = record.clone();
        self.call(move |storage| async move { storage.broker.beat(&record).await }).await
    }

    async fn retire(&self) -> Result<(), BrokerError> {
        self.call(move |storage| async move { storage.broker.retire().await }).await
    }

    async fn tell(&self, target: &Target, message: Bytes) -> Result<u64, BrokerError> {
        let target = target.clone();
        self.call(move |storage| async move { storage.broker.tell(&target, message).await }).await
    }

    async fn append_inbound(&self, entry: &InboundEntry) -> Result<String, BrokerError> {
        let entry = entry.clone();
        self.call(move |storage| async move { storage.broker.append_inbound(&entry).await }).await
    }

    async fn count(&self, key: &str, window: Duration) -> Result<RateCount, BrokerError> {
        let key = key.to_owned();
        self.call(move |storage| async move { storage.broker.count(&key, window).await }).await
    }

    fn generation(&self) -> u64 {
        self.0.broker.generation()
    }

    fn node(&self) -> &NodeId {
        self.0.broker.node()
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.0.broker.health()
    }
}
