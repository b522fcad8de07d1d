//! `POST /publish` and `POST /publish/batch`: who may publish what where, then the node's publish.
//! `http-api.md` 2, rulings R1, R2, R4, R8, R13.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use carillon_broker_client::Receipt;
use carillon_protocol::envelope::Refusal;
use carillon_protocol::{ChannelName, ErrorCode};
use futures_util::stream::{self, StreamExt as _};
use http::{HeaderMap, HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::body::{BatchBody, JsonBody, parse, wrong};
use super::error::{ApiError, ErrorBody};
use super::message::{MessageBody, PublishBody, check_backend_type, check_user_type};
use super::parameter;
use crate::auth::Caller;
use crate::auth::Scope;
use crate::clock;
use crate::dispatch::NOTIFICATIONS;
use crate::node::{Node, Outgoing, RateState};
use crate::policy::Action;

/// Most messages of a batch.
const BATCH_MESSAGES_MAX: usize = 1_000;
/// Messages of a batch that are judged at the same time.
const QUESTIONS_AT_ONCE: usize = 64;

/// Many messages.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = Batch)]
pub(super) struct BatchMessages<'a> {
    /// Up to 1,000, each as the body of `POST /publish` and judged alone.
    #[serde(borrow)]
    #[schema(value_type = Vec<serde_json::Value>)]
    pub messages: Vec<&'a RawValue>,
}

/// A message was accepted.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct Published {
    /// Its id (the first one's when this is a duplicate).
    pub id: String,
    /// Its offset in the channel's history; null without history.
    pub offset: Option<u64>,
    /// The history's epoch; null without history.
    pub epoch: Option<String>,
    /// The message's tag; null without history.
    pub tag: Option<String>,
    /// Nothing was published: id or key were seen before.
    pub duplicate: bool,
}

impl From<&Receipt> for Published {
    fn from(receipt: &Receipt) -> Self {
        let position = receipt.position;
        Self {
            id: receipt.id.as_str().to_owned(),
            offset: position.map(|position| position.offset),
            epoch: position.map(|position| position.epoch.to_string()),
            tag: position.map(|position| position.tag.to_string()),
            duplicate: receipt.duplicate,
        }
    }
}

/// One result of a batch.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum BatchResult {
    /// It was accepted.
    Published(Published),
    /// It was refused.
    Refused(ErrorBody),
}

/// Results of a batch, in order of the messages.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BatchResults {
    /// One each.
    pub results: Vec<BatchResult>,
}

/// Publishes one message.
#[utoipa::path(
    post, path = "/publish", tag = "Publishing", request_body = PublishBody<'static>,
    responses((status = 200, description = "Accepted", body = Published), (status = "default", description = "Refused", body = ErrorBody)),
)]
pub(super) async fn publish(
    State(node): State<Arc<Node>>,
    caller: Caller,
    headers: HeaderMap,
    body: JsonBody,
) -> Result<Response, ApiError> {
    caller.require_of_keys(Scope::Publish)?;
    let (channel, message) = body.read::<PublishBody<'_>>()?.split();
    match judge(&node, &caller, &headers, &channel, message).await {
        Ok(outgoing) => Ok(answer(&node, outgoing).await),
        Err(refusal) => {
            let mut response = ApiError::from(refusal).into_response();
            if let Ok(channel) = parameter::channel(&channel) {
                rate_headers(response.headers_mut(), node.publish_rate(&channel));
            }
            Ok(response)
        }
    }
}

/// Publishes up to 1,000 messages in order, each judged alone.
#[utoipa::path(
    post, path = "/publish/batch", tag = "Publishing", request_body = BatchMessages<'static>,
    responses((status = 200, description = "One result each, in order", body = BatchResults), (status = "default", description = "Refused", body = ErrorBody)),
)]
pub(super) async fn batch(
    State(node): State<Arc<Node>>,
    caller: Caller,
    headers: HeaderMap,
    body: BatchBody,
) -> Result<Response, ApiError> {
    caller.require_of_keys(Scope::Publish)?;
    let batch: BatchMessages<'_> = body.read()?;
    if batch.messages.len() > BATCH_MESSAGES_MAX {
        return Err(wrong("messages", "must be at most 1,000")
            .with("limit", BATCH_MESSAGES_MAX)
            .into());
    }
    // The application may have to be asked about each: in parallel, in order.
    let judged: Vec<_> =
        batch.messages.iter().map(|raw| judge_raw(&node, &caller, &headers, raw)).collect();
    let outgoing: Vec<Result<Outgoing, Refusal>> =
        stream::iter(judged).buffered(QUESTIONS_AT_ONCE).collect().await;
    let channels: Vec<ChannelName> =
        outgoing.iter().flatten().map(|outgoing| outgoing.channel.clone()).collect();
    let results = node.publish_batch(outgoing).await;
    let results = results
        .iter()
        .map(|result| match result {
            Ok(receipt) => BatchResult::Published(receipt.into()),
            Err(refusal) => BatchResult::Refused(ErrorBody::of(refusal)),
        })
        .collect();
    let mut response = Json(BatchResults { results }).into_response();
    // The headers speak of the channel that has least left.
    let tightest = channels
        .iter()
        .filter_map(|channel| node.publish_rate(channel))
        .min_by_key(|rate| rate.remaining);
    rate_headers(response.headers_mut(), tightest);
    Ok(response)
}

/// Reads and judges one message of a batch.
async fn judge_raw(
    node: &Node,
    caller: &Caller,
    headers: &HeaderMap,
    raw: &RawValue,
) -> Result<Outgoing, Refusal> {
    let (channel, message) = parse::<PublishBody<'_>>(raw.get())?.split();
    judge(node, caller, headers, &channel, message).await
}

/// Whether the caller may publish this, and what exactly is published.
async fn judge(
    node: &Node,
    caller: &Caller,
    headers: &HeaderMap,
    channel: &str,
    message: MessageBody<'_>,
) -> Result<Outgoing, Refusal> {
    let channel = parameter::channel(channel)?;
    if channel.as_str() == NOTIFICATIONS {
        return Err(wrong(
            "channel",
            "notifications is published to by /users/{id}/messages or /notifications",
        ));
    }
    let mut outgoing = message.outgoing(node, channel, caller, headers)?;
    if caller.holds(Scope::Publish) {
        check_backend_type(&outgoing.kind)?;
        return Ok(outgoing);
    }
    let Some(claims) = caller.claims() else {
        caller.require(Scope::Publish)?;
        return Ok(outgoing);
    };
    check_user_type(&outgoing.kind)?;
    if outgoing.user_id.as_ref().is_some_and(|user| *user != claims.user) {
        return Err(Refusal::new(ErrorCode::Forbidden, "user_id is not the token's user")
            .with("field", "user_id"));
    }
    outgoing.user_id = Some(claims.user.clone());
    let signed = node.routes.load().signed(
        &outgoing.kind,
        &outgoing.channel,
        &outgoing.payload,
        Some(claims.user.as_str()),
    );
    outgoing.payload = signed.unwrap_or(outgoing.payload);
    node.permit(Action::Publish, Some(claims), &outgoing.channel).await?;
    Ok(outgoing)
}

/// Publishes and answers, with the channel's rate in the headers (R27).
pub(super) async fn answer(node: &Node, outgoing: Outgoing) -> Response {
    let channel = outgoing.channel.clone();
    let mut response = match node.publish(outgoing).await {
        Ok(receipt) => Json(Published::from(&receipt)).into_response(),
        Err(refusal) => ApiError::from(refusal).into_response(),
    };
    rate_headers(response.headers_mut(), node.publish_rate(&channel));
    response
}

/// Around every publishing call: an answer that concerns no known channel still names the limit (`protocol.md` 5).
pub(super) fn rated(node: &Node, mut response: Response) -> Response {
    if !response.headers().contains_key("x-ratelimit-limit") {
        let limit = node.config.load().limits.publishes_per_second_per_channel;
        let untouched = RateState { limit, remaining: u64::from(limit) };
        rate_headers(response.headers_mut(), Some(untouched));
    }
    response
}

/// Adds `X-RateLimit-*`; the reset is when the bucket is full again, Unix seconds.
pub(super) fn rate_headers(headers: &mut HeaderMap, rate: Option<RateState>) {
    let Some(rate) = rate.filter(|rate| rate.limit > 0) else { return };
    let missing = u64::from(rate.limit).saturating_sub(rate.remaining);
    let full_in_ms = missing * 1_000 / u64::from(rate.limit);
    let reset = (clock::unix_ms().max(0) as u64 + full_in_ms).div_ceil(1_000);
    headers.insert(HeaderName::from_static("x-ratelimit-limit"), HeaderValue::from(rate.limit));
    headers.insert(
        HeaderName::from_static("x-ratelimit-remaining"),
        HeaderValue::from(rate.remaining),
    );
    headers.insert(HeaderName::from_static("x-ratelimit-reset"), HeaderValue::from(reset));
}
