//! What every answer of the client port has in common: a request id, no panic that ends a connection, and for
//! browsers CORS and gzip.
//!
//! One layer in place of four: axum boxes and clones what lies under each of its layers for every request, and
//! backends, who publish most, need the least of it. It must not know: routes.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use carillon_protocol::ErrorCode;
use carillon_protocol::envelope::Refusal;
use futures_util::FutureExt as _;
use http::header::{ACCEPT_ENCODING, ORIGIN, VARY};
use http::{HeaderName, HeaderValue, Method};
use tower::{Layer, Service, ServiceExt as _};
use tower_http::CompressionLevel;
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::{And, NotForContentType, Predicate, SizeAbove};
use tower_http::cors::{AllowOrigin, CorsLayer};

use super::journal::Entry;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::rest::{ApiError, REQUEST_ID, REQUEST_ID_HEADER, request_id};

/// Answers of fewer bytes are not compressed: a segment is sent either way.
const COMPRESSED_BYTES_MIN: u64 = 1_024;

type Answer = Result<Response, Infallible>;

/// The layer; see the module.
#[derive(Clone)]
pub(super) struct Common {
    browsers: Arc<Browsers>,
}

/// What only those need who say so in their request's head, and the count of refusals.
struct Browsers {
    metrics: Arc<Metrics>,
    cors: CorsLayer,
    compression: Option<CompressionLayer<And<SizeAbove, NotForContentType>>>,
}

impl Common {
    pub(super) fn new(config: &Config, metrics: Arc<Metrics>) -> Self {
        let browsers = Browsers {
            metrics,
            cors: cors(&config.cors.origins),
            compression: config.compression.rest.then(compression),
        };
        Self { browsers: Arc::new(browsers) }
    }
}

impl<S> Layer<S> for Common {
    type Service = Answering<S>;

    fn layer(&self, routes: S) -> Answering<S> {
        Answering { routes, browsers: Arc::clone(&self.browsers) }
    }
}

/// Routes with what their answers have in common.
#[derive(Clone)]
pub(super) struct Answering<S> {
    routes: S,
    browsers: Arc<Browsers>,
}

impl<S> Service<Request> for Answering<S>
where
    S: Service<Request, Response = Response, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Answer> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.routes.poll_ready(context)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let id = request_id(request.headers());
        let header = HeaderValue::from_str(&id);
        let entry = Entry::begin(&request, &id);
        let counted = Arc::clone(&self.browsers);
        let answering = if is_plain(&request) {
            let answering = REQUEST_ID.scope(id, guarded(self.routes.call(request)));
            return Box::pin(async move {
                let mut answer = answering.await?;
                // It would be another answer for a browser.
                answer.headers_mut().append(VARY, HeaderValue::from_static("origin"));
                Ok(noted(with_id(counted.count(answer), header), entry))
            });
        } else {
            self.browsers.answer(self.routes.clone(), request)
        };
        let answering = REQUEST_ID.scope(id, answering);
        Box::pin(async move { Ok(noted(with_id(counted.count(answering.await?), header), entry)) })
    }
}

impl Browsers {
    fn count(&self, answer: Response) -> Response {
        if let Some(code) = answer.extensions().get::<ErrorCode>() {
            self.metrics.answered_error(*code);
        }
        answer
    }

    fn answer<S>(&self, routes: S, request: Request) -> Pin<Box<dyn Future<Output = Answer> + Send>>
    where
        S: Service<Request, Response = Response, Error = Infallible> + Clone + Send + 'static,
        S::Future: Send,
    {
        let routes = tower::service_fn(move |request| guarded(routes.clone().call(request)));
        match &self.compression {
            Some(compression) => {
                let compressed =
                    compression.layer(routes).map_response(|answer| answer.map(Body::new));
                Box::pin(self.cors.layer(compressed).oneshot(request))
            }
            None => Box::pin(self.cors.layer(routes).oneshot(request)),
        }
    }
}

/// Neither cross-origin nor with a wish for compression.
fn is_plain(request: &Request) -> bool {
    let headers = request.headers();
    request.method() != Method::OPTIONS
        && !headers.contains_key(ORIGIN)
        && !headers.contains_key(ACCEPT_ENCODING)
}

fn with_id(
    mut answer: Response,
    id: Result<HeaderValue, http::header::InvalidHeaderValue>,
) -> Response {
    if let Ok(id) = id {
        answer.headers_mut().insert(REQUEST_ID_HEADER, id);
    }
    answer
}

fn noted(answer: Response, entry: Option<Entry>) -> Response {
    if let Some(entry) = entry {
        entry.answered(&answer);
    }
    answer
}

/// A handler that panics costs its request, not the connection.
async fn guarded(answering: impl Future<Output = Answer>) -> Answer {
    AssertUnwindSafe(answering).catch_unwind().await.unwrap_or_else(|_| {
        tracing::error!("a request handler panicked");
        Ok(ApiError(Refusal::new(ErrorCode::InternalError, "Internal error")).into_response())
    })
}

/// gzip for answers that are worth it, where the client takes it (R30). Event streams see to themselves.
fn compression() -> CompressionLayer<And<SizeAbove, NotForContentType>> {
    CompressionLayer::new()
        .gzip(true)
        .quality(CompressionLevel::Fastest)
        .compress_when(SizeAbove::new(COMPRESSED_BYTES_MIN).and(NotForContentType::SSE))
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
