//! `/connections…` and `/broadcast`: live connections over the whole cluster. `http-api.md` 2 and 5.

use std::borrow::Cow;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use carillon_broker_client::Target;
use carillon_protocol::envelope::Refusal;
use carillon_protocol::{ConnectionId, Profile, UserId};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::body::{self, JsonBody, wrong};
use super::error::{ApiError, ErrorBody};
use super::message::{ExcludeBody, check_backend_type};
use super::parameter::{self, Parameters, Search, no_connection};
use crate::auth::Caller;
use crate::auth::Scope;
use crate::clock;
use crate::cluster::{Announcement, Audience, ConnectionFilter, ConnectionView, Question};
use crate::connection::Transport;
use crate::node::Node;

/// A message to connections rather than a channel.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = Announcement)]
pub(super) struct AnnouncementBody<'a> {
    /// Message type.
    #[serde(rename = "type", borrow)]
    #[schema(value_type = String)]
    pub kind: Cow<'a, str>,
    /// Any JSON; absent is `null`.
    #[serde(borrow)]
    #[schema(value_type = Option<serde_json::Value>)]
    pub payload: Option<&'a RawValue>,
    /// Who must not hear it (broadcast).
    pub exclude: Option<ExcludeBody>,
}

/// The connection was there.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Delivered {
    /// Always true.
    pub delivered: bool,
}

/// A broadcast was handed out.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Recipients {
    /// Live connections that it reached, all transports.
    pub recipients: u64,
}

/// A page of connections, in order of id.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Connections {
    /// The connections.
    #[schema(value_type = Vec<super::openapi::ConnectionSchema>)]
    pub connections: Vec<ConnectionView>,
    /// `cursor` of the next page; null at the end.
    pub next: Option<String>,
}

fn announcement(node: &Node, body: &AnnouncementBody<'_>) -> Result<Announcement, Refusal> {
    let kind = body::name(&body.kind, "type")?;
    check_backend_type(&kind)?;
    let payload = body::payload(node, body.payload, "payload")?;
    Ok(Announcement {
        id: crate::ids::message_id().as_str().to_owned(),
        kind: kind.into(),
        payload: payload.json_str().to_owned(),
        timestamp_ms: clock::unix_ms(),
        meta: None,
    })
}

/// Where to ask for a connection.
///
/// # Errors
/// `NOT_FOUND` for ids that no node made.
pub(super) fn node_of(connection: &ConnectionId) -> Result<Target, Refusal> {
    crate::ids::node_of(connection).map(Target::Node).ok_or_else(no_connection)
}

/// Sends a message to one connection.
#[utoipa::path(
    post, path = "/connections/{connection_id}/messages", tag = "Publishing", request_body = AnnouncementBody<'static>,
    params(("connection_id" = String, Path, description = "The connection")),
    responses((status = 200, description = "Queued for it", body = Delivered), (status = "default", description = "Refused, or no such connection", body = ErrorBody)),
)]
pub(super) async fn message(
    State(node): State<Arc<Node>>,
    caller: Caller,
    Parameters(id): Parameters<String>,
    body: JsonBody,
) -> Result<Json<Delivered>, ApiError> {
    caller.require(Scope::Publish)?;
    let announcement = announcement(&node, &body.read()?)?;
    let id = parameter::connection(&id)?;
    let target = node_of(&id)?;
    let reached = announce(&node, &target, announcement, Audience::one(id)).await?;
    if reached == 0 { Err(no_connection().into()) } else { Ok(Json(Delivered { delivered: true })) }
}

/// Sends a message to every connection of the cluster.
#[utoipa::path(
    post, path = "/broadcast", tag = "Publishing", request_body = AnnouncementBody<'static>,
    responses((status = 200, description = "Handed out", body = Recipients), (status = "default", description = "Refused", body = ErrorBody)),
)]
pub(super) async fn broadcast(
    State(node): State<Arc<Node>>,
    caller: Caller,
    body: JsonBody,
) -> Result<Json<Recipients>, ApiError> {
    caller.require(Scope::Publish)?;
    let mut body: AnnouncementBody<'_> = body.read()?;
    let exclude = body.exclude.take().unwrap_or_default();
    let announcement = announcement(&node, &body)?;
    let recipients =
        announce(&node, &Target::All, announcement, Audience::all_but(exclude.into())).await?;
    Ok(Json(Recipients { recipients }))
}

/// Asks nodes to deliver; connections reached.
pub(super) async fn announce(
    node: &Node,
    target: &Target,
    announcement: Announcement,
    audience: Audience,
) -> Result<u64, Refusal> {
    let question = Question::Announce(announcement, audience);
    let reached: Vec<u64> =
        node.cluster.ask(target, question).await.map_err(|error| node.broker_refusal(&error))?;
    Ok(reached.iter().sum())
}

/// Lists live connections.
#[utoipa::path(
    get, path = "/connections", tag = "Connections",
    params(
        ("user_id" = Option<String>, Query, description = "Of this user"),
        ("transport" = Option<String>, Query, description = "websocket, sse or poll"),
        ("profile" = Option<String>, Query, description = "social, uno, dnr or excore"),
        ("node" = Option<String>, Query, description = "On the node of this name"),
        ("channel" = Option<String>, Query, description = "Subscribed to this channel"),
        ("limit" = Option<u64>, Query, description = "At most so many: 1 to 1,000, 100 where not given"),
        ("cursor" = Option<String>, Query, description = "`next` of the page before"),
    ),
    responses((status = 200, description = "A page, in order of id", body = Connections), (status = "default", description = "Refused", body = ErrorBody)),
)]
pub(super) async fn list(
    State(node): State<Arc<Node>>,
    caller: Caller,
    search: Search,
) -> Result<Json<Connections>, ApiError> {
    caller.require(Scope::Admin)?;
    let limit = search.limit()?;
    let transport = search.text("transport");
    if transport
        .as_ref()
        .is_some_and(|name| Transport::ALL.iter().all(|known| known.name() != name))
    {
        return Err(wrong("transport", "is one of websocket, sse, poll").into());
    }
    let profile = search.text("profile");
    if profile.as_ref().is_some_and(|name| Profile::parse(name).is_none()) {
        return Err(wrong("profile", "is one of social, uno, dnr, excore").into());
    }
    let filter = ConnectionFilter {
        user: search.text("user_id"),
        transport,
        profile,
        node: search.text("node"),
        channel: search.text("channel"),
        after: search.cursor()?,
        // One more tells whether there is another page.
        limit: limit + 1,
    };
    let mut connections = matching(&node, filter).await?;
    connections.sort_by(|one, other| one.id.cmp(&other.id));
    let next = parameter::page(&mut connections, limit, |connection| &connection.id);
    Ok(Json(Connections { connections, next }))
}

/// Connections of all nodes that a filter lets through, in no order.
pub(super) async fn matching(
    node: &Node,
    filter: ConnectionFilter,
) -> Result<Vec<ConnectionView>, Refusal> {
    let question = Question::Connections(filter);
    let found: Vec<Vec<ConnectionView>> = node
        .cluster
        .ask(&Target::All, question)
        .await
        .map_err(|error| node.broker_refusal(&error))?;
    Ok(found.into_iter().flatten().collect())
}

/// Shows one connection.
#[utoipa::path(
    get, path = "/connections/{connection_id}", tag = "Connections",
    params(("connection_id" = String, Path, description = "The connection")),
    responses((status = 200, description = "The connection", body = super::openapi::ConnectionSchema), (status = "default", description = "Refused, or no such connection", body = ErrorBody)),
)]
pub(super) async fn show(
    State(node): State<Arc<Node>>,
    caller: Caller,
    Parameters(id): Parameters<String>,
) -> Result<Json<ConnectionView>, ApiError> {
    caller.require(Scope::Admin)?;
    let id = parameter::connection(&id)?;
    let target = node_of(&id)?;
    let found: Vec<Option<ConnectionView>> = node
        .cluster
        .ask(&target, Question::Connection(id))
        .await
        .map_err(|error| node.broker_refusal(&error))?;
    Ok(Json(found.into_iter().flatten().next().ok_or_else(no_connection)?))
}

/// Closes one connection.
#[utoipa::path(
    delete, path = "/connections/{connection_id}", tag = "Connections",
    params(("connection_id" = String, Path, description = "The connection")),
    responses((status = 204, description = "Closed"), (status = "default", description = "Refused, or no such connection", body = ErrorBody)),
)]
pub(super) async fn disconnect(
    State(node): State<Arc<Node>>,
    caller: Caller,
    Parameters(id): Parameters<String>,
) -> Result<StatusCode, ApiError> {
    caller.require(Scope::Admin)?;
    let id = parameter::connection(&id)?;
    let target = node_of(&id)?;
    let shown: Vec<Option<ConnectionView>> = node
        .cluster
        .ask(&target, Question::Connection(id.clone()))
        .await
        .map_err(|error| node.broker_refusal(&error))?;
    let streams =
        shown.into_iter().flatten().filter(|view| view.transport == Transport::Sse.name());
    for user in streams.filter_map(|view| UserId::new(&view.user_id?).ok()) {
        // Its EventSource may come back to any node (R26).
        let told = node.cluster.ask::<serde_json::Value>(&Target::All, Question::Banish(user));
        told.await.map_err(|error| node.broker_refusal(&error))?;
    }
    let question = Question::Disconnect { connection: Some(id), user: None };
    let closed: Vec<u64> =
        node.cluster.ask(&target, question).await.map_err(|error| node.broker_refusal(&error))?;
    if closed.iter().sum::<u64>() == 0 {
        Err(no_connection().into())
    } else {
        Ok(StatusCode::NO_CONTENT)
    }
}
