//! `GET /stats`: the cluster in numbers. `http-api.md` 5.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use carillon_broker_client::{Health, NodeRecord};
use serde::Serialize;
use utoipa::ToSchema;

use super::error::{ApiError, ErrorBody};
use crate::auth::Caller;
use crate::auth::Scope;
use crate::cluster::{record, uptime_ms};
use crate::node::Node;

/// The cluster.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Stats {
    /// Live nodes, as of their last heartbeat.
    pub nodes: Vec<NodeStats>,
    /// Their sums.
    pub totals: Totals,
    /// Redis, as this node sees it.
    pub redis: RedisState,
}

/// One node.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct NodeStats {
    /// This life of the process.
    pub id: String,
    /// What operators call it.
    pub name: String,
    /// Version of the program.
    pub version: String,
    /// Since its start.
    pub uptime_ms: i64,
    /// Live connections by transport.
    pub connections: BTreeMap<String, u64>,
    /// Messages from clients and backends since the start.
    pub messages_in: u64,
    /// Deliveries to connections since the start.
    pub messages_out: u64,
    /// Processor cores that it used in the last second.
    pub load: f64,
    /// It takes no new clients.
    pub draining: bool,
}

/// Sums over the nodes.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(super) struct Totals {
    /// Live nodes.
    pub nodes: u64,
    /// Live connections.
    pub connections: u64,
    /// Live connections by transport.
    pub connections_by_transport: BTreeMap<String, u64>,
    /// Messages from clients and backends.
    pub messages_in: u64,
    /// Deliveries to connections.
    pub messages_out: u64,
}

/// Whether Redis can be used.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RedisState {
    /// `starting`, `up` or `down`.
    pub state: &'static str,
}

impl From<&NodeRecord> for NodeStats {
    fn from(record: &NodeRecord) -> Self {
        Self {
            id: record.id.to_string(),
            name: record.name.clone(),
            version: record.version.clone(),
            uptime_ms: uptime_ms(record),
            connections: record.connections.clone(),
            messages_in: record.messages_in,
            messages_out: record.messages_out,
            load: f64::from(record.load_millicores) / 1_000.0,
            draining: record.draining,
        }
    }
}

/// Shows nodes, totals and the state of Redis.
#[utoipa::path(
    get, path = "/stats", tag = "Cluster",
    responses((status = 200, description = "The cluster", body = Stats), (status = "default", description = "Refused", body = ErrorBody)),
)]
pub(super) async fn show(
    State(node): State<Arc<Node>>,
    caller: Caller,
) -> Result<Json<Stats>, ApiError> {
    caller.require(Scope::Admin)?;
    // Of itself a node knows more than its last heartbeat said.
    let own = record(&node);
    let known = node.cluster.nodes();
    let others = known.iter().filter(|record| record.id != own.id);
    let mut nodes: Vec<NodeStats> =
        std::iter::once(&own).chain(others).map(NodeStats::from).collect();
    nodes.sort_by(|one, other| one.name.cmp(&other.name).then_with(|| one.id.cmp(&other.id)));
    let mut totals = Totals { nodes: nodes.len() as u64, ..Totals::default() };
    for node in &nodes {
        for (transport, connections) in &node.connections {
            totals.connections += connections;
            *totals.connections_by_transport.entry(transport.clone()).or_default() += connections;
        }
        totals.messages_in += node.messages_in;
        totals.messages_out += node.messages_out;
    }
    let state = match &*node.broker.health().borrow() {
        Health::Starting => "starting",
        Health::Up => "up",
        Health::Down(_) => "down",
    };
    Ok(Json(Stats { nodes, totals, redis: RedisState { state } }))
}
