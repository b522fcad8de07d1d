//! The client port's routes: transports and REST.

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use carillon_protocol::ErrorCode;
use carillon_protocol::envelope::Refusal;

use super::common::Common;
use crate::node::Node;
use crate::rest::{self, ApiError};
use crate::transport::{poll, sse, websocket};

/// All routes of the client port.
pub(crate) fn client(node: &Arc<Node>) -> Router {
    Router::new()
        .route("/ws", get(websocket::social))
        .route("/ws/{name}", get(websocket::named))
        .route("/api/realtime/ws", get(websocket::uno))
        .route("/", get(websocket::excore))
        .route("/api/realtime/events", get(sse::uno))
        .route("/api/events", get(sse::excore))
        .route("/events", get(sse::excore))
        .route(poll::PATH, get(poll::get).post(poll::post))
        .route(poll::MISSED_PATH, get(poll::missed))
        .with_state(Arc::clone(node))
        .merge(rest::router(Arc::clone(node)))
        .fallback(unknown_path)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(Common::new(&node.config.load(), Arc::clone(&node.metrics)))
}

async fn unknown_path(request: Request) -> Response {
    let refusal = Refusal::new(ErrorCode::NotFound, "There is nothing at this path")
        .with("path", request.uri().path());
    ApiError(refusal).into_response()
}

async fn method_not_allowed(request: Request) -> Response {
    let refusal = Refusal::new(ErrorCode::MethodNotAllowed, "This path does not know this method")
        .with("method", request.method().as_str());
    ApiError(refusal).into_response()
}
