//! The certificate of the client port: read from PEM files, shown to every handshake, and read again
//! when the files change or somebody asks. A pair that cannot be used never replaces one that can.
//! Source: `operations.md` 2 and 3 (`server.tls`).

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::{CryptoProvider, aws_lc_rs};
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{self, ServerConfig};
use tokio_util::sync::CancellationToken;

use crate::config;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(2);

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or is no PEM of its kind.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: String,
        /// Why.
        source: rustls_pki_types::pem::Error,
    },
    /// A file without a certificate.
    #[error("{0}: holds no certificate")]
    Empty(String),
    /// Key and certificate do not belong together, or are of a kind that is not supported.
    #[error("server.tls: {0}")]
    Pair(#[from] rustls::Error),
}

/// TLS of the client port: what handshakes need, and the certificate behind it.
#[derive(Clone)]
pub struct Tls {
    /// Performs handshakes, with HTTP/1.1 as the one application protocol.
    pub acceptor: TlsAcceptor,
    /// What they show.
    pub certificates: Arc<Certificates>,
}

impl Tls {
    /// Reads the configured pair.
    ///
    /// # Errors
    /// It cannot be used.
    pub fn new(files: &config::Tls) -> Result<Self, TlsError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let certificates = Arc::new(Certificates::read(files, Arc::clone(&provider))?);
        let mut settings = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&certificates) as _);
        settings.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(settings)), certificates })
    }
}

/// See the module.
#[derive(Debug)]
pub struct Certificates {
    files: config::Tls,
    provider: Arc<CryptoProvider>,
    current: ArcSwap<CertifiedKey>,
    /// What the files looked like when they were read last, good or not.
    seen: Mutex<[Option<Look>; 2]>,
}

/// What tells that a file is another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Look {
    changed_at: Option<SystemTime>,
    bytes: u64,
    inode: u64,
}

impl Certificates {
    fn read(files: &config::Tls, provider: Arc<CryptoProvider>) -> Result<Self, TlsError> {
        let seen = look(files);
        let current = ArcSwap::from_pointee(pair(files, &provider)?);
        Ok(Self { files: files.clone(), provider, current, seen: Mutex::new(seen) })
    }

    /// Reads the files again. What is wrong with them is said in the log, and the old pair stays.
    pub fn refresh(&self) {
        // Looked at before they are read: a change in between shows at the next look.
        *self.seen.lock() = look(&self.files);
        match pair(&self.files, &self.provider) {
            Ok(fresh) => {
                self.current.store(Arc::new(fresh));
                tracing::info!(cert = self.files.cert, "certificate reloaded");
            }
            Err(error) => {
                tracing::error!(%error, "the certificate was not reloaded: the old one stays");
            }
        }
    }

    /// Refreshes when the files change, until `stop`.
    pub async fn watch(self: Arc<Self>, stop: CancellationToken) {
        let mut tick = tokio::time::interval(LOOK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                () = stop.cancelled() => return,
            }
            // A pair is replaced file by file: between the two it does not match, and is looked at again
            // when the second one has changed.
            let changed = look(&self.files) != *self.seen.lock();
            if changed {
                self.refresh();
            }
        }
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

fn look(files: &config::Tls) -> [Option<Look>; 2] {
    [&files.cert, &files.key].map(|path| {
        let file = std::fs::metadata(path).ok()?;
        Some(Look { changed_at: file.modified().ok(), bytes: file.len(), inode: file.ino() })
    })
}

fn pair(files: &config::Tls, provider: &CryptoProvider) -> Result<CertifiedKey, TlsError> {
    let file = |path: &String| {
        let path = path.clone();
        move |source| TlsError::File { path, source }
    };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(&files.cert)
        .and_then(Iterator::collect)
        .map_err(file(&files.cert))?;
    if chain.is_empty() {
        return Err(TlsError::Empty(files.cert.clone()));
    }
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(file(&files.key))?;
    Ok(CertifiedKey::from_der(chain, key, provider)?)
}
