//! Accepting client sockets: bounded in number, survives running out of file descriptors, closes
//! what never says anything. A WebSocket's handshake is answered here and driven by the socket's own task; every
//! other socket is a hyper connection until a transport takes it over.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use carillon_protocol::envelope::Refusal;
use http::Method;
use hyper::body::Incoming;
use hyper_util::rt::TokioTimer;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::client_io::{ClientIo, Gate, Peer};
use super::proxy;
use super::reserve::Reserve;
use super::upgrade;
use super::websocket::{self, Asked, Refused};
use crate::connection::driver::Driver;
use crate::node::Node;
use crate::socket::Socket;

/// A socket that has not sent its first request's head by then is closed, and one that is idle for so long between
/// two requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How much of that a proxy's header and a TLS handshake may take.
const OPEN_TIMEOUT: Duration = Duration::from_secs(8);
/// hyper's read buffer: heads are small, bodies are read through it.
const READ_BUFFER_BYTES_MAX: usize = 64 * 1024;

/// Accepts until `stop`; every socket is served by a task of the node.
pub async fn accept(
    node: Arc<Node>,
    listener: TcpListener,
    router: Router,
    stop: CancellationToken,
) {
    let mut reserve = Reserve::new();
    prepare(&listener, &node);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        match accepted {
            Ok((socket, address)) => {
                // Boxed: what a handshake needs must not stay with the task of the connection.
                let opening = serve(Arc::clone(&node), socket, address.ip(), router.clone());
                node.tasks.spawn(drive(Box::pin(opening)));
            }
            Err(error) => {
                node.metrics.refused("accept_error");
                reserve.relieve(&listener, &error).await;
            }
        }
    }
}

/// A socket's task. What it opens it drives itself.
async fn drive(opening: impl Future<Output = Option<Box<Driver>>> + Unpin) {
    if let Some(driver) = opening.await {
        driver.run_websocket().await;
    }
}

/// Serves a socket until its end, or until it is a WebSocket that was welcomed.
async fn serve(
    node: Arc<Node>,
    socket: TcpStream,
    address: IpAddr,
    router: Router,
) -> Option<Box<Driver>> {
    let accepted_at = Instant::now();
    let left = || HEAD_TIMEOUT.saturating_sub(accepted_at.elapsed());
    let opened = tokio::time::timeout(OPEN_TIMEOUT, open(socket, address, &node));
    let (socket, address) = match node.stop.run_until_cancelled(opened).await? {
        Ok(Ok((socket, address))) => (Arc::new(socket), address),
        Ok(Err(error)) => {
            tracing::debug!(%error, %address, "a client's handshake failed");
            node.metrics.refused("handshake");
            return None;
        }
        Err(_) => {
            tracing::debug!(%address, "a client's handshake took too long");
            node.metrics.refused("handshake");
            return None;
        }
    };
    let first = tokio::time::timeout(left(), upgrade::first(&socket));
    let Ok(first) = node.stop.run_until_cancelled(first).await? else {
        node.metrics.refused("silent");
        return None;
    };
    let mut first = first.ok()?;
    let mut refused = None;
    if let Some(upgrade) = first.upgrade.take()
        && let Some((profile, name)) = upgrade.endpoint()
    {
        let remote = {
            let config = node.config.load();
            proxy::client(address, &upgrade.headers, &config.server.trusted_proxies)
        };
        let asked = Asked {
            method: &Method::GET,
            uri: &upgrade.uri,
            headers: &upgrade.headers,
            remote: Some(remote),
        };
        let early = &first.bytes[upgrade.head_bytes..];
        match websocket::welcome(&node, &socket, asked, profile, name, early).await {
            Ok(driver) => return Some(driver),
            Err(refusal) => refused = Some(refusal),
        }
    }
    // Boxed: most sockets are WebSockets, whose handshake is small beside hyper.
    let head_timeout = left().max(HEAD_TIMEOUT - OPEN_TIMEOUT);
    Box::pin(serve_http(node, socket, address, router, (first.bytes, refused), head_timeout)).await;
    None
}

/// Serves a socket from which `first` was read already. A handshake in it that was `refused` is answered so. A head may
/// take `head_timeout`.
async fn serve_http(
    node: Arc<Node>,
    socket: Arc<Socket>,
    address: IpAddr,
    router: Router,
    (first, refused): (Vec<u8>, Option<Refusal>),
    head_timeout: Duration,
) {
    let gate = Gate::default();
    let (metrics, stop) = (Arc::clone(&node.metrics), node.stop.clone());
    let peer = Peer { remote: address, socket: Some(Arc::clone(&socket)), gate: gate.clone() };
    let refused = Mutex::new(refused.map(Refused));
    let service = hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
        let mut request: Request = request.map(axum::body::Body::new);
        let proxies = &node.config.load().server.trusted_proxies;
        let remote = proxy::client(address, request.headers(), proxies);
        request.extensions_mut().insert(Peer { remote, ..peer.clone() });
        if let Some(refused) = refused.lock().take() {
            request.extensions_mut().insert(refused);
        }
        router.clone().oneshot(request)
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head_timeout)
        .max_buf_size(READ_BUFFER_BYTES_MAX)
        .serve_connection(ClientIo::new(socket, gate, first.into()), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let served = tokio::select! {
        served = &mut connection => served,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        if error.is_timeout() {
            metrics.refused("silent");
        }
        tracing::trace!(%error, "a client connection ended");
    }
}

/// What stands between an accepted socket and its first request: a trusted proxy's word on whose socket it is,
/// and TLS.
async fn open(mut socket: TcpStream, address: IpAddr, node: &Node) -> io::Result<(Socket, IpAddr)> {
    let mut address = address.to_canonical();
    let trusted = proxy::is_trusted(address, &node.config.load().server.trusted_proxies);
    if trusted && let Some(client) = proxy::read_header(&mut socket).await? {
        address = client;
    }
    let socket = match &node.tls {
        Some(tls) => Socket::accept_tls(&tls.acceptor, socket).await?,
        None => Socket::Plain(socket),
    };
    Ok((socket, address))
}

/// Options of every client's socket: those that are accepted have them from the listener.
fn prepare(listener: &TcpListener, node: &Node) {
    let listener = socket2::SockRef::from(listener);
    // Failing to set an option is no reason to refuse clients.
    let _ = listener.set_tcp_nodelay(true);
    let timeout = node.config.load().heartbeat.timeout;
    if !timeout.is_zero() {
        let _ = listener.set_tcp_user_timeout(Some(timeout));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn task_of_an_idle_websocket_is_small() {
        // tokio's part is some 100 bytes, and the whole is rounded up to multiples of 128.
        let task = drive(std::future::ready(None));
        assert!(size_of_val(&task) <= 144, "{} bytes", size_of_val(&task));
    }
}
