//! The facts over the embedded broker, with a paused clock.

use std::time::Duration;

use carillon_broker_client::{MemoryCluster, NodeId};

use crate::facts_events;
use crate::fixture::{Fixture, Node};

#[derive(Default)]
struct Memory(MemoryCluster);

impl Fixture for Memory {
    async fn join(&self) -> Node {
        let (broker, events) = self.0.join(NodeId::random());
        Node::new(broker, events)
    }

    async fn pass(&self, time: Duration) {
        tokio::time::advance(time).await;
    }
}

crate::every_fact!(super::memory::Memory::default(), tokio::test(start_paused = true));

#[tokio::test(start_paused = true)]
async fn lost_data_is_restored_in_silence() {
    let fixture = Memory::default();
    let lose = || async { fixture.0.lose_data() };
    facts_events::lost_data_is_restored_in_silence(&fixture, lose).await;
}
