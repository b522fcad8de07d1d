//! Long polls: `GET` and `POST /api/v1/realtime/poll`, `GET …/poll/missed`. Routes, credentials, the
//! rate and the shape of answers; what is answered is in the submodules. `protocol.md` 6, rulings R31, R32.
//!
//! A poll number stands for a cursor kept in the store (`page`); every answer is read from history
//! (`gather`) and a waiting poll is only woken by the hub (`held`), so that nothing is lost or heard
//! twice whatever node serves it.

mod answer;
mod document;
mod gather;
mod held;
mod merge;
mod missed;
mod origin;
mod page;
mod question;
mod rate;
mod sent;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use axum::extract::{FromRequest, Request, State};
use axum::response::{IntoResponse, Response};
use carillon_protocol::ErrorCode;
use carillon_protocol::envelope::Refusal;
use http::HeaderMap;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderName, HeaderValue};

use super::client_io::Peer;
use super::handshake::{Query, authenticate};
use crate::auth::Claims;
use crate::node::Node;
use crate::rest::{ApiError, BatchBody, ErrorBody};
pub(crate) use document::document;
pub(crate) use gather::own_polls;
pub(crate) use held::Held;
pub(crate) use merge::Stretch;
use question::Question;
use rate::Rate;

/// Where polls are asked.
pub const PATH: &str = "/api/v1/realtime/poll";
/// Where missed messages of the user's own stream are read.
pub const MISSED_PATH: &str = "/api/v1/realtime/poll/missed";

/// Who asks, and how often they did.
struct Asker {
    claims: Claims,
    rate: Option<Rate>,
}

impl Asker {
    /// Authenticates and counts; the answer to give where that fails.
    async fn admit(
        node: &Node,
        headers: &HeaderMap,
        query: &Query,
        counter: &str,
    ) -> Result<Self, Response> {
        let refuse = |refusal: Refusal| ApiError(refusal).into_response();
        let claims = authenticate(node, headers, query).await.map_err(refuse)?;
        let claims =
            claims.ok_or_else(|| refuse(Refusal::new(ErrorCode::MissingToken, "missing token")))?;
        let rate = Rate::count(node, counter, &claims.user).await.map_err(refuse)?;
        let asker = Self { claims, rate };
        match asker.rate.as_ref().and_then(Rate::refusal) {
            Some(refusal) => Err(asker.respond(Err(refusal))),
            None => Ok(asker),
        }
    }

    /// The answer with the headers that every one has (R27).
    fn respond(&self, answer: Result<Vec<u8>, Refusal>) -> Response {
        let mut response = match answer {
            Ok(body) => ([(CONTENT_TYPE, HeaderValue::from_static("application/json"))], body)
                .into_response(),
            Err(refusal) => ApiError(refusal).into_response(),
        };
        let headers = response.headers_mut();
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(rate) = &self.rate {
            for (name, value) in rate.headers() {
                headers.insert(HeaderName::from_static(name), HeaderValue::from(value));
            }
        }
        response
    }
}

/// Waits until there is something new for the user.
#[utoipa::path(
    get, path = "/poll", tag = "Long poll",
    params(
        ("user_id" = String, Query, description = "The token's user"),
        ("last_poll_id" = Option<u64>, Query, description = "Where the client stopped; 0 starts now"),
        ("timeout" = Option<f64>, Query, description = "Seconds, at most 30"),
        ("channels" = Option<String>, Query, description = "Channels beside the user's own, comma-separated"),
        ("profile" = Option<String>, Query, description = "Dress of the events"),
    ),
    responses((status = 200, description = "What is new", body = document::PollAnswerSchema), (status = "default", description = "Refused", body = ErrorBody)),
)]
pub async fn get(State(node): State<Arc<Node>>, request: Request) -> Response {
    let (parts, _) = request.into_parts();
    let remote = parts.extensions.get::<Peer>().map(|peer| peer.remote);
    let query = Query::parse(parts.uri.query());
    let asker = match Asker::admit(&node, &parts.headers, &query, "poll").await {
        Ok(asker) => asker,
        Err(response) => return response,
    };
    let answer = match Question::of_query(&query, &asker.claims) {
        Ok(question) => Box::pin(answer::answer(&node, &asker.claims, question, remote)).await,
        Err(refusal) => Err(refusal),
    };
    asker.respond(answer)
}

/// The same with a body; sends messages, too.
#[utoipa::path(
    post, path = "/poll", tag = "Long poll", request_body = document::PollSchema,
    responses((status = 200, description = "What is new", body = document::PollAnswerSchema), (status = "default", description = "Refused", body = ErrorBody)),
)]
pub async fn post(State(node): State<Arc<Node>>, request: Request) -> Response {
    let remote = request.extensions().get::<Peer>().map(|peer| peer.remote);
    let query = Query::parse(request.uri().query());
    let asker = match Asker::admit(&node, request.headers(), &query, "poll").await {
        Ok(asker) => asker,
        Err(response) => return response,
    };
    let question = match BatchBody::from_request(request, &node).await {
        Ok(body) => Question::of_body(&query, &body, &asker.claims),
        Err(ApiError(refusal)) => Err(refusal),
    };
    let answer = match question {
        Ok(question) => Box::pin(answer::answer(&node, &asker.claims, question, remote)).await,
        Err(refusal) => Err(refusal),
    };
    asker.respond(answer)
}

/// Reads the user's own stream after a sequence.
#[utoipa::path(
    get, path = "/poll/missed", tag = "Long poll",
    params(
        ("user_id" = String, Query, description = "The token's user"),
        ("last_sequence" = u64, Query, description = "The last offset that the client knows"),
        ("epoch" = Option<String>, Query, description = "The epoch that it belongs to"),
    ),
    responses((status = 200, description = "What followed", body = document::MissedSchema), (status = "default", description = "Refused", body = ErrorBody)),
)]
pub async fn missed(State(node): State<Arc<Node>>, request: Request) -> Response {
    let (parts, _) = request.into_parts();
    let query = Query::parse(parts.uri.query());
    let asker = match Asker::admit(&node, &parts.headers, &query, "missed").await {
        Ok(asker) => asker,
        Err(response) => return response,
    };
    let answer = missed::read(&node, &asker.claims, &query).await;
    asker.respond(answer)
}
