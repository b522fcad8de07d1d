//! Long polls: `GET` and `POST /api/v1/realtime/poll`, `GET …/poll/missed`. Routes, credentials, the
//! rate and the shape of answers; what is answered is in the submodules. `protocol.md` 6, rulings R31, R32.
//!
//! A poll number stands for a cursor kept in the store (`page`); every answer is read from what follows that cursor
//! (`gather`) and a waiting poll is only woken by the hub (`held`), so that nothing is lost or heard
//! twice whatever node serves it. The node that gave an answer remembers for a while what it knew (`seat`).

mod answer;
mod document;
mod gather;
mod held;
mod merge;
mod missed;
mod origin;
mod page;
mod pending;
mod question;
mod rate;
mod seat;
mod sent;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{FromRequest, Request, State};
use axum::response::{IntoResponse, Response};
use carillon_protocol::ErrorCode;
use carillon_protocol::envelope::Refusal;
use http::HeaderMap;
use http::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderName, HeaderValue};

use super::client_io::Peer;
use super::handshake::{Query, authenticate, bearer};
use crate::node::Node;
use crate::rest::{ApiError, BatchBody, ErrorBody};
use answer::Asking;
pub(crate) use document::document;
pub(crate) use gather::own_polls;
pub(crate) use merge::{Heard, Stretch};
use question::Question;
use rate::{Rate, Toll};
pub(crate) use seat::Seat;
use seat::{Credentials, Sitting};

/// Where polls are asked.
pub const PATH: &str = "/api/v1/realtime/poll";
/// Where missed messages of the user's own stream are read.
pub const MISSED_PATH: &str = "/api/v1/realtime/poll/missed";

/// Who asks, and how often they did.
struct Asker {
    credentials: Credentials,
    rate: Option<Rate>,
}

impl Asker {
    /// Authenticates; the answer to give where that fails.
    async fn of(node: &Node, headers: &HeaderMap, query: &Query) -> Result<Self, Response> {
        let refuse = |refusal: Refusal| respond(Rate::uncounted(node), Err(refusal));
        let claims = authenticate(node, headers, query).await.map_err(refuse)?;
        let claims =
            claims.ok_or_else(|| refuse(Refusal::new(ErrorCode::MissingToken, "missing token")))?;
        let token = given_token(headers).unwrap_or_default();
        Ok(Self { credentials: Credentials::new(node, claims, token), rate: None })
    }

    /// Counts and answers. `sitting` was found by the token alone.
    async fn answer(
        mut self,
        node: &Arc<Node>,
        sitting: Option<Sitting>,
        question: Result<Question, Refusal>,
        remote: Option<IpAddr>,
    ) -> Response {
        let answer = self.try_answer(node, sitting, question, remote).await;
        respond(self.rate.or_else(|| Rate::uncounted(node)), answer)
    }

    async fn try_answer(
        &mut self,
        node: &Arc<Node>,
        sitting: Option<Sitting>,
        question: Result<Question, Refusal>,
        remote: Option<IpAddr>,
    ) -> Result<Vec<u8>, Refusal> {
        let user = &self.credentials.claims.user;
        let mut sitting = match (sitting, &question) {
            (Some(mut sitting), Ok(question)) => sitting.fits(question).then_some(sitting),
            (None, Ok(question)) => Sitting::of_question(node, &self.credentials, question),
            (_, Err(_)) => None,
        };
        let mut toll = Toll::new(node);
        if !sitting.as_mut().is_some_and(|sitting| sitting.may_be_counted_late(&toll)) {
            let asked = sitting.as_mut().map(Sitting::question);
            let asked = asked.as_ref().map(|(id, question)| (*id, question.as_str()));
            let answered = toll.pay(node, user, asked).await;
            self.rate = toll.rate;
            // Answered on another node meanwhile: whoever asks all again finds it.
            let answered = answered?;
            sitting = sitting.filter(|_| answered.is_none());
        }
        let (asking, toll) = (Asking { question: question?, remote }, &mut toll);
        let answer = Box::pin(answer::answer(node, &self.credentials, sitting, asking, toll)).await;
        self.rate = toll.rate;
        answer
    }
}

/// The answer with the headers that every one has (R27), also where nobody could be counted.
fn respond(rate: Option<Rate>, answer: Result<Vec<u8>, Refusal>) -> Response {
    let mut response = match answer {
        Ok(body) => {
            ([(CONTENT_TYPE, HeaderValue::from_static("application/json"))], body).into_response()
        }
        Err(refusal) => ApiError(refusal).into_response(),
    };
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    for (name, value) in rate.iter().flat_map(Rate::headers) {
        headers.insert(HeaderName::from_static(name), HeaderValue::from(value));
    }
    response
}

/// Waits until there is something new for the user.
#[utoipa::path(
    get, path = "/poll", tag = "Long poll",
    params(
        ("user_id" = String, Query, description = "The token's user"),
        ("last_poll_id" = Option<u64>, Query, description = "Where the client stopped; 0 starts now, with what is pending first"),
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
    // Who goes on with the same token is known.
    let token = given_token(&parts.headers).unwrap_or_default();
    let sitting =
        question::of_chain(&query).and_then(|(user, id)| Sitting::of_token(&node, user, id, token));
    let (asker, sitting) = match sitting {
        Some(mut sitting) => {
            let credentials = sitting.seat().credentials.clone();
            (Asker { credentials, rate: None }, Some(sitting))
        }
        None => match Box::pin(Asker::of(&node, &parts.headers, &query)).await {
            Ok(asker) => (asker, None),
            Err(response) => return response,
        },
    };
    let question = Question::of_query(&query, &asker.credentials.claims);
    asker.answer(&node, sitting, question, remote).await
}

/// The same with a body; sends messages, too.
#[utoipa::path(
    post, path = "/poll", tag = "Long poll", request_body = document::PollSchema,
    responses((status = 200, description = "What is new", body = document::PollAnswerSchema), (status = "default", description = "Refused", body = ErrorBody)),
)]
pub async fn post(State(node): State<Arc<Node>>, request: Request) -> Response {
    let remote = request.extensions().get::<Peer>().map(|peer| peer.remote);
    let query = Query::parse(request.uri().query());
    let asker = match Asker::of(&node, request.headers(), &query).await {
        Ok(asker) => asker,
        Err(response) => return response,
    };
    let question = match BatchBody::from_request(request, &node).await {
        Ok(body) => Question::of_body(&query, &body, &asker.credentials.claims),
        Err(ApiError(refusal)) => Err(refusal),
    };
    asker.answer(&node, None, question, remote).await
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
    let mut asker = match Asker::of(&node, &parts.headers, &query).await {
        Ok(asker) => asker,
        Err(response) => return response,
    };
    let claims = Arc::clone(&asker.credentials.claims);
    match Rate::count_missed(&node, &claims.user).await {
        Ok(rate) => asker.rate = rate,
        Err(refusal) => return respond(Rate::uncounted(&node), Err(refusal)),
    }
    let answer = match asker.rate.as_ref().and_then(Rate::refusal) {
        Some(refusal) => Err(refusal),
        None => missed::read(&node, &claims, &query).await,
    };
    respond(asker.rate, answer)
}

/// The token of the header that scripts send; cookies and tokens in the query are looked at each time.
fn given_token(headers: &HeaderMap) -> Option<&str> {
    headers.get(AUTHORIZATION)?.to_str().ok().and_then(bearer)
}
