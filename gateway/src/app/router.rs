//! The client port's routes: transports, REST, and what every answer has in common.

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use carillon_protocol::ErrorCode;
use carillon_protocol::envelope::Refusal;
use http::{HeaderName, HeaderValue, Method};
use tower_http::CompressionLevel;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::{NotForContentType, Predicate, SizeAbove};
use tower_http::cors::{AllowOrigin, CorsLayer};

use crate::node::Node;
use crate::rest::{self, ApiError, with_request_id};
use crate::transport::{poll, sse, websocket};

/// Answers of fewer bytes are not compressed: a segment is sent either way.
const COMPRESSED_BYTES_MIN: u64 = 1_024;

/// All routes of the client port.
pub(crate) fn client(node: &Arc<Node>) -> Router {
    let routes = Router::new()
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
        .layer(CatchPanicLayer::custom(panicked));
    compressed(routes, node.config.load().compression.rest)
        .layer(cors(&node.config.load().cors.origins))
        .layer(axum::middleware::from_fn(with_request_id))
}

/// gzip for answers that are worth it, where the client takes it (R30). Event streams see to themselves.
fn compressed(routes: Router, on: bool) -> Router {
    if !on {
        return routes;
    }
    let worthwhile = SizeAbove::new(COMPRESSED_BYTES_MIN).and(NotForContentType::SSE);
    routes.layer(
        CompressionLayer::new()
            .gzip(true)
            .quality(CompressionLevel::Fastest)
            .compress_when(worthwhile),
    )
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

fn panicked(_: Box<dyn std::any::Any + Send + 'static>) -> Response {
    tracing::error!("a request handler panicked");
    let response =
        ApiError(Refusal::new(ErrorCode::InternalError, "Internal error")).into_response();
    debug_assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    response
}

/// CORS by configured origins; none by default.
fn cors(origins: &[String]) -> CorsLayer {
    let any = origins.iter().any(|origin| origin == "*");
    let listed: Vec<HeaderValue> =
        origins.iter().filter_map(|origin| origin.parse().ok()).collect();
    let headers = [
        "authorization",
        "content-type",
        "x-api-key",
        "x-request-id",
        "last-event-id",
        "traceparent",
    ];
    let exposed = [
        "link",
        "x-as-of",
        "x-request-id",
        "x-total-count",
        "x-ratelimit-limit",
        "x-ratelimit-remaining",
        "x-ratelimit-reset",
        "retry-after",
    ];
    let layer = CorsLayer::new()
        .allow_methods([Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE])
        .allow_headers(headers.map(HeaderName::from_static))
        .expose_headers(exposed.map(HeaderName::from_static));
    if any {
        layer.allow_origin(AllowOrigin::any())
    } else {
        layer.allow_origin(AllowOrigin::list(listed)).allow_credentials(true)
    }
}
