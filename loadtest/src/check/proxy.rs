//! A TCP proxy before Redis that can go deaf: connections that subscribe stay open and say nothing
//! any more, as after a failover gone wrong.
//!
//! Runs on a thread of its own, so that the clients' load does not slow the nodes' Redis.

use anyhow::Result;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// Bytes taken in one go.
const BUFFER_BYTES: usize = 64 * 1_024;

/// One proxy; its thread lives as long as the process.
pub(crate) struct Proxy {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// Connections with a number up to this, that subscribe, hear nothing any more.
    deaf_up_to: Arc<AtomicU64>,
    count: Arc<AtomicU64>,
}

impl Proxy {
    /// Listens on a free port and forwards to `to`.
    pub(crate) fn start(to: SocketAddr) -> Result<Self> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let deaf_up_to = Arc::new(AtomicU64::new(0));
        let count = Arc::new(AtomicU64::new(0));
        let (deaf, numbers) = (Arc::clone(&deaf_up_to), Arc::clone(&count));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name("proxy".to_owned()).spawn(move || {
            runtime.block_on(async move {
                let Ok(listener) = TcpListener::from_std(listener) else { return };
                while let Ok((socket, _)) = listener.accept().await {
                    let number = numbers.fetch_add(1, Ordering::Relaxed) + 1;
                    let deaf = Arc::clone(&deaf);
                    tokio::spawn(async move { forward(socket, to, number, &deaf).await });
                }
            });
        })?;
        Ok(Self { address, deaf_up_to, count })
    }

    /// Every subscribing connection of this moment goes deaf, for good.
    pub(crate) fn deafen(&self) {
        self.deaf_up_to.store(self.count.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

async fn forward(near: TcpStream, to: SocketAddr, number: u64, deaf_up_to: &AtomicU64) {
    let Ok(far) = TcpStream::connect(to).await else { return };
    let _ = (near.set_nodelay(true), far.set_nodelay(true));
    let (mut near_reader, mut near_writer) = near.into_split();
    let (mut far_reader, mut far_writer) = far.into_split();
    let subscribes = AtomicBool::new(false);
    let there = async {
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            match near_reader.read(&mut buffer).await {
                Ok(read) if read > 0 => {
                    if memchr::memmem::find(&buffer[..read], b"SUBSCRIBE\r\n").is_some() {
                        subscribes.store(true, Ordering::Relaxed);
                    }
                    if far_writer.write_all(&buffer[..read]).await.is_err() {
                        return;
                    }
                }
                _ => return,
            }
        }
    };
    let back = async {
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            match far_reader.read(&mut buffer).await {
                Ok(read) if read > 0 => {
                    // Taken from Redis and dropped: neither side sees anything wrong.
                    let deaf = subscribes.load(Ordering::Relaxed)
                        && number <= deaf_up_to.load(Ordering::Relaxed);
                    if !deaf && near_writer.write_all(&buffer[..read]).await.is_err() {
                        return;
                    }
                }
                _ => return,
            }
        }
    };
    tokio::select! {
        () = there => {}
        () = back => {}
    }
}
