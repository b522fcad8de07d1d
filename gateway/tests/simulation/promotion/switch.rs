//! A way to Redis that leads to one server, and then to another.

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Leads to one server, and then to another.
pub(super) struct Switch {
    pub(super) port: u16,
    pub(super) target: watch::Sender<u16>,
    _task: tokio::task::JoinHandle<()>,
}

impl Switch {
    pub(super) async fn start(target: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a loopback port");
        let port = listener.local_addr().expect("a bound socket").port();
        let target = watch::Sender::new(target);
        let mut targets = target.subscribe();
        let task = tokio::spawn(async move {
            loop {
                let mut connections = JoinSet::new();
                let here = *targets.borrow_and_update();
                // Connections end with the target they lead to.
                loop {
                    let mut client = tokio::select! {
                        _ = targets.changed() => break,
                        Ok((client, _)) = listener.accept() => client,
                    };
                    connections.spawn(async move {
                        if let Ok(mut server) = TcpStream::connect(("127.0.0.1", here)).await {
                            let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                        }
                    });
                }
            }
        });
        Self { port, target, _task: task }
    }
}
