//! A TCP proxy in front of Redis that can swallow what the server says on pub/sub connections, as a
//! network does that drops packets one way: the connection stays open and nothing comes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

pub(crate) struct DeafProxy {
    pub(crate) port: u16,
    deaf: Arc<AtomicBool>,
    _tasks: JoinSet<()>,
}

impl DeafProxy {
    pub(crate) async fn start(redis_port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a loopback port");
        let port = listener.local_addr().expect("a bound socket").port();
        let deaf = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        let flag = Arc::clone(&deaf);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(("127.0.0.1", redis_port)).await.expect("Redis");
                connections.spawn(forward(client, server, Arc::clone(&flag)));
            }
        });
        Self { port, deaf, _tasks: tasks }
    }

    /// Connections that exist now hear nothing any more; later ones do.
    pub(crate) fn deafen(&self) {
        self.deaf.store(true, Ordering::SeqCst);
    }
}

async fn forward(mut client: TcpStream, mut server: TcpStream, deafen: Arc<AtomicBool>) {
    // A deafening before this connection is none of its business.
    deafen.store(false, Ordering::SeqCst);
    let (mut up, mut down) = (vec![0; 65_536], vec![0; 65_536]);
    let (mut hearing, mut deaf) = (false, false);
    loop {
        tokio::select! {
            read = client.read(&mut up) => match read {
                Ok(0) | Err(_) => return,
                Ok(length) => {
                    hearing |= up[..length].windows(9).any(|window| window == b"SUBSCRIBE");
                    if server.write_all(&up[..length]).await.is_err() {
                        return;
                    }
                }
            },
            read = server.read(&mut down) => match read {
                Ok(0) | Err(_) => return,
                Ok(length) => {
                    deaf |= hearing && deafen.load(Ordering::SeqCst);
                    if !deaf && client.write_all(&down[..length]).await.is_err() {
                        return;
                    }
                }
            },
        }
    }
}
