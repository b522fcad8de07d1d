//! Bursts over real loopback sockets: each gets its own bytes whole and in order, whatever is wrong with the others.

use std::io::Read as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use bytes::Bytes;

use super::*;

struct Peer {
    outbox: Arc<Outbox>,
    client: Option<TcpStream>,
}

fn peers(count: usize) -> Vec<Peer> {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("loopback");
    let address = listener.local_addr().expect("bound");
    let peer = |_| {
        let client = TcpStream::connect(address).expect("accepted");
        client.set_read_timeout(Some(Duration::from_secs(20))).expect("a socket");
        let (server, _) = listener.accept().expect("a client");
        server.set_nonblocking(true).expect("a socket");
        let server = tokio::net::TcpStream::from_std(server).expect("a runtime");
        let socket = Arc::new(Socket::Plain(server));
        Peer { outbox: Arc::new(Outbox::new(Wire::Socket(socket), 64 << 20)), client: Some(client) }
    };
    (0..count).map(peer).collect()
}

fn flush(peers: &[Peer]) {
    Outbox::flush_all(&peers.iter().map(|peer| &*peer.outbox).collect::<Vec<_>>());
}

fn client(peer: &Peer) -> &TcpStream {
    peer.client.as_ref().expect("it is there")
}

fn read(peer: &Peer, bytes: usize) -> Vec<u8> {
    let mut read = vec![0; bytes];
    client(peer).read_exact(&mut read).expect("what was sent");
    read
}

#[tokio::test]
async fn each_socket_gets_its_own_bytes() {
    if !burst::is_possible() {
        eprintln!("no io_uring here: this shows only that each is written to alone");
    }
    // More than a burst, one of them twice, one with nothing to say.
    let peers = peers(150);
    for round in 0..3 {
        for (number, peer) in peers.iter().enumerate().skip(1) {
            peer.outbox.push_raw(Bytes::from(format!("{round}:{number:03};")));
        }
        let mut outboxes: Vec<&Outbox> = peers.iter().map(|peer| &*peer.outbox).collect();
        outboxes.insert(5, &peers[7].outbox);
        Outbox::flush_all(&outboxes);
        for (number, peer) in peers.iter().enumerate().skip(1) {
            assert_eq!(read(peer, 6), format!("{round}:{number:03};").into_bytes());
            assert_eq!(peer.outbox.queued_bytes(), 0);
        }
    }
}

#[tokio::test]
async fn one_that_is_full_or_gone_or_held_does_not_stop_the_others() {
    let mut peers = peers(8);
    let large = Bytes::from(vec![7; 16 << 20]);
    peers[1].outbox.push_raw(large.clone());
    peers[2].client = None;
    // The first bytes to who is gone are taken, and answered by a reset.
    peers[2].outbox.push_raw(Bytes::from_static(b"lost"));
    flush(&peers);
    assert!(peers[1].outbox.signals_blocked(), "a part of it was taken");
    for peer in &peers {
        peer.outbox.push_raw(Bytes::from_static(b"next"));
    }
    let busy = peers[3].outbox.state.lock();
    std::thread::scope(|scope| {
        // It is waited for only when all others were written to.
        let all = scope.spawn(|| flush(&peers));
        for at in [0, 4, 5, 6, 7] {
            assert_eq!(read(&peers[at], 4), b"next");
        }
        assert!(!all.is_finished());
        drop(busy);
    });
    assert_eq!(read(&peers[3], 4), b"next");
    tokio::time::timeout(Duration::from_secs(20), async {
        while !peers[2].outbox.signals().failed {
            peers[2].outbox.push_raw(Bytes::from_static(b"more"));
            flush(&peers);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("a reset is found out");
    // Whoever is slow gets all of it, whole and in order.
    let mut whole = Vec::new();
    while whole.len() < large.len() + 4 {
        flush(&peers);
        let mut some = vec![0; 1 << 20];
        let bytes = client(&peers[1]).read(&mut some).expect("what was sent");
        whole.extend_from_slice(&some[..bytes]);
        tokio::task::yield_now().await;
    }
    assert_eq!((&whole[..large.len()], &whole[large.len()..]), (&large[..], &b"next"[..]));
}
