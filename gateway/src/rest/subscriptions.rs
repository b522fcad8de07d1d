//! `/subscriptions`: bodies and answers as the uno document has them. `http-api.md` 4, rulings R6,
//! R36, R37. What a change means to live connections is theirs to find out.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use carillon_broker_client::{
    Moment, NewSubscription, Subscription, SubscriptionId, SubscriptionPatch, SubscriptionQuery,
    SubscriptionStatus, SubscriptionType,
};
use carillon_protocol::envelope::Refusal;
use carillon_protocol::{ErrorCode, UserId};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::body::JsonBody;
use super::error::{ApiError, ErrorBody};
use super::openapi::{NewQuerySchema, NewResourceSchema, NewTopicSchema, SubscriptionSchema};
use super::owned::{self, Reach, refusal};
use super::parameter::{Parameters, Search};
use crate::auth::Caller;
use crate::node::Node;

/// A subscription to be stored; which fields count, the endpoint says.
#[derive(Debug, Deserialize)]
struct SubscriptionBody {
    #[serde(default)]
    user_id: Option<String>,
    #[serde(default)]
    resource_id: Option<String>,
    #[serde(default)]
    resource_type: Option<String>,
    #[serde(default)]
    topic: Option<String>,
    #[serde(default)]
    query: Option<SubscriptionQuery>,
    #[serde(default)]
    labels: Option<Vec<String>>,
    #[serde(default)]
    metadata: Option<Map<String, Value>>,
    #[serde(default)]
    expires_at: Option<Moment>,
    #[serde(default)]
    payload_filter: Option<Value>,
}

/// A change of status.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = SubscriptionStatusChange)]
pub(super) struct StatusBody {
    /// `active`, `paused`, `expired` or `cancelled`.
    #[schema(value_type = String)]
    status: SubscriptionStatus,
}

/// Changes; what is absent stays, `"expires_at": null` takes the expiry away.
#[derive(Debug, ToSchema)]
#[schema(as = SubscriptionChange)]
#[expect(dead_code, reason = "the shape of `SubscriptionPatch`, for the document alone")]
pub(super) struct PatchSchema {
    /// All labels from now on.
    labels: Option<Vec<String>>,
    /// All metadata from now on.
    #[schema(value_type = Option<Object>)]
    metadata: Option<Map<String, Value>>,
    /// The expiry from now on, RFC 3339.
    expires_at: Option<String>,
}

type Created = Result<(StatusCode, Json<Subscription>), ApiError>;

fn missing() -> Refusal {
    Refusal::new(ErrorCode::NotFound, "No such subscription")
}

async fn store(node: &Node, caller: &Caller, body: &JsonBody, kind: SubscriptionType) -> Created {
    let reach = Reach::changing(caller)?;
    let body: SubscriptionBody = body.read()?;
    let new = NewSubscription {
        user_id: reach.user(caller, body.user_id.as_deref())?,
        kind,
        resource_id: body.resource_id,
        resource_type: body.resource_type,
        topic: body.topic,
        query: body.query,
        labels: body.labels.unwrap_or_default(),
        metadata: body.metadata.unwrap_or_default(),
        expires_at: body.expires_at,
        payload_filter: body.payload_filter,
    };
    crate::interests::prepare(node, &new.user_id).await;
    let stored = node.subscriptions.create(new).await.map_err(|error| refusal(node, error))?;
    changed(node, &stored.user_id).await;
    Ok((StatusCode::CREATED, Json(stored)))
}

/// A subscription within the caller's reach; foreign ones are unknown (R6).
async fn within(node: &Node, reach: &Reach, id: &str) -> Result<Subscription, Refusal> {
    let id = SubscriptionId::new(id).map_err(|_| missing())?;
    let found = node.subscriptions.find(&id).await.map_err(|error| refusal(node, error))?;
    found.filter(|subscription| reach.covers(&subscription.user_id)).ok_or_else(missing)
}

/// One that is about to change: all nodes know of it before it does.
async fn changing(node: &Node, reach: &Reach, id: &str) -> Result<SubscriptionId, Refusal> {
    let found = within(node, reach, id).await?;
    crate::interests::prepare(node, &found.user_id).await;
    Ok(found.id)
}

/// Lets the live connections of the user know.
async fn changed(node: &Node, user: &UserId) {
    crate::interests::announce(node, user).await;
}

/// Subscribes a user to one thing.
#[utoipa::path(
    post, path = "/subscriptions/resource", tag = "Subscriptions", request_body = NewResourceSchema,
    responses((status = 201, description = "Stored and acting", body = SubscriptionSchema), (status = "default", description = "Refused", body = ErrorBody)),
)]
pub(super) async fn resource(
    State(node): State<Arc<Node>>,
    caller: Caller,
    body: JsonBody,
) -> Created {
    store(&node, &caller, &body, SubscriptionType::Resource).await
}

/// Subscribes a user to a topic.
#[utoipa::path(
    post, path = "/subscriptions/topic", tag = "Subscriptions", request_body = NewTopicSchema,
    responses((status = 201, description = "Stored and acting", body = SubscriptionSchema), (status = "default", description = "Refused", body = ErrorBody)),
)]
pub(super) async fn topic(
    State(node): State<Arc<Node>>,
    caller: Caller,
    body: JsonBody,
) -> Created {
    store(&node, &caller, &body, SubscriptionType::Topic).await
}

/// Subscribes a user to channels, with a condition on payloads.
#[utoipa::path(
    post, path = "/subscriptions/query", tag = "Subscriptions", request_body = NewQuerySchema,
    responses((status = 201, description = "Stored and acting", body = SubscriptionSchema), (status = "default", description = "Refused", body = ErrorBody)),
)]
pub(super) async fn query(
    State(node): State<Arc<Node>>,
    caller: Caller,
    body: JsonBody,
) -> Created {
    store(&node, &caller, &body, SubscriptionType::Query).await
}

/// Lists a user's subscriptions, oldest first.
#[utoipa::path(
    get, path = "/subscriptions", tag = "Subscriptions",
    params(
        ("user_id" = String, Query, description = "Whose; a user may leave it out: their own"),
        ("status" = Option<String>, Query, description = "active, paused, expired or cancelled"),
        ("page" = Option<u64>, Query, description = "From 1"),
        ("page_size" = Option<u64>, Query, description = "20 where not given, at most 100"),
    ),
    responses((status = 200, description = "A page; the total in `X-Total-Count`", body = Vec<SubscriptionSchema>), (status = "default", description = "Refused", body = ErrorBody)),
)]
pub(super) async fn list(
    State(node): State<Arc<Node>>,
    caller: Caller,
    search: Search,
) -> Result<Response, ApiError> {
    let user = Reach::reading(&caller)?.user(&caller, search.text("user_id").as_deref())?;
    let status = owned::word(&search, "status", SubscriptionStatus::parse)?;
    let page = owned::page(&search)?;
    let found = node
        .subscriptions
        .list(&user, status, page)
        .await
        .map_err(|error| refusal(&node, error))?;
    let at = ("/subscriptions", &search, page);
    Ok(owned::listed(&found.subscriptions, found.total, at, None))
}

/// Shows one subscription.
#[utoipa::path(
    get, path = "/subscriptions/{subscription_id}", tag = "Subscriptions",
    params(("subscription_id" = String, Path, description = "The subscription")),
    responses((status = 200, description = "The subscription", body = SubscriptionSchema), (status = "default", description = "Refused, or no such subscription", body = ErrorBody)),
)]
pub(super) async fn show(
    State(node): State<Arc<Node>>,
    caller: Caller,
    Parameters(id): Parameters<String>,
) -> Result<Json<Subscription>, ApiError> {
    Ok(Json(within(&node, &Reach::reading(&caller)?, &id).await?))
}

/// Changes labels, metadata, expiry.
#[utoipa::path(
    patch, path = "/subscriptions/{subscription_id}", tag = "Subscriptions", request_body = PatchSchema,
    params(("subscription_id" = String, Path, description = "The subscription")),
    responses((status = 200, description = "As it is now", body = SubscriptionSchema), (status = "default", description = "Refused, or no such subscription", body = ErrorBody)),
)]
pub(super) async fn update(
    State(node): State<Arc<Node>>,
    caller: Caller,
    Parameters(id): Parameters<String>,
    body: JsonBody,
) -> Result<Json<Subscription>, ApiError> {
    let reach = Reach::changing(&caller)?;
    let patch: SubscriptionPatch = body.read()?;
    let id = changing(&node, &reach, &id).await?;
    let updated =
        node.subscriptions.update(&id, &patch).await.map_err(|error| refusal(&node, error))?;
    let updated = updated.ok_or_else(missing)?;
    changed(&node, &updated.user_id).await;
    Ok(Json(updated))
}

/// Changes the status.
#[utoipa::path(
    patch, path = "/subscriptions/{subscription_id}/status", tag = "Subscriptions", request_body = StatusBody,
    params(("subscription_id" = String, Path, description = "The subscription")),
    responses((status = 200, description = "As it is now", body = SubscriptionSchema), (status = "default", description = "Refused, or no such subscription", body = ErrorBody)),
)]
pub(super) async fn set_status(
    State(node): State<Arc<Node>>,
    caller: Caller,
    Parameters(id): Parameters<String>,
    body: JsonBody,
) -> Result<Json<Subscription>, ApiError> {
    let reach = Reach::changing(&caller)?;
    let StatusBody { status } = body.read()?;
    let id = changing(&node, &reach, &id).await?;
    let updated =
        node.subscriptions.set_status(&id, status).await.map_err(|error| refusal(&node, error))?;
    let updated = updated.ok_or_else(missing)?;
    changed(&node, &updated.user_id).await;
    Ok(Json(updated))
}

/// Deletes a subscription.
#[utoipa::path(
    delete, path = "/subscriptions/{subscription_id}", tag = "Subscriptions",
    params(("subscription_id" = String, Path, description = "The subscription")),
    responses((status = 204, description = "Gone"), (status = "default", description = "Refused, or no such subscription", body = ErrorBody)),
)]
pub(super) async fn delete(
    State(node): State<Arc<Node>>,
    caller: Caller,
    Parameters(id): Parameters<String>,
) -> Result<StatusCode, ApiError> {
    let reach = Reach::changing(&caller)?;
    let id = changing(&node, &reach, &id).await?;
    let deleted = node.subscriptions.delete(&id).await.map_err(|error| refusal(&node, error))?;
    let deleted = deleted.ok_or_else(missing)?;
    changed(&node, &deleted.user_id).await;
    Ok(StatusCode::NO_CONTENT)
}
