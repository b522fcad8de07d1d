//! How each kind of server is spoken to: the paths to listen on and the bytes that publish.
//!
//! A new server to compare with is a new arm here and nowhere else.

use crate::token;
use crate::websocket;
use clap::ValueEnum;
use std::net::SocketAddr;

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
}

/// How a subscriber listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Transport {
    /// WebSocket.
    Ws,
    /// Server-Sent Events.
    Sse,
}

/// How messages are published to a Carillon node; the others have one way each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum PublishBy {
    /// A backend's REST calls.
    Rest,
    /// A client's WebSocket, every message acknowledged.
    Websocket,
}

/// One server and what is needed to be let in.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    /// What it is.
    pub(crate) kind: Kind,
    /// Where clients connect.
    pub(crate) address: SocketAddr,
    /// Carillon: the HS256 secret that tokens are signed with.
    pub(crate) jwt_secret: String,
    /// Carillon: the beginning of the users' names.
    pub(crate) user: String,
    /// Carillon: the key that publishes.
    pub(crate) api_key: String,
}

impl Target {
    /// The request with which connection `index` opens and subscribes to `channel`.
    pub(crate) fn open(&self, transport: Transport, index: usize, channel: &str) -> Vec<u8> {
        let host = self.address.to_string();
        let (ws, sse) = match self.kind {
            Kind::Carillon => {
                let token = token::sign(&self.jwt_secret, &format!("{}-{index}", self.user));
                let query = format!("channel={channel}&token={token}");
                (format!("/ws?{query}"), format!("/api/realtime/events?{query}"))
            }
            Kind::Floor | Kind::Naive => {
                (format!("/ws?channel={channel}"), format!("/sse?channel={channel}"))
            }
            Kind::Nchan => (format!("/sub?channel={channel}"), format!("/sub?channel={channel}")),
        };
        match transport {
            Transport::Ws => websocket::client_request(&host, &ws),
            Transport::Sse => {
                format!("GET {sse} HTTP/1.1\r\nHost: {host}\r\nAccept: text/event-stream\r\n\r\n")
                    .into_bytes()
            }
        }
    }

    /// The name of channel `index` of a run.
    pub(crate) fn channel(&self, index: u32) -> String {
        match self.kind {
            Kind::Carillon => format!("room:bench-{index}"),
            Kind::Floor | Kind::Naive | Kind::Nchan => format!("bench-{index}"),
        }
    }

    /// What a publisher says first, if publishing is not plain HTTP.
    pub(crate) fn publisher_handshake(&self, by: PublishBy, index: u32) -> Option<Vec<u8>> {
        match self.kind {
            Kind::Carillon if by == PublishBy::Websocket => {
                let token =
                    token::sign(&self.jwt_secret, &format!("{}-publisher-{index}", self.user));
                let path = format!("/ws?token={token}");
                Some(websocket::client_request(&self.address.to_string(), &path))
            }
            Kind::Carillon | Kind::Nchan => None,
            Kind::Floor | Kind::Naive => {
                Some(websocket::client_request(&self.address.to_string(), "/pub"))
            }
        }
    }

    /// Whether what is published over a WebSocket is acknowledged there.
    pub(crate) fn answers_frames(&self) -> bool {
        self.kind == Kind::Carillon
    }

    /// Appends the bytes that publish `messages` (channel index, payload); returns how many answers
    /// will come.
    pub(crate) fn push_publish(
        &self,
        into: &mut Vec<u8>,
        by: PublishBy,
        messages: &[(u32, String)],
    ) -> u64 {
        match self.kind {
            Kind::Carillon if by == PublishBy::Websocket => {
                for (channel, payload) in messages {
                    let channel = self.channel(*channel);
                    let text = format!(
                        "{{\"type\":\"message\",\"channel\":\"{channel}\",\"ack_id\":\"1\",\"payload\":{payload}}}"
                    );
                    websocket::push_client_frame(into, websocket::TEXT, text.as_bytes());
                }
                messages.len() as u64
            }
            Kind::Carillon => {
                self.push_request(into, messages);
                1
            }
            Kind::Floor | Kind::Naive => {
                for (channel, payload) in messages {
                    let text = format!("{}\n{payload}", self.channel(*channel));
                    websocket::push_client_frame(into, websocket::TEXT, text.as_bytes());
                }
                0
            }
            Kind::Nchan => {
                for (channel, payload) in messages {
                    let path = format!("/pub?channel={}", self.channel(*channel));
                    post(into, &self.address, &path, "", payload);
                }
                messages.len() as u64
            }
        }
    }

    fn push_request(&self, into: &mut Vec<u8>, messages: &[(u32, String)]) {
        let one = |(channel, payload): &(u32, String)| {
            let channel = self.channel(*channel);
            format!("{{\"channel\":\"{channel}\",\"type\":\"message\",\"payload\":{payload}}}")
        };
        let key = format!("X-API-Key: {}\r\nContent-Type: application/json\r\n", self.api_key);
        if let [message] = messages {
            return post(into, &self.address, "/api/realtime/publish", &key, &one(message));
        }
        let all: Vec<String> = messages.iter().map(one).collect();
        let body = format!("{{\"messages\":[{}]}}", all.join(","));
        post(into, &self.address, "/api/realtime/publish/batch", &key, &body);
    }
}

fn post(into: &mut Vec<u8>, host: &SocketAddr, path: &str, headers: &str, body: &str) {
    let length = body.len();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: {host}\r\n{headers}Content-Length: {length}\r\n\r\n"
    );
    into.extend_from_slice(head.as_bytes());
    into.extend_from_slice(body.as_bytes());
}
