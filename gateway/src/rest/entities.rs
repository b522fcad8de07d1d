//! `POST /entities/{entity}/{id}/events`: one event on the entity's channel and on its kind's.
//! `http-api.md` 2, `channels.md` 1, rulings R14 and R38.

use std::borrow::Cow;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use carillon_protocol::channel::escape_segment;
use carillon_protocol::{ChannelName, Payload, UserId};
use http::HeaderMap;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::body::{self, JsonBody, wrong};
use super::error::{ApiError, ErrorBody};
use super::message::traceparent;
use super::parameter::Parameters;
use super::publish::rate_headers;
use crate::auth::Caller;
use crate::auth::Scope;
use crate::node::{Node, Outgoing};

/// Something happened to an entity.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = EntityEvent)]
pub(super) struct EntityEventBody<'a> {
    /// `created`, `updated` or `deleted`.
    #[serde(borrow)]
    #[schema(value_type = String)]
    pub action: Cow<'a, str>,
    /// The entity; `deleted` alone may do without it.
    #[serde(borrow)]
    #[schema(value_type = Option<serde_json::Value>)]
    pub data: Option<&'a RawValue>,
    /// What changed; travels as `meta.changes`.
    #[serde(borrow)]
    #[schema(value_type = Option<serde_json::Value>)]
    pub changes: Option<&'a RawValue>,
    /// The publisher's id of the event; repeating it is harmless.
    pub id: Option<String>,
    /// Whom it is from.
    #[schema(value_type = Option<String>)]
    pub user_id: Option<UserId>,
}

/// An entity event was accepted.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct EntityPublished {
    /// One id on both channels.
    pub id: String,
    /// Nothing was published: the id was seen before.
    pub duplicate: bool,
    /// Where it stands: the entity's own channel, then its kind's.
    pub channels: Vec<EntityPosition>,
}

/// Where an entity event stands on one channel.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct EntityPosition {
    /// The channel.
    pub channel: String,
    /// Its offset; null without history.
    pub offset: Option<u64>,
    /// The history's epoch; null without history.
    pub epoch: Option<String>,
    /// The message's tag; null without history.
    pub tag: Option<String>,
}

/// Publishes `entity:{action}` on `entity:{entity}:{id}` and on `entity:{entity}`.
#[utoipa::path(
    post, path = "/entities/{entity}/{id}/events", tag = "Publishing", request_body = EntityEventBody<'static>,
    params(("entity" = String, Path, description = "Kind of entity"), ("id" = String, Path, description = "Which one")),
    responses((status = 200, description = "Accepted", body = EntityPublished), (status = "default", description = "Refused", body = ErrorBody)),
)]
pub(super) async fn publish(
    State(node): State<Arc<Node>>,
    caller: Caller,
    Parameters((entity, id)): Parameters<(String, String)>,
    headers: HeaderMap,
    body: JsonBody,
) -> Result<Response, ApiError> {
    caller.require(Scope::Publish)?;
    let [one, all] = channels(&entity, &id)
        .ok_or_else(|| wrong("entity", "and id are too long for a channel name"))?;
    let body: EntityEventBody<'_> = body.read()?;
    let kind = match &*body.action {
        "created" => "entity:created",
        "updated" => "entity:updated",
        "deleted" => "entity:deleted",
        _ => return Err(wrong("action", "is one of created, updated, deleted").into()),
    };
    let payload = match body.data {
        None if kind == "entity:deleted" => Payload::of(&serde_json::json!({"id": id})),
        None => return Err(wrong("data", "is required").into()),
        data => body::payload(&node, data, "data")?,
    };
    let changes =
        body.changes.map(|changes| body::payload(&node, Some(changes), "changes")).transpose()?;
    let meta: Option<Bytes> =
        changes.map(|changes| format!("{{\"changes\":{}}}", changes.json_str()).into());
    let event = Outgoing {
        channel: one.clone(),
        kind: kind.into(),
        payload,
        id: Some(body.id.unwrap_or_else(|| crate::ids::message_id().as_str().to_owned()).into()),
        idempotency_key: None,
        user_id: body.user_id,
        exclude: Default::default(),
        meta,
        sender: caller.sender_key(),
        history: true,
        traceparent: traceparent(&headers),
    };
    // The more specific channel first: a connection with both hears the event there (R14).
    let twin = Outgoing { channel: all.clone(), ..event.clone() };
    let mut channels = Vec::with_capacity(2);
    let first = node.publish(event).await?;
    let second = node.publish(twin).await?;
    for (channel, receipt) in [(&one, &first), (&all, &second)] {
        channels.push(EntityPosition {
            channel: channel.as_str().to_owned(),
            offset: receipt.position.map(|position| position.offset),
            epoch: receipt.position.map(|position| position.epoch.to_string()),
            tag: receipt.position.map(|position| position.tag.to_string()),
        });
    }
    let published = EntityPublished {
        id: first.id.as_str().to_owned(),
        duplicate: first.duplicate && second.duplicate,
        channels,
    };
    let mut response = Json(published).into_response();
    rate_headers(response.headers_mut(), node.publish_rate(&all));
    Ok(response)
}

/// The entity's own channel and its kind's.
fn channels(entity: &str, id: &str) -> Option<[ChannelName; 2]> {
    let entity = escape_segment(entity);
    let one = ChannelName::new(&format!("entity:{entity}:{}", escape_rest(id))).ok()?;
    let all = ChannelName::new(&format!("entity:{entity}")).ok()?;
    Some([one, all])
}

/// The last placeholder of a pattern takes the rest, so only what no channel name may hold is
/// escaped — and `%` itself, so that no two ids share a channel.
fn escape_rest(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"_-.:/@=+~!$;".contains(&byte) {
            escaped.push(byte as char);
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_outside_the_alphabet_are_escaped_in_channels() {
        let [one, all] = channels("Task:x", "v1.2 ü").expect("fits");
        assert_eq!(one.as_str(), "entity:Task%3Ax:v1.2%20%C3%BC");
        assert_eq!(all.as_str(), "entity:Task%3Ax");
        assert!(channels("Task", &"x".repeat(300)).is_none());
    }
}
