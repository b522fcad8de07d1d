//! How a connection ends: the last words, everything taken back, and the peer's own end awaited.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use carillon_protocol::CloseCode;
use carillon_protocol::envelope::ServerMessage;
use carillon_protocol::websocket::close_frame;
use tokio_util::sync::CancellationToken;

use super::reading::READ_BUFFER;
use super::{Driver, Ending};
use crate::connection::Transport;
use crate::connection::outbox::Outbox;
use crate::socket::Socket;

/// How long a closing connection waits for its last bytes to leave.
const GOODBYE: Duration = Duration::from_secs(3);
/// How much longer one waits whose peer had stopped reading: it cannot hear why before it reads again (R23).
const STALLED: Duration = Duration::from_secs(27);

impl Driver {
    /// Takes everything back, silently: the end of a driver made with [`Driver::brief`].
    pub(crate) fn end_brief(&mut self) {
        self.release_subscriptions();
        self.node.hub.detach(&self.connection.id);
        self.node.metrics.closed(self.connection.transport, "client");
        self.connection.outbox.fail();
    }

    /// Says goodbye where that is due, and takes everything back.
    pub(super) async fn end(mut self: Box<Self>, ending: Ending) {
        let socket = self.socket.clone();
        let socket = socket.as_deref();
        let connection = Arc::clone(&self.connection);
        let outbox = &connection.outbox;
        if let Ending::Said(code) = ending {
            if code.announced() {
                connection.push(&disconnect(code));
            }
            if connection.transport == Transport::WebSocket {
                outbox.push_last(close_frame(code.number(), code.reason()));
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
        if let (Ending::Said(code), Some(socket)) = (ending, socket) {
            // Let the last bytes out, and wait for the peer to close first: a reset would take the
            // close frame with it.
            tokio::select! {
                () = linger(outbox, socket) => {}
                () = patience(code, &self.node.stop) => {}
            }
        }
        outbox.fail();
        if let Some(socket) = socket {
            socket.shut();
        }
        tracing::debug!(connection = %connection.id, remote = connection.remote.map(tracing::field::display), reason, "connection ended");
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

/// Completes when a closing connection has been waited for long enough. Who is cut for not reading has its seat and its queue
/// for so long, and no subscription any more.
async fn patience(code: CloseCode, stop: &CancellationToken) {
    tokio::time::sleep(GOODBYE).await;
    if code == CloseCode::SlowConsumer {
        let _ = tokio::time::timeout(STALLED, stop.cancelled()).await;
    }
}

async fn linger(outbox: &Outbox, socket: &Socket) {
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
