//! The facts over one real Redis server, each under a prefix of its own.

use std::sync::Arc;
use std::time::Duration;

use carillon_broker_client::{
    Broker, Health, NodeId, RedisBroker, RedisMode, RedisSettings, RedisTls,
};

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
}

impl Fixture for Redis {
    async fn join(&self) -> Node {
        let settings = RedisSettings {
            mode: RedisMode::Standalone,
            urls: vec![self.server.url()],
            master_name: None,
            prefix: self.prefix.clone(),
            tls: RedisTls::default(),
            command_timeout: Duration::from_secs(5),
        };
        let (broker, events) = RedisBroker::connect(settings, NodeId::random());
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
