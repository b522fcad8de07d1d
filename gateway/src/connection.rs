//! A live connection as the rest of the node sees it: who it is, how its messages are dressed, and
//! its outbox. What drives it (reading, requests, catching up) is in the submodules; the hub sees
//! only this page and the outbox.

pub mod catch_up;
pub mod driver;
mod grants;
mod interests;
pub(crate) mod notifications;
pub mod outbox;
pub mod requests;
pub mod subscribing;
pub mod subscriptions;
pub mod welcome;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU32, AtomicU64, Ordering};

use carillon_protocol::envelope::ServerMessage;
use carillon_protocol::{ConnectionId, UserId};

use crate::clock;
use crate::dispatch::{Dress, encode};
use outbox::Outbox;

/// A token without `iat`.
const NO_TIME: i64 = i64::MIN;

/// Transport of a connection, as lists and metrics name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// WebSocket.
    WebSocket,
    /// Server-sent events.
    Sse,
    /// Long poll.
    Poll,
}

impl Transport {
    /// All of them, for metrics.
    pub const ALL: [Transport; 3] = [Transport::WebSocket, Transport::Sse, Transport::Poll];

    /// The name on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::WebSocket => "websocket",
            Self::Sse => "sse",
            Self::Poll => "poll",
        }
    }
}

const GRANTS: u8 = 1;
const POLICY: u8 = 2;

/// What may not hold any more of what the connection was allowed.
#[derive(Clone, Copy, Debug)]
pub struct Doubts {
    /// What the application allowed for a time.
    pub grants: bool,
    /// What namespaces let anybody hear.
    pub policy: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Connection {
    /// Its id; begins with the node's.
    pub id: ConnectionId,
    /// The authenticated user; `None` for anonymous connections.
    pub user: Option<UserId>,
    /// How it is connected.
    pub transport: Transport,
    /// How its messages are written.
    pub dress: Dress,
    /// Who is at the other end, where that is known.
    pub remote: Option<IpAddr>,
    /// Unix milliseconds.
    pub connected_at_ms: i64,
    /// What waits for its socket.
    pub outbox: Outbox,
    /// When anything was last heard from it, monotonic milliseconds.
    heard_at_ms: AtomicU64,
    /// When a message of its own last came, monotonic milliseconds: pongs are the library's, not the user's.
    spoke_at_ms: AtomicU64,
    token_generation: AtomicU32,
    /// See [`crate::revocations::token_mark`]; 0 for none.
    token_mark: AtomicU64,
    /// Unix seconds; [`NO_TIME`] for a token that does not say.
    token_issued_at: AtomicI64,
    /// [`GRANTS`], [`POLICY`].
    doubts: AtomicU8,
    /// The user's persistent subscriptions changed.
    interests_changed: AtomicBool,
}

impl Connection {
    /// A connection that begins now.
    #[must_use]
    pub fn new(
        id: ConnectionId,
        user: Option<UserId>,
        transport: Transport,
        dress: Dress,
        remote: Option<IpAddr>,
        outbox: Outbox,
    ) -> Arc<Self> {
        Arc::new(Self {
            id,
            user,
            transport,
            dress,
            remote,
            connected_at_ms: clock::unix_ms(),
            outbox,
            heard_at_ms: AtomicU64::new(clock::monotonic_ms()),
            spoke_at_ms: AtomicU64::new(clock::monotonic_ms()),
            token_generation: AtomicU32::new(0),
            token_mark: AtomicU64::new(0),
            token_issued_at: AtomicI64::new(NO_TIME),
            doubts: AtomicU8::new(0),
            interests_changed: AtomicBool::new(false),
        })
    }

    /// Queues a message of the server's own. Call [`Outbox::flush`] afterwards.
    pub fn push(&self, message: &ServerMessage) {
        let id = crate::ids::message_id();
        let bytes = encode(&message.envelope(id.as_str(), clock::unix_ms()), self.dress);
        self.outbox.push_own(&bytes, self.dress);
    }

    /// Queues a message of the server's own and writes what can be written.
    pub fn send(&self, message: &ServerMessage) {
        self.push(message);
        self.outbox.flush();
    }

    /// Notes that the peer is alive.
    pub fn heard(&self, now_ms: u64) {
        self.heard_at_ms.store(now_ms, Ordering::Relaxed);
    }

    /// Notes that a message came.
    pub fn spoke(&self, now_ms: u64) {
        self.spoke_at_ms.store(now_ms, Ordering::Relaxed);
    }

    /// When a message last came, monotonic milliseconds.
    #[must_use]
    pub fn spoke_at_ms(&self) -> u64 {
        self.spoke_at_ms.load(Ordering::Relaxed)
    }

    /// The user's persistent subscriptions changed: the connection's task looks at them soon.
    pub fn refresh_interests(&self) {
        self.interests_changed.store(true, Ordering::Release);
        self.outbox.mark_behind();
    }

    /// Whether they changed since this was asked last.
    #[must_use]
    pub fn take_interests_changed(&self) -> bool {
        self.interests_changed.swap(false, Ordering::AcqRel)
    }

    /// What the application allowed for a time may be over: the connection's task asks again soon.
    pub fn doubt_grants(&self) {
        self.doubts.fetch_or(GRANTS, Ordering::AcqRel);
        self.outbox.mark_behind();
    }

    /// What may be heard at all may have changed: the connection's task looks at every subscription soon.
    pub fn doubt_policy(&self) {
        self.doubts.fetch_or(POLICY, Ordering::AcqRel);
        self.outbox.mark_behind();
    }

    /// What was doubted since this was asked last.
    #[must_use]
    pub fn take_doubts(&self) -> Doubts {
        let doubts = self.doubts.swap(0, Ordering::AcqRel);
        Doubts { grants: doubts & GRANTS != 0, policy: doubts & POLICY != 0 }
    }

    /// Notes the token, so that it can be found when it is revoked.
    pub fn set_token(&self, id: Option<&str>, issued_at: Option<i64>) {
        let mark = id.map_or(0, crate::revocations::token_mark);
        self.token_mark.store(mark, Ordering::Relaxed);
        self.token_issued_at.store(issued_at.unwrap_or(NO_TIME), Ordering::Relaxed);
    }

    /// The token's mark (0 without an id) and when it was issued, Unix seconds.
    #[must_use]
    pub fn token(&self) -> (u64, Option<i64>) {
        let issued_at = self.token_issued_at.load(Ordering::Relaxed);
        (self.token_mark.load(Ordering::Relaxed), Some(issued_at).filter(|at| *at != NO_TIME))
    }

    /// How often its token was replaced.
    #[must_use]
    pub fn token_generation(&self) -> u32 {
        self.token_generation.load(Ordering::Relaxed)
    }

    /// Its token was replaced: former expiries no longer count. Returns the new generation.
    pub fn renew_token(&self) -> u32 {
        self.token_generation.fetch_add(1, Ordering::Relaxed).wrapping_add(1)
    }

    /// When the peer was last heard, monotonic milliseconds.
    #[must_use]
    pub fn heard_at_ms(&self) -> u64 {
        self.heard_at_ms.load(Ordering::Relaxed)
    }
}
