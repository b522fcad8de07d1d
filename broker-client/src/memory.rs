//! The embedded broker: same behaviour as Redis, one process. See `broker.rs` for the words it keeps.
/// Several nodes over one embedded broker (tests, simulation).
#[derive(Clone, Debug, Default)]
pub struct MemoryCluster;
/// One node's handle.
#[derive(Clone, Debug)]
pub struct MemoryBroker;
