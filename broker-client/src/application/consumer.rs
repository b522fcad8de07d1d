//! A ready reader of the `inbound` stream for backends: a consumer group with acknowledgement, and what a dead
//! consumer left is taken over.

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{InboundFrom, InboundMessage, InboundRead};
use crate::{Broker, BrokerError};

/// How often an empty stream is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// Entries fetched in one go.
const BATCH: usize = 64;
/// Entries that may wait for their acknowledgement.
const UNACKNOWLEDGED_MAX: usize = 1_000;
/// After so long without acknowledgement an entry is somebody else's.
const ABANDONED_AFTER: Duration = Duration::from_secs(60);

/// One consumer of a group. Each entry goes to one consumer of a group, at least once: again, to whoever asks, when it
/// was not acknowledged for a minute ([`InboundConsumer::abandoned_after`]), which is what a consumer that died
/// leaves behind. So handling an entry must be quicker than that, and must bear repetition.
///
/// ```no_run
/// use std::sync::Arc;
/// use carillon_broker_client::{InboundConsumer, NodeId, RedisBroker, RedisMode, RedisSettings, RedisTls};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let settings = RedisSettings {
///     mode: RedisMode::Standalone,
///     urls: vec!["redis://localhost:6379".to_owned()],
///     master_name: None,
///     prefix: "carillon".to_owned(),
///     tls: RedisTls::default(),
///     command_timeout: std::time::Duration::from_secs(1),
/// };
/// let (broker, _events) = RedisBroker::connect(settings, NodeId::random());
/// let mut inbound = InboundConsumer::new(Arc::new(broker), "shop", "shop-1");
/// loop {
///     let message = match inbound.next().await {
///         Ok(message) => message,
///         Err(error) => {
///             // Redis is away: nothing is lost, ask again.
///             eprintln!("{error}");
///             tokio::time::sleep(std::time::Duration::from_secs(1)).await;
///             continue;
///         }
///     };
///     match message.kind.as_str() {
///         "cart:add" if !message.is_event => {
///             let order: serde_json::Value = message.read()?;
///             println!("{} adds {}", order["user_id"], order["payload"]);
///         }
///         _ => {}
///     }
///     inbound.ack(&message.id).await?;
/// }
/// # }
/// ```
pub struct InboundConsumer {
    broker: Arc<dyn Broker>,
    group: String,
    consumer: String,
    batch: usize,
    abandoned_after: Duration,
    fetched: VecDeque<InboundMessage>,
    unacknowledged: HashSet<String>,
    /// Entries of this name from a former life are read first; the last one's id.
    own: Option<String>,
    /// A reading has begun and its answer was not seen: what it handed out is read again as our own.
    unseen: bool,
    reclaim_at: Instant,
}

impl fmt::Debug for InboundConsumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InboundConsumer")
            .field("group", &self.group)
            .field("consumer", &self.consumer)
            .finish_non_exhaustive()
    }
}

impl InboundConsumer {
    /// A consumer of a group. A consumer that comes back under its name begins with what it had not acknowledged. Two
    /// that live at the same time need two names.
    #[must_use]
    pub fn new(
        broker: Arc<dyn Broker>,
        group: impl Into<String>,
        consumer: impl Into<String>,
    ) -> Self {
        Self {
            broker,
            group: group.into(),
            consumer: consumer.into(),
            batch: BATCH,
            abandoned_after: ABANDONED_AFTER,
            fetched: VecDeque::new(),
            unacknowledged: HashSet::new(),
            own: Some("0".to_owned()),
            unseen: false,
            reclaim_at: Instant::now(),
        }
    }

    /// Fetches at most so many entries at once (64 where not said; at least 1, at most 1,000).
    #[must_use]
    pub fn batch(mut self, entries: usize) -> Self {
        self.batch = entries.clamp(1, UNACKNOWLEDGED_MAX);
        self
    }

    /// Takes over what others have not acknowledged for so long (a minute where not said).
    #[must_use]
    pub fn abandoned_after(mut self, time: Duration) -> Self {
        self.abandoned_after = time;
        self
    }

    /// The next entry; waits until there is one. Cancel safe: an entry that was fetched comes with the next call.
    ///
    /// # Errors
    /// [`BrokerError::Unavailable`] while the broker is out of reach; ask again. [`BrokerError::Invalid`] when 1,000
    /// entries wait for [`InboundConsumer::ack`].
    pub async fn next(&mut self) -> Result<InboundMessage, BrokerError> {
        loop {
            if self.unacknowledged.len() >= UNACKNOWLEDGED_MAX {
                return Err(BrokerError::Invalid(format!(
                    "{UNACKNOWLEDGED_MAX} entries wait for their acknowledgement"
                )));
            }
            if let Some(message) = self.fetched.pop_front() {
                self.unacknowledged.insert(message.id.clone());
                return Ok(message);
            }
            self.fetch().await?;
            if self.fetched.is_empty() {
                tokio::time::sleep(LOOK).await;
            }
        }
    }

    /// An entry is done.
    ///
    /// # Errors
    /// [`BrokerError::Unavailable`]: it may come again.
    pub async fn ack(&mut self, id: &str) -> Result<(), BrokerError> {
        self.broker.ack_inbound(&self.group, &[id.to_owned()]).await?;
        self.unacknowledged.remove(id);
        Ok(())
    }

    async fn fetch(&mut self) -> Result<(), BrokerError> {
        if std::mem::take(&mut self.unseen) {
            self.own = Some("0".to_owned());
        }
        if let Some(after) = self.own.clone() {
            let own = self.read(InboundFrom::Own(after)).await?;
            self.own = own.last().map(|message| message.id.clone());
            self.take(own);
            return Ok(());
        }
        if Instant::now() >= self.reclaim_at {
            let abandoned = self.read(InboundFrom::Abandoned(self.abandoned_after)).await?;
            // As long as there is more, at once.
            if abandoned.len() < self.batch {
                self.reclaim_at = Instant::now() + (self.abandoned_after / 4).max(LOOK);
            }
            self.take(abandoned);
            if !self.fetched.is_empty() {
                return Ok(());
            }
        }
        let new = self.read(InboundFrom::New).await?;
        self.take(new);
        Ok(())
    }

    fn take(&mut self, messages: Vec<InboundMessage>) {
        // Our own slow ones come back as abandoned too.
        let known = &self.unacknowledged;
        self.fetched.extend(messages.into_iter().filter(|message| !known.contains(&message.id)));
    }

    async fn read(&mut self, from: InboundFrom) -> Result<Vec<InboundMessage>, BrokerError> {
        self.unseen = true;
        let read = InboundRead {
            group: self.group.clone(),
            consumer: self.consumer.clone(),
            limit: self.batch,
            from,
        };
        let messages = self.broker.read_inbound(&read).await?;
        self.unseen = false;
        Ok(messages)
    }
}
