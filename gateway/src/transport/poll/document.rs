//! Long polls in the OpenAPI document. Shapes alone: what is answered is written elsewhere.

use utoipa::{OpenApi, ToSchema};

/// What the paths begin with.
const SERVER: &str = "/api/v1/realtime";

/// The polls' part of the document.
#[must_use]
pub(crate) fn document() -> utoipa::openapi::OpenApi {
    let mut document = Polls::openapi();
    for item in document.paths.paths.values_mut() {
        item.servers = Some(vec![utoipa::openapi::Server::new(SERVER)]);
    }
    document
}

#[derive(OpenApi)]
#[openapi(paths(super::get, super::post, super::missed))]
struct Polls;

/// What a poll asks in a body; what it does not say, the query may.
#[derive(ToSchema)]
#[schema(as = Poll)]
#[expect(dead_code, reason = "a shape for the document alone")]
pub(super) struct PollSchema {
    /// The token's user.
    user_id: Option<String>,
    /// Where the client stopped: a number of an earlier answer; 0 starts now, with what is pending first.
    last_poll_id: Option<u64>,
    /// Seconds, at most 30.
    timeout: Option<f64>,
    /// Channels beside the user's own.
    channels: Option<Vec<String>>,
    /// Envelopes to send, as over a WebSocket; at most 1,000.
    #[schema(value_type = Option<Vec<Object>>)]
    messages: Option<Vec<serde_json::Value>>,
}

/// What a poll answers.
#[derive(ToSchema)]
#[schema(as = PollAnswer)]
#[expect(dead_code, reason = "a shape for the document alone")]
pub(super) struct PollAnswerSchema {
    /// At most 100, in order.
    events: Vec<PollEventSchema>,
    /// To be given with the next poll.
    last_poll_id: u64,
    /// More is waiting.
    has_more: bool,
    /// `false` when the number was unknown or history was lost; else not there.
    recovered: Option<bool>,
    /// Envelopes that answer `messages`.
    #[schema(value_type = Option<Vec<Object>>)]
    replies: Option<Vec<serde_json::Value>>,
    /// Channels that were refused.
    errors: Option<Vec<PollErrorSchema>>,
}

/// A message.
#[derive(ToSchema)]
#[schema(as = PollEvent)]
#[expect(dead_code, reason = "a shape for the document alone")]
pub(super) struct PollEventSchema {
    /// Its number; any is good as `last_poll_id`.
    id: u64,
    /// Its own id.
    message_id: Option<String>,
    /// Its type.
    r#type: String,
    /// Its channel.
    channel: Option<String>,
    /// Anything.
    payload: Option<serde_json::Value>,
    /// RFC 3339; Unix milliseconds in the profile `dnr`.
    timestamp: Option<String>,
    /// Its offset, on channels with history.
    offset: Option<u64>,
    /// The history's epoch.
    epoch: Option<String>,
    /// Its tag.
    tag: Option<String>,
    /// Its sender, where a client sent it.
    user_id: Option<String>,
}

/// A channel that is not heard.
#[derive(ToSchema)]
#[schema(as = PollError)]
#[expect(dead_code, reason = "a shape for the document alone")]
pub(super) struct PollErrorSchema {
    /// The channel as it was asked for.
    channel: String,
    /// Why.
    code: String,
    /// One sentence for people.
    message: String,
}

/// The user's own stream after a sequence.
#[derive(ToSchema)]
#[schema(as = Missed)]
#[expect(dead_code, reason = "a shape for the document alone")]
pub(super) struct MissedSchema {
    /// Envelopes, oldest first, at most 100.
    #[schema(value_type = Vec<Object>)]
    messages: Vec<serde_json::Value>,
    /// The history's epoch; null without one.
    epoch: Option<String>,
    /// Nothing was lost before them.
    recovered: bool,
    /// More is waiting.
    has_more: bool,
}
