//! What a connection's socket brings: bytes become messages, messages what the session asks for, and that is performed
//! in order.
//!
//! It must not know: when to read, how a connection ends.

use std::cell::RefCell;
use std::io;

use carillon_protocol::session::{Request, Session, Step};
use carillon_protocol::websocket::{Incoming, Opcode, close_frame, frame};
use carillon_protocol::{ClientMessage, CloseCode, Codec};

use super::{Driver, Ending};
use crate::clock;
use crate::connection::requests;
use crate::dispatch::Medium;

/// Bytes read from a socket in one go, into a buffer that the thread's connections share.
const READ_BYTES: usize = 16 * 1024;

thread_local! {
    pub(super) static READ_BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES].into());
}

/// One thing that happened on the socket.
pub(super) enum Happening {
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
    /// Performs what came with the handshake.
    pub(super) async fn perform_early(&mut self) -> Option<Ending> {
        let mut early = self.rare.as_mut().map(|rare| std::mem::take(&mut rare.early))?;
        if early.is_empty() {
            return None;
        }
        let mut happenings = Vec::new();
        let heard = self.hear(&mut early, &mut happenings);
        self.perform_all(happenings, heard).await
    }

    /// Reads what the socket has; what is to be performed, and how that ends. `None` for nothing to do.
    pub(super) fn read(&mut self) -> Option<(Vec<Happening>, Result<(), Ending>)> {
        let socket = self.socket.clone()?;
        let mut happenings = Vec::new();
        let heard = READ_BUFFER.with_borrow_mut(|buffer| match socket.try_read(buffer) {
            Ok(0) => Some(Err(Ending::Peer)),
            Ok(bytes) => Some(self.hear(&mut buffer[..bytes], &mut happenings)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(_) => Some(Err(Ending::Failed)),
        })?;
        // What those who are present say at rest: that it came is noted already, and nothing is to be performed.
        let is_done = match &happenings[..] {
            [] => true,
            [Happening::Step(Step::Perform(Request::PresenceHeartbeat(resource), correlation))] => {
                correlation.is_empty()
                    && self.node.presence.is_surely_held(&self.connection, resource)
            }
            _ => false,
        };
        (!is_done || heard.is_err()).then_some((happenings, heard))
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

    pub(super) async fn perform_all(
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
                    requests::publish_all(self, run).await;
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

    async fn perform_step(&mut self, step: Step) -> Option<Ending> {
        match step {
            Step::Reply(messages) => {
                messages.iter().for_each(|message| self.say(message));
            }
            Step::Perform(request, correlation) => self.perform(request, correlation).await,
            Step::Close(code) => return Some(Ending::Said(code)),
            Step::Goodbye(correlation) => {
                let done = Session::done(correlation, &serde_json::json!({}));
                done.iter().for_each(|message| self.say(message));
                return Some(Ending::Said(CloseCode::Normal));
            }
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
}
