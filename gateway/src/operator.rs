//! The operators' port: metrics and health. Never exposed to clients. `operations.md` 3.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use carillon_broker_client::Health;
use http::StatusCode;
use http::header::CONTENT_TYPE;

use crate::node::Node;

/// Routes of the operators' port.
pub fn router(node: Arc<Node>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/health/live", get(live))
        .route("/health/ready", get(ready))
        .route("/health/startup", get(startup))
        .with_state(node)
}

async fn metrics(State(node): State<Arc<Node>>) -> Response {
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], node.metrics.render())
        .into_response()
}

async fn live() -> Response {
    axum::Json(serde_json::json!({"status": "live"})).into_response()
}

/// Ready means: the broker can be used and the node takes new clients.
async fn ready(State(node): State<Arc<Node>>) -> Response {
    let health = node.broker.health().borrow().clone();
    let (status, broker) = match &health {
        Health::Up => ("ready", "up".to_owned()),
        Health::Starting => ("not ready", "starting".to_owned()),
        Health::Down(reason) => ("not ready", format!("down: {reason}")),
    };
    let draining = node.is_draining();
    let ready = health == Health::Up && !draining;
    let status = if draining { "draining" } else { status };
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
