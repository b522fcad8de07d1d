//! The facts over one real Redis server, each under a prefix of its own.

use crate::redis_server::RedisServer;

#[tokio::test]
async fn the_server_for_the_facts_starts() {
    let server = RedisServer::shared();
    assert!(server.url().starts_with("redis://127.0.0.1:"));
    assert_ne!(RedisServer::prefix(), RedisServer::prefix());
}
