//! Calls that this process makes over HTTP: JWK sets, webhooks, the command line. Pooled, http and
//! https (system roots). Must not know what is called or why.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// The longest answer that is read, in bytes.
pub const ANSWER_BYTES_MAX: usize = 16 << 20;

/// A call got no answer. Whether the peer acted on it is unknown.
#[derive(Debug, thiserror::Error)]
pub enum OutboundError {
    /// No answer within the time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// No connection, a broken one, or an answer over its bound.
    #[error("{0}")]
    Failed(String),
}

/// A cheap handle to a pool of connections.
#[derive(Clone, Debug)]
pub struct Outbound {
    client: Client<Connector, Full<Bytes>>,
}

impl Default for Outbound {
    fn default() -> Self {
        Self::new()
    }
}

impl Outbound {
    /// An empty pool.
    #[must_use]
    pub fn new() -> Self {
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .pool_timer(hyper_util::rt::TokioTimer::new())
            .build(Connector { tls: tls_config() });
        Self { client }
    }

    /// Sends a request and reads the whole answer, whatever its status. Cancel safe in that nothing
    /// leaks; the peer may have acted all the same.
    ///
    /// # Errors
    /// There was no answer in time, or no whole one.
    pub async fn send(
        &self,
        request: Request<Full<Bytes>>,
        timeout: Duration,
    ) -> Result<Response<Bytes>, OutboundError> {
        self.send_for(request, timeout, ANSWER_BYTES_MAX).await
    }

    /// The same for an answer of at most `answer_bytes_max`.
    ///
    /// # Errors
    /// As [`Outbound::send`].
    pub async fn send_for(
        &self,
        request: Request<Full<Bytes>>,
        timeout: Duration,
        answer_bytes_max: usize,
    ) -> Result<Response<Bytes>, OutboundError> {
        let exchange = async {
            let answer = self.client.request(request).await.map_err(|error| failed(&error))?;
            let (head, body) = answer.into_parts();
            let body = Limited::new(body, answer_bytes_max).collect().await;
            let body = body.map_err(|error| OutboundError::Failed(error.to_string()))?;
            Ok(Response::from_parts(head, body.to_bytes()))
        };
        tokio::time::timeout(timeout, exchange)
            .await
            .unwrap_or(Err(OutboundError::Timeout(timeout)))
    }
}

/// hyper's outermost sentence is "client error (Connect)"; the cause says more.
fn failed(error: &hyper_util::client::legacy::Error) -> OutboundError {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    OutboundError::Failed(text)
}

/// TLS towards servers: system roots, one crypto library.
#[must_use]
pub fn tls_config() -> Arc<ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    // Unreadable certificates of the system are left out; what needs them fails with its own reason.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider supports the default versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(config)
}

/// A connection, plain or TLS.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

#[derive(Clone, Debug)]
struct Connector {
    tls: Arc<ClientConfig>,
}

impl Connector {
    async fn connect(self, uri: Uri) -> io::Result<Stream> {
        Ok(Stream(TokioIo::new(dial(&uri, self.tls).await?)))
    }
}

/// Connects to the host of an `http`, `https`, `ws` or `wss` URL.
///
/// # Errors
/// The URL names no host, nobody listens there, or TLS fails.
pub async fn dial(uri: &Uri, tls: Arc<ClientConfig>) -> io::Result<Box<dyn Io>> {
    let wrong = |text: &str| io::Error::new(io::ErrorKind::InvalidInput, text.to_owned());
    let host = uri.host().ok_or_else(|| wrong("the URL names no host"))?;
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let secure = matches!(uri.scheme_str(), Some("https" | "wss"));
    let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let tcp = TcpStream::connect((host.as_str(), port)).await?;
    tcp.set_nodelay(true)?;
    if !secure {
        return Ok(Box::new(tcp));
    }
    let name = ServerName::try_from(host).map_err(|_| wrong("the host is no TLS server name"))?;
    Ok(Box::new(TlsConnector::from(tls).connect(name, tcp).await?))
}

impl tower::Service<Uri> for Connector {
    type Response = Stream;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Stream>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().connect(uri))
    }
}

struct Stream(TokioIo<Box<dyn Io>>);

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl hyper::rt::Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl hyper::rt::Write for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
