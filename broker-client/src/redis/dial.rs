//! Opening a connection: TCP or TLS, login, name. Commands and hearing dial alike, so that what
//! works for one works for the other. Knows nothing of what is sent afterwards.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::endpoint::Endpoint;
use super::resp::{self, Frame, Front};
use super::settings::RedisTls;
use super::tls;

/// Any byte stream to Redis.
pub(super) trait Socket: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Socket for S {}

/// A connection that is logged in.
pub(super) struct Line {
    pub(super) socket: Box<dyn Socket>,
    /// The server says it is a master.
    pub(super) is_master: bool,
}

/// Why there is no connection.
#[derive(Clone, Debug)]
pub(super) enum DialError {
    /// Nobody answers there.
    Unreachable(String),
    /// Somebody answered, and does not want us (or the other way round).
    Refused(String),
}

impl DialError {
    pub(super) fn reason(&self) -> &str {
        match self {
            Self::Unreachable(reason) | Self::Refused(reason) => reason,
        }
    }
}

/// Dials with one installation's TLS files and patience.
pub(super) struct Dialer {
    tls: Result<TlsConnector, String>,
    patience: Duration,
}

impl Dialer {
    /// Reads the TLS files once; a file that cannot be read is reported by each dial that needs it.
    pub(super) fn new(files: &RedisTls, patience: Duration, needs_tls: bool) -> Self {
        let tls =
            if needs_tls { tls::connector(files) } else { Err("TLS is not set up".to_owned()) };
        Self { tls, patience }
    }

    /// A connection within the patience.
    pub(super) async fn dial(&self, endpoint: &Endpoint, name: &str) -> Result<Line, DialError> {
        tokio::time::timeout(self.patience, self.connect(endpoint, name)).await.unwrap_or_else(
            |_| {
                Err(DialError::Unreachable(format!(
                    "Redis {endpoint}: no answer in {:?}",
                    self.patience
                )))
            },
        )
    }

    async fn connect(&self, endpoint: &Endpoint, name: &str) -> Result<Line, DialError> {
        let unreachable =
            |error: std::io::Error| DialError::Unreachable(format!("Redis {endpoint}: {error}"));
        let refused = |reason: String| DialError::Refused(format!("Redis {endpoint}: {reason}"));
        let tcp = TcpStream::connect((endpoint.host.as_str(), endpoint.port))
            .await
            .map_err(unreachable)?;
        tcp.set_nodelay(true).map_err(unreachable)?;
        let mut socket: Box<dyn Socket> = if endpoint.tls {
            let tls = self.tls.as_ref().map_err(|reason| refused(reason.clone()))?;
            let host = ServerName::try_from(endpoint.host.clone())
                .map_err(|error| refused(error.to_string()))?;
            let stream =
                tls.connect(host, tcp).await.map_err(|error| refused(format!("TLS: {error}")))?;
            Box::new(stream)
        } else {
            Box::new(tcp)
        };
        let is_master =
            hello(&mut socket, endpoint, name).await.map_err(|failure| match failure {
                Failure::Io(error) => unreachable(error),
                Failure::Answer(text) => refused(text),
            })?;
        Ok(Line { socket, is_master })
    }
}

enum Failure {
    Io(std::io::Error),
    Answer(String),
}

/// Logs in, names the connection and learns the server's role, which needs no permission beyond
/// `@connection` (ROLE and INFO are often forbidden).
async fn hello(
    socket: &mut Box<dyn Socket>,
    endpoint: &Endpoint,
    name: &str,
) -> Result<bool, Failure> {
    let mut parts: Vec<&[u8]> = vec![b"HELLO", b"2"];
    if let Some(password) = &endpoint.password {
        let user = endpoint.user.as_deref().unwrap_or("default");
        parts.extend([&b"AUTH"[..], user.as_bytes(), password.as_bytes()]);
    }
    parts.extend([&b"SETNAME"[..], name.as_bytes()]);
    let (answer, bytes) = ask(socket, &parts).await?;
    if endpoint.db != 0 {
        ask(socket, &[b"SELECT", endpoint.db.to_string().as_bytes()]).await?;
    }
    let Frame::Array(fields) = answer else { return Ok(true) };
    let text = |frame: &Frame| match frame {
        Frame::Text(range) => bytes[range.clone()].to_vec(),
        _ => Vec::new(),
    };
    let role =
        fields.chunks_exact(2).find(|pair| text(&pair[0]) == b"role").map(|pair| text(&pair[1]));
    Ok(role.is_none_or(|role| role == b"master"))
}

async fn ask(socket: &mut Box<dyn Socket>, parts: &[&[u8]]) -> Result<(Frame, BytesMut), Failure> {
    let mut out = Vec::new();
    resp::write(&mut out, parts.iter().copied());
    socket.write_all(&out).await.map_err(Failure::Io)?;
    socket.flush().await.map_err(Failure::Io)?;
    let mut buffer = BytesMut::with_capacity(1024);
    loop {
        match resp::read(&buffer, 0).map_err(|garbled| Failure::Answer(garbled.to_string()))? {
            Front::Whole(Frame::Error(text), _) => {
                return Err(Failure::Answer(String::from_utf8_lossy(&buffer[text]).into_owned()));
            }
            Front::Whole(frame, _) => return Ok((frame, buffer)),
            Front::Partial(_) => {
                if socket.read_buf(&mut buffer).await.map_err(Failure::Io)? == 0 {
                    return Err(Failure::Io(std::io::ErrorKind::UnexpectedEof.into()));
                }
            }
        }
    }
}

/// One question to a fresh connection (sentinels, slot maps); the answer's texts, nested ones in order.
pub(super) async fn question(
    dialer: &Dialer,
    endpoint: &Endpoint,
    name: &str,
    parts: &[&[u8]],
) -> Result<Vec<String>, DialError> {
    let mut line = dialer.dial(endpoint, name).await?;
    let asked = tokio::time::timeout(dialer.patience, ask(&mut line.socket, parts)).await;
    match asked {
        Ok(Ok((frame, bytes))) => {
            let mut texts = Vec::new();
            collect(&frame, &bytes, &mut texts);
            Ok(texts)
        }
        Ok(Err(Failure::Answer(text))) => {
            Err(DialError::Refused(format!("Redis {endpoint}: {text}")))
        }
        Ok(Err(Failure::Io(error))) => {
            Err(DialError::Unreachable(format!("Redis {endpoint}: {error}")))
        }
        Err(_) => Err(DialError::Unreachable(format!("Redis {endpoint}: no answer"))),
    }
}

fn collect(frame: &Frame, bytes: &[u8], texts: &mut Vec<String>) {
    match frame {
        Frame::Text(range) => {
            texts.push(String::from_utf8_lossy(&bytes[range.clone()]).into_owned());
        }
        Frame::Array(items) => items.iter().for_each(|item| collect(item, bytes, texts)),
        Frame::Integer(_) | Frame::Error(_) | Frame::Nil => {}
    }
}

/// A dialer that several tasks share.
pub(super) type SharedDialer = Arc<Dialer>;
