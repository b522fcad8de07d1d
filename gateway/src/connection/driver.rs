//! The task that drives one connection: reads its socket, executes what the session asks for,
//! catches subscriptions up with history, and ends it with the right words.
//!
//! Deliveries do not pass through here: the fan-out writes to the socket itself. This task sleeps
//! until its peer says something, the socket has room again, or somebody asks it to close.

mod goodbye;
mod reading;

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use carillon_protocol::envelope::{Correlation, ServerMessage};
use carillon_protocol::session::{Request, Session, SessionLimits};
use carillon_protocol::websocket::Assembler;
use carillon_protocol::{CloseCode, Cursor, Position};
pub use goodbye::disconnect;
use tokio::sync::oneshot;
use tokio::time::Sleep;

use super::Connection;
use super::grants::Grants;
use super::subscriptions::Subscriptions;
use super::welcome::Resume;
use crate::application::calls::Queue;
use crate::auth::Claims;
use crate::clock;
use crate::metrics::Named;
use crate::node::{Admitted, Node};
use crate::socket::Socket;

/// Pause before a failed catch-up is tried again.
pub(super) const RETRY: Duration = Duration::from_millis(500);

/// See the module.
pub struct Driver {
    pub(crate) node: Arc<Node>,
    pub(crate) connection: Arc<Connection>,
    pub(crate) claims: Option<Box<Claims>>,
    pub(crate) subscriptions: Subscriptions,
    pub(super) retry: Option<Pin<Box<Sleep>>>,
    /// The store was out of reach when pending notifications were due.
    pub(super) pending_owed: bool,
    /// The store was out of reach when persistent subscriptions were due.
    pub(super) interests_owed: bool,
    /// What few connections have, and those seldom.
    pub(super) rare: Option<Box<Rare>>,
    /// Calls to the application that are under way.
    pub(super) calls: Option<Queue>,
    /// Until when the application allowed what this connection hears, monotonic milliseconds.
    pub(super) grants: Grants,
    socket: Option<Arc<Socket>>,
    assembler: Assembler,
    /// Counted under the name in its path.
    pub(crate) named: Option<Named>,
    session: Session,
    _admitted: Admitted,
}

/// See [`Driver`].
#[derive(Default)]
pub(super) struct Rare {
    /// Channels of the query that could not be subscribed to while the broker was away, and where they resume.
    pub(super) subscriptions_owed: Vec<(Box<str>, Resume)>,
    /// Where the channels of persistent subscriptions go on, while some are owed.
    pub(super) interests_resume: Option<Result<Cursor, ()>>,
    /// The name under which the user's own stream was resumed, and from where: everything after it was sent, under both its
    /// labels.
    pub(super) stream_resumed: Option<(Box<str>, Position)>,
    /// Bytes that came with the handshake, until they are heard.
    early: Vec<u8>,
    /// The head of the answer waits for this; nothing that is queued can leave before it.
    head: Option<oneshot::Sender<()>>,
}

/// Why a connection ended: a label of `connections_closed_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Peer,
    Failed,
    Said(CloseCode),
}

/// What a waiting connection was woken by.
enum Awoken {
    /// The outbox may have a signal.
    Signal,
    /// The socket has room again.
    Writable,
    /// The socket has something to read.
    Readable,
    /// It is time to try again.
    Retry,
    /// The socket failed.
    Failed,
}

impl Driver {
    /// A driver for a connection that was admitted. It is attached to the hub and watched.
    #[must_use]
    pub fn new(
        node: Arc<Node>,
        connection: Arc<Connection>,
        claims: Option<Claims>,
        admitted: Admitted,
        socket: Option<Arc<Socket>>,
    ) -> Self {
        let driver = Self::brief(node, connection, claims, admitted, socket);
        let heartbeat = &driver.node.heartbeat;
        heartbeat.watch(&driver.connection);
        if let Some(claims) = &driver.claims {
            heartbeat.expire(&driver.connection, claims.expires_at, 0);
        }
        driver
    }

    /// A driver for a long poll: over before anybody would ping it, and its owner watches the token's
    /// expiry. Ends with `end_brief`.
    #[must_use]
    pub fn brief(
        node: Arc<Node>,
        connection: Arc<Connection>,
        mut claims: Option<Claims>,
        admitted: Admitted,
        socket: Option<Arc<Socket>>,
    ) -> Self {
        let config = node.config.load();
        if let Some(claims) = claims.as_mut().filter(|_| config.authorize.webhook.is_none()) {
            // Only an authorisation webhook asks for the token's other claims; they cost an idle
            // connection more than its task.
            claims.all = serde_json::Map::new();
        }
        let limits = SessionLimits {
            messages_per_second: config.limits.messages_per_second,
            heartbeat_timeout_ms: config.heartbeat.timeout.as_millis() as u64,
        };
        let assembler = Assembler::new(config.limits.max_message_size)
            .with_deflate(connection.dress.compressed);
        drop(config);
        if let Some(claims) = &claims {
            connection.set_token(claims.token_id.as_deref(), claims.issued_at);
        }
        node.hub.attach(&connection);
        // Attach before looking: what is revoked in between finds the connection, or is found here.
        if claims.as_ref().is_some_and(|claims| node.revoked.refuses(claims)) {
            connection.outbox.close(CloseCode::TokenRevoked);
        }
        // What is revoked from now on finds the connection's mark.
        claims.iter_mut().for_each(|claims| claims.token_id = None);
        node.application.lifecycle.opened(&node.name, &connection);
        node.metrics.opened(connection.transport);
        tracing::debug!(connection = %connection.id, remote = connection.remote.map(tracing::field::display), transport = connection.transport.name(), "connection opened");
        Self {
            session: Session::new(limits, clock::monotonic_ms()),
            node,
            connection,
            claims: claims.map(Box::new),
            subscriptions: Subscriptions::default(),
            retry: None,
            pending_owed: false,
            interests_owed: false,
            rare: None,
            calls: None,
            grants: Grants::default(),
            socket,
            assembler,
            named: None,
            _admitted: admitted,
        }
    }

    /// Keeps bytes that came with the handshake for [`Driver::run_websocket`].
    pub fn heard_early(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.rare.get_or_insert_default().early = bytes.to_vec();
        }
    }

    /// `head` is told when the head of the answer may leave: when the channels are heard, or when what they missed is more than
    /// may wait behind it.
    pub(crate) fn holds_back(&mut self, head: oneshot::Sender<()>) {
        self.rare.get_or_insert_default().head = Some(head);
    }

    /// Lets the head of the answer leave.
    pub(crate) fn let_head_out(&mut self) {
        if let Some(head) = self.rare.as_mut().and_then(|rare| rare.head.take()) {
            // Whoever waited for it may be gone.
            let _ = head.send(());
        }
    }

    /// Drives a WebSocket until it ends.
    ///
    /// Boxed, like every rare await in it: the future of an idle connection holds little more than a pointer.
    pub async fn run_websocket(mut self: Box<Self>) {
        let ending = match Box::pin(self.perform_early()).await {
            Some(ending) => ending,
            None => loop {
                let signals = self.connection.outbox.signals();
                if let Some(code) = signals.close {
                    break Ending::Said(code);
                }
                if signals.failed {
                    break Ending::Failed;
                }
                if signals.behind {
                    Box::pin(self.catch_up_all()).await;
                    continue;
                }
                match self.wait(signals.blocked).await {
                    Awoken::Signal => {}
                    Awoken::Writable => self.connection.outbox.flush(),
                    Awoken::Readable => {
                        if let Some((happenings, heard)) = self.read()
                            && let Some(ending) =
                                Box::pin(self.perform_all(happenings, heard)).await
                        {
                            break ending;
                        }
                    }
                    Awoken::Retry => self.connection.outbox.mark_behind(),
                    Awoken::Failed => break Ending::Failed,
                }
            },
        };
        Box::pin(self.end(ending)).await;
    }

    /// Drives a connection that only listens (SSE): until the peer is gone (`gone` completes) or
    /// somebody closes it. With a socket, the outbox writes to it.
    pub async fn run_listener(mut self: Box<Self>, gone: impl Future<Output = ()>) {
        let socket = self.socket.clone();
        let mut gone = std::pin::pin!(gone);
        let ending = loop {
            let signals = self.connection.outbox.signals();
            if let Some(code) = signals.close {
                break Ending::Said(code);
            }
            if signals.failed {
                break Ending::Failed;
            }
            if signals.behind {
                Box::pin(self.catch_up_all()).await;
                continue;
            }
            tokio::select! {
                biased;
                () = &mut gone => break Ending::Peer,
                () = self.connection.outbox.woken() => {}
                () = writable(socket.as_deref()), if signals.blocked => self.connection.outbox.flush(),
                () = due(&mut self.retry), if self.retry.is_some() => {
                    self.retry = None;
                    self.connection.outbox.mark_behind();
                }
            }
        };
        Box::pin(self.end(ending)).await;
    }

    /// Waits for whatever comes first, in one poll without state of its own. The socket's readiness is asked
    /// for by `poll_read_ready`, so that its slot holds this task's waker and lets go of hyper's, which would keep
    /// the finished task of the handshake in memory. Cancel safe.
    fn wait(&mut self, blocked: bool) -> impl Future<Output = Awoken> {
        let ready = |polled: Poll<io::Result<()>>, awoken| match polled {
            Poll::Ready(Ok(())) => Some(awoken),
            Poll::Ready(Err(_)) => Some(Awoken::Failed),
            Poll::Pending => None,
        };
        std::future::poll_fn(move |cx| {
            let Some(socket) = &self.socket else { return Poll::Ready(Awoken::Failed) };
            let awoken = if self.connection.outbox.poll_woken(cx).is_ready() {
                Some(Awoken::Signal)
            } else if let Some(awoken) =
                blocked.then(|| ready(socket.poll_write_ready(cx), Awoken::Writable)).flatten()
            {
                Some(awoken)
            } else if let Some(awoken) = ready(socket.poll_read_ready(cx), Awoken::Readable) {
                Some(awoken)
            } else if self.retry.as_mut().is_some_and(|retry| retry.as_mut().poll(cx).is_ready()) {
                self.retry = None;
                Some(Awoken::Retry)
            } else {
                None
            };
            awoken.map_or(Poll::Pending, Poll::Ready)
        })
    }

    /// Queues a message of the server's own; an error is counted.
    pub(super) fn say(&self, message: &ServerMessage) {
        self.node.metrics.answered(message);
        self.connection.push(message);
    }

    pub(crate) async fn perform(&mut self, request: Request, correlation: Correlation) {
        super::requests::perform(self, request, correlation).await;
    }

    /// Waits until the outbox has room for a page of history. `false` when the connection ends.
    pub(super) async fn drained(&mut self) -> bool {
        if !self.connection.outbox.has_room() {
            self.let_head_out();
        }
        let socket = self.socket.as_deref();
        loop {
            self.connection.outbox.flush();
            if self.connection.outbox.is_closing() {
                return false;
            }
            if self.connection.outbox.has_room() {
                return true;
            }
            tokio::select! {
                () = self.connection.outbox.woken() => {}
                () = writable(socket), if socket.is_some() && self.connection.outbox.signals_blocked() => {}
            }
        }
    }
}

async fn writable(socket: Option<&Socket>) {
    match socket {
        Some(socket) => {
            // An error shows in the flush that follows.
            let _ = socket.writable().await;
        }
        None => std::future::pending().await,
    }
}

async fn due(at: &mut Option<Pin<Box<Sleep>>>) {
    match at {
        Some(at) => at.await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes_of<F: Future>(_: impl FnOnce(Box<Driver>) -> F) -> usize {
        std::mem::size_of::<F>()
    }

    #[test]
    fn an_idle_connection_is_small() {
        let task = bytes_of(|driver: Box<Driver>| driver.run_websocket());
        assert!(task <= 96, "the task of a connection has {task} bytes");
        assert!(
            size_of::<Connection>() <= 240,
            "a connection has {} bytes",
            size_of::<Connection>()
        );
    }
}
