//! Asking the application whether somebody may: the rule `webhook`. `channels.md` 2.
//!
//! An answer is kept for its `ttl`; without one it serves those who asked at the same moment and nobody else. The same
//! question from many is asked once. Who cannot be asked says no, and is left alone for a second.

use std::sync::Arc;
use std::time::Duration;

use carillon_protocol::{ChannelName, ConnectionId};
use foldhash::HashMap;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::sync::{OnceCell, Semaphore};
use tokio::time::Instant;

use super::webhook::Webhook;
use crate::auth::{Action, Claims};

/// Answers that are kept.
const ANSWERS_MAX: usize = 50_000;
/// Questions under way.
const IN_FLIGHT_MAX: usize = 256;
/// How long a question that was not answered is not asked again.
const FAILED_FOR: Duration = Duration::from_secs(1);
/// The shortest and the longest `ttl`.
const TTL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(24 * 3600));
/// The shortest time between two searches for answers that are over.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// See the module. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Authorizer {
    inner: Arc<Inner>,
}

struct Inner {
    webhook: Arc<Webhook>,
    places: Semaphore,
    answers: Mutex<Answers>,
}

struct Answers {
    known: HashMap<[u8; 32], Arc<OnceCell<Verdict>>>,
    swept: Instant,
}

/// What the application said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Yes.
    pub(crate) allow: bool,
    /// Until then; `None` for this once.
    pub(crate) until: Option<Instant>,
}

/// Who wants what.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Question<'a> {
    pub(crate) action: Action,
    pub(crate) channel: &'a ChannelName,
    pub(crate) claims: Option<&'a Claims>,
    /// `None` for REST.
    pub(crate) connection: Option<&'a ConnectionId>,
}

impl Question<'_> {
    fn body(&self) -> String {
        let body = serde_json::json!({
            "user_id": self.claims.map(|claims| claims.user.as_str()),
            "channel": self.channel,
            "action": self.action.name(),
            "connection_id": self.connection,
            "claims": self.claims.map(|claims| &claims.all),
        });
        body.to_string()
    }

    /// The same for questions that have the same answer. Whoever is nobody is told apart by the connection.
    fn key(&self) -> [u8; 32] {
        let connection = self.connection.filter(|_| self.claims.is_none());
        let whole = serde_json::json!([
            self.claims.map(|claims| (claims.user.as_str(), &claims.all)),
            self.channel,
            self.action.name(),
            connection,
        ]);
        Sha256::digest(whole.to_string()).into()
    }
}

#[derive(serde::Deserialize)]
struct Answer {
    allow: bool,
    #[serde(default)]
    ttl: Option<f64>,
}

impl Authorizer {
    pub(super) fn new(webhook: Arc<Webhook>) -> Self {
        let answers = Answers { known: HashMap::default(), swept: Instant::now() };
        let inner =
            Inner { webhook, places: Semaphore::new(IN_FLIGHT_MAX), answers: Mutex::new(answers) };
        Self { inner: Arc::new(inner) }
    }

    /// What the application says, or said. At most the webhook's time-out. Cancel safe: others who wait for the same
    /// answer ask again.
    pub(crate) async fn ask(&self, question: Question<'_>) -> Verdict {
        let key = question.key();
        let cell = self.inner.cell(&key);
        let verdict = *cell.get_or_init(|| self.inner.ask(&question)).await;
        if verdict.until.is_none() {
            self.inner.answers.lock().forget(&key, &cell);
        }
        verdict
    }
}

impl Inner {
    fn cell(&self, key: &[u8; 32]) -> Arc<OnceCell<Verdict>> {
        let now = Instant::now();
        let mut answers = self.answers.lock();
        if let Some(cell) = answers.known.get(key)
            && !is_over(cell, now)
        {
            return Arc::clone(cell);
        }
        if answers.known.len() >= ANSWERS_MAX && now - answers.swept >= SWEEP_EVERY {
            answers.swept = now;
            answers.known.retain(|_, cell| !is_over(cell, now));
        }
        let cell = Arc::new(OnceCell::new());
        // Beyond the bound an answer is not kept.
        if answers.known.len() < ANSWERS_MAX || answers.known.contains_key(key) {
            answers.known.insert(*key, Arc::clone(&cell));
        }
        cell
    }

    async fn ask(&self, question: &Question<'_>) -> Verdict {
        let failed = || Verdict { allow: false, until: Some(Instant::now() + FAILED_FOR) };
        let deadline = Instant::now() + self.webhook.timeout;
        let place = tokio::time::timeout_at(deadline, self.places.acquire()).await;
        let Ok(Ok(_place)) = place else { return failed() };
        let id = format!("ask_{}", uuid::Uuid::now_v7().simple());
        let left = deadline.saturating_duration_since(Instant::now());
        let answer = self.webhook.post(&id, question.body().into(), left).await;
        let Ok(answer) = answer else { return failed() };
        match serde_json::from_slice::<Answer>(&answer) {
            Ok(Answer { allow, ttl }) => {
                let ttl = ttl.filter(|ttl| *ttl > 0.0);
                let ttl = ttl.map(|ttl| Duration::try_from_secs_f64(ttl).unwrap_or(TTL.1));
                let until = ttl.map(|ttl| Instant::now() + ttl.clamp(TTL.0, TTL.1));
                Verdict { allow, until }
            }
            Err(error) => {
                tracing::warn!(%error, "the authorisation webhook's answer cannot be read");
                failed()
            }
        }
    }
}

impl Answers {
    fn forget(&mut self, key: &[u8; 32], cell: &Arc<OnceCell<Verdict>>) {
        if self.known.get(key).is_some_and(|known| Arc::ptr_eq(known, cell)) {
            self.known.remove(key);
        }
    }
}

fn is_over(cell: &OnceCell<Verdict>, now: Instant) -> bool {
    cell.get().is_some_and(|verdict| verdict.until.is_none_or(|until| until <= now))
}
