//! One connection's session under a virtual clock: what each client message means, whether it is
//! allowed as such (reserved types, rate), and when silence or the token ends it.
//!
//! The session decides meaning; it never performs anything. Who executes a [`Request`] answers it
//! with [`Session::own_reply`], [`Session::done`] or [`Session::refused`], which keep the rule that
//! a request with `ack_id` gets exactly one `ack` or `error` (R20).
//!
//! It must not know: sockets, the hub, Redis, configuration files.

mod body;
mod draft;
mod rate;
mod routes;
#[cfg(test)]
mod tests;

use crate::envelope::{Correlation, Refusal, ServerMessage};
use crate::{ChannelName, ClientMessage, CloseCode, ErrorCode, Payload, Since};

use body::Body;

pub use rate::{Rate, Verdict};
pub use routes::{InvalidRoute, Route, Routes};

/// A subscribe request.
#[derive(Clone, Debug, PartialEq)]
pub struct Subscribe {
    /// What to hear.
    pub channel: ChannelName,
    /// Where the client stopped; `None` for a fresh subscription.
    pub since: Option<Since>,
    /// Page size with `since`, the last N messages without (R21).
    pub limit: Option<u32>,
    /// Payload filter document.
    pub filter: Option<serde_json::Value>,
}

/// A client's publish, after routing.
#[derive(Clone, Debug, PartialEq)]
pub struct ClientPublish {
    /// Where it goes.
    pub channel: ChannelName,
    /// The type it is published as.
    pub kind: Box<str>,
    /// Payload; where the server's word on the sender belongs into it, it is already there (R4).
    pub payload: Payload,
    /// The sender's id for it: idempotency.
    pub id: Option<Box<str>>,
    /// A relay (typing, receipts): never back to the sending connection (R9).
    pub relay: bool,
    /// Whether it is kept in history where the channel has one (typing never is, R10).
    pub history: bool,
}

/// What a client asks the gateway to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    /// Hear a channel.
    Subscribe(Subscribe),
    /// Hear it no more.
    Unsubscribe(ChannelName),
    /// Publish.
    Publish(ClientPublish),
    /// Announce presence on `presence:{resource}`.
    PresenceJoin {
        /// The presence channel.
        channel: ChannelName,
        /// Display name; the token's beats it (R25).
        name: Option<Box<str>>,
        /// Anything the application wants listed.
        metadata: Option<serde_json::Value>,
    },
    /// Take presence back.
    PresenceLeave(ChannelName),
    /// Keep presence alive.
    PresenceHeartbeat(ChannelName),
    /// Set the user's own status.
    SetStatus(Status),
    /// Mark one notification read.
    NotificationRead(Box<str>),
    /// Mark all of the user's notifications read.
    NotificationReadAll,
    /// Replace the token.
    Authenticate(Box<str>),
    /// A call to the application.
    Inbound {
        /// Message type.
        kind: Box<str>,
        /// Payload.
        payload: Payload,
        /// The sender's id.
        id: Option<Box<str>>,
    },
}

/// A user's status as they may set it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Present.
    Online,
    /// Idle.
    Away,
    /// Not to be disturbed.
    Busy,
}

/// What to do next after a client message.
#[derive(Debug, PartialEq)]
pub enum Step {
    /// Send these, in order.
    Reply(Vec<ServerMessage>),
    /// Perform this, then answer it.
    Perform(Request, Correlation),
    /// Send an error, then close with the code (abuse).
    Close(CloseCode),
    /// The client said goodbye: answer it if that was asked for, and close with 1000.
    Goodbye(Correlation),
}

/// Session limits. Zero switches a limit off.
#[derive(Clone, Copy, Debug)]
pub struct SessionLimits {
    /// Client messages a second: bucket size and refill (R27).
    pub messages_per_second: u32,
    /// Silence after which the session ends, milliseconds.
    pub heartbeat_timeout_ms: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Session {
    rate: Rate,
    heard_at_ms: u64,
    heartbeat_timeout_ms: u64,
}

impl Session {
    /// A session that begins now (`now_ms`: any monotonic milliseconds).
    #[must_use]
    pub fn new(limits: SessionLimits, now_ms: u64) -> Self {
        Self {
            rate: Rate::new(limits.messages_per_second, now_ms),
            heard_at_ms: now_ms,
            heartbeat_timeout_ms: limits.heartbeat_timeout_ms,
        }
    }

    /// Anything at all came from the peer.
    pub fn handle_bytes(&mut self, now_ms: u64) {
        self.heard_at_ms = now_ms;
    }

    /// The rate was changed by an operator; 0 admits everything.
    pub fn handle_limit(&mut self, now_ms: u64, messages_per_second: u32) {
        self.rate.adjust(messages_per_second, now_ms);
    }

    /// When silence ends the session, if nothing is heard before; `None` when switched off.
    #[must_use]
    pub fn silence_deadline_ms(&self) -> Option<u64> {
        (self.heartbeat_timeout_ms > 0).then(|| self.heard_at_ms + self.heartbeat_timeout_ms)
    }

    /// When anything was last heard.
    #[must_use]
    pub fn heard_at_ms(&self) -> u64 {
        self.heard_at_ms
    }

    /// Counts one client message against the rate; `Some` when it is refused.
    pub fn charge(&mut self, now_ms: u64) -> Option<Verdict> {
        match self.rate.take(now_ms) {
            Verdict::Admit => None,
            refused => Some(refused),
        }
    }

    /// One message from the client. `user` is the authenticated user, `unix_ms` the wall clock.
    pub fn handle_message(
        &mut self,
        now_ms: u64,
        unix_ms: i64,
        user: Option<&str>,
        routes: &Routes,
        message: Result<ClientMessage, crate::client_message::Unreadable>,
    ) -> Step {
        self.heard_at_ms = now_ms;
        let correlation = match &message {
            Ok(message) => message.correlation.clone(),
            Err(unreadable) => unreadable.correlation.clone(),
        };
        match self.charge(now_ms) {
            Some(Verdict::Abuse) => return Step::Close(CloseCode::Abuse),
            Some(Verdict::Refuse { retry_after_ms }) => {
                let refusal = Refusal::new(ErrorCode::RateLimited, "Too many messages")
                    .with("retry_after_ms", retry_after_ms);
                return Step::Reply(vec![ServerMessage::error(correlation, &refusal)]);
            }
            Some(Verdict::Admit) | None => {}
        }
        let message = match message {
            Ok(message) => message,
            Err(unreadable) => {
                return Step::Reply(vec![ServerMessage::error(correlation, &unreadable.refusal)]);
            }
        };
        match meaning(&message, unix_ms, user, routes) {
            Ok(Meaning::Own(reply)) => Step::Reply(own_reply(reply, &correlation)),
            Ok(Meaning::Request(request)) => Step::Perform(request, correlation),
            Ok(Meaning::Goodbye) => Step::Goodbye(correlation),
            Err(refusal) => Step::Reply(vec![ServerMessage::error(correlation, &refusal)]),
        }
    }

    /// A request succeeded and has a reply of its own (`subscribed`, `presence:sync`, …).
    #[must_use]
    pub fn own_reply(reply: ServerMessage, correlation: &Correlation) -> Vec<ServerMessage> {
        own_reply(reply, correlation)
    }

    /// A request succeeded and has no reply of its own: an `ack` if the client asked for one.
    #[must_use]
    pub fn done(correlation: Correlation, data: &impl serde::Serialize) -> Option<ServerMessage> {
        (!correlation.is_empty()).then(|| ServerMessage::ack(correlation, data))
    }

    /// A request was refused.
    #[must_use]
    pub fn refused(correlation: Correlation, refusal: &Refusal) -> ServerMessage {
        ServerMessage::error(correlation, refusal)
    }
}

fn own_reply(reply: ServerMessage, correlation: &Correlation) -> Vec<ServerMessage> {
    let data = reply.payload.to_value();
    let mut replies = vec![reply.answering(correlation.for_own_reply())];
    if correlation.ack_id.is_some() {
        replies.push(ServerMessage::ack(correlation.clone(), &data));
    }
    replies
}

enum Meaning {
    Own(ServerMessage),
    Request(Request),
    Goodbye,
}

fn meaning(
    message: &ClientMessage,
    unix_ms: i64,
    user: Option<&str>,
    routes: &Routes,
) -> Result<Meaning, Refusal> {
    let body = Body::of(message);
    Ok(match &*message.kind {
        "ping" => Meaning::Own(ServerMessage::new("pong", &timestamp(unix_ms))),
        "heartbeat" => Meaning::Own(ServerMessage::new("heartbeat", &timestamp(unix_ms))),
        "disconnect" => Meaning::Goodbye,
        "subscribe" => Meaning::Request(Request::Subscribe(Subscribe {
            channel: body.channel()?,
            since: body.since()?,
            limit: body.limit()?,
            filter: body.object("filter")?,
        })),
        "unsubscribe" => Meaning::Request(Request::Unsubscribe(body.channel()?)),
        "presence:join" => Meaning::Request(Request::PresenceJoin {
            channel: body.presence_channel()?,
            name: body.text("name")?,
            metadata: body.field("metadata").cloned(),
        }),
        "presence:leave" => Meaning::Request(Request::PresenceLeave(body.presence_channel()?)),
        "presence:heartbeat" => {
            Meaning::Request(Request::PresenceHeartbeat(body.presence_channel()?))
        }
        "presence" => {
            let status = match body.required_text("status")?.as_ref() {
                "online" => Status::Online,
                "away" => Status::Away,
                "busy" => Status::Busy,
                _ => return Err(wrong("is one of online, away, busy", "payload.status")),
            };
            Meaning::Request(Request::SetStatus(status))
        }
        "notification_read" => {
            Meaning::Request(Request::NotificationRead(body.required_text("notification_id")?))
        }
        "notification_read_all" => Meaning::Request(Request::NotificationReadAll),
        "auth" => Meaning::Request(Request::Authenticate(match &message.token {
            Some(token) => token.clone(),
            None => body.required_text("token")?,
        })),
        kind if is_reserved(kind) => {
            return Err(Refusal::new(ErrorCode::Forbidden, "This type is the server's")
                .with("type", kind.to_owned()));
        }
        kind => {
            let sender = routes::Sender { user, unix_ms };
            if let Some(route) = routes.find(kind) {
                Meaning::Request(Request::Publish(route.apply(message, body.value(), sender)?))
            } else if let Some(channel) = &message.channel {
                let channel = channel_name(channel)?;
                let payload = routes.signed(kind, &channel, &message.payload, user);
                Meaning::Request(Request::Publish(ClientPublish {
                    channel,
                    kind: message.kind.clone(),
                    payload: payload.unwrap_or_else(|| message.payload.clone()),
                    id: message.id.clone(),
                    relay: false,
                    history: true,
                }))
            } else {
                Meaning::Request(Request::Inbound {
                    kind: message.kind.clone(),
                    payload: message.payload.clone(),
                    id: message.id.clone(),
                })
            }
        }
    })
}

/// Types that only the server may publish (R1).
#[must_use]
pub fn is_reserved(kind: &str) -> bool {
    matches!(
        kind,
        "subscribed"
            | "unsubscribed"
            | "ack"
            | "error"
            | "pong"
            | "resync"
            | "disconnect"
            | "feed_update"
            | "count_update"
    ) || ["connect", "notification", "presence:", "entity:"]
        .iter()
        .any(|prefix| kind.starts_with(prefix))
}

/// Types that not even a backend may publish (R1): the control messages of a connection and the
/// announcements of presence, which the server alone can know.
#[must_use]
pub fn is_control(kind: &str) -> bool {
    matches!(
        kind,
        "connect"
            | "connection"
            | "connected"
            | "subscribed"
            | "unsubscribed"
            | "ack"
            | "error"
            | "pong"
            | "resync"
            | "disconnect"
    ) || kind.starts_with("presence:")
}

/// Types whose meaning is the session's own, whatever the table of routes says.
fn is_request(kind: &str) -> bool {
    matches!(
        kind,
        "ping"
            | "heartbeat"
            | "disconnect"
            | "subscribe"
            | "unsubscribe"
            | "presence"
            | "presence:join"
            | "presence:leave"
            | "presence:heartbeat"
            | "notification_read"
            | "notification_read_all"
            | "auth"
    )
}

fn timestamp(unix_ms: i64) -> serde_json::Value {
    serde_json::json!({"timestamp": crate::time::rfc3339(unix_ms)})
}

/// A field and what is the matter with it, which together make the sentence.
fn wrong(what: &str, field: impl Into<String>) -> Refusal {
    let field = field.into();
    Refusal::new(ErrorCode::InvalidMessage, format!("{field} {what}")).with("field", field)
}

fn channel_name(text: &str) -> Result<ChannelName, Refusal> {
    ChannelName::new(text).map_err(|invalid| {
        Refusal::new(ErrorCode::InvalidMessage, invalid.to_string()).with("field", "channel")
    })
}
