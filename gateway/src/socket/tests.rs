//! TLS over a real loopback connection: what is taken arrives, what waits is told.

use std::sync::Arc;

use bytes::Bytes;
use rustls_pki_types::{PrivateKeyDer, ServerName};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector, client};

use super::Socket;
use crate::connection::outbox::{Outbox, Wire};

async fn pair() -> (Arc<Socket>, client::TlsStream<TcpStream>) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a pair");
    let provider = Arc::new(tokio_rustls::rustls::crypto::aws_lc_rs::default_provider());
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
    let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .expect("a pair that matches");
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).expect("an authority");
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let address = listener.local_addr().expect("bound");
    let connecting = async {
        let socket = TcpStream::connect(address).await.expect("accepted");
        let name = ServerName::try_from("localhost").expect("a name");
        TlsConnector::from(Arc::new(client)).connect(name, socket).await.expect("a handshake")
    };
    let accepting = async {
        let (socket, _) = listener.accept().await.expect("a client");
        let acceptor = TlsAcceptor::from(Arc::new(server));
        Socket::accept_tls(&acceptor, socket).await.expect("a handshake")
    };
    let (client, server) = tokio::join!(connecting, accepting);
    (Arc::new(server), client)
}

#[tokio::test]
async fn encrypted_bytes_that_wait_keep_the_outbox_waiting_for_room() {
    let (server, mut client) = pair().await;
    let outbox = Outbox::new(Wire::Socket(Arc::clone(&server)), 1 << 20);
    let piece = Bytes::from(vec![7; 1_000]);
    let mut pushed = 0;
    // Nobody reads: one piece is the first that the kernel does not take.
    while server.try_flush().is_ok() {
        assert!(!outbox.signals_blocked());
        outbox.push_raw(piece.clone());
        outbox.flush();
        pushed += piece.len();
    }
    assert_eq!(outbox.queued_bytes(), 0, "it has left the queue, encrypted");
    assert!(outbox.signals_blocked(), "nobody would write it");
    let reading = tokio::spawn(async move {
        let mut heard = vec![0; pushed];
        client.read_exact(&mut heard).await.expect("everything");
        (client, heard)
    });
    while outbox.signals_blocked() {
        server.writable().await.expect("open");
        outbox.flush();
    }
    let (mut client, heard) = reading.await.expect("heard");
    assert!(heard.iter().all(|byte| *byte == 7));
    server.finish().expect("open");
    // An end that was said, not a cut: a cut would be an error here.
    assert_eq!(client.read(&mut [0; 1]).await.expect("a close_notify"), 0);
}
