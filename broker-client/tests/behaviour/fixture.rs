//! What a fact may ask for: nodes over one fresh broker, and time to pass. Plus the words that the
//! facts are written in.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use carillon_broker_client::{
    Broker, ConnectionRecord, Event, Events, HistoryQuery, Idempotency, NodeId, NodeRecord,
    Publish, Retention, Start,
};
use carillon_protocol::publication::Exclude;
use carillon_protocol::{ChannelName, ConnectionId, MessageId, Payload, Publication, UserId};
use tokio::time::timeout;

/// A broker of one kind, with a prefix (or a memory) of its own.
pub(crate) trait Fixture: Sync {
    /// Another node of the same cluster.
    fn join(&self) -> impl Future<Output = Node> + Send;

    /// Lets time pass, for facts about time.
    fn pass(&self, time: Duration) -> impl Future<Output = ()> + Send {
        tokio::time::sleep(time)
    }
}

/// One node of the cluster under test.
pub(crate) struct Node {
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) events: Events,
}

/// Far longer than anything here takes; reached only by a broken broker.
const PATIENCE: Duration = Duration::from_secs(60);

/// Long enough that nothing ages out in a test.
pub(crate) const HOUR: Duration = Duration::from_secs(3600);

impl Node {
    pub(crate) fn new(broker: impl Broker, events: Events) -> Self {
        Self { broker: Arc::new(broker), events }
    }

    /// The next event.
    pub(crate) async fn heard(&mut self) -> Event {
        timeout(PATIENCE, self.events.recv()).await.expect("an event in time").expect("a broker")
    }

    /// The next event, which is a publication.
    pub(crate) async fn heard_publication(&mut self) -> Publication {
        match self.heard().await {
            Event::Publication(publication) => publication,
            other => panic!("expected a publication, heard {other:?}"),
        }
    }

    /// The next event, which is a message from a node.
    pub(crate) async fn told(&mut self) -> Bytes {
        match self.heard().await {
            Event::Told(bytes) => bytes,
            other => panic!("expected to be told, heard {other:?}"),
        }
    }

    /// Hears the channel from now on.
    pub(crate) async fn subscribe(&self, channel: &ChannelName) {
        self.broker.subscribe(std::slice::from_ref(channel)).await.expect("subscribed");
    }

    /// Beats with a plain record.
    pub(crate) async fn beat(&self) -> Vec<NodeRecord> {
        self.broker.beat(&node_record(self.broker.node())).await.expect("beaten")
    }
}

pub(crate) fn channel(name: &str) -> ChannelName {
    ChannelName::new(name).expect("a channel name")
}

pub(crate) fn node_record(id: &NodeId) -> NodeRecord {
    NodeRecord {
        id: id.clone(),
        name: format!("gateway-{id}"),
        version: "0.1.0".to_owned(),
        started_at_ms: 1_700_000_000_000,
        connections: [("websocket".to_owned(), 3), ("sse".to_owned(), 1)].into(),
        messages_in: 7,
        messages_out: 70,
        load_millicores: 0,
        draining: false,
    }
}

/// The `index`th connection of a user on this node.
pub(crate) fn connection(node: &Node, user: &str, index: u32) -> ConnectionRecord {
    ConnectionRecord {
        id: ConnectionId::new(&format!("{}-{user}-{index}", node.broker.node())).expect("an id"),
        user: UserId::new(user).expect("a user id"),
    }
}

pub(crate) fn publication(channel: &ChannelName, id: &str) -> Publication {
    Publication {
        channel: channel.clone(),
        position: None,
        previous_tag: None,
        stamp: 0,
        id: MessageId::new(id).expect("a message id"),
        kind: "message".into(),
        timestamp_ms: 1_700_000_000_123,
        user_id: None,
        meta: None,
        exclude: Exclude::default(),
        expires_at_ms: None,
        traceparent: None,
        payload: Payload::from_json(format!("{{\"id\":\"{id}\"}}")),
    }
}

/// A publish into a history of a hundred and an hour.
pub(crate) fn kept(channel: &ChannelName, id: &str) -> Publish {
    Publish {
        publication: publication(channel, id),
        retention: Some(Retention { size: 100, age: HOUR }),
        idempotency: None,
    }
}

/// A publish without history.
pub(crate) fn fleeting(channel: &ChannelName, id: &str) -> Publish {
    Publish { retention: None, ..kept(channel, id) }
}

/// The same publish under an idempotency key.
pub(crate) fn keyed(publish: Publish, sender: &str, key: &str) -> Publish {
    let idempotency = Some(Idempotency::new(sender, key));
    Publish { idempotency, ..publish }
}

pub(crate) fn after(offset: u64, limit: u32) -> HistoryQuery {
    HistoryQuery { start: Start::After(offset), limit, age: HOUR }
}

pub(crate) fn last(limit: u32) -> HistoryQuery {
    HistoryQuery { start: Start::Last, limit, age: HOUR }
}

/// The publications' ids.
pub(crate) fn ids(publications: &[Publication]) -> Vec<&str> {
    publications.iter().map(|publication| publication.id.as_str()).collect()
}
