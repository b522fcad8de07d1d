//! `POST /events` and `POST /events/broadcast`: events of the uno document. `http-api.md` 5, ruling R39.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use carillon_broker_client::Target;
use carillon_protocol::envelope::Refusal;
use carillon_protocol::{ConnectionId, ErrorCode, Payload, UserId};
use http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::body::{self, JsonBody, wrong};
use super::connections::{announce, matching, node_of};
use super::error::{ApiError, ErrorBody};
use super::message::{check_backend_type, traceparent};
use super::openapi::BroadcastEventSchema;
use super::parameter::{self, no_connection};
use super::publish::rate_headers;
use crate::auth::Caller;
use crate::auth::Scope;
use crate::clock;
use crate::cluster::{Announcement, Audience, ConnectionFilter};
use crate::connection::Transport;
use crate::dispatch::NOTIFICATIONS;
use crate::node::{Node, Outgoing};

/// Connections of one user that an event reaches at most; far over any limit a user.
const USER_CONNECTIONS_MAX: usize = 1_000;

/// An event to create.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = NewEvent)]
pub(super) struct EventBody<'a> {
    /// The event's name; `message` where not given.
    #[serde(borrow)]
    #[schema(value_type = Option<String>)]
    pub event: Option<Cow<'a, str>>,
    /// Sent as it is; several lines become several `data:` lines.
    #[serde(borrow)]
    #[schema(value_type = String)]
    pub data: Cow<'a, str>,
    /// A lower-case word; comes back as given; `normal` where not given.
    pub priority: Option<String>,
    /// The stream's `retry:`, milliseconds.
    #[serde(default, deserialize_with = "body::whole")]
    pub retry: Option<u64>,
    /// A comment line on the stream.
    pub comment: Option<String>,
    /// Publish on this channel, for all transports, rather than to event streams.
    pub channel: Option<String>,
    /// Event streams of this user alone.
    #[schema(value_type = Option<String>)]
    pub user_id: Option<UserId>,
    /// This event stream alone.
    #[schema(value_type = Option<String>)]
    pub connection_id: Option<ConnectionId>,
    /// Broadcast: these event streams; all where not given.
    #[schema(ignore)]
    pub recipients: Option<Vec<ConnectionId>>,
    /// Broadcast: not these.
    #[schema(ignore)]
    pub exclude: Option<Vec<ConnectionId>>,
}

/// An event as it was sent.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct Event {
    /// Its id.
    pub id: String,
    /// Its name.
    pub event: String,
    /// Its data.
    pub data: String,
    /// As given.
    pub priority: String,
    /// As given, milliseconds.
    pub retry: Option<u64>,
    /// As given.
    pub comment: Option<String>,
}

impl Event {
    fn of(node: &Node, body: &EventBody<'_>) -> Result<Self, Refusal> {
        let name = body::name(body.event.as_deref().unwrap_or("message"), "event")?;
        check_backend_type(&name)?;
        let limit = node.config.load().limits.max_message_size;
        let size = body.data.len() + body.comment.as_ref().map_or(0, String::len);
        if limit > 0 && size > limit {
            return Err(Refusal::new(ErrorCode::PayloadTooLarge, "The event is too large")
                .with("field", "data")
                .with("limit_bytes", limit));
        }
        let priority = body.priority.clone().unwrap_or_else(|| "normal".to_owned());
        if priority.is_empty()
            || priority.len() > 32
            || !priority.bytes().all(|byte| byte.is_ascii_lowercase())
        {
            return Err(wrong(
                "priority",
                "must be a lower-case word, such as low, normal, high, urgent",
            ));
        }
        Ok(Self {
            id: crate::ids::message_id().as_str().to_owned(),
            event: name.into(),
            data: body.data.clone().into_owned(),
            priority,
            retry: body.retry,
            comment: body.comment.clone(),
        })
    }

    /// `{"retry","comment"}` as `meta`, for the event streams; `None` where there is neither.
    fn meta(&self) -> Option<String> {
        let mut meta = serde_json::Map::new();
        if let Some(retry) = self.retry {
            meta.insert("retry".to_owned(), retry.into());
        }
        if let Some(comment) = &self.comment {
            meta.insert("comment".to_owned(), comment.as_str().into());
        }
        (!meta.is_empty()).then(|| serde_json::Value::Object(meta).to_string())
    }

    fn announcement(&self) -> Announcement {
        Announcement {
            id: self.id.clone(),
            kind: self.event.clone(),
            payload: serde_json::Value::from(self.data.as_str()).to_string(),
            timestamp_ms: clock::unix_ms(),
            meta: self.meta(),
        }
    }
}

/// Creates an event and sends it.
#[utoipa::path(
    post, path = "/events", tag = "Events", request_body = EventBody<'static>,
    responses((status = 201, description = "The event", body = Event), (status = "default", description = "Refused", body = ErrorBody)),
)]
pub(super) async fn create(
    State(node): State<Arc<Node>>,
    caller: Caller,
    headers: HeaderMap,
    body: JsonBody,
) -> Result<Response, ApiError> {
    caller.require(Scope::Publish)?;
    let body: EventBody<'_> = body.read()?;
    let event = Event::of(&node, &body)?;
    let EventBody { channel, user_id, connection_id, .. } = body;
    if usize::from(channel.is_some())
        + usize::from(user_id.is_some())
        + usize::from(connection_id.is_some())
        > 1
    {
        return Err(wrong("channel", "user_id and connection_id exclude each other").into());
    }
    if let Some(channel) = channel {
        return publish(&node, &caller, &headers, &channel, event).await;
    }
    let mut audience = Audience { sse_only: true, ..Audience::default() };
    let mut target = Target::All;
    if let Some(connection) = connection_id {
        target = node_of(&connection)?;
        audience.connections = Some(vec![connection]);
        if announce(&node, &target, event.announcement(), audience).await? == 0 {
            return Err(no_connection().into());
        }
        return Ok((StatusCode::CREATED, Json(event)).into_response());
    }
    if let Some(user) = user_id {
        let streams = ConnectionFilter {
            user: Some(user.as_str().to_owned()),
            transport: Some(Transport::Sse.name().to_owned()),
            limit: USER_CONNECTIONS_MAX,
            ..ConnectionFilter::default()
        };
        let streams = matching(&node, streams).await?;
        audience.connections =
            Some(streams.iter().filter_map(|view| ConnectionId::new(&view.id).ok()).collect());
    }
    announce(&node, &target, event.announcement(), audience).await?;
    Ok((StatusCode::CREATED, Json(event)).into_response())
}

/// An ordinary publication whose payload is the string (R39).
async fn publish(
    node: &Node,
    caller: &Caller,
    headers: &HeaderMap,
    channel: &str,
    event: Event,
) -> Result<Response, ApiError> {
    let channel = parameter::channel(channel)?;
    if channel.as_str() == NOTIFICATIONS {
        return Err(wrong(
            "channel",
            "notifications is published to by /users/{id}/messages or /notifications",
        )
        .into());
    }
    let outgoing = Outgoing {
        channel: channel.clone(),
        kind: event.event.as_str().into(),
        payload: Payload::of(&event.data),
        // Random, so never a repetition; given so that the answer's id is the message's.
        id: Some(event.id.as_str().into()),
        idempotency_key: None,
        user_id: None,
        exclude: Default::default(),
        meta: event.meta().map(Into::into),
        sender: caller.sender_key(),
        history: true,
        traceparent: traceparent(headers),
    };
    let mut response = match node.publish(outgoing).await {
        Ok(_) => (StatusCode::CREATED, Json(event)).into_response(),
        Err(refusal) => ApiError::from(refusal).into_response(),
    };
    rate_headers(response.headers_mut(), node.publish_rate(&channel));
    Ok(response)
}

/// Sends an event to many event streams; the answer is how many it reached, a bare number.
#[utoipa::path(
    post, path = "/events/broadcast", tag = "Events", request_body = BroadcastEventSchema,
    responses((status = 200, description = "Live event streams that it reached", body = u64, content_type = "application/json"), (status = "default", description = "Refused", body = ErrorBody)),
)]
pub(super) async fn broadcast(
    State(node): State<Arc<Node>>,
    caller: Caller,
    body: JsonBody,
) -> Result<Json<u64>, ApiError> {
    caller.require(Scope::Publish)?;
    let body: EventBody<'_> = body.read()?;
    let event = Event::of(&node, &body)?;
    // Naming a connection twice reaches it once.
    let recipients =
        body.recipients.map(|ids| ids.into_iter().collect::<BTreeSet<_>>().into_iter().collect());
    let audience = Audience {
        connections: recipients,
        exclude_connections: body.exclude.unwrap_or_default(),
        sse_only: true,
        ..Audience::default()
    };
    Ok(Json(announce(&node, &Target::All, event.announcement(), audience).await?))
}
