//! `/presence/{resource}…` and `/users/…/presence`: who is where, and who is online. `http-api.md` 5, rulings R36, R38, R40.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use carillon_broker_client::{Member, UserPresence};
use carillon_protocol::envelope::Refusal;
use carillon_protocol::{ChannelName, ErrorCode, UserId, channel::escape_segment, time};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::body::{JsonBody, OptionalBody, wrong};
use super::error::{ApiError, ErrorBody};
use super::parameter::{self, Parameters};
use crate::auth::{Action, Caller, Scope};
use crate::node::Node;
use crate::presence::member;

/// Most users of one question.
const USERS_MAX: usize = 1_000;
/// Longest `ttl`, seconds.
const TTL_MAX: u64 = 365 * 24 * 3600;

/// Who is at a resource.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Present {
    /// The resource.
    pub resource: String,
    /// In order of id.
    #[schema(value_type = Vec<MemberSchema>)]
    pub users: Vec<Member>,
    /// How many.
    pub count: usize,
}

/// A user at a resource.
#[derive(ToSchema)]
#[schema(as = Member)]
#[expect(dead_code, reason = "the shape of `broker_client::Member`, for the document alone")]
pub(super) struct MemberSchema {
    /// The user.
    id: String,
    /// Display name.
    name: Option<String>,
    /// Unix milliseconds.
    #[schema(rename = "lastSeen")]
    last_seen: i64,
    /// Whatever the application wants listed.
    metadata: Option<serde_json::Value>,
}

/// How a backend describes a member.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(super) struct MemberBody {
    /// Display name.
    #[serde(default)]
    pub name: Option<String>,
    /// Whatever is to be listed.
    #[serde(default)]
    pub metadata: Option<serde_json::Value>,
    /// Seconds; until `DELETE` where not given.
    #[serde(default, deserialize_with = "super::body::whole")]
    pub ttl: Option<u64>,
}

/// What is known of a user.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct UserView {
    /// The user.
    pub user_id: String,
    /// `online`, `away`, `busy` or `offline`.
    pub status: &'static str,
    /// RFC 3339; null for a user never seen.
    pub last_seen: Option<String>,
    /// Live connections over the cluster.
    pub connections: u64,
}

/// Whom a question is about.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct UsersBody {
    /// At most 1,000.
    pub user_ids: Vec<String>,
}

/// What is known of users, in the order asked.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct UserViews {
    /// The users.
    pub users: Vec<UserView>,
}

impl From<UserPresence> for UserView {
    fn from(known: UserPresence) -> Self {
        Self {
            user_id: known.user.as_str().to_owned(),
            status: known.status.name(),
            last_seen: known.last_seen_ms.map(time::rfc3339),
            connections: known.connections,
        }
    }
}

/// The presence channel of a resource.
fn channel_of(node: &Node, resource: &str) -> Result<ChannelName, Refusal> {
    let channel = ChannelName::new(&format!("presence:{resource}")).map_err(|invalid| {
        Refusal::new(ErrorCode::InvalidMessage, invalid.to_string()).with("field", "resource")
    })?;
    if resource.is_empty() {
        return Err(wrong("resource", "must not be empty"));
    }
    match node.policy.load().find(&channel) {
        Some(_) => Ok(channel),
        None => Err(crate::node::channel_not_found(&channel)),
    }
}

/// Lists are for readers, and for users who may hear the channel.
async fn may_read(node: &Node, caller: &Caller, channel: &ChannelName) -> Result<(), Refusal> {
    if caller.holds(Scope::Read) {
        return Ok(());
    }
    let Some(claims) = caller.claims() else { return caller.require(Scope::Read) };
    node.permit(Action::Subscribe, Some(claims), channel).await
}

async fn may_read_user(node: &Node, caller: &Caller, user: &UserId) -> Result<(), Refusal> {
    if caller.holds(Scope::Read) || caller.user() == Some(user) {
        return Ok(());
    }
    let channel = ChannelName::new(&format!("presence:{}", escape_segment(user.as_str())));
    let channel = channel.map_err(|_| {
        Refusal::new(ErrorCode::Forbidden, "not allowed to see this user's presence")
    })?;
    may_read(node, caller, &channel).await
}

/// Lists who is at a resource.
#[utoipa::path(
    get, path = "/presence/{resource}", tag = "Presence",
    params(("resource" = String, Path, description = "The resource; slashes are %2F")),
    responses((status = 200, description = "Who is there", body = Present), (status = "default", description = "Refused", body = ErrorBody)),
)]
pub(super) async fn list(
    State(node): State<Arc<Node>>,
    caller: Caller,
    Parameters(resource): Parameters<String>,
) -> Result<Json<Present>, ApiError> {
    let channel = channel_of(&node, &resource)?;
    may_read(&node, &caller, &channel).await?;
    let users = node.broker.members(&channel).await.map_err(|error| node.broker_refusal(&error))?;
    Ok(Json(Present { resource, count: users.len(), users }))
}

/// Puts a user at a resource, until `DELETE` or for `ttl` seconds.
#[utoipa::path(
    put, path = "/presence/{resource}/{user_id}", tag = "Presence", request_body = Option<MemberBody>,
    params(
        ("resource" = String, Path, description = "The resource; slashes are %2F"),
        ("user_id" = String, Path, description = "The user"),
    ),
    responses((status = 200, description = "The entry", body = MemberSchema), (status = "default", description = "Refused", body = ErrorBody)),
)]
pub(super) async fn put(
    State(node): State<Arc<Node>>,
    caller: Caller,
    Parameters((resource, user)): Parameters<(String, String)>,
    OptionalBody(body): OptionalBody,
) -> Result<Json<Member>, ApiError> {
    caller.require(Scope::Manage)?;
    let channel = channel_of(&node, &resource)?;
    let body: MemberBody = body.read()?;
    if body.ttl.is_some_and(|ttl| ttl == 0 || ttl > TTL_MAX) {
        return Err(wrong("ttl", "must be 1 to 31536000 seconds").into());
    }
    let member = member(parameter::user(&user)?, body.name, body.metadata)?;
    let put = node.broker.put_member(&channel, &member, body.ttl.map(Duration::from_secs)).await;
    put.map_err(|error| node.broker_refusal(&error))?;
    Ok(Json(member))
}

/// Takes a user away from a resource, whoever put them there.
#[utoipa::path(
    delete, path = "/presence/{resource}/{user_id}", tag = "Presence",
    params(
        ("resource" = String, Path, description = "The resource; slashes are %2F"),
        ("user_id" = String, Path, description = "The user"),
    ),
    responses((status = 204, description = "They are not there"), (status = "default", description = "Refused", body = ErrorBody)),
)]
pub(super) async fn remove(
    State(node): State<Arc<Node>>,
    caller: Caller,
    Parameters((resource, user)): Parameters<(String, String)>,
) -> Result<StatusCode, ApiError> {
    caller.require(Scope::Manage)?;
    let channel = channel_of(&node, &resource)?;
    let removed = node.broker.remove_member(&channel, &parameter::user(&user)?).await;
    removed.map_err(|error| node.broker_refusal(&error))?;
    Ok(StatusCode::NO_CONTENT)
}

/// Tells a user's status.
#[utoipa::path(
    get, path = "/users/{user_id}/presence", tag = "Presence",
    params(("user_id" = String, Path, description = "The user")),
    responses((status = 200, description = "What is known", body = UserView), (status = "default", description = "Refused", body = ErrorBody)),
)]
pub(super) async fn user(
    State(node): State<Arc<Node>>,
    caller: Caller,
    Parameters(user): Parameters<String>,
) -> Result<Json<UserView>, ApiError> {
    let user = parameter::user(&user)?;
    may_read_user(&node, &caller, &user).await?;
    let known = node.broker.presence_of(std::slice::from_ref(&user)).await;
    let known = known.map_err(|error| node.broker_refusal(&error))?;
    let known = known
        .into_iter()
        .next()
        .ok_or_else(|| Refusal::new(ErrorCode::InternalError, "Internal error"))?;
    Ok(Json(known.into()))
}

/// Tells the status of many users.
#[utoipa::path(
    post, path = "/users/presence", tag = "Presence", request_body = UsersBody,
    responses((status = 200, description = "What is known, in the order asked", body = UserViews), (status = "default", description = "Refused", body = ErrorBody)),
)]
pub(super) async fn users(
    State(node): State<Arc<Node>>,
    caller: Caller,
    body: JsonBody,
) -> Result<Json<UserViews>, ApiError> {
    caller.require_of_keys(Scope::Read)?;
    let body: UsersBody = body.read()?;
    if body.user_ids.len() > USERS_MAX {
        return Err(wrong("user_ids", "must be at most 1,000").into());
    }
    let users: Result<Vec<UserId>, Refusal> =
        body.user_ids.iter().map(|user| parameter::user(user)).collect();
    let users = users?;
    for user in &users {
        may_read_user(&node, &caller, user).await?;
    }
    let known =
        node.broker.presence_of(&users).await.map_err(|error| node.broker_refusal(&error))?;
    Ok(Json(UserViews { users: known.into_iter().map(Into::into).collect() }))
}
