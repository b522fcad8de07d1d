//! A client's socket, plain or under TLS, read and written by whoever has something to do with it and
//! without ever waiting: the fan-out writes, the connection's task reads. All clients are the same to
//! the outbox; a plain socket costs one branch more than none.
//!
//! It must not know: HTTP, frames, connections.

pub mod burst;
mod certificates;
mod pipe;
mod session;
#[cfg(test)]
mod tests;
mod traffic;

use std::io::{self, IoSlice, Read as _};
use std::net::Shutdown;
use std::sync::Arc;
use std::task::{Context, Poll};

use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

pub use certificates::{Certificates, Tls, TlsError};
pub use pipe::{PipeEnd, pipe};
use session::Session;
pub use traffic::traffic;

/// See the module.
#[derive(Debug)]
pub enum Socket {
    /// Bytes as they are.
    Plain(TcpStream),
    /// Bytes in TLS records.
    Tls(Box<Session>),
    /// In memory, for the simulation. hyper never sees one.
    Memory(Arc<PipeEnd>),
}

/// Less than there is room for was all there was: the runtime is told so, and the next look costs no system call. The edge of
/// epoll tells of what comes later; a peer's end stays known.
fn try_read_all(socket: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    let mut some = 0;
    let read = socket.try_io(Interest::READABLE, || {
        let bytes = (&*SockRef::from(socket)).read(buffer)?;
        if bytes == 0 || bytes == buffer.len() {
            return Ok(bytes);
        }
        some = bytes;
        Err(io::ErrorKind::WouldBlock.into())
    });
    if some > 0 { Ok(some) } else { read }
}

impl Socket {
    /// Performs the server's side of a TLS handshake. Not cancel safe: a dropped handshake drops the socket.
    ///
    /// # Errors
    /// The peer speaks no TLS, or none that we speak; it was told so by an alert.
    pub async fn accept_tls(acceptor: &TlsAcceptor, socket: TcpStream) -> io::Result<Self> {
        let (socket, connection) = acceptor.accept(socket).await?.into_inner();
        Ok(Self::Tls(Box::new(Session::new(socket, connection))))
    }

    fn tcp(&self) -> io::Result<&TcpStream> {
        match self {
            Self::Plain(socket) => Ok(socket),
            Self::Tls(session) => Ok(session.tcp()),
            Self::Memory(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Reads what is there; 0 is the peer's end.
    ///
    /// # Errors
    /// `WouldBlock` where nothing is there, others end the connection.
    pub fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => try_read_all(socket, buffer),
            Self::Tls(session) => session.try_read(buffer),
            Self::Memory(end) => end.try_read(buffer),
        }
        .inspect(|bytes| traffic::received(*bytes))
    }

    /// Writes what fits; the bytes taken.
    ///
    /// # Errors
    /// As [`Socket::try_read`].
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.try_write(bytes),
            Self::Tls(session) => session.try_write_vectored(&[IoSlice::new(bytes)]),
            Self::Memory(end) => end.try_write(bytes),
        }
        .inspect(|bytes| traffic::sent(*bytes))
    }

    /// [`Socket::try_write`] for whoever has reason to believe that there is room: it is found out by trying, not by looking first at
    /// what the runtime knows of the socket, which in a fan-out is in no cache.
    ///
    /// # Errors
    /// As [`Socket::try_read`].
    pub fn try_send(&self, bytes: &[u8]) -> io::Result<usize> {
        let Self::Plain(socket) = self else { return self.try_write(bytes) };
        match SockRef::from(socket).send(bytes) {
            // So that the runtime learns of it, and tells when there is room again.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.try_write(bytes),
            sent => sent.inspect(|bytes| traffic::sent(*bytes)),
        }
    }

    /// [`Socket::try_write`] for several slices in one system call.
    ///
    /// # Errors
    /// As [`Socket::try_read`].
    pub fn try_write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.try_write_vectored(slices),
            Self::Tls(session) => session.try_write_vectored(slices),
            Self::Memory(end) => end.try_write_vectored(slices),
        }
        .inspect(|bytes| traffic::sent(*bytes))
    }

    /// Whether all that was taken is with the kernel: TLS keeps encrypted bytes that the socket refused.
    ///
    /// # Errors
    /// `WouldBlock` where some are still here, others end the connection.
    pub fn try_flush(&self) -> io::Result<()> {
        match self {
            Self::Plain(_) | Self::Memory(_) => Ok(()),
            Self::Tls(session) => session.try_flush(),
        }
    }

    /// Waits until a read may succeed. Cancel safe.
    ///
    /// # Errors
    /// The socket is no more.
    pub async fn readable(&self) -> io::Result<()> {
        match self {
            Self::Tls(session) if session.has_unread() => Ok(()),
            Self::Memory(end) => end.readable().await,
            _ => self.tcp()?.readable().await,
        }
    }

    /// Waits until a write may succeed. Cancel safe.
    ///
    /// # Errors
    /// The socket is no more.
    pub async fn writable(&self) -> io::Result<()> {
        match self {
            Self::Memory(end) => end.writable().await,
            _ => self.tcp()?.writable().await,
        }
    }

    /// As [`Socket::readable`], for polling.
    ///
    /// # Errors
    /// The socket is no more.
    pub fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tls(session) if session.has_unread() => Poll::Ready(Ok(())),
            Self::Memory(end) => end.poll_read_ready(cx),
            _ => self.tcp()?.poll_read_ready(cx),
        }
    }

    /// As [`Socket::writable`], for polling.
    ///
    /// # Errors
    /// The socket is no more.
    pub fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Memory(end) => end.poll_write_ready(cx),
            _ => self.tcp()?.poll_write_ready(cx),
        }
    }

    /// Ends our side: the peer reads what was written, then the end.
    ///
    /// # Errors
    /// The socket is no more.
    pub fn finish(&self) -> io::Result<()> {
        match self {
            Self::Tls(session) => session.say_goodbye(),
            Self::Memory(end) => {
                end.shutdown(Shutdown::Write);
                return Ok(());
            }
            Self::Plain(_) => {}
        }
        socket2::SockRef::from(self.tcp()?).shutdown(Shutdown::Write)
    }

    /// Ends both sides at once. A socket that is no more stays so.
    pub fn shut(&self) {
        match self {
            Self::Memory(end) => end.shutdown(Shutdown::Both),
            Self::Plain(socket) => drop(socket2::SockRef::from(socket).shutdown(Shutdown::Both)),
            Self::Tls(session) => {
                drop(socket2::SockRef::from(session.tcp()).shutdown(Shutdown::Both));
            }
        }
    }
}
