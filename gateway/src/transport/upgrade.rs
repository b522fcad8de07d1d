//! WebSocket handshakes that come whole in the first bytes of a socket, as nearly all do: read and answered without hyper,
//! whose layers cost a connect more than everything else about it. Whatever else comes first, and whatever is refused,
//! is hyper's, which gets the bytes that were read.
//!
//! It must not know: credentials, profiles, what a connection does.

use std::cell::RefCell;
use std::io;

use carillon_protocol::Profile;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Uri};

use crate::socket::Socket;

/// A longer head is hyper's.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// A head with more lines is hyper's.
const HEADERS_MAX: usize = 64;

thread_local! {
    static READ_BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; HEAD_BYTES_MAX].into());
}

/// The first bytes of a socket.
pub(super) struct First {
    /// All of them.
    pub(super) bytes: Vec<u8>,
    /// The handshake that they hold, if they hold one.
    pub(super) upgrade: Option<Upgrade>,
}

/// A request for a WebSocket.
#[derive(Debug)]
pub(super) struct Upgrade {
    pub(super) uri: Uri,
    pub(super) headers: HeaderMap,
    /// Bytes of the head; what follows is the client's first messages.
    pub(super) head_bytes: usize,
}

/// Waits for the first bytes. Cancel safe.
///
/// # Errors
/// The socket's, or its end.
pub(super) async fn first(socket: &Socket) -> io::Result<First> {
    loop {
        // Mostly they are there when the socket is accepted: asking first would be a question more.
        let read = READ_BUFFER.with_borrow_mut(|buffer| match socket.try_read(buffer) {
            Ok(0) => Some(Err(io::ErrorKind::UnexpectedEof.into())),
            Ok(read) => {
                let bytes = &buffer[..read];
                Some(Ok(First { upgrade: Upgrade::read(bytes), bytes: bytes.to_vec() }))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) => Some(Err(error)),
        });
        match read {
            Some(first) => return first,
            None => std::future::poll_fn(|cx| socket.poll_read_ready(cx)).await?,
        }
    }
}

impl Upgrade {
    /// The request at the beginning of `bytes`, if it is whole, without a body, and asks for a WebSocket.
    fn read(bytes: &[u8]) -> Option<Self> {
        let mut lines = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut request = httparse::Request::new(&mut lines);
        let httparse::Status::Complete(head_bytes) = request.parse(bytes).ok()? else {
            return None;
        };
        if request.method != Some("GET") || request.version != Some(1) {
            return None;
        }
        let is_upgrade = request.headers.iter().any(|line| {
            line.name.eq_ignore_ascii_case(UPGRADE.as_str())
                && line.value.eq_ignore_ascii_case(b"websocket")
        });
        if !is_upgrade {
            return None;
        }
        let mut headers = HeaderMap::with_capacity(request.headers.len());
        for line in request.headers.iter() {
            let name = HeaderName::from_bytes(line.name.as_bytes()).ok()?;
            headers.append(name, HeaderValue::from_bytes(line.value).ok()?);
        }
        if headers.contains_key(CONTENT_LENGTH) || headers.contains_key(TRANSFER_ENCODING) {
            return None;
        }
        Some(Self { uri: request.path?.parse().ok()?, headers, head_bytes })
    }

    /// The endpoint that is asked for: its profile, and the name in `/ws/{name}`. `None` for other paths.
    pub(super) fn endpoint(&self) -> Option<(Profile, Option<&str>)> {
        match self.uri.path() {
            "/ws" => Some((Profile::Social, None)),
            "/api/realtime/ws" => Some((Profile::Uno, None)),
            "/" => Some((Profile::Excore, None)),
            path => {
                let name = path.strip_prefix("/ws/")?;
                (!name.is_empty() && !name.contains('/')).then_some((Profile::Social, Some(name)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HANDSHAKE: &str = "GET /ws/chat?token=t HTTP/1.1\r\nHost: a\r\nUpgrade: WebSocket\r\n\
        Connection: keep-alive, Upgrade\r\nCookie: a=1\r\nCookie: b=2\r\n\r\n";

    #[test]
    fn handshake_is_read_with_what_follows_it() {
        let bytes = [HANDSHAKE.as_bytes(), b"\x81\x80after"].concat();
        let upgrade = Upgrade::read(&bytes).expect("a handshake");
        assert_eq!(&bytes[upgrade.head_bytes..], b"\x81\x80after");
        assert_eq!(upgrade.uri.query(), Some("token=t"));
        assert_eq!(upgrade.headers.get_all("cookie").iter().count(), 2);
        assert_eq!(upgrade.endpoint(), Some((Profile::Social, Some("chat"))));
    }

    #[test]
    fn everything_else_is_left_to_hyper() {
        for (from, to) in [
            ("\r\n\r\n", "\r\n"),
            ("GET", "POST"),
            ("HTTP/1.1", "HTTP/1.0"),
            ("WebSocket", "h2c"),
            ("Host: a", "Content-Length: 2"),
            ("Host: a", "Transfer-Encoding: chunked"),
            ("Host: a", "Ho st: a"),
        ] {
            let other = HANDSHAKE.replacen(from, to, 1);
            assert!(Upgrade::read(other.as_bytes()).is_none(), "{other}");
        }
        for path in ["/ws/", "/ws/a/b", "/metrics", "/api/realtime/events"] {
            let other = HANDSHAKE.replacen("/ws/chat?token=t", path, 1);
            let upgrade = Upgrade::read(other.as_bytes()).expect("a handshake");
            assert_eq!(upgrade.endpoint(), None, "{path}");
        }
    }
}
