//! Accepting client sockets: bounded in number, survives running out of file descriptors, closes
//! what never says anything. One hyper connection a socket until a transport takes it over.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper_util::rt::TokioTimer;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::client_io::{ClientIo, Gate, Peer};
use super::proxy;
use super::reserve::Reserve;
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
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        match accepted {
            Ok((socket, address)) => {
                let router = router.clone();
                node.tasks.spawn(serve(
                    node.stop.clone(),
                    socket,
                    address,
                    router,
                    Arc::clone(&node),
                ));
            }
            Err(error) => {
                node.metrics.refused("accept_error");
                reserve.relieve(&listener, &error).await;
            }
        }
    }
}

async fn serve(
    stop: CancellationToken,
    socket: TcpStream,
    address: SocketAddr,
    router: Router,
    node: Arc<Node>,
) {
    let accepted_at = Instant::now();
    prepare(&socket, &node);
    let opened = tokio::select! {
        opened = tokio::time::timeout(OPEN_TIMEOUT, open(socket, address, &node)) => opened,
        () = stop.cancelled() => return,
    };
    let (socket, address) = match opened {
        Ok(Ok((socket, address))) => (Arc::new(socket), address),
        Ok(Err(error)) => {
            tracing::debug!(%error, %address, "a client's handshake failed");
            return node.metrics.refused("handshake");
        }
        Err(_) => {
            tracing::debug!(%address, "a client's handshake took too long");
            return node.metrics.refused("handshake");
        }
    };
    let gate = Gate::default();
    let metrics = Arc::clone(&node.metrics);
    let peer = Peer { remote: address, socket: Some(Arc::clone(&socket)), gate: gate.clone() };
    let service = hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
        let mut request: Request = request.map(axum::body::Body::new);
        let proxies = &node.config.load().server.trusted_proxies;
        let remote = proxy::client(address, request.headers(), proxies);
        request.extensions_mut().insert(Peer { remote, ..peer.clone() });
        router.clone().oneshot(request)
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT.saturating_sub(accepted_at.elapsed()))
        .max_buf_size(READ_BUFFER_BYTES_MAX)
        .serve_connection(ClientIo::new(socket, gate), service)
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
async fn open(
    mut socket: TcpStream,
    address: SocketAddr,
    node: &Node,
) -> io::Result<(Socket, IpAddr)> {
    let mut address = address.ip().to_canonical();
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

fn prepare(socket: &TcpStream, node: &Node) {
    let socket = socket2::SockRef::from(socket);
    // Failing to set an option is no reason to refuse a client.
    let _ = socket.set_tcp_nodelay(true);
    let timeout = node.config.load().heartbeat.timeout;
    if !timeout.is_zero() {
        let _ = socket.set_tcp_user_timeout(Some(timeout));
    }
}
