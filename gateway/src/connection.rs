//! A live connection as the rest of the node sees it: who it is, how its messages are dressed, and
//! its outbox. What drives it (reading, requests, catching up) is in the submodules; the hub sees
//! only this page and the outbox.

pub mod catch_up;
pub mod driver;
mod interests;
mod notifications;
pub mod outbox;
pub mod requests;
pub mod socket;
pub mod welcome;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use carillon_protocol::envelope::ServerMessage;
use carillon_protocol::{ConnectionId, UserId};

use crate::clock;
use crate::dispatch::{Dress, encode};
use outbox::Outbox;

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
    /// Unix milliseconds.
    pub connected_at_ms: i64,
    /// What waits for its socket.
    pub outbox: Outbox,
    /// When anything was last heard from it, monotonic milliseconds.
    heard_at_ms: AtomicU64,
    /// When a message of its own last came, monotonic milliseconds: pongs are the library's, not the user's.
    spoke_at_ms: AtomicU64,
    token_generation: AtomicU64,
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
        outbox: Outbox,
    ) -> Arc<Self> {
        Arc::new(Self {
            id,
            user,
            transport,
            dress,
            connected_at_ms: clock::unix_ms(),
            outbox,
            heard_at_ms: AtomicU64::new(clock::monotonic_ms()),
            spoke_at_ms: AtomicU64::new(clock::monotonic_ms()),
            token_generation: AtomicU64::new(0),
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

    /// How often its token was replaced.
    #[must_use]
    pub fn token_generation(&self) -> u64 {
        self.token_generation.load(Ordering::Relaxed)
    }

    /// Its token was replaced: former expiries no longer count. Returns the new generation.
    pub fn renew_token(&self) -> u64 {
        self.token_generation.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// When the peer was last heard, monotonic milliseconds.
    #[must_use]
    pub fn heard_at_ms(&self) -> u64 {
        self.heard_at_ms.load(Ordering::Relaxed)
    }
}
