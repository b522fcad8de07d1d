//! Tokens that are refused before they expire, as this node knows them. The store has the truth; each node follows it
//! once a second, and is told of a change at once, so a message that is lost costs a second and a node that starts later
//! knows all. Connections whose token is revoked are closed with 4401: their credential is dead, a fresh one is welcome
//! (4403 would tell clients to stay away, which is what `DELETE /users/{id}/connections` is for).
//!
//! It must not know: signatures, who may revoke.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use carillon_broker_client::{
    BrokerError, Revocation, RevocationVersions, Revocations, RevokedTokens, Target,
};
use carillon_protocol::envelope::Refusal;
use carillon_protocol::{CloseCode, ErrorCode, UserId};
use foldhash::HashMap;
use parking_lot::RwLock;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::auth::Claims;
use crate::clock;
use crate::cluster::Question;
use crate::connection::Connection;
use crate::node::Node;

/// How often the store's version is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How long after a node's start callers wait until it knows what is revoked; without the store they are let in then, and
/// found later.
const FIRST_WAIT: Duration = Duration::from_secs(2);

/// See the module.
#[derive(Debug)]
pub struct Revoked {
    known: RwLock<Known>,
    version: AtomicU64,
    loaded: watch::Sender<bool>,
    /// Until then the first callers wait for it.
    patient_until: Instant,
}

#[derive(Debug, Default)]
struct Known {
    /// Token id to Unix milliseconds.
    ids: HashMap<Box<str>, i64>,
    /// User to (issued before, Unix seconds; until, Unix milliseconds).
    users: HashMap<UserId, Vec<(i64, i64)>>,
}

impl Default for Revoked {
    fn default() -> Self {
        Self {
            known: RwLock::default(),
            version: AtomicU64::new(0),
            loaded: watch::Sender::new(false),
            patient_until: Instant::now() + FIRST_WAIT,
        }
    }
}

/// What a connection keeps of its token's id: enough to find it again.
#[must_use]
pub fn token_mark(id: &str) -> u64 {
    use std::hash::BuildHasher;
    // Zero is for tokens without an id.
    foldhash::quality::FixedState::default().hash_one(id) | 1
}

impl Known {
    fn set(&mut self, revocation: &Revocation, now_ms: i64) {
        let until_ms = revocation.until_ms;
        match &revocation.tokens {
            RevokedTokens::Id(id) if until_ms > now_ms => {
                self.ids.insert(id.as_str().into(), until_ms);
            }
            RevokedTokens::Id(id) => {
                self.ids.remove(id.as_str());
            }
            RevokedTokens::User { user, issued_before } => {
                let times = self.users.entry(user.clone()).or_default();
                times.retain(|(before, until)| before != issued_before && *until > now_ms);
                if until_ms > now_ms {
                    times.push((*issued_before, until_ms));
                } else if times.is_empty() {
                    self.users.remove(user);
                }
            }
        }
    }

    fn refuses_user(&self, user: &UserId, issued_at: Option<i64>, now_ms: i64) -> bool {
        self.users.get(user).is_some_and(|times| {
            times.iter().any(|(before, until)| {
                *until > now_ms && issued_at.is_none_or(|issued_at| issued_at < *before)
            })
        })
    }

    fn all(&self, now_ms: i64) -> Vec<Revocation> {
        let ids = self.ids.iter().map(|(id, until_ms)| Revocation {
            tokens: RevokedTokens::Id(id.to_string()),
            until_ms: *until_ms,
        });
        let users = self.users.iter().flat_map(|(user, times)| {
            times.iter().map(|(issued_before, until_ms)| Revocation {
                tokens: RevokedTokens::User { user: user.clone(), issued_before: *issued_before },
                until_ms: *until_ms,
            })
        });
        ids.chain(users).filter(|revocation| revocation.until_ms > now_ms).collect()
    }
}

impl Revoked {
    /// Whether a good token is refused all the same.
    #[must_use]
    pub fn refuses(&self, claims: &Claims) -> bool {
        let now = clock::unix_ms();
        let known = self.known.read();
        let by_id = claims.token_id.as_deref().and_then(|id| known.ids.get(id));
        by_id.is_some_and(|until| *until > now)
            || known.refuses_user(&claims.user, claims.issued_at, now)
    }

    fn set(&self, revocation: &Revocation) {
        self.known.write().set(revocation, clock::unix_ms());
    }

    fn replace(&self, revocations: &Revocations) {
        let (mut known, now) = (Known::default(), clock::unix_ms());
        revocations.all.iter().for_each(|revocation| known.set(revocation, now));
        *self.known.write() = known;
        self.version.store(revocations.version, Ordering::Release);
    }

    /// Waits until it is known what is revoked, or the node is no longer starting.
    async fn is_loaded(&self) {
        let mut loaded = self.loaded.subscribe();
        let known = loaded.wait_for(|loaded| *loaded);
        let _ = tokio::time::timeout_at(self.patient_until, known).await;
    }
}

impl Node {
    /// The claims of a token that is good and not revoked.
    ///
    /// # Errors
    /// `MISSING_TOKEN`, `INVALID_TOKEN` or `TOKEN_EXPIRED`.
    pub async fn verify(&self, token: &str) -> Result<Claims, Refusal> {
        let claims = self.verifier.load_full().verify(token).await?;
        if !*self.revoked.loaded.borrow() {
            self.revoked.is_loaded().await;
        }
        if self.revoked.refuses(&claims) {
            self.metrics.refused("revoked");
            return Err(Refusal::new(ErrorCode::InvalidToken, "the token was revoked"));
        }
        Ok(claims)
    }
}

/// Revokes tokens everywhere; how many live connections that closed.
///
/// # Errors
/// When the store is out of reach; then nothing may have happened.
pub async fn revoke(node: &Node, revocation: Revocation) -> Result<u64, BrokerError> {
    let versions = node.broker.revoke(&revocation).await?;
    let question = Question::Revoked(revocation, versions.before, versions.after);
    match node.cluster.ask::<u64>(&Target::All, question).await {
        Ok(closed) => Ok(closed.iter().sum()),
        Err(error) => {
            // It stands; every node finds it within a second.
            tracing::debug!(%error, "the nodes were not told of a revocation");
            Ok(0)
        }
    }
}

/// Another node revoked something. Never waits.
pub(crate) fn heard(node: &Node, revocation: &Revocation, versions: RevocationVersions) -> u64 {
    node.revoked.set(revocation);
    // Whoever missed one before does not take this for all: it reads them at the next look.
    let _ = node.revoked.version.compare_exchange(
        versions.before,
        versions.after,
        Ordering::AcqRel,
        Ordering::Acquire,
    );
    close_revoked(node)
}

/// Closes connections whose token is refused now.
fn close_revoked(node: &Node) -> u64 {
    let now = clock::unix_ms();
    let (marks, users): (foldhash::HashSet<u64>, bool) = {
        let known = node.revoked.known.read();
        let live = known.ids.iter().filter(|(_, until)| **until > now);
        (live.map(|(id, _)| token_mark(id)).collect(), !known.users.is_empty())
    };
    if marks.is_empty() && !users {
        return 0;
    }
    let known = node.revoked.known.read();
    let is_refused = |connection: &Arc<Connection>| {
        let (mark, issued_at) = connection.token();
        marks.contains(&mark)
            || connection.user.as_ref().is_some_and(|user| known.refuses_user(user, issued_at, now))
    };
    let refused: Vec<_> = node.hub.connections().into_iter().filter(is_refused).collect();
    drop(known);
    let open = refused.iter().filter(|connection| !connection.outbox.is_closing()).count();
    for connection in &refused {
        connection.outbox.close(CloseCode::TokenRevoked);
    }
    open as u64
}

/// Follows the store until `stop`.
pub async fn follow(node: Arc<Node>, stop: CancellationToken) {
    let mut tick = tokio::time::interval(LOOK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut health = node.broker.health();
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            Ok(()) = health.changed() => {}
            () = stop.cancelled() => return,
        }
        match look(&node).await {
            Ok(()) => {
                node.revoked.loaded.send_if_modified(|loaded| !std::mem::replace(loaded, true));
            }
            Err(error) => tracing::debug!(%error, "revocations cannot be read"),
        }
    }
}

async fn look(node: &Node) -> Result<(), BrokerError> {
    let known = node.revoked.version.load(Ordering::Acquire);
    let version = node.broker.revocations_version().await?;
    if version == known {
        return Ok(());
    }
    if version < known {
        // The store lost what we know: every node that does writes it again, which does no harm.
        let all = node.revoked.known.read().all(clock::unix_ms());
        tracing::warn!(revocations = all.len(), "the store lost revocations; writing them again");
        node.broker.restore_revocations(&all).await?;
    }
    let revocations = node.broker.revocations().await?;
    node.revoked.replace(&revocations);
    close_revoked(node);
    Ok(())
}
