//! A client's socket under hyper, with a way past it.
//!
//! WebSockets and event streams are written by the fan-out itself. A WebSocket is taken back
//! from hyper by its upgrade; an event stream cannot be, so hyper writes the response's head, its body
//! stays pending for ever, and the [`Gate`] tells when the head has left, after which the
//! fan-out may write chunks of its own. See `docs/decisions/0002-writing-past-hyper.md`.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::rt::{Read, ReadBufCursor, Write};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::connection::Connection;
use crate::socket::Socket;

/// Runs once when hyper has flushed everything it had for the socket.
#[derive(Clone, Default)]
pub struct Gate {
    waiting: Arc<Mutex<Option<Arc<Connection>>>>,
}

impl Gate {
    /// The connection's outbox is released at the next complete flush.
    pub fn arm(&self, connection: Arc<Connection>) {
        *self.waiting.lock() = Some(connection);
    }

    fn flushed(&self) {
        if let Some(connection) = self.waiting.lock().take() {
            connection.outbox.release();
        }
    }
}

/// What a request may know of the socket it came on.
#[derive(Clone)]
pub struct Peer {
    /// Who is at the other end, as the socket and trusted proxies say.
    pub remote: std::net::IpAddr,
    /// The socket itself; `None` where bytes cannot be written past hyper.
    pub socket: Option<Arc<Socket>>,
    /// Tells when the response's head has left.
    pub gate: Gate,
}

/// See the module.
pub struct ClientIo {
    socket: Arc<Socket>,
    gate: Gate,
    /// Read from the socket already, and not by hyper yet.
    first: Bytes,
}

impl ClientIo {
    /// Wraps an accepted socket from which `first` was read already.
    #[must_use]
    pub fn new(socket: Arc<Socket>, gate: Gate, first: Bytes) -> Self {
        Self { socket, gate, first }
    }
}

impl AsyncRead for ClientIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            std::task::ready!(self.socket.poll_read_ready(cx))?;
            match self.socket.try_read(buf.initialize_unfilled()) {
                Ok(bytes) => {
                    buf.advance(bytes);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for ClientIo {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            std::task::ready!(self.socket.poll_write_ready(cx))?;
            match self.socket.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return Poll::Ready(other),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            match self.socket.try_flush() {
                Ok(()) => break,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    std::task::ready!(self.socket.poll_write_ready(cx))?;
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        self.gate.flushed();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.socket.finish())
    }
}

// hyper's own traits, by way of tokio's; without hyper-util's wrapper so that the upgrade can be
// downcast to this very type.
impl Read for ClientIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut cursor: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.first.is_empty() {
            let bytes = self.first.len().min(cursor.remaining());
            cursor.put_slice(&self.first.split_to(bytes));
            return Poll::Ready(Ok(()));
        }
        // hyper asks several times a request, mostly for nothing: then no buffer is made.
        std::task::ready!(self.socket.poll_read_ready(cx))?;
        let mut bytes = [0; 4096];
        let room = cursor.remaining().min(bytes.len());
        let mut buf = ReadBuf::new(&mut bytes[..room]);
        std::task::ready!(AsyncRead::poll_read(self, cx, &mut buf))?;
        cursor.put_slice(buf.filled());
        Poll::Ready(Ok(()))
    }
}

impl Write for ClientIo {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        AsyncWrite::poll_write(self, cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_flush(self, cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_shutdown(self, cx)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            std::task::ready!(self.socket.poll_write_ready(cx))?;
            match self.socket.try_write_vectored(slices) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return Poll::Ready(other),
            }
        }
    }
}
