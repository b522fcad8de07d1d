//! The OpenAPI document, made from the handlers, and a page that shows it. `http-api.md`.

use std::sync::LazyLock;

use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::HeaderValue;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use utoipa::openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi, ToSchema};

use super::{channels, connections, entities, events, presence, publish, stats, users};

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
        stats::show,
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
