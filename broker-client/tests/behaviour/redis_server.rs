//! A real `redis-server` on a free loopback port, without persistence. It ends with the last test
//! that holds it, and also when the test process is killed: its shell ends it at the end of input.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

/// Starts the server with the arguments after `sh`, waits for the end of input, ends the server.
const KEEPER: &str = r#"redis-server "$@" >/dev/null 2>&1 & server=$!
read -r _
kill -9 $server 2>/dev/null
wait $server 2>/dev/null"#;

/// Longest start of a server.
const START_MAX: Duration = Duration::from_secs(20);

/// A running server.
pub(crate) struct RedisServer {
    port: u16,
    keeper: Child,
}

impl RedisServer {
    /// The server that all tests running at this moment share.
    pub(crate) fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<RedisServer>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let server = Arc::new(Self::start(&[]));
            *shared = Arc::downgrade(&server);
            server
        })
    }

    /// A server of its own, with further arguments. Fails the test when there is no `redis-server`.
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let version = Command::new("redis-server").arg("--version").output();
        assert!(
            version.is_ok_and(|output| output.status.success()),
            "these tests need `redis-server` in the path"
        );
        for _ in 0..5 {
            if let Some(server) = Self::try_start(free_port(), arguments) {
                return server;
            }
        }
        panic!("redis-server did not start within {START_MAX:?} on five ports");
    }

    fn try_start(port: u16, arguments: &[&str]) -> Option<Self> {
        let keeper = Command::new("sh")
            .args(["-c", KEEPER, "sh", "--port", &port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--appendonly", "no"])
            .args(arguments)
            .stdin(Stdio::piped())
            .spawn()
            .expect("a shell");
        let server = Self { port, keeper };
        let deadline = Instant::now() + START_MAX;
        while Instant::now() < deadline {
            match server.ping() {
                Ok(true) => return Some(server),
                // Somebody else was faster on this port.
                Ok(false) => return None,
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
        None
    }

    fn ping(&self) -> std::io::Result<bool> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(b"PING\r\n")?;
        let mut answer = [0; 7];
        stream.read_exact(&mut answer)?;
        Ok(&answer == b"+PONG\r\n")
    }

    /// Where clients connect.
    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// A prefix that no other test of this process uses.
    pub(crate) fn prefix() -> String {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        format!("t{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        // Closing its input is the keeper's sign.
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a loopback port");
    listener.local_addr().expect("a bound socket").port()
}

#[test]
fn the_server_for_the_facts_starts_and_is_shared() {
    let server = RedisServer::shared();
    assert_eq!(RedisServer::shared().url(), server.url());
    assert_ne!(RedisServer::prefix(), RedisServer::prefix());
}
