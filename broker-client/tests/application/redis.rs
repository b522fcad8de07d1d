//! The facts over one real Redis server, each under a prefix of its own; and what a lost database shows.

use std::sync::Arc;
use std::time::Duration;

use carillon_broker_client::{
    Broker, Health, NodeId, RedisBroker, RedisMode, RedisSettings, RedisTls,
};

use crate::facts_events;
use crate::fixture::{Fixture, Node};
use crate::redis_server::RedisServer;

struct Redis {
    server: Arc<RedisServer>,
    prefix: String,
}

impl Redis {
    fn fresh() -> Self {
        Self { server: RedisServer::shared(), prefix: RedisServer::prefix() }
    }

    fn settings(&self) -> RedisSettings {
        RedisSettings {
            mode: RedisMode::Standalone,
            urls: vec![self.server.url()],
            master_name: None,
            prefix: self.prefix.clone(),
            tls: RedisTls::default(),
            command_timeout: Duration::from_secs(5),
        }
    }
}

impl Fixture for Redis {
    async fn join(&self) -> Node {
        let (broker, events) = RedisBroker::connect(self.settings(), NodeId::random());
        let mut health = broker.health();
        let up = health.wait_for(|health| *health == Health::Up);
        tokio::time::timeout(Duration::from_secs(20), up)
            .await
            .expect("Redis in time")
            .expect("a broker");
        Node::new(broker, events)
    }
}

crate::every_fact!(
    super::redis::Redis::fresh(),
    tokio::test(flavor = "multi_thread", worker_threads = 2)
);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_data_is_restored_in_silence() {
    let fixture = Redis { server: Arc::new(RedisServer::start(&[])), prefix: "lost".to_owned() };
    facts_events::lost_data_is_restored_in_silence(&fixture, || async {
        let address = fixture.server.url().trim_start_matches("redis://").to_owned();
        let mut stream = tokio::net::TcpStream::connect(address).await.expect("connected");
        tokio::io::AsyncWriteExt::write_all(&mut stream, b"FLUSHALL\r\n").await.expect("sent");
        let mut answer = [0; 5];
        tokio::io::AsyncReadExt::read_exact(&mut stream, &mut answer).await.expect("answered");
        assert_eq!(&answer, b"+OK\r\n");
    })
    .await;
}
