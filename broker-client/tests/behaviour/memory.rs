//! The facts over the embedded broker, with a paused clock, and once more over several threads.

use std::time::Duration;

use carillon_broker_client::{MemoryCluster, NodeId};

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

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_publishers_on_several_threads_leave_no_hole() {
    let fixture = Memory::default();
    crate::facts_delivery::concurrent_publishers_leave_no_hole_and_all_nodes_hear_one_order(
        &fixture,
    )
    .await;
}
