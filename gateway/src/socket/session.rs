//! TLS over a socket that several threads share: one short lock around rustls, never held across an
//! await. Handshakes are over when a session begins.

use std::io::{self, IoSlice, Read, Write};

use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio_rustls::rustls::ServerConnection;

/// See the module.
#[derive(Debug)]
pub struct Session {
    socket: TcpStream,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    connection: ServerConnection,
    /// Decrypted bytes that nobody has read. The socket need not become readable for them.
    unread: usize,
}

impl Session {
    pub(super) fn new(socket: TcpStream, mut connection: ServerConnection) -> Self {
        // What came with the handshake. An error comes back at the first read.
        let unread = connection
            .process_new_packets()
            .map_or(0, |progress| progress.plaintext_bytes_to_read());
        Self { socket, state: Mutex::new(State { connection, unread }) }
    }

    pub(super) fn tcp(&self) -> &TcpStream {
        &self.socket
    }

    pub(super) fn has_unread(&self) -> bool {
        self.state.lock().unread > 0
    }

    pub(super) fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut state = self.state.lock();
        while state.unread == 0 {
            // A peer that goes without a close_notify is a peer that went.
            if state.connection.read_tls(&mut Tcp(&self.socket))? == 0 {
                return Ok(0);
            }
            let progress = state.connection.process_new_packets();
            // Alerts and answers to key updates; what does not leave now leaves with the next write.
            let flushed = state.flush(&self.socket);
            let progress =
                progress.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            match flushed {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                _ => {}
            }
            state.unread = progress.plaintext_bytes_to_read();
            if state.unread == 0 && progress.peer_has_closed() {
                return Ok(0);
            }
        }
        let read = state.connection.reader().read(buffer)?;
        state.unread -= read;
        Ok(read)
    }

    pub(super) fn try_write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut state = self.state.lock();
        // Nothing is taken while encrypted bytes wait: rustls holds one call's worth (64 KiB) at most.
        state.flush(&self.socket)?;
        let taken = state.connection.writer().write_vectored(slices)?;
        match state.flush(&self.socket) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(taken),
        }
    }

    pub(super) fn try_flush(&self) -> io::Result<()> {
        self.state.lock().flush(&self.socket)
    }

    /// Tells the peer that nothing follows, so that it knows an end from a cut.
    pub(super) fn say_goodbye(&self) {
        let mut state = self.state.lock();
        state.connection.send_close_notify();
        // The socket is ended next; what does not fit now never will.
        let _ = state.flush(&self.socket);
    }
}

impl State {
    fn flush(&mut self, socket: &TcpStream) -> io::Result<()> {
        while self.connection.wants_write() {
            if self.connection.write_tls(&mut Tcp(socket))? == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
        }
        Ok(())
    }
}

/// The socket as rustls wants it.
struct Tcp<'a>(&'a TcpStream);

impl Read for Tcp<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(buffer)
    }
}

impl Write for Tcp<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
