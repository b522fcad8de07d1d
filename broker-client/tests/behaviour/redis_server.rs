//! The `redis-server` that the tests of one binary share, each under a prefix of its own.

#[path = "../redis/process.rs"]
#[allow(dead_code, reason = "each test binary uses its part")]
mod process;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use process::RedisProcess;

/// A running server without persistence. It ends with the last test that holds it.
pub(crate) struct RedisServer(RedisProcess);

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
        Self(RedisProcess::start(arguments))
    }

    /// Where clients connect.
    pub(crate) fn url(&self) -> String {
        self.0.url()
    }

    /// A prefix that no other test of this process uses.
    pub(crate) fn prefix() -> String {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        format!("t{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

#[test]
fn the_server_for_the_facts_starts_and_is_shared() {
    let server = RedisServer::shared();
    assert_eq!(RedisServer::shared().url(), server.url());
    assert_ne!(RedisServer::prefix(), RedisServer::prefix());
}
