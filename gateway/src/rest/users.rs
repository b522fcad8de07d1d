//! `/users/{user_id}/…`: messages to a user, and disconnecting one. `http-api.md` 2 and 5, ruling R8.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use carillon_broker_client::Target;
use carillon_protocol::ChannelName;
use http::HeaderMap;
use serde::Serialize;
use utoipa::ToSchema;

use super::body::{JsonBody, wrong};
use super::error::{ApiError, ErrorBody};
use super::message::{MessageBody, check_backend_type};
use super::parameter::{self, Parameters};
use super::publish::{Published, answer};
use crate::auth::Caller;
use crate::auth::Scope;
use crate::cluster::Question;
use crate::node::Node;

/// Connections were closed.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Disconnected {
    /// How many.
    pub disconnected: u64,
}

/// Sends a message to every connection of a user, and keeps it for those to come.
#[utoipa::path(
    post, path = "/users/{user_id}/messages", tag = "Publishing", request_body = MessageBody<'static>,
    params(("user_id" = String, Path, description = "The user")),
    responses((status = 200, description = "Accepted", body = Published), (status = "default", description = "Refused", body = ErrorBody)),
)]
pub(super) async fn message(
    State(node): State<Arc<Node>>,
    caller: Caller,
    Parameters(user): Parameters<String>,
    headers: HeaderMap,
    body: JsonBody,
) -> Result<Response, ApiError> {
    caller.require(Scope::Publish)?;
    let user = parameter::user(&user)?;
    let channel = ChannelName::user_stream(user.as_str())
        .ok_or_else(|| wrong("user_id", "is too long for a channel name"))?;
    let outgoing = body.read::<MessageBody<'_>>()?.outgoing(&node, channel, &caller, &headers)?;
    check_backend_type(&outgoing.kind)?;
    Ok(answer(&node, outgoing).await)
}

/// Closes all connections of a user.
#[utoipa::path(
    delete, path = "/users/{user_id}/connections", tag = "Connections",
    params(("user_id" = String, Path, description = "The user")),
    responses((status = 200, description = "How many were closed", body = Disconnected), (status = "default", description = "Refused", body = ErrorBody)),
)]
pub(super) async fn disconnect(
    State(node): State<Arc<Node>>,
    caller: Caller,
    Parameters(user): Parameters<String>,
) -> Result<Json<Disconnected>, ApiError> {
    caller.require(Scope::Admin)?;
    let question = Question::Disconnect { connection: None, user: Some(parameter::user(&user)?) };
    let closed: Vec<u64> = node
        .cluster
        .ask(&Target::All, question)
        .await
        .map_err(|error| node.broker_refusal(&error))?;
    Ok(Json(Disconnected { disconnected: closed.iter().sum() }))
}
