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
use axum::routing::{delete, get, post};

use crate::node::Node;

pub(crate) use body::BatchBody;
pub use error::{ApiError, REQUEST_ID, with_request_id};

/// Where all calls live.
pub const BASE: &str = "/api/realtime";

/// The routes, without fallbacks: whoever merges them with other routes answers unknown paths and methods,
/// and puts [`with_request_id`] around all.
pub fn router(node: Arc<Node>) -> Router {
    let calls = Router::new()
        .route("/publish", post(publish::publish))
        .route("/publish/batch", post(publish::batch))
        .route("/broadcast", post(connections::broadcast))
        .route("/users/{user_id}/messages", post(users::message))
        .route("/users/{user_id}/connections", delete(users::disconnect))
        .route("/connections", get(connections::list))
        .route(
            "/connections/{connection_id}",
            get(connections::show).delete(connections::disconnect),
        )
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
    Router::new().nest(BASE, calls).with_state(node)
}

#[cfg(test)]
mod tests;
