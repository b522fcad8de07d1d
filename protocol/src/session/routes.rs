//! The table that re-types client messages on their way (`chat:send` → `chat:message`) and relays
//! (typing, receipts). Operators extend it; the shipped rows are data like theirs.
//! Source: `protocol.md` 3, rulings R4, R9, R10, R29.

use serde_json::{Map, Value, json};

use super::ClientPublish;
use super::draft::Draft;
use crate::channel::escape_segment;
use crate::envelope::Refusal;
use crate::{ChannelName, ClientMessage, ErrorCode, Payload};

/// Where users announce that they come and go.
const PRESENCE: &str = "presence";
/// How payloads spell who acts.
const SENDER_FIELDS: [&str; 2] = ["userId", "user_id"];

/// One row of the table.
///
/// `payload` maps fields of the outgoing payload to values; a text that begins with `$` is filled in:
/// `$user_id`, `$timestamp_ms` (integer), `$timestamp` (RFC 3339), `$channel`, `$payload.x` (absent
/// when the request has no `x`). An empty map keeps the request's payload.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// The type that clients send.
    pub from: String,
    /// The type that listeners hear.
    pub to: String,
    /// The outgoing payload; empty keeps the incoming one.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub payload: Map<String, Value>,
    /// Fields that the server sets in the payload over whatever the client wrote.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub overwrite: Map<String, Value>,
    /// Fields that the server sets in the payload where the client wrote none.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub fill: Map<String, Value>,
    /// Never back to the sending connection.
    #[serde(default)]
    pub relay: bool,
    /// Kept in history where the channel has one.
    #[serde(default = "yes")]
    pub history: bool,
}

const fn yes() -> bool {
    true
}

/// A row cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("route {from:?}: {problem}")]
pub struct InvalidRoute {
    /// The row.
    pub from: String,
    /// What is wrong.
    pub problem: String,
}

/// The table.
#[derive(Clone, Debug)]
pub struct Routes {
    rows: Vec<Route>,
}

/// Who sends, and when.
#[derive(Clone, Copy)]
pub(super) struct Sender<'a> {
    pub(super) user: Option<&'a str>,
    pub(super) unix_ms: i64,
}

impl Default for Routes {
    fn default() -> Self {
        Self { rows: Self::shipped() }
    }
}

impl Routes {
    /// The rows that ship with the product.
    #[must_use]
    pub fn shipped() -> Vec<Route> {
        let fields = |value: Value| value.as_object().cloned().unwrap_or_default();
        let row = |from: &str, to: &str, payload: Value, overwrite: Value, relay, history| Route {
            from: from.to_owned(),
            to: to.to_owned(),
            payload: fields(payload),
            overwrite: fields(overwrite),
            fill: Map::new(),
            relay,
            history,
        };
        let chat =
            json!({"userId": "$user_id", "text": "$payload.text", "timestamp": "$timestamp_ms"});
        let indicator =
            |typing| json!({"userId": "$user_id", "isTyping": typing, "channel": "$channel"});
        let typing = |typing| json!({"user_id": "$user_id", "is_typing": typing});
        let sender = json!({"user_id": "$user_id"});
        let none = json!({});
        let receipt = Route {
            fill: fields(json!({"read_at": "$timestamp"})),
            ..row("read_receipt", "read_receipt", none.clone(), sender, true, true)
        };
        vec![
            row("chat:send", "chat:message", chat, none.clone(), false, true),
            row("typing:start", "typing:indicator", indicator(true), none.clone(), true, false),
            row("typing:stop", "typing:indicator", indicator(false), none.clone(), true, false),
            row("typing_start", "typing_start", none.clone(), typing(true), true, false),
            row("typing_stop", "typing_stop", none, typing(false), true, false),
            receipt,
        ]
    }

    /// Shipped rows, with the operator's in front (a row of the same `from` replaces ours).
    ///
    /// # Errors
    /// A row that re-types to, or from, a type that is the server's.
    pub fn with(operators: Vec<Route>) -> Result<Self, InvalidRoute> {
        for route in &operators {
            let fail = |problem: &str| InvalidRoute {
                from: route.from.clone(),
                problem: problem.to_owned(),
            };
            if route.from.is_empty() || route.to.is_empty() {
                return Err(fail("`from` and `to` are required"));
            }
            if super::is_reserved(&route.from) || super::is_control(&route.to) {
                return Err(fail("control types cannot be routed"));
            }
            if super::is_request(&route.from) {
                return Err(fail("this type is a request to the server and is never routed"));
            }
        }
        let mut rows = operators;
        rows.extend(Self::shipped());
        Ok(Self { rows })
    }

    /// A client's payload with the sender's true id where it names one, on messages whose payload says who acts: typing,
    /// receipts, what a row makes, announcements on `presence` (R4). `None` where it stays as it is.
    #[must_use]
    pub fn signed(
        &self,
        kind: &str,
        channel: &ChannelName,
        payload: &Payload,
        user: Option<&str>,
    ) -> Option<Payload> {
        let says_who = channel.as_str() == PRESENCE
            || self.rows.iter().any(|row| row.from == kind || row.to == kind);
        if !says_who {
            return None;
        }
        let Value::Object(fields) = payload.to_value() else { return None };
        let before = fields.clone();
        let mut draft = Draft::keeping(payload, fields);
        for name in SENDER_FIELDS {
            sign(&mut draft, name, user);
        }
        (*draft.fields() != before).then(|| draft.finish())
    }

    /// The row for a type.
    #[must_use]
    pub fn find(&self, kind: &str) -> Option<&Route> {
        self.rows.iter().find(|route| route.from == kind)
    }
}

impl Route {
    /// The publish that a message becomes.
    pub(super) fn apply(
        &self,
        message: &ClientMessage,
        payload: &Value,
        sender: Sender<'_>,
    ) -> Result<ClientPublish, Refusal> {
        let channel = target(message, payload)?;
        let mut outgoing = if self.payload.is_empty() {
            match payload {
                Value::Object(fields) => Draft::keeping(&message.payload, fields.clone()),
                Value::Null => Draft::default(),
                _ => return Err(super::wrong("must be an object", "payload")),
            }
        } else {
            Draft::empty(&message.payload)
        };
        for (field, template) in self.payload.iter().chain(&self.overwrite) {
            match fill(template, &channel, payload, sender) {
                Some(value) => put(&mut outgoing, field, template, value),
                None => outgoing.remove(field),
            }
        }
        for (field, template) in &self.fill {
            if outgoing.fields().get(field).is_none_or(Value::is_null)
                && let Some(value) = fill(template, &channel, payload, sender)
            {
                put(&mut outgoing, field, template, value);
            }
        }
        // The other spelling of the sender is as little the client's as the one the row sets (R4).
        if self.relay && !self.payload.contains_key("userId") {
            sign(&mut outgoing, "userId", sender.user);
        }
        Ok(ClientPublish {
            channel,
            kind: self.to.as_str().into(),
            payload: outgoing.finish(),
            id: message.id.clone(),
            relay: self.relay,
            history: self.history,
        })
    }
}

/// Writes the sender over a field that names one; the anonymous have none.
fn sign(draft: &mut Draft<'_>, name: &str, user: Option<&str>) {
    if draft.fields().contains_key(name) {
        match user {
            Some(user) => draft.set(name, user.into()),
            None => draft.remove(name),
        }
    }
}

/// Sets a field to what its template became.
fn put(draft: &mut Draft<'_>, field: &str, template: &Value, value: Value) {
    match template.as_str().and_then(|text| text.strip_prefix("$payload.")) {
        Some(source) => draft.copy(field, source, value),
        None => draft.set(field, value),
    }
}

/// Top-level channel, else `payload.channel`, else the conversation that the payload names (R10).
fn target(message: &ClientMessage, payload: &Value) -> Result<ChannelName, Refusal> {
    if let Some(channel) = &message.channel {
        return super::channel_name(channel);
    }
    match (payload.get("channel"), payload.get("conversation_id")) {
        (Some(Value::String(channel)), _) => super::channel_name(channel),
        (None, Some(Value::String(conversation))) => {
            super::channel_name(&format!("conversation:{}", escape_segment(conversation)))
        }
        _ => Err(Refusal::new(ErrorCode::InvalidMessage, "channel or conversation_id is required")
            .with("field", "channel")),
    }
}

fn fill(
    template: &Value,
    channel: &ChannelName,
    payload: &Value,
    sender: Sender<'_>,
) -> Option<Value> {
    let Value::String(text) = template else { return Some(template.clone()) };
    let Some(variable) = text.strip_prefix('$') else { return Some(template.clone()) };
    match variable {
        "user_id" => sender.user.map(Into::into),
        "timestamp_ms" => Some(sender.unix_ms.into()),
        "timestamp" => Some(crate::time::rfc3339(sender.unix_ms).into()),
        "channel" => Some(channel.as_str().into()),
        path => path.strip_prefix("payload.").and_then(|field| payload.get(field)).cloned(),
    }
}
