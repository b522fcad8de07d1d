//! When no file descriptor is left: a spare one is given up so that whoever waits in the listener's queue is
//! told 503 instead of being left hanging.
//!
//! It must not know: routes, nodes, what the client wanted.

use std::fs::File;
use std::io;
use std::net::Shutdown;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::net::{TcpListener, TcpStream};

/// Pause between two rounds: connections that end give room again.
const PAUSE: Duration = Duration::from_millis(50);
/// Clients that are told in one round.
const ROUND: usize = 128;
/// The answer, whatever was asked. The code is that of `codes.rs`; there is no request to give an id to.
const OVERLOADED: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\n\
    content-type: application/json\r\nretry-after: 5\r\nconnection: close\r\ncontent-length: 82\r\n\r\n\
    {\"error\":\"This node is full\",\"code\":\"UNAVAILABLE\",\"details\":{},\"request_id\":null}\n";

/// See the module.
pub(super) struct Reserve {
    spare: Option<File>,
}

impl Reserve {
    /// Sets a descriptor aside.
    pub(super) fn new() -> Self {
        Self { spare: spare() }
    }

    /// After `accept` failed with `error`. Other failures than a lack of descriptors are one peer's, and cost
    /// nobody else a pause.
    pub(super) async fn relieve(&mut self, listener: &TcpListener, error: &io::Error) {
        if !is_exhausted(error) {
            tracing::debug!(%error, "a socket could not be accepted");
            return tokio::task::yield_now().await;
        }
        tracing::warn!(%error, "no socket can be accepted; clients are told to come later");
        for _ in 0..ROUND {
            drop(self.spare.take());
            let waiting = listener.accept().now_or_never();
            if let Some(Ok((socket, _))) = &waiting {
                refuse(socket);
            }
            let nobody_waits = !matches!(waiting, Some(Ok(_)));
            drop(waiting);
            self.spare = spare();
            if nobody_waits {
                break;
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn is_exhausted(error: &io::Error) -> bool {
    const ENOMEM: i32 = 12;
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    const ENOBUFS: i32 = 105;
    matches!(error.raw_os_error(), Some(ENOMEM | ENFILE | EMFILE | ENOBUFS))
}

fn spare() -> Option<File> {
    File::open("/dev/null").ok()
}

/// Answers without waiting. A request that was read leaves nothing behind that would turn the close into a reset.
fn refuse(socket: &TcpStream) {
    let mut request = [0; 4096];
    let socket = socket2::SockRef::from(socket);
    let _nothing_yet = io::Read::read(&mut &*socket, &mut request);
    let _gone = socket.send(OVERLOADED);
    let _gone = socket.shutdown(Shutdown::Write);
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn clients_that_cannot_be_taken_are_told_when_to_come_back() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("an address");
        let mut clients = Vec::new();
        for _ in 0..4 {
            let mut client = TcpStream::connect(address).await.expect("connected");
            client.write_all(b"GET /ws HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("written");
            clients.push(client);
        }
        // As in the accept loop: the listener is known to have somebody waiting.
        drop(listener.accept().await.expect("the first one"));
        clients.remove(0);
        let mut reserve = Reserve::new();
        reserve.relieve(&listener, &io::Error::from_raw_os_error(24)).await;
        for mut client in clients {
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.expect("an answer, not a reset");
            let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
            assert!(head.starts_with("HTTP/1.1 503 ") && head.contains("retry-after: 5"), "{head}");
            assert!(head.contains(&format!("content-length: {}", body.len())), "{head} {body}");
            assert!(body.contains("UNAVAILABLE"));
        }
    }

    #[test]
    fn one_peers_failure_is_not_the_nodes() {
        assert!(is_exhausted(&io::Error::from_raw_os_error(24)));
        assert!(!is_exhausted(&io::Error::from(io::ErrorKind::ConnectionAborted)));
    }
}
