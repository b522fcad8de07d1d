//! The facts over the embedded broker, with a paused clock; and what only it can show.

use std::time::Duration;

use carillon_broker_client::{MemoryCluster, NodeId};

use crate::facts;
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
    facts::lost_data_is_restored_in_silence(&fixture, || async { fixture.0.lose_data() }).await;
}
