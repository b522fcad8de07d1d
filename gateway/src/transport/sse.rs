//! Event streams: hyper writes the head, the fan-out writes the events. `protocol.md` 1 and 4,
//! rulings R22, R26.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use carillon_protocol::codec::gzip;
use carillon_protocol::envelope::Refusal;
use carillon_protocol::{CloseCode, Profile};
use http::header::{
    ACCEPT_ENCODING, CACHE_CONTROL, CONNECTION, CONTENT_ENCODING, CONTENT_TYPE, VARY,
};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, StatusCode, Version};
use http_body::Frame;
use tokio::sync::oneshot;

use super::client_io::{Gate, Peer};
use super::handshake::{Handshake, Query};
use crate::connection::driver::Driver;
use crate::connection::outbox::{Outbox, Wire};
use crate::connection::{Connection, Transport};
use crate::dispatch::{Dress, Medium};
use crate::node::{Doorway, Node};
use crate::rest::ApiError;

/// What an EventSource waits before it comes back, milliseconds.
const RETRY_MS: u32 = 2_000;

/// `GET /api/realtime/events`: profile `uno`.
pub async fn uno(state: State<Arc<Node>>, request: Request) -> Response {
    serve(state.0, request, Profile::Uno).await
}

/// `GET /api/events`, `GET /events`: profile `excore`.
pub async fn excore(state: State<Arc<Node>>, request: Request) -> Response {
    serve(state.0, request, Profile::Excore).await
}

async fn serve(node: Arc<Node>, request: Request, profile: Profile) -> Response {
    match open(node, request.into_parts().0, profile).await {
        Ok(response) => response,
        Err(refusal) => ApiError::from(refusal).into_response(),
    }
}

async fn open(node: Arc<Node>, request: Parts, default: Profile) -> Result<Response, Refusal> {
    let query = Query::parse(request.uri.query());
    let handshake = Handshake::accept(&node, &request.headers, &query, default).await?;
    let user = handshake.claims.as_ref().map(|claims| claims.user.clone());
    if user.as_ref().is_some_and(|user| node.banished.is_banished(user)) {
        // An EventSource comes back for ever unless it is told that there is nothing (R26).
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let doorway = node.doors.enter().await.inspect_err(|_| node.metrics.refused("storm"))?;
    let admitted = node.admit(user.as_ref()).await?;
    let peer = request.extensions.get::<Peer>().cloned();
    let socket = peer.as_ref().and_then(|peer| peer.socket.clone());
    let wire = socket.clone().map_or(Wire::Pulled, Wire::Socket);
    // hyper frames an HTTP/1.1 response of unknown length as chunks; what is written past it must be framed too.
    let chunked = socket.is_some() && request.version == Version::HTTP_11;
    let offered = node.config.load().compression.sse;
    let compressed = offered && accepts_gzip(&request.headers);
    let opening = format!("retry: {RETRY_MS}\n\n");
    let (opening, sum) = if compressed {
        let (opening, sum) = gzip::open(opening.as_bytes());
        (opening, Some(sum))
    } else {
        (opening.into_bytes(), None)
    };
    let outbox =
        Outbox::new(wire, node.config.load().limits.queue_bytes_max()).for_sse(chunked, sum);
    let dress = Dress { medium: Medium::Sse, profile: handshake.profile, compressed };
    let remote = peer.as_ref().map(|peer| peer.remote);
    let connection =
        Connection::new(admitted.id.clone(), user, Transport::Sse, dress, remote, outbox);
    let (alive, gone) = oneshot::channel();
    let body = EventStream {
        connection: Arc::clone(&connection),
        gate: socket.is_some().then(|| peer.map(|peer| peer.gate)).flatten(),
        opening: Some(opening.into()),
        _alive: alive,
    };
    let driver =
        Box::new(Driver::new(Arc::clone(&node), connection, handshake.claims, admitted, socket));
    let (greeted, welcomed) = oneshot::channel();
    let tasks = node.tasks.clone();
    let Handshake { channels, resume, .. } = handshake;
    tasks.spawn(start(node, driver, doorway, channels, resume, greeted, gone));
    // The head says that the stream is open: what is published after it must be heard. Waited for here and done there,
    // so that a client that goes away meanwhile is deregistered like any other.
    let _ = welcomed.await;
    let mut response = Response::new(Body::new(body));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, no-transform"));
    if compressed {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    if offered {
        headers.append(VARY, HeaderValue::from_static("accept-encoding"));
    }
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    // What 1.1 means anyway, for clients and proxies that look for it.
    if chunked {
        headers.insert(CONNECTION, HeaderValue::from_static("keep-alive"));
    }
    Ok(response)
}

/// Whether the client takes gzip, named or by `*`, and does not give it a weight of nothing.
fn accepts_gzip(headers: &HeaderMap) -> bool {
    let weight = |name: &str| {
        headers
            .get_all(ACCEPT_ENCODING)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .map(|coding| coding.split_once(';').unwrap_or((coding, "")))
            .find(|(coding, _)| coding.trim().eq_ignore_ascii_case(name))
            .map(|(_, weight)| {
                let weight = weight.trim().strip_prefix("q=").unwrap_or("1");
                weight.trim().parse::<f32>().is_ok_and(|weight| weight > 0.0)
            })
    };
    weight("gzip").or_else(|| weight("*")).unwrap_or(false)
}

async fn start(
    node: Arc<Node>,
    mut driver: Box<Driver>,
    doorway: Doorway,
    channels: Vec<String>,
    resume: crate::connection::welcome::Resume,
    greeted: oneshot::Sender<()>,
    mut gone: oneshot::Receiver<()>,
) {
    // The welcome is queued; the gate lets it out behind the response's head.
    driver.holds_back(greeted);
    let connection = Arc::clone(&driver.connection);
    let mut is_gone = false;
    {
        let mut welcome = Box::pin(driver.welcome(&channels, resume));
        tokio::select! {
            biased;
            () = &mut welcome => {}
            // Dropped with the body when hyper sees the peer go.
            _ = &mut gone => {
                is_gone = true;
                // Nobody makes room any more.
                connection.outbox.close(CloseCode::Normal);
                welcome.await;
            }
        }
    }
    drop(doorway);
    driver.let_head_out();
    node.tasks.spawn(driver.run_listener(async move {
        if !is_gone {
            let _ = gone.await;
        }
    }));
}

/// The response's body: the opening line through hyper, then silence while the fan-out writes to
/// the socket itself — or, without a socket of our own, whatever the outbox holds.
struct EventStream {
    connection: Arc<Connection>,
    gate: Option<Gate>,
    opening: Option<Bytes>,
    _alive: oneshot::Sender<()>,
}

impl http_body::Body for EventStream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(opening) = self.opening.take() {
            return Poll::Ready(Some(Ok(Frame::data(opening))));
        }
        match self.gate.take() {
            Some(gate) => {
                gate.arm(Arc::clone(&self.connection));
                Poll::Pending
            }
            None => self
                .connection
                .outbox
                .poll_pulled(cx)
                .map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes)))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gzip_is_for_who_takes_it() {
        for (given, taken) in [
            ("gzip", true),
            ("br, GZIP;q=0.5", true),
            ("deflate, gzip ; q=1", true),
            ("*", true),
            ("gzip;q=0", false),
            ("gzip;q=0, *", false),
            ("*;q=0", false),
            ("identity", false),
            ("gzip;q=much", false),
            ("", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static(given));
            assert_eq!(accepts_gzip(&headers), taken, "{given:?}");
        }
        assert!(!accepts_gzip(&HeaderMap::new()));
    }
}
