//! Asking nodes, and collecting what they answer: letters over [`Broker::tell`].
//!
//! A node answers for its own connections, so a question goes to one node (a connection's id begins
//! with its node's) or to all. Answers are awaited for a bounded time; a node that does not answer
//! is left out.
//!
//! What it must not know: how a node finds its answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use carillon_protocol::ConnectionId;
use foldhash::HashMap;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::questions::Question;
use crate::{Broker, BrokerError, NodeId, Target};

/// How long answers are awaited.
const PATIENCE: Duration = Duration::from_secs(2);
/// Answers that wait for one asker; more nodes than that are left out.
const ANSWERS_MAX: usize = 256;

/// What travels between nodes.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub enum Letter {
    /// Wants an answer.
    Ask {
        /// Who asks.
        from: NodeId,
        /// The asker's number.
        number: u64,
        /// What.
        question: Question,
    },
    /// Wants none.
    Tell {
        /// What.
        question: Question,
    },
    /// The answer to a number.
    Answer {
        /// The asker's number.
        number: u64,
        /// As the question's type says.
        answer: serde_json::Value,
    },
}

impl Letter {
    /// Reads a letter.
    ///
    /// # Errors
    /// When it is none, or of another version's making.
    pub fn read(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(bytes)
    }

    /// Its bytes.
    #[must_use]
    pub fn post(&self) -> Bytes {
        serde_json::to_vec(self).expect("letters are plain data").into()
    }
}

/// Asks nodes. Cheap to clone. Whoever drains the broker's events hands answers to
/// [`Asker::answered`].
#[derive(Clone)]
pub struct Asker {
    inner: Arc<Inner>,
}

struct Inner {
    broker: Arc<dyn Broker>,
    next: AtomicU64,
    waiting: Mutex<HashMap<u64, mpsc::Sender<serde_json::Value>>>,
}

impl Asker {
    /// Asks over this broker.
    #[must_use]
    pub fn new(broker: Arc<dyn Broker>) -> Self {
        let inner = Inner { broker, next: AtomicU64::new(1), waiting: Mutex::default() };
        Self { inner: Arc::new(inner) }
    }

    /// Asks one node or all, and collects the answers that come in time. May be dropped at any await;
    /// the question may then have been performed.
    ///
    /// # Errors
    /// When the broker is unavailable.
    pub async fn ask<A: serde::de::DeserializeOwned>(
        &self,
        target: &Target,
        question: Question,
    ) -> Result<Vec<A>, BrokerError> {
        let number = self.inner.next.fetch_add(1, Ordering::Relaxed);
        let (sender, mut receiver) = mpsc::channel(ANSWERS_MAX);
        self.inner.waiting.lock().insert(number, sender);
        let _forget = Forget { inner: &self.inner, number };
        let letter = Letter::Ask { from: self.inner.broker.node().clone(), number, question };
        let asked = self.inner.broker.tell(target, letter.post()).await? as usize;
        let mut answers = Vec::new();
        let mut came = 0;
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while came < asked {
            match tokio::time::timeout_at(deadline, receiver.recv()).await {
                Ok(Some(answer)) => {
                    came += 1;
                    answers.extend(serde_json::from_value::<A>(answer).ok());
                }
                Ok(None) | Err(_) => break,
            }
        }
        if came == 0 && asked > 0 && matches!(target, Target::Node(_)) {
            // What only that node knows is not known: that is no "no".
            return Err(BrokerError::unavailable("the node does not answer"));
        }
        Ok(answers)
    }

    /// Tells all nodes something that needs no answer.
    ///
    /// # Errors
    /// When the broker is unavailable.
    pub async fn tell_all(&self, question: Question) -> Result<(), BrokerError> {
        let letter = Letter::Tell { question };
        self.inner.broker.tell(&Target::All, letter.post()).await.map(|_| ())
    }

    /// An answer came. Never waits; who gave up gets nothing.
    pub fn answered(&self, number: u64, answer: serde_json::Value) {
        if let Some(waiting) = self.inner.waiting.lock().get(&number) {
            // A full queue means that nobody reads: the asker gave up.
            let _ = waiting.try_send(answer);
        }
    }
}

impl std::fmt::Debug for Asker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Asker").finish_non_exhaustive()
    }
}

struct Forget<'a> {
    inner: &'a Inner,
    number: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.inner.waiting.lock().remove(&self.number);
    }
}

/// The node of a connection; `None` when the id is none that a node made.
#[must_use]
pub fn node_of(connection: &ConnectionId) -> Option<NodeId> {
    let (node, rest) = connection.as_str().split_once('-')?;
    (rest.len() == 16).then(|| NodeId::parse(node)).flatten()
}
