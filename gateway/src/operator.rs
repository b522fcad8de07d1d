//! The operators' port: metrics, health and a look inside. Never exposed to clients. `operations.md` 3.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use carillon_broker_client::Health;
use http::StatusCode;
use http::header::CONTENT_TYPE;

use crate::cluster::{record, uptime_ms};
use crate::node::Node;
use crate::process::resident_bytes;

/// Routes of the operators' port.
pub fn router(node: Arc<Node>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/health/live", get(live))
        .route("/health/ready", get(ready))
        .route("/health/startup", get(startup))
        .route("/debug", get(index))
        .route("/debug/", get(index))
        .route("/debug/config", get(config))
        .route("/debug/node", get(inside))
        .with_state(node)
}

async fn metrics(State(node): State<Arc<Node>>) -> Response {
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], node.metrics.render())
        .into_response()
}

async fn live() -> Response {
    axum::Json(serde_json::json!({"status": "live"})).into_response()
}

/// Ready means: the broker can be used, the node holds its lease and takes new clients.
async fn ready(State(node): State<Arc<Node>>) -> Response {
    let health = node.broker.health().borrow().clone();
    let broker = match &health {
        Health::Up => "up".to_owned(),
        Health::Starting => "starting".to_owned(),
        Health::Down(reason) => format!("down: {reason}"),
    };
    let draining = node.is_draining();
    let leased = !node.cluster.nodes().is_empty();
    let ready = health == Health::Up && leased && !draining;
    let status = match (draining, ready) {
        (true, _) => "draining",
        (false, true) => "ready",
        (false, false) => "not ready",
    };
    let body = serde_json::json!({
        "status": status,
        "broker": broker,
        "draining": draining,
        "connections": node.metrics.connections_live(),
    });
    let code = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, axum::Json(body)).into_response()
}

/// Started means: the sockets are bound and the broker was reached once.
async fn startup(State(node): State<Arc<Node>>) -> Response {
    let started = *node.broker.health().borrow() != Health::Starting;
    let code = if started { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, axum::Json(serde_json::json!({"started": started}))).into_response()
}

/// What there is to look at.
async fn index() -> Response {
    axum::Json(serde_json::json!({
        "/debug/config": "the configuration in effect, as TOML, secrets as ***",
        "/debug/node": "what this node holds now",
    }))
    .into_response()
}

/// The configuration in effect, reloads included; the same text as `carillon print-config`.
async fn config(State(node): State<Arc<Node>>) -> Response {
    match node.config.load().to_toml() {
        Ok(text) => ([(CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// What this node holds now.
async fn inside(State(node): State<Arc<Node>>) -> Response {
    let own = record(&node);
    axum::Json(serde_json::json!({
        "id": own.id,
        "name": own.name,
        "version": own.version,
        "uptime_ms": uptime_ms(&own),
        "connections": own.connections,
        "subscriptions": node.hub.subscriptions(),
        "channels": node.relay.channels_heard(),
        "queue_bytes": node.hub.queued_bytes(),
        "tasks": node.tasks.len(),
        "resident_bytes": resident_bytes(),
        "load": f64::from(own.load_millicores) / 1_000.0,
        "nodes": node.cluster.nodes().iter().map(|node| &node.name).collect::<Vec<_>>(),
        "redis_connects": node.broker.generation(),
        "draining": own.draining,
    }))
    .into_response()
}
