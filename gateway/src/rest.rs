//! REST under `/api/realtime`: routes and bodies only; what they do is the node's. `http-api.md`.

mod body;
mod caller;
mod channels;
mod connections;
mod entities;
mod error;
mod events;
mod message;
mod openapi;
mod parameter;
mod place;
mod publish;
mod stats;
mod users;

use std::sync::Arc;

use axum::Router;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use carillon_protocol::ErrorCode;
use carillon_protocol::envelope::Refusal;

use crate::node::Node;

pub use error::{ApiError, REQUEST_ID, with_error_bodies, with_request_id};

/// Where all calls live.
pub const BASE: &str = "/api/realtime";

/// The routes, with [`not_found`] for every path that no route knows. Whoever merges it with other
/// routes puts [`with_error_bodies`] around all of them, [`with_request_id`] outermost.
pub fn router(node: Arc<Node>) -> Router {
    let calls = Router::new()
        .route("/publish", post(publish::publish))
        .route("/publish/batch", post(publish::batch))
        .route("/broadcast", post(connections::broadcast))
        .route("/users/{user_id}/messages", post(users::message))
        .route("/users/{user_id}/connections", axum::routing::delete(users::disconnect))
        .route("/connections", get(connections::list))
        .route("/connections/{connection_id}", get(connections::show).delete(connections::disconnect))
        .route("/connections/{connection_id}/messages", post(connections::message))
        .route("/entities/{entity}/{id}/events", post(entities::publish))
        .route("/events", post(events::create))
        .route("/events/broadcast", post(events::broadcast))
        .route("/channels", get(channels::list))
        .route("/channels/{channel}", get(channels::show))
        .route("/channels/{channel}/history", get(channels::history).delete(channels::clear))
        .route("/stats", get(stats::show))
        .route("/openapi.json", get(openapi::document))
        .route("/docs", get(openapi::page));
    let prefixed = Router::new().nest(BASE, calls);
    prefixed.fallback(not_found).with_state(node)
}

/// `NOT_FOUND` for a path that no route knows.
pub async fn not_found() -> Response {
    ApiError(Refusal::new(ErrorCode::NotFound, "No such path")).into_response()
}
