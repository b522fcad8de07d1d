//! A node over Redis as these tests speak of it.

use std::time::Duration;

use bytes::Bytes;
use carillon_broker_client::{
    Broker, BrokerError, Event, Events, Health, HistoryQuery, NodeId, NodeRecord, Publish, Receipt,
    RedisBroker, RedisMode, RedisSettings, RedisTls, Retention, Start,
};
use carillon_protocol::publication::Exclude;
use carillon_protocol::{ChannelName, MessageId, Payload, Publication};
use tokio::time::{Instant, timeout};

/// Far longer than anything here takes, on however busy a machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// How long these nodes wait for Redis: a slow answer on a busy machine is no fault. Tests of impatience say otherwise.
pub(crate) const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);

pub(crate) struct Node {
    pub(crate) broker: RedisBroker,
    pub(crate) events: Events,
}

pub(crate) fn settings(mode: RedisMode, urls: Vec<String>) -> RedisSettings {
    RedisSettings {
        mode,
        urls,
        master_name: Some("carillon".to_owned()),
        prefix: "t".to_owned(),
        tls: RedisTls::default(),
        command_timeout: COMMAND_TIMEOUT,
    }
}

impl Node {
    pub(crate) fn connect(settings: RedisSettings) -> Self {
        let (broker, events) = RedisBroker::connect(settings, NodeId::random());
        Self { broker, events }
    }

    pub(crate) async fn up(settings: RedisSettings) -> Self {
        let node = Self::connect(settings);
        node.until(|health| *health == Health::Up).await;
        node
    }

    pub(crate) async fn until(&self, wanted: impl FnMut(&Health) -> bool) -> Health {
        let mut health = self.broker.health();
        let seen = timeout(PATIENCE, health.wait_for(wanted)).await;
        seen.unwrap_or_else(|_| panic!("health is {:?}", self.broker.health().borrow()))
            .expect("a broker")
            .clone()
    }

    pub(crate) async fn heard(&mut self) -> Event {
        timeout(PATIENCE, self.events.recv()).await.expect("an event in time").expect("a broker")
    }

    /// The next event is this one.
    pub(crate) async fn hears(&mut self, event: &Event) {
        assert_eq!(self.heard().await, *event);
    }

    /// The next event is a publication; its id.
    pub(crate) async fn hears_publication(&mut self) -> String {
        match self.heard().await {
            Event::Publication(publication) => publication.id.as_str().to_owned(),
            other => panic!("expected a publication, heard {other:?}"),
        }
    }

    /// The next event is a message from a node.
    pub(crate) async fn told(&mut self) -> Bytes {
        match self.heard().await {
            Event::Told(bytes) => bytes,
            other => panic!("expected to be told, heard {other:?}"),
        }
    }

    pub(crate) async fn subscribe(&self, name: &ChannelName) -> Result<(), BrokerError> {
        self.broker.subscribe(std::slice::from_ref(name)).await
    }

    pub(crate) async fn publish(
        &self,
        name: &ChannelName,
        id: &str,
    ) -> Result<Receipt, BrokerError> {
        self.broker.publish(kept(name, id)).await
    }

    /// Publishes until it works, as a caller with an idempotent id would; how long that took.
    pub(crate) async fn publish_until_it_works(&self, name: &ChannelName, id: &str) -> Duration {
        let began = Instant::now();
        while let Err(error) = self.publish(name, id).await {
            assert!(began.elapsed() < PATIENCE, "still {error}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        began.elapsed()
    }

    pub(crate) async fn history(&self, name: &ChannelName) -> Vec<String> {
        let query =
            HistoryQuery { start: Start::After(0), limit: 1_000, age: Duration::from_secs(3600) };
        let page = self.broker.history(name, query).await.expect("history");
        page.publications.iter().map(|publication| publication.id.as_str().to_owned()).collect()
    }

    pub(crate) async fn beat(&self) -> Result<Vec<NodeRecord>, BrokerError> {
        let record = NodeRecord {
            id: self.broker.node().clone(),
            name: "gateway".to_owned(),
            version: "0".to_owned(),
            started_at_ms: 0,
            connections: std::collections::BTreeMap::new(),
            messages_in: 0,
            messages_out: 0,
            load_millicores: 0,
            draining: false,
        };
        self.broker.beat(&record).await
    }
}

pub(crate) fn channel(name: &str) -> ChannelName {
    ChannelName::new(name).expect("a channel name")
}

pub(crate) fn kept(name: &ChannelName, id: &str) -> Publish {
    let publication = Publication {
        channel: name.clone(),
        position: None,
        previous_tag: None,
        stamp: 0,
        id: MessageId::new(id).expect("an id"),
        kind: "message".into(),
        timestamp_ms: 1,
        user_id: None,
        meta: None,
        exclude: Exclude::default(),
        expires_at_ms: None,
        traceparent: None,
        payload: Payload::from_json(r#"{"n":1}"#.to_owned()),
    };
    let retention = Some(Retention { size: 100, age: Duration::from_secs(3600) });
    Publish { publication, retention, idempotency: None }
}
