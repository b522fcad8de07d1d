//! The one error body, and the request id that every answer carries. `http-api.md` 1.

use axum::Json;
use axum::response::{IntoResponse, Response};
use carillon_protocol::ErrorCode;
use carillon_protocol::envelope::Refusal;
use http::header::{CONNECTION, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

/// The header that carries the request id.
pub const REQUEST_ID_HEADER: HeaderName = HeaderName::from_static("x-request-id");

tokio::task_local! {
    /// Id of the request that this task answers.
    pub static REQUEST_ID: String;
}

/// A refusal as an HTTP answer.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiError(pub Refusal);

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        Self(refusal)
    }
}

/// The error body, also used for single failures of a batch.
#[derive(Clone, Debug, serde::Serialize, utoipa::ToSchema)]
pub(crate) struct ErrorBody {
    /// One sentence for people.
    pub error: String,
    /// Which error.
    pub code: &'static str,
    /// What helps: the field, the place, when to try again.
    #[schema(value_type = Object)]
    pub details: serde_json::Map<String, serde_json::Value>,
    /// Id of the request.
    pub request_id: Option<String>,
}

impl ErrorBody {
    /// The body of a refusal.
    #[must_use]
    pub(super) fn of(refusal: &Refusal) -> Self {
        Self {
            error: refusal.message.clone().into_owned(),
            code: refusal.code.name(),
            details: refusal.details.clone(),
            request_id: REQUEST_ID.try_with(Clone::clone).ok(),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.code.http_status())
            .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(ErrorBody::of(&self.0))).into_response();
        // For whoever counts; it does not travel.
        response.extensions_mut().insert(self.0.code);
        let headers = response.headers_mut();
        if matches!(self.0.code, ErrorCode::Unavailable | ErrorCode::RateLimited) {
            let ms = self
                .0
                .details
                .get("retry_after_ms")
                .and_then(serde_json::Value::as_u64)
                .unwrap_or(1_000);
            headers.insert(RETRY_AFTER, HeaderValue::from(ms.div_ceil(1_000).max(1)));
        }
        if status == StatusCode::REQUEST_TIMEOUT {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// The id of a request: the caller's, if it is sane.
pub fn request_id(headers: &HeaderMap) -> String {
    let given = headers.get(REQUEST_ID_HEADER).and_then(|value| value.to_str().ok());
    let sane = |id: &&str| {
        !id.is_empty()
            && id.len() <= 128
            && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:/+=".contains(&b))
    };
    given.filter(sane).map_or_else(|| uuid::Uuid::now_v7().to_string(), str::to_owned)
}
