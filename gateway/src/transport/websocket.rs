//! WebSocket endpoints: the RFC 6455 handshake, on the bare socket or on hyper, then the bare socket.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use bytes::Bytes;
use carillon_protocol::envelope::Refusal;
use carillon_protocol::websocket as framing;
use carillon_protocol::{CloseCode, Codec, ErrorCode, Profile};
use http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};
use hyper::upgrade::OnUpgrade;
use sha1::{Digest, Sha1};
use tokio::sync::oneshot;

use super::client_io::{ClientIo, Peer};
use super::handshake::{BEARER_SUBPROTOCOL, Handshake, Query, subprotocols};
use crate::connection::driver::Driver;
use crate::connection::outbox::{Outbox, Wire};
use crate::connection::welcome::Resume;
use crate::connection::{Connection, Transport};
use crate::dispatch::{Dress, Medium};
use crate::node::{Admitted, Doorway, Node};
use crate::rest::{ApiError, REQUEST_ID_HEADER, request_id};
use crate::socket::Socket;

/// RFC 6455 section 1.3.
const ACCEPT_GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// The detail that names the header of a handshake that is wrong.
const HEADER: &str = "header";
const VERSION: &str = "Sec-WebSocket-Version";

/// What a WebSocket at `/ws/{name}` is counted as when its name is not configured (R19).
const OTHER: &str = "other";

/// `/ws`: profile `social`.
pub async fn social(state: State<Arc<Node>>, request: Request) -> Response {
    serve(state.0, request, Profile::Social, None).await
}

/// `/ws/{name}`: the same, counted under its name.
pub async fn named(state: State<Arc<Node>>, request: Request) -> Response {
    let name = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
    serve(state.0, request, Profile::Social, Some(name)).await
}

/// `/api/realtime/ws`: profile `uno`.
pub async fn uno(state: State<Arc<Node>>, request: Request) -> Response {
    serve(state.0, request, Profile::Uno, None).await
}

/// `/`: profile `excore`.
pub async fn excore(state: State<Arc<Node>>, request: Request) -> Response {
    serve(state.0, request, Profile::Excore, None).await
}

/// This request's handshake was refused before hyper saw it.
#[derive(Clone)]
pub(super) struct Refused(pub(super) Refusal);

/// A request for a WebSocket.
#[derive(Clone, Copy)]
pub(super) struct Asked<'r> {
    pub(super) method: &'r Method,
    pub(super) uri: &'r Uri,
    pub(super) headers: &'r HeaderMap,
    pub(super) remote: Option<IpAddr>,
}

/// What a handshake is answered with.
struct Agreed {
    accept: String,
    extension: Option<&'static str>,
    subprotocol: Option<&'static str>,
}

async fn serve(
    node: Arc<Node>,
    mut request: Request,
    profile: Profile,
    name: Option<String>,
) -> Response {
    let accepted = match request.extensions_mut().remove() {
        Some(Refused(refusal)) => Err(refusal),
        None => accept(node, request, profile, name).await,
    };
    accepted.unwrap_or_else(|refusal| {
        let is_version = refusal.details.get(HEADER).is_some_and(|header| header == VERSION);
        let mut response = ApiError::from(refusal).into_response();
        if is_version {
            // RFC 6455, 4.2.2: which one would do.
            response.headers_mut().insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        }
        response
    })
}

async fn accept(
    node: Arc<Node>,
    mut request: Request,
    default: Profile,
    name: Option<String>,
) -> Result<Response, Refusal> {
    let asked = Asked {
        method: request.method(),
        uri: request.uri(),
        headers: request.headers(),
        remote: request.extensions().get::<Peer>().map(|peer| peer.remote),
    };
    let (opening, doorway, agreed) = agree(&node, asked, default, name).await?;
    let socket = request.extensions().get::<Peer>().and_then(|peer| peer.socket.clone());
    let socket = socket.ok_or_else(|| bad_handshake("Upgrade"))?;
    let upgrade = hyper::upgrade::on(&mut request);
    let (greeted, welcomed) = oneshot::channel();
    let tasks = node.tasks.clone();
    // Boxed: the handshake's state is large, and must not stay with the connection's task.
    tasks.spawn(Box::pin(open(node, socket, upgrade, opening, doorway, greeted)));
    // As with an event stream: what is published after the head must be heard.
    let _ = welcomed.await;
    let mut response = StatusCode::SWITCHING_PROTOCOLS.into_response();
    for (name, value) in agreed.headers() {
        let value = HeaderValue::from_str(value).map_err(|_| bad_handshake("Upgrade"))?;
        response.headers_mut().insert(name, value);
    }
    Ok(response)
}

/// Answers a handshake on the bare socket and welcomes the client; both leave in one write. `early` are the bytes that
/// came with the handshake.
///
/// # Errors
/// The refusal to answer; nothing was written.
pub(super) async fn welcome(
    node: &Arc<Node>,
    socket: &Arc<Socket>,
    asked: Asked<'_>,
    default: Profile,
    name: Option<&str>,
    early: &[u8],
) -> Result<Box<Driver>, Refusal> {
    let (opening, doorway, agreed) = agree(node, asked, default, name.map(str::to_owned)).await?;
    let head = agreed.head(&request_id(asked.headers));
    let driver = greet(node, Arc::clone(socket), Head::Ours(head), early, opening).await;
    drop(doorway);
    Ok(driver)
}

/// Whether the client may connect, and as what.
async fn agree(
    node: &Arc<Node>,
    asked: Asked<'_>,
    default: Profile,
    name: Option<String>,
) -> Result<(Opening, Doorway, Agreed), Refusal> {
    let Asked { method, uri, headers, remote } = asked;
    let query = Query::parse(uri.query());
    let handshake = Handshake::accept(node, headers, &query, default).await?;
    let key = upgrade_key(method, headers)?;
    let (codec, subprotocol) = negotiate(headers);
    let user = handshake.claims.as_ref().map(|claims| claims.user.clone());
    let doorway = node.doors.enter().await.inspect_err(|_| node.metrics.refused("storm"))?;
    let admitted = node.admit(user.as_ref()).await?;
    let extension = deflate(node, headers);
    let dress = Dress {
        medium: Medium::WebSocket(codec),
        profile: handshake.profile,
        compressed: extension.is_some(),
    };
    let opening = Opening { handshake, admitted, dress, remote, name };
    Ok((opening, doorway, Agreed { accept: accept_key(key), extension, subprotocol }))
}

impl Agreed {
    fn headers(&self) -> impl Iterator<Item = (HeaderName, &str)> {
        [(CONNECTION, "Upgrade"), (UPGRADE, "websocket"), (SEC_WEBSOCKET_ACCEPT, &*self.accept)]
            .into_iter()
            .chain(self.extension.map(|extension| (SEC_WEBSOCKET_EXTENSIONS, extension)))
            .chain(self.subprotocol.map(|subprotocol| (SEC_WEBSOCKET_PROTOCOL, subprotocol)))
    }

    /// The answer as it stands on the wire.
    fn head(&self, request_id: &str) -> Bytes {
        let mut head = String::with_capacity(256);
        head.push_str("HTTP/1.1 101 Switching Protocols\r\n");
        let id = (REQUEST_ID_HEADER, request_id);
        for (name, value) in self.headers().chain([id]) {
            head.push_str(name.as_str());
            head.push_str(": ");
            head.push_str(value);
            head.push_str("\r\n");
        }
        head.push_str("\r\n");
        head.into()
    }
}

/// A handshake that was accepted, and the connection's place.
pub struct Opening {
    /// Who, and what for.
    pub handshake: Handshake,
    /// Where it is counted.
    pub admitted: Admitted,
    /// How its messages are written.
    pub dress: Dress,
    /// Who is at the other end.
    pub remote: Option<IpAddr>,
    /// The name in `/ws/{name}`.
    pub name: Option<String>,
}

/// Who writes the head of the answer.
enum Head {
    /// We do, before everything else.
    Ours(Bytes),
    /// hyper does; nothing else may be written until it has given the socket back.
    Hypers,
    /// It is written.
    Sent,
}

/// Subscribes the client, then takes the socket back from hyper and hands it to a task of its own, which is small.
async fn open(
    node: Arc<Node>,
    socket: Arc<Socket>,
    upgrade: OnUpgrade,
    opening: Opening,
    doorway: Doorway,
    greeted: oneshot::Sender<()>,
) {
    let Seated { mut driver, channels, resume } = seat(&node, socket, Head::Hypers, opening);
    driver.holds_back(greeted);
    let connection = Arc::clone(&driver.connection);
    let welcome = async {
        driver.welcome(&channels, resume).await;
        drop(doorway);
        driver.let_head_out();
    };
    // The socket may come back before all that was missed is queued.
    let upgraded = async {
        let upgraded = upgrade.await;
        match &upgraded {
            Ok(_) => connection.outbox.release(),
            Err(_) => connection.outbox.close(CloseCode::Normal),
        }
        upgraded
    };
    let ((), upgraded) = tokio::join!(welcome, upgraded);
    match upgraded {
        Ok(upgraded) => {
            // hyper's read buffer would stay with the connection.
            if let Ok(parts) = upgraded.downcast::<ClientIo>() {
                driver.heard_early(&parts.read_buf);
            }
            node.tasks.spawn(driver.run_websocket());
        }
        Err(error) => {
            tracing::debug!(%error, "the client went away during the handshake");
            // Ends at once, and is deregistered like any other.
            node.tasks.spawn(driver.run_listener(std::future::ready(())));
        }
    }
}

/// Welcomes a client on a socket that speaks WebSocket from now on, and leaves it to a task of its own.
/// `early` are bytes that came with the handshake.
pub async fn begin(node: Arc<Node>, socket: Arc<Socket>, early: Vec<u8>, opening: Opening) {
    let driver = greet(&node, socket, Head::Sent, &early, opening).await;
    node.tasks.spawn(driver.run_websocket());
}

/// Subscribes the client and queues the first messages, behind the `head` of the answer.
async fn greet(
    node: &Arc<Node>,
    socket: Arc<Socket>,
    head: Head,
    early: &[u8],
    opening: Opening,
) -> Box<Driver> {
    let Seated { mut driver, channels, resume } = seat(node, socket, head, opening);
    driver.heard_early(early);
    driver.welcome(&channels, resume).await;
    driver
}

/// A client that was admitted, and what it is to be subscribed to.
struct Seated {
    driver: Box<Driver>,
    channels: Vec<String>,
    resume: Resume,
}

fn seat(node: &Arc<Node>, socket: Arc<Socket>, head: Head, opening: Opening) -> Seated {
    let Opening { handshake, admitted, dress, remote, name } = opening;
    let user = handshake.claims.as_ref().map(|claims| claims.user.clone());
    let outbox =
        Outbox::new(Wire::Socket(Arc::clone(&socket)), node.config.load().limits.queue_bytes_max());
    let outbox = match head {
        Head::Ours(head) => {
            outbox.push_raw(head);
            outbox
        }
        Head::Hypers => outbox.held(),
        Head::Sent => outbox,
    };
    let connection =
        Connection::new(admitted.id.clone(), user, Transport::WebSocket, dress, remote, outbox);
    let mut driver = Box::new(Driver::new(
        Arc::clone(node),
        connection,
        handshake.claims,
        admitted,
        Some(socket),
    ));
    driver.named = name.map(|name| {
        let config = node.config.load();
        let known = config.metrics.websocket_names.contains(&name);
        node.metrics.named(if known { &name } else { OTHER })
    });
    Seated { driver, channels: handshake.channels, resume: handshake.resume }
}

/// The key of a correct opening handshake.
fn upgrade_key<'h>(method: &Method, headers: &'h HeaderMap) -> Result<&'h str, Refusal> {
    let has = |name, token: &str| {
        headers.get_all(name).iter().any(|value: &HeaderValue| {
            value.to_str().is_ok_and(|value| {
                value.split(',').any(|part| part.trim().eq_ignore_ascii_case(token))
            })
        })
    };
    if method != Method::GET || !has(UPGRADE, "websocket") || !has(CONNECTION, "upgrade") {
        return Err(bad_handshake("Upgrade"));
    }
    if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(bad_handshake(VERSION));
    }
    let key = headers.get(SEC_WEBSOCKET_KEY).and_then(|key| key.to_str().ok()).unwrap_or_default();
    let nonce = base64::engine::general_purpose::STANDARD.decode(key).unwrap_or_default();
    if nonce.len() != 16 {
        return Err(bad_handshake("Sec-WebSocket-Key"));
    }
    Ok(key)
}

fn bad_handshake(header: &'static str) -> Refusal {
    Refusal::new(ErrorCode::InvalidMessage, "Not a WebSocket handshake of version 13")
        .with(HEADER, header)
}

fn accept_key(key: &str) -> String {
    let digest = Sha1::new().chain_update(key).chain_update(ACCEPT_GUID).finalize();
    base64::engine::general_purpose::STANDARD.encode(digest)
}

/// What to answer to an offer of permessage-deflate (R30); `None` where there is none, or we take none.
fn deflate(node: &Node, headers: &HeaderMap) -> Option<&'static str> {
    let offers = headers.get_all(SEC_WEBSOCKET_EXTENSIONS).iter();
    let wanted = node.config.load().compression.websocket;
    wanted.then(|| framing::negotiate(offers.filter_map(|value| value.to_str().ok())))?
}

/// The codec, and the subprotocol to answer with: the codec that was asked for, else the bearer
/// marker, never the token.
fn negotiate(headers: &HeaderMap) -> (Codec, Option<&'static str>) {
    let offered = subprotocols(headers);
    let bearer_at = offered.iter().position(|name| name == BEARER_SUBPROTOCOL);
    let codec = offered
        .iter()
        .enumerate()
        .filter(|(index, _)| bearer_at.is_none_or(|bearer| *index != bearer + 1))
        .find_map(|(_, name)| Codec::from_subprotocol(name));
    match codec {
        Some(codec) => (codec, Some(codec.subprotocol())),
        None => (Codec::Json, bearer_at.map(|_| BEARER_SUBPROTOCOL)),
    }
}
