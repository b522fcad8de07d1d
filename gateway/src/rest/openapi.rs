//! The OpenAPI document, made from the handlers, and a page that shows it. `http-api.md`.

use std::sync::LazyLock;

use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::HeaderValue;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use utoipa::openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi, ToSchema};

use super::{
    channels, connections, entities, events, notifications, presence, publish, stats,
    subscriptions, tokens, users,
};

/// Everything under `/api/realtime`.
#[derive(OpenApi)]
#[openapi(
    info(title = "Carillon", description = "Realtime gateway: publishing, channels, connections."),
    servers((url = "/api/realtime")),
    paths(
        publish::publish, publish::batch, users::message, connections::message, connections::broadcast, entities::publish,
        events::create, events::broadcast,
        channels::list, channels::show, channels::history, channels::clear,
        connections::list, connections::show, connections::disconnect, users::disconnect,
        presence::list, presence::put, presence::remove, presence::user, presence::users,
        stats::show, tokens::revoke,
        notifications::create, notifications::list, notifications::show, notifications::mark_read, notifications::mark_all_read,
        notifications::unread_count, notifications::delete,
        subscriptions::resource, subscriptions::topic, subscriptions::query, subscriptions::list, subscriptions::show,
        subscriptions::update, subscriptions::set_status, subscriptions::delete,
    ),
    modifiers(&Security),
    security(("api_key" = []), ("bearer" = [])),
)]
struct Document;

struct Security;

impl Modify for Security {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let components = document.components.get_or_insert_default();
        let key = SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::new("X-API-Key")));
        let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("JWT").build();
        components.add_security_scheme("api_key", key);
        components.add_security_scheme("bearer", SecurityScheme::Http(bearer));
    }
}

/// A live connection.
#[derive(ToSchema)]
#[schema(as = Connection)]
#[expect(dead_code, reason = "the shape of `cluster::ConnectionView`, for the document alone")]
pub(super) struct ConnectionSchema {
    /// Its id.
    id: String,
    /// Its user; null when anonymous.
    user_id: Option<String>,
    /// `websocket`, `sse` or `poll`.
    transport: String,
    /// The profile's name.
    profile: String,
    /// The node's name.
    node: String,
    /// RFC 3339.
    connected_at: String,
    /// Its address, as trusted proxies say it.
    remote: Option<String>,
    /// Channels it is subscribed to.
    channels: Vec<String>,
}

/// A channel and its listeners.
#[derive(ToSchema)]
#[schema(as = Channel)]
#[expect(dead_code, reason = "the shape of `cluster::ChannelCount`, for the document alone")]
pub(super) struct ChannelSchema {
    /// The channel.
    channel: String,
    /// Connections that listen.
    subscribers: u64,
}

/// What the reader may do about a notification.
#[derive(ToSchema)]
#[schema(as = NotificationAction)]
#[expect(dead_code, reason = "the shape of `NotificationAction`, for the document alone")]
pub(super) struct ActionSchema {
    /// What the button says.
    label: String,
    /// What the application calls it.
    action: String,
    /// Anything the application needs for it.
    #[schema(value_type = Option<Object>)]
    data: Option<serde_json::Value>,
}

/// A notification to be stored.
#[derive(ToSchema)]
#[schema(as = NewNotification)]
#[expect(dead_code, reason = "the shape of `NewNotification`, for the document alone")]
pub(super) struct NewNotificationSchema {
    /// One line, not empty.
    title: String,
    /// The text.
    message: String,
    /// Whom it is for: 1 to 10,000 users.
    recipients: Vec<String>,
    /// A lower-case word; `info` where not given.
    r#type: Option<String>,
    /// `low`, `normal`, `high` or `urgent`; `normal` where not given.
    priority: Option<String>,
    /// Who caused it.
    sender_id: Option<String>,
    /// Kind of the thing it is about.
    resource_type: Option<String>,
    /// Which thing.
    resource_id: Option<String>,
    /// What the reader may do.
    actions: Option<Vec<ActionSchema>>,
    /// Anything else.
    #[schema(value_type = Option<Object>)]
    metadata: Option<serde_json::Value>,
    /// When it stops mattering, RFC 3339.
    expires_at: Option<String>,
}

/// A stored notification.
#[derive(ToSchema)]
#[schema(as = Notification)]
#[expect(dead_code, reason = "the shape of `Notification`, for the document alone")]
pub(super) struct NotificationSchema {
    /// Its id.
    id: String,
    /// One line.
    title: String,
    /// The text.
    message: String,
    /// A lower-case word.
    r#type: String,
    /// `low`, `normal`, `high` or `urgent`.
    priority: String,
    /// `pending`, `delivered`, `read` or `expired`.
    status: String,
    /// Whom it is for.
    recipients: Vec<String>,
    /// Who caused it.
    sender_id: Option<String>,
    /// RFC 3339.
    created_at: String,
    /// When the first recipient had it, RFC 3339.
    delivered_at: Option<String>,
    /// Who has read it.
    read_by: Vec<String>,
    /// What the reader may do.
    actions: Vec<ActionSchema>,
    /// Kind of the thing it is about.
    resource_type: Option<String>,
    /// Which thing.
    resource_id: Option<String>,
    /// Anything else.
    #[schema(value_type = Object)]
    metadata: serde_json::Value,
}

/// A stored subscription.
#[derive(ToSchema)]
#[schema(as = Subscription)]
#[expect(dead_code, reason = "the shape of `Subscription`, for the document alone")]
pub(super) struct SubscriptionSchema {
    /// Its id.
    id: String,
    /// Whose it is.
    user_id: String,
    /// `resource`, `topic` or `query`.
    r#type: String,
    /// `active`, `paused`, `expired` or `cancelled`.
    status: String,
    /// RFC 3339.
    created_at: String,
    /// RFC 3339.
    updated_at: String,
    /// RFC 3339.
    expires_at: Option<String>,
    /// Which thing.
    resource_id: Option<String>,
    /// Kind of the thing.
    resource_type: Option<String>,
    /// Which topic.
    topic: Option<String>,
    /// `{"channels": […], "where": {…}}`.
    #[schema(value_type = Option<Object>)]
    query: Option<serde_json::Value>,
    /// The user's own words for it.
    labels: Vec<String>,
    /// Anything else.
    #[schema(value_type = Object)]
    metadata: serde_json::Value,
}

/// A page of history.
#[derive(ToSchema)]
#[schema(as = History)]
#[expect(dead_code, reason = "written by hand so that payloads stay bytes")]
pub(super) struct HistorySchema {
    /// Envelopes, oldest first.
    messages: Vec<serde_json::Value>,
    /// The history's epoch; null without history.
    epoch: Option<String>,
    /// Newest offset; null without history.
    offset: Option<u64>,
    /// `since` of the next page; null at the end.
    next: Option<String>,
    /// With `since`: whether nothing is missing after it.
    recovered: Option<bool>,
    /// Why not: `trimmed`, `epoch`, `fork`.
    reason: Option<String>,
}

static JSON: LazyLock<Bytes> = LazyLock::new(|| {
    let mut document = Document::openapi();
    document.info.version = env!("CARGO_PKG_VERSION").to_owned();
    document.to_json().unwrap_or_default().into()
});

/// `GET /openapi.json`.
pub(super) async fn document() -> Response {
    ([(CONTENT_TYPE, HeaderValue::from_static("application/json"))], JSON.clone()).into_response()
}

/// `GET /docs`.
pub(super) async fn page() -> Response {
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        (CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ];
    (headers, include_str!("openapi.html")).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_describes_every_call_in_openapi_3_1() {
        let document: serde_json::Value = serde_json::from_slice(&JSON).expect("JSON");
        assert!(document["openapi"].as_str().is_some_and(|version| version.starts_with("3.1")));
        assert_eq!(document["paths"]["/publish"]["post"]["requestBody"]["required"], true);
        assert!(document["paths"]["/channels/{channel}/history"]["delete"].is_object());
        assert!(document["components"]["schemas"]["Publish"]["properties"]["channel"].is_object());
        assert!(document["components"]["schemas"]["ErrorBody"].is_object());
    }

    #[test]
    fn the_page_needs_nothing_from_elsewhere() {
        let page = include_str!("openapi.html");
        assert!(!page.contains("http://") && !page.contains("https://"));
    }
}
