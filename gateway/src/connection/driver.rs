//! The task that drives one connection: reads its socket, executes what the session asks for,
//! catches subscriptions up with history, and ends it with the right words.
//!
//! Deliveries do not pass through here: the fan-out writes to the socket itself. This task sleeps
//! until its peer says something, the socket has room again, or somebody asks it to close.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use carillon_protocol::envelope::{Correlation, ServerMessage};
use carillon_protocol::session::{Request, Session, SessionLimits, Step};
use carillon_protocol::websocket::{Assembler, Incoming, Opcode, close_frame, frame};
use carillon_protocol::{ClientMessage, CloseCode, Codec, Cursor};
use tokio::time::Sleep;

use super::Connection;
use super::grants::Grants;
use super::subscriptions::Subscriptions;
use super::welcome::Resume;
use crate::application::calls::Queue;
use crate::auth::Claims;
use crate::clock;
use crate::dispatch::Medium;
use crate::metrics::Named;
use crate::node::{Admitted, Node};
use crate::socket::Socket;

/// Bytes read from a socket in one go, into a buffer that the thread's connections share.
const READ_BYTES: usize = 16 * 1024;
/// How long a closing connection waits for its last bytes to leave.
const GOODBYE: Duration = Duration::from_secs(3);
/// Pause before a failed catch-up is tried again.
pub(super) const RETRY: Duration = Duration::from_millis(500);

thread_local! {
    static READ_BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES].into());
}

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
    /// Bytes that came with the handshake, until they are heard.
    early: Vec<u8>,
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

/// One thing that happened on the socket.
enum Happening {
    Step(Step),
    Pong(Vec<u8>),
    PeerClosed(Option<u16>),
}

impl Happening {
    fn publishes(&self) -> bool {
        matches!(self, Self::Step(Step::Perform(Request::Publish(_), _)))
    }
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
        tracing::debug!(connection = %connection.id, remote = ?connection.remote, transport = connection.transport.name(), "connection opened");
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

    /// Performs what came with the handshake.
    async fn perform_early(&mut self) -> Option<Ending> {
        let mut early = self.rare.as_mut().map(|rare| std::mem::take(&mut rare.early))?;
        if early.is_empty() {
            return None;
        }
        let mut happenings = Vec::new();
        let heard = self.hear(&mut early, &mut happenings);
        self.perform_all(happenings, heard).await
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

    /// Reads what the socket has; what is to be performed, and how that ends. `None` for nothing to do.
    fn read(&mut self) -> Option<(Vec<Happening>, Result<(), Ending>)> {
        let socket = self.socket.clone()?;
        let mut happenings = Vec::new();
        let heard = READ_BUFFER.with_borrow_mut(|buffer| match socket.try_read(buffer) {
            Ok(0) => Some(Err(Ending::Peer)),
            Ok(bytes) => Some(self.hear(&mut buffer[..bytes], &mut happenings)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(_) => Some(Err(Ending::Failed)),
        })?;
        (!happenings.is_empty() || heard.is_err()).then_some((happenings, heard))
    }

    /// Turns bytes into happenings; pure but for the session's clock.
    fn hear(&mut self, bytes: &mut [u8], happenings: &mut Vec<Happening>) -> Result<(), Ending> {
        let now = clock::monotonic_ms();
        self.connection.heard(now);
        self.session.handle_bytes(now);
        {
            // A reload changes the limits of live connections too.
            let limits = &self.node.config.load().limits;
            self.session.handle_limit(now, limits.messages_per_second);
            self.assembler.limit(limits.max_message_size);
        }
        let Medium::WebSocket(codec) = self.connection.dress.medium else { return Ok(()) };
        let user = self.connection.user.clone();
        let routes = self.node.routes.load();
        let session = &mut self.session;
        let mut unsupported = false;
        let mut messages = 0;
        let fed = self.assembler.feed(bytes, &mut |incoming| {
            let mut say = |bytes: &[u8]| {
                messages += 1;
                let message = ClientMessage::parse(codec, bytes);
                let user = user.as_ref().map(carillon_protocol::UserId::as_str);
                happenings.push(Happening::Step(session.handle_message(
                    now,
                    clock::unix_ms(),
                    user,
                    &routes,
                    message,
                )));
            };
            match incoming {
                Incoming::Text(text) if codec == Codec::Ndjson => {
                    text.lines()
                        .filter(|line| !line.trim().is_empty())
                        .for_each(|line| say(line.as_bytes()));
                }
                Incoming::Text(text) if !codec.is_binary() => say(text.as_bytes()),
                Incoming::Binary(bytes) if codec.is_binary() => say(bytes),
                Incoming::Text(_) | Incoming::Binary(_) => {
                    unsupported = true;
                    return false;
                }
                Incoming::Ping(bytes) => happenings.push(Happening::Pong(bytes.to_vec())),
                Incoming::Pong => {}
                Incoming::Close(code) => {
                    happenings.push(Happening::PeerClosed(code));
                    return false;
                }
            }
            true
        });
        self.node.metrics.heard(messages);
        if messages > 0 {
            self.connection.spoke(now);
        }
        match fed {
            Ok(()) if unsupported => Err(Ending::Said(CloseCode::Unsupported)),
            Ok(()) => Ok(()),
            Err(violation) => {
                tracing::debug!(connection = %self.connection.id, problem = violation.problem, "protocol violation");
                Err(Ending::Said(violation.code))
            }
        }
    }

    async fn perform_all(
        &mut self,
        happenings: Vec<Happening>,
        heard: Result<(), Ending>,
    ) -> Option<Ending> {
        let mut happenings = happenings.into_iter().peekable();
        while let Some(happening) = happenings.next() {
            match happening {
                Happening::Pong(bytes) => {
                    self.connection.outbox.push_raw(frame(Opcode::Pong, &bytes));
                }
                Happening::PeerClosed(code) => {
                    self.connection.outbox.push_raw(close_frame(code.unwrap_or(1000), ""));
                    self.connection.outbox.flush();
                    return Some(Ending::Peer);
                }
                Happening::Step(Step::Perform(Request::Publish(first), correlation)) => {
                    // What one read brought is published in one round trip, in order.
                    let mut run = vec![(first, correlation)];
                    while let Some(Happening::Step(Step::Perform(
                        Request::Publish(next),
                        correlation,
                    ))) = happenings.next_if(Happening::publishes)
                    {
                        run.push((next, correlation));
                    }
                    super::requests::publish_all(self, run).await;
                }
                Happening::Step(step) => {
                    if let Some(ending) = self.perform_step(step).await {
                        return Some(ending);
                    }
                }
            }
            if self.connection.outbox.is_closing() {
                break;
            }
        }
        self.connection.outbox.flush();
        heard.err()
    }

    /// Queues a message of the server's own; an error is counted.
    pub(super) fn say(&self, message: &ServerMessage) {
        self.node.metrics.answered(message);
        self.connection.push(message);
    }

    async fn perform_step(&mut self, step: Step) -> Option<Ending> {
        match step {
            Step::Reply(messages) => {
                messages.iter().for_each(|message| self.say(message));
            }
            Step::Perform(request, correlation) => self.perform(request, correlation).await,
            Step::Close(code) => return Some(Ending::Said(code)),
            Step::Goodbye => return Some(Ending::Said(CloseCode::Normal)),
        }
        None
    }

    /// What a message means that did not come over this connection's socket (a long poll's).
    pub(crate) fn interpret(
        &mut self,
        message: Result<ClientMessage, carillon_protocol::client_message::Unreadable>,
    ) -> Step {
        let routes = self.node.routes.load_full();
        let user = self.connection.user.clone();
        let user = user.as_ref().map(carillon_protocol::UserId::as_str);
        let (now, unix_ms) = (clock::monotonic_ms(), clock::unix_ms());
        self.session.handle_message(now, unix_ms, user, &routes, message)
    }

    pub(crate) async fn perform(&mut self, request: Request, correlation: Correlation) {
        super::requests::perform(self, request, correlation).await;
    }

    /// Waits until the outbox has room for a page of history. `false` when the connection ends.
    pub(super) async fn drained(&mut self) -> bool {
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

    /// Takes everything back, silently: the end of a driver made with [`Driver::brief`].
    pub(crate) fn end_brief(&mut self) {
        self.release_subscriptions();
        self.node.hub.detach(&self.connection.id);
        self.node.metrics.closed(self.connection.transport, "client");
        self.connection.outbox.fail();
    }

    /// Says goodbye where that is due, and takes everything back.
    async fn end(mut self: Box<Self>, ending: Ending) {
        let socket = self.socket.clone();
        let socket = socket.as_deref();
        let connection = Arc::clone(&self.connection);
        let outbox = &connection.outbox;
        if let Ending::Said(code) = ending {
            if code.announced() {
                connection.push(&disconnect(code));
            }
            if connection.transport == crate::connection::Transport::WebSocket {
                outbox.push_raw(close_frame(code.number(), code.reason()));
            } else {
                outbox.push_sse_end();
            }
            outbox.flush();
        }
        self.release_subscriptions();
        self.node.presence.ended(&connection);
        self.node.hub.detach(&connection.id);
        let reason = match ending {
            Ending::Peer => "client",
            Ending::Failed => "error",
            Ending::Said(code) => code.reason(),
        };
        self.node.metrics.closed(connection.transport, reason);
        self.node.application.lifecycle.closed(&self.node.name, &connection, reason);
        if let (Ending::Said(_), Some(socket)) = (ending, socket) {
            // Let the last bytes out, and wait for the peer to close first: a reset would take the
            // close frame with it.
            let _ = tokio::time::timeout(GOODBYE, linger(outbox, socket)).await;
        }
        outbox.fail();
        if let Some(socket) = socket {
            socket.shut();
        }
        tracing::debug!(connection = %connection.id, remote = ?connection.remote, reason, "connection ended");
    }
}

/// The last message before the server closes.
#[must_use]
pub fn disconnect(code: CloseCode) -> ServerMessage {
    let retry_after_ms = match code {
        CloseCode::Draining => rand::random::<u64>() % 2_000,
        CloseCode::Abuse => 5_000,
        _ => 0,
    };
    let payload = serde_json::json!({
        "reason": code.reason(),
        "code": code.number(),
        "reconnect": code.reconnect(),
        "retry_after_ms": retry_after_ms,
    });
    ServerMessage::new("disconnect", &payload)
}

async fn linger(outbox: &super::outbox::Outbox, socket: &Socket) {
    while (outbox.queued_bytes() > 0 || outbox.signals_blocked()) && !outbox.signals().failed {
        if socket.writable().await.is_err() {
            return;
        }
        outbox.flush();
    }
    if socket.finish().is_err() {
        return;
    }
    while socket.readable().await.is_ok() {
        match READ_BUFFER.with_borrow_mut(|rest| socket.try_read(rest)) {
            Ok(0) => return,
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return,
            Ok(_) | Err(_) => {}
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
