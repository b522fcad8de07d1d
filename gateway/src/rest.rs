//! REST under `/api/realtime`: routes and bodies only; what they do is the node's. `http-api.md`.

mod body;
mod caller;
mod channels;
mod connections;
mod entities;
mod error;
mod events;
mod message;
mod notifications;
mod openapi;
mod owned;
mod parameter;
mod place;
mod presence;
mod publish;
mod stats;
mod subscriptions;
mod tokens;
mod users;

use std::sync::Arc;

use axum::Router;
use axum::routing::{delete, get, patch, post, put};

use tower::util::MapResponseLayer;

use crate::node::Node;

pub(crate) use body::BatchBody;
pub(crate) use error::ErrorBody;
pub use error::{ApiError, REQUEST_ID, REQUEST_ID_HEADER, request_id};
pub(crate) use message::traceparent;
pub(crate) use owned::refusal as store_refusal;

/// Where all calls live.
pub const BASE: &str = "/api/realtime";

/// The routes, without fallbacks: whoever merges them with other routes answers unknown paths and methods,
/// and gives every request its [`REQUEST_ID`].
pub fn router(node: Arc<Node>) -> Router {
    let limits = Arc::clone(&node);
    let rated = MapResponseLayer::new(move |answer| publish::rated(&limits, answer));
    let publishing = Router::new()
        .route("/publish", post(publish::publish))
        .route("/publish/batch", post(publish::batch))
        .route("/users/{user_id}/messages", post(users::message))
        .route("/entities/{entity}/{id}/events", post(entities::publish))
        .route_layer(rated);
    let calls = Router::new()
        .merge(publishing)
        .route("/broadcast", post(connections::broadcast))
        .route("/users/{user_id}/connections", delete(users::disconnect))
        .route("/connections", get(connections::list))
        .route(
            "/connections/{connection_id}",
            get(connections::show).delete(connections::disconnect),
        )
        .route("/connections/{connection_id}/messages", post(connections::message))
        .route("/events", post(events::create))
        .route("/events/broadcast", post(events::broadcast))
        .route("/channels", get(channels::list))
        .route("/channels/{channel}", get(channels::show))
        .route("/channels/{channel}/history", get(channels::history).delete(channels::clear))
        .route("/presence/{resource}", get(presence::list))
        .route("/presence/{resource}/{user_id}", put(presence::put).delete(presence::remove))
        .route("/users/presence", post(presence::users))
        .route("/users/{user_id}/presence", get(presence::user))
        .route("/notifications", get(notifications::list).post(notifications::create))
        .route("/notifications/mark-all-read", post(notifications::mark_all_read))
        .route("/notifications/unread-count/{user_id}", get(notifications::unread_count))
        .route(
            "/notifications/{notification_id}",
            get(notifications::show).delete(notifications::delete),
        )
        .route("/notifications/{notification_id}/mark-read", post(notifications::mark_read))
        .route("/subscriptions", get(subscriptions::list))
        .route("/subscriptions/resource", post(subscriptions::resource))
        .route("/subscriptions/topic", post(subscriptions::topic))
        .route("/subscriptions/query", post(subscriptions::query))
        .route(
            "/subscriptions/{subscription_id}",
            get(subscriptions::show).patch(subscriptions::update).delete(subscriptions::delete),
        )
        .route("/subscriptions/{subscription_id}/status", patch(subscriptions::set_status))
        .route("/tokens/revoke", post(tokens::revoke))
        .route("/stats", get(stats::show))
        .route("/openapi.json", get(openapi::document))
        .route("/docs", get(openapi::page));
    Router::new().nest(BASE, calls).with_state(node)
}

#[cfg(test)]
mod tests;
