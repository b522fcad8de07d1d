//! The OpenAPI document, made from the handlers, and a page that shows it. `http-api.md`.
//!
//! `utoipa` knows calls, shapes and types from the code; what it cannot know is added here once for all calls: error
//! answers and headers (`errors.rs`), bounds (`bounds.rs`), examples (`examples.rs`).

mod bounds;
mod errors;
mod examples;
mod shapes;

use std::sync::LazyLock;

use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::HeaderValue;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use utoipa::openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};

use super::{
    channels, connections, entities, events, notifications, presence, publish, stats,
    subscriptions, tokens, users,
};

/// Everything under `/api/realtime`.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Carillon",
        description = "Realtime gateway: publishing, notifications, subscriptions, events, presence, channels, connections. \
                       Times are RFC 3339 in UTC. Unknown fields of bodies are ignored. Every answer carries `X-Request-Id`."
    ),
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

pub(super) use shapes::{
    BroadcastEventSchema, ChannelSchema, ConnectionSchema, HistorySchema, NewNotificationSchema,
    NewQuerySchema, NewResourceSchema, NewTopicSchema, NotificationSchema, SubscriptionSchema,
};

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

static JSON: LazyLock<Bytes> = LazyLock::new(|| whole().to_string().into());

fn whole() -> serde_json::Value {
    let mut document = Document::openapi();
    document.merge(crate::transport::poll::document());
    document.info.version = env!("CARGO_PKG_VERSION").to_owned();
    let mut document = serde_json::to_value(document).unwrap_or_default();
    errors::add_stream(&mut document);
    bounds::add(&mut document);
    errors::add(&mut document);
    examples::add(&mut document);
    document
}

/// Every call of a document: path, method, operation.
fn calls(document: &mut serde_json::Value) -> Vec<(String, String, &mut serde_json::Value)> {
    let mut calls = Vec::new();
    let Some(paths) = document["paths"].as_object_mut() else { return calls };
    for (path, methods) in paths {
        let Some(methods) = methods.as_object_mut() else { continue };
        for (method, call) in methods.iter_mut().filter(|(_, call)| call["responses"].is_object()) {
            calls.push((path.clone(), method.clone(), call));
        }
    }
    calls
}

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
    use serde_json::Value;

    use super::*;

    #[test]
    fn the_document_describes_every_call_in_openapi_3_1() {
        let document: Value = serde_json::from_slice(&JSON).expect("JSON");
        assert!(document["openapi"].as_str().is_some_and(|version| version.starts_with("3.1")));
        assert_eq!(document["paths"]["/publish"]["post"]["requestBody"]["required"], true);
        assert!(document["paths"]["/channels/{channel}/history"]["delete"].is_object());
        assert!(document["paths"]["/events"]["get"].is_object());
        assert!(document["components"]["schemas"]["Publish"]["properties"]["channel"].is_object());
        assert!(document["components"]["schemas"]["ErrorBody"].is_object());
        assert_eq!(document["paths"]["/poll"]["servers"][0]["url"], "/api/v1/realtime");
        assert!(document["paths"]["/poll/missed"]["get"].is_object());
    }

    #[test]
    fn every_call_has_an_id_of_its_own_examples_and_all_its_errors() {
        let mut document = whole();
        let mut ids = std::collections::HashSet::new();
        for (path, method, call) in calls(&mut document) {
            let name = format!("{method} {path}");
            assert!(ids.insert(call["operationId"].to_string()), "{name}");
            let responses = call["responses"].as_object().expect("responses");
            assert!(responses.keys().all(|status| status != "default"), "{name}");
            for needed in ["401", "403", "503"] {
                assert!(responses.contains_key(needed), "{name} {needed}");
            }
            for (status, response) in responses {
                if let Some(json) = response["content"].get("application/json") {
                    assert!(json.get("example").is_some(), "{name} {status} has no example");
                }
            }
            if let Some(body) = call.get("requestBody") {
                let example = body["content"]["application/json"].get("example");
                assert!(example.is_some(), "{name} has no example of its body");
                assert!(responses.contains_key("415") && responses.contains_key("413"), "{name}");
            }
        }
    }

    #[test]
    fn every_bound_and_example_is_of_something_that_is_there() {
        let mut document = whole();
        for (schema, property) in bounds::named() {
            let known = &document["components"]["schemas"][schema]["properties"][property];
            assert!(known.is_object(), "{schema}.{property}");
        }
        let known: Vec<String> = calls(&mut document)
            .iter()
            .map(|(path, method, _)| format!("{method} {path}"))
            .collect();
        for call in examples::named() {
            assert!(known.contains(&call), "{call}");
        }
    }

    #[test]
    fn the_page_needs_nothing_from_elsewhere() {
        let page = include_str!("openapi.html");
        assert!(!page.contains("http://") && !page.contains("https://"));
    }
}
