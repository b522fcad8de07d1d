//! How each kind of server is spoken to, as bytes: the way in, the way to subscribe, the way to publish.
//!
//! Owns no socket and no clock: a profile is asked and answers. A new server to compare with is a new
//! file in `target/`, an arm of [`Kind::profile`] and, where the bench starts it, one in `server/lineup.rs`.

mod carillon;
mod centrifugo;
mod floor;
mod nchan;
mod plain;
mod socketio;

pub(crate) use plain::Plain;

use crate::subscriber::Ask;
use crate::websocket;
use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use std::net::{SocketAddr, ToSocketAddrs as _};

/// A kind of server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// A Carillon node.
    Carillon,
    /// `loadtest floor`.
    Floor,
    /// `loadtest naive`.
    Naive,
    /// nginx with Nchan: `/sub?channel=` and `/pub?channel=`.
    Nchan,
    /// Socket.IO 3 and 4 over WebSocket, with the events of `peers/socketio.mjs`.
    Socketio,
    /// Centrifugo 4 and newer: the bidirectional JSON protocol, publishing through its HTTP API.
    Centrifugo,
    /// Any plain WebSocket: paths and texts are given by `--path`, `--subscribe`, `--publish` …
    Plain,
}

impl Kind {
    /// How this kind is spoken to.
    pub(crate) fn profile(self) -> &'static dyn Profile {
        match self {
            Self::Carillon => &carillon::Carillon,
            Self::Floor | Self::Naive => &floor::Floor,
            Self::Nchan => &nchan::Nchan,
            Self::Socketio => &socketio::SocketIo,
            Self::Centrifugo => &centrifugo::Centrifugo,
            Self::Plain => &plain::Templates,
        }
    }
}

/// How a subscriber listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Transport {
    /// WebSocket.
    Ws,
    /// Server-Sent Events.
    Sse,
    /// Long polls (Carillon).
    Poll,
}

/// How messages are published to a Carillon node; the others have one way each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum PublishBy {
    /// A backend's REST calls.
    Rest,
    /// A client's WebSocket, every message acknowledged.
    Websocket,
    /// A client's WebSocket that asks for no acknowledgement, as those peers are published to that have none; refusals are
    /// counted all the same.
    WebsocketUnacknowledged,
    /// REST notifications to the users of a group; a group stands for a channel.
    Notifications,
}

/// Who speaks: a listening connection, or a publisher, which has no channel.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Caller<'a> {
    /// The server and what is needed to be let in.
    pub(crate) target: &'a Target,
    /// Number of the connection, or of the publisher, in this run.
    pub(crate) index: usize,
    /// The channel to listen on, empty for none yet; none for a publisher.
    pub(crate) channel: Option<&'a str>,
}

/// What a connection does next while it opens.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Act {
    /// It listens; nothing more is needed.
    Open,
    /// It waits for the server's next message.
    Wait,
    /// It says this text and waits for the next message.
    Say(String),
    /// It says this text and then listens.
    Last(String),
    /// The server does not let it in.
    Refused(String),
}

/// How messages are published.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Publishing {
    /// By requests, pipelined; each has an answer.
    Http,
    /// By text frames over a WebSocket on this path.
    WebSocket(String),
}

/// One kind of server, seen from its clients. Stateless: what was heard last says where a connection is.
pub(crate) trait Profile: Sync {
    /// The name of channel `index` of a run.
    fn channel(&self, index: u32) -> String {
        format!("bench-{index}")
    }

    /// The path of a WebSocket.
    fn ws_path(&self, caller: Caller<'_>) -> String;

    /// The path of an event stream, where the server has one.
    fn sse_path(&self, _caller: Caller<'_>) -> Option<String> {
        None
    }

    /// How it polls, where the server is polled.
    fn poll(&self, _caller: Caller<'_>) -> Option<Ask> {
        None
    }

    /// What comes after the HTTP upgrade (`heard` is none) and after each message until the connection is
    /// open. An event stream only waits for its first bytes, if at all.
    fn converse(&self, _caller: Caller<'_>, _heard: Option<&[u8]>) -> Act {
        Act::Open
    }

    /// What an open connection must say to a message, such as to a ping of the protocol's own.
    fn answer<'t>(&self, _target: &'t Target, _heard: &[u8]) -> Option<&'t str> {
        None
    }

    /// The text with which a member publishes over its own WebSocket, where clients may.
    fn speak(&self, _channel: &str, _payload: &str) -> Option<String> {
        None
    }

    /// How this publisher publishes.
    fn publishing(&self, publisher: Caller<'_>) -> Publishing;

    /// Appends the bytes that publish `messages` (channel index, payload); returns how many answers come.
    fn push_publish(&self, to: &Target, into: &mut Vec<u8>, messages: &[(u32, String)]) -> u64;

    /// Publishes refused in one whole HTTP answer.
    fn refusals(&self, answer: &[u8]) -> u64 {
        u64::from(answer.get(9) != Some(&b'2'))
    }

    /// Publishes refused by a frame that answers one; none where the frame is no answer.
    fn verdict(&self, _heard: &[u8]) -> Option<u64> {
        None
    }
}

/// One server and what is needed to be let in.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    /// What it is.
    pub(crate) kind: Kind,
    /// Where clients connect.
    pub(crate) address: SocketAddr,
    /// The same as written, for `Host`.
    pub(crate) host: String,
    /// The HS256 secret that tokens are signed with (Carillon, Centrifugo); empty for no token.
    pub(crate) jwt_secret: String,
    /// The beginning of the users' names.
    pub(crate) user: String,
    /// The key that publishes (Carillon, Centrifugo).
    pub(crate) api_key: String,
    /// How a Carillon node is published to.
    pub(crate) publish_by: PublishBy,
    /// Users that a notification goes to.
    pub(crate) recipients: usize,
    /// Paths and texts of [`Kind::Plain`].
    pub(crate) plain: Plain,
}

impl Target {
    /// The name of channel `index` of a run.
    pub(crate) fn channel(&self, index: u32) -> String {
        self.kind.profile().channel(index)
    }

    /// The request with which `caller` opens.
    pub(crate) fn open(&self, transport: Transport, caller: Caller<'_>) -> Result<Vec<u8>> {
        let profile = self.kind.profile();
        match transport {
            Transport::Ws => Ok(websocket::client_request(&self.host, &profile.ws_path(caller))),
            Transport::Sse => {
                let path = profile.sse_path(caller).context("this target has no event streams")?;
                Ok(format!(
                    "GET {path} HTTP/1.1\r\nHost: {}\r\nAccept: text/event-stream\r\n\r\n",
                    self.host
                )
                .into_bytes())
            }
            Transport::Poll => bail!("polls are asked one by one"),
        }
    }

    /// How `caller` polls.
    pub(crate) fn poll(&self, caller: Caller<'_>) -> Result<Ask> {
        self.kind.profile().poll(caller).context("this target is not polled")
    }

    /// The user of listening connection `index`.
    pub(crate) fn user(&self, index: usize) -> String {
        format!("{}-{index}", self.user)
    }

    /// The request with which publisher `index` opens, where it does not simply post.
    pub(crate) fn open_publisher(&self, index: usize) -> Option<Vec<u8>> {
        let publisher = Caller { target: self, index, channel: None };
        match self.kind.profile().publishing(publisher) {
            Publishing::Http => None,
            Publishing::WebSocket(path) => Some(websocket::client_request(&self.host, &path)),
        }
    }

    /// Appends the bytes that publish `messages` (channel index, payload); returns how many answers come.
    pub(crate) fn push_publish(&self, into: &mut Vec<u8>, messages: &[(u32, String)]) -> u64 {
        self.kind.profile().push_publish(self, into, messages)
    }

    /// Appends a POST.
    fn push_post(&self, into: &mut Vec<u8>, path: &str, headers: &str, body: &str) {
        let (host, length) = (&self.host, body.len());
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: {host}\r\n{headers}Content-Length: {length}\r\n\r\n"
        );
        into.extend_from_slice(head.as_bytes());
        into.extend_from_slice(body.as_bytes());
    }
}

/// The authority of a URL (or of an address without a scheme) and one IPv4 address behind it.
pub(crate) fn locate(url: &str) -> Result<(String, SocketAddr)> {
    let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
    if matches!(scheme, "https" | "wss") {
        bail!("{url}: the driver does not speak TLS; measure in front of what ends it");
    }
    let host = rest.split(['/', '?']).next().unwrap_or(rest);
    let named = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
    let mut found = named.to_socket_addrs().with_context(|| format!("{url}: no such address"))?;
    let address = found
        .find(SocketAddr::is_ipv4)
        .with_context(|| format!("{url}: an IPv4 address such as 127.0.0.1:8082 is needed"))?;
    Ok((host.to_owned(), address))
}

#[cfg(test)]
mod tests;
