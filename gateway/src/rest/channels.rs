//! `/channels…`: what is listened to in the cluster, and history. `http-api.md` 5, rulings R3, R13, R17, R21.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use carillon_broker_client::{HistoryPage, Retention, Start, Target};
use carillon_protocol::codec::write_json;
use carillon_protocol::envelope::Refusal;
use carillon_protocol::{ChannelName, Position, Profile, Since};
use http::header::CONTENT_TYPE;
use http::{HeaderValue, StatusCode};
use serde::Serialize;
use utoipa::ToSchema;

use super::body::wrong;
use super::error::{ApiError, ErrorBody};
use super::parameter::{self, Parameters, Search};
use crate::auth::Caller;
use crate::auth::Scope;
use crate::cluster::{ChannelCount, Question};
use crate::dispatch::NOTIFICATIONS;
use crate::node::{Node, channel_not_found};
use crate::relay::Bridge;

/// An answer with history takes no further message beyond this size; `next` leads on.
const HISTORY_BYTES_MAX: usize = 16 * 1024 * 1024;

/// A page of channels, in order of name.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Channels {
    /// The channels.
    #[schema(value_type = Vec<super::openapi::ChannelSchema>)]
    pub channels: Vec<ChannelCount>,
    /// `cursor` of the next page; null at the end.
    pub next: Option<String>,
}

/// One channel.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ChannelState {
    /// Its name.
    pub channel: String,
    /// Connections that listen, over the cluster.
    pub subscribers: u64,
    /// Newest offset; null without history.
    pub offset: Option<u64>,
    /// The history's epoch; null without history.
    pub epoch: Option<String>,
}

/// Lists channels that somebody listens to.
#[utoipa::path(
    get, path = "/channels", tag = "Channels",
    params(
        ("prefix" = Option<String>, Query, description = "Names that begin with it"),
        ("limit" = Option<u64>, Query, description = "At most so many: 1 to 1,000, 100 where not given"),
        ("cursor" = Option<String>, Query, description = "`next` of the page before"),
    ),
    responses((status = 200, description = "A page, in order of name", body = Channels), (status = "default", description = "Refused", body = ErrorBody)),
)]
pub(super) async fn list(
    State(node): State<Arc<Node>>,
    caller: Caller,
    search: Search,
) -> Result<Json<Channels>, ApiError> {
    caller.require(Scope::Read)?;
    let limit = search.limit()?;
    let question = Question::Channels {
        prefix: search.text("prefix").unwrap_or_default(),
        after: search.cursor()?,
        // One more tells whether there is another page.
        limit: limit + 1,
    };
    let answers: Vec<Vec<ChannelCount>> = node
        .cluster
        .ask(&Target::All, question)
        .await
        .map_err(|error| node.broker_refusal(&error))?;
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for count in answers.into_iter().flatten() {
        *counts.entry(count.channel).or_default() += count.subscribers;
    }
    let mut channels: Vec<ChannelCount> = counts
        .into_iter()
        .map(|(channel, subscribers)| ChannelCount { channel, subscribers })
        .collect();
    let next = parameter::page(&mut channels, limit, |count| &count.channel);
    Ok(Json(Channels { channels, next }))
}

/// Shows one channel.
#[utoipa::path(
    get, path = "/channels/{channel}", tag = "Channels",
    params(("channel" = String, Path, description = "The channel")),
    responses((status = 200, description = "The channel", body = ChannelState), (status = "default", description = "Refused", body = ErrorBody)),
)]
pub(super) async fn show(
    State(node): State<Arc<Node>>,
    caller: Caller,
    Parameters(channel): Parameters<String>,
) -> Result<Json<ChannelState>, ApiError> {
    caller.require(Scope::Read)?;
    let channel = parameter::channel(&channel)?;
    let retention = retention(&node, &channel)?;
    let question = Question::Listeners(channel.as_str().to_owned());
    let counts: Vec<u64> = node
        .cluster
        .ask(&Target::All, question)
        .await
        .map_err(|error| node.broker_refusal(&error))?;
    let top = match retention {
        None => None,
        Some(_) => {
            let tops = node
                .broker
                .tops(std::slice::from_ref(&channel))
                .await
                .map_err(|error| node.broker_refusal(&error))?;
            tops.first().copied()
        }
    };
    Ok(Json(ChannelState {
        channel: channel.as_str().to_owned(),
        subscribers: counts.iter().sum(),
        offset: top.map(|top| top.offset),
        epoch: top.map(|top| top.epoch.to_string()),
    }))
}

/// What a channel keeps; `None` for nothing.
///
/// # Errors
/// `CHANNEL_NOT_FOUND`.
fn retention(node: &Node, channel: &ChannelName) -> Result<Option<Retention>, Refusal> {
    let policy = node.policy.load();
    let found = policy.find(channel).ok_or_else(|| channel_not_found(channel))?;
    // A name for each user's own stream, not a channel with a history.
    Ok(found.namespace.retention.filter(|_| channel.as_str() != NOTIFICATIONS))
}

/// Reads a channel's history, oldest first.
#[utoipa::path(
    get, path = "/channels/{channel}/history", tag = "Channels",
    params(
        ("channel" = String, Path, description = "The channel"),
        ("since" = Option<String>, Query, description = "`EPOCH:OFFSET` or an offset: what came after it; the newest where not given"),
        ("limit" = Option<u64>, Query, description = "At most so many: 1 to 1,000, 100 where not given"),
    ),
    responses((status = 200, description = "Messages, oldest first; `recovered` false where `since` cannot be served from", body = super::openapi::HistorySchema), (status = "default", description = "Refused", body = ErrorBody)),
)]
pub(super) async fn history(
    State(node): State<Arc<Node>>,
    caller: Caller,
    Parameters(channel): Parameters<String>,
    search: Search,
) -> Result<Response, ApiError> {
    caller.require(Scope::Read)?;
    let channel = parameter::channel(&channel)?;
    let limit = search.limit()? as u32;
    let since = search
        .text("since")
        .or_else(|| search.text("cursor").filter(|text| !text.is_empty()))
        .map(|text| parse_since(&text))
        .transpose()?;
    let Some(retention) = retention(&node, &channel)? else {
        let body = serde_json::json!({"messages": [], "epoch": null, "offset": null, "next": null});
        return Ok(Json(body).into_response());
    };
    let read = async |start| {
        let page = node.relay.history(&channel, start, limit, retention.age).await;
        page.map_err(|error| node.broker_refusal(&error))
    };
    let Some(since) = since else {
        return Ok(answer(&channel, &*read(Start::Last).await?, None));
    };
    let page = read(Start::After(since.offset)).await?;
    let bridge = match since.epoch {
        Stated::Epoch(epoch) => Bridge::judge(&Since { epoch, ..since.position() }, &page),
        Stated::None => {
            Bridge::judge(&Since { epoch: Some(page.top.epoch), ..since.position() }, &page)
        }
    };
    // An offset of another history means nothing in this one: all that is held is the honest answer.
    let page = if matches!(bridge, Bridge::Epoch | Bridge::Fork) {
        read(Start::After(0)).await?
    } else {
        page
    };
    Ok(answer(&channel, &page, Some(bridge)))
}

/// A `since` as read: what was stated of the epoch matters.
#[derive(Clone, Copy, Debug, PartialEq)]
struct StatedSince {
    epoch: Stated,
    offset: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Stated {
    /// An offset alone: of the present epoch.
    None,
    /// An epoch; `None` for a text that is none of ours.
    Epoch(Option<carillon_protocol::Epoch>),
}

impl StatedSince {
    fn position(self) -> Since {
        Since { epoch: None, offset: self.offset, tag: None, foreign_tag: false }
    }
}

fn parse_since(text: &str) -> Result<StatedSince, Refusal> {
    let (epoch, offset) = match text.rsplit_once(':') {
        Some(("", _)) => return Err(wrong("since", "must be EPOCH:OFFSET or an offset")),
        Some((epoch, offset)) => (Stated::Epoch(carillon_protocol::Epoch::parse(epoch)), offset),
        None => (Stated::None, text),
    };
    let offset = offset.parse().map_err(|_| wrong("since", "must be EPOCH:OFFSET or an offset"))?;
    Ok(StatedSince { epoch, offset })
}

/// `{"messages","epoch","offset","next"}`, payloads copied as the bytes that they are.
fn answer(channel: &ChannelName, page: &HistoryPage, bridge: Option<Bridge>) -> Response {
    let mut out = Vec::with_capacity(1024);
    out.extend_from_slice(b"{\"messages\":[");
    let mut last: Option<Position> = None;
    for publication in &page.publications {
        if last.is_some() {
            if out.len() > HISTORY_BYTES_MAX {
                break;
            }
            out.push(b',');
        }
        write_json(&publication.envelope(channel.as_str()), Profile::Social, &mut out);
        last = publication.position.or(last);
    }
    let top = page.top;
    let next = last
        .filter(|last| last.offset < top.offset)
        .map(|last| format!("{}:{}", last.epoch, last.offset));
    let mut rest = serde_json::json!({"epoch": top.epoch, "offset": top.offset, "next": next});
    match bridge {
        None => {}
        Some(Bridge::Whole) => rest["recovered"] = true.into(),
        Some(bridge) => {
            rest["recovered"] = false.into();
            rest["reason"] = bridge.reason().into();
        }
    }
    out.extend_from_slice(b"],");
    out.extend_from_slice(&rest.to_string().as_bytes()[1..]);
    ([(CONTENT_TYPE, HeaderValue::from_static("application/json"))], out).into_response()
}

/// Forgets a channel's history and begins a new epoch.
#[utoipa::path(
    delete, path = "/channels/{channel}/history", tag = "Channels",
    params(("channel" = String, Path, description = "The channel")),
    responses((status = 204, description = "Forgotten"), (status = "default", description = "Refused", body = ErrorBody)),
)]
pub(super) async fn clear(
    State(node): State<Arc<Node>>,
    caller: Caller,
    Parameters(channel): Parameters<String>,
) -> Result<StatusCode, ApiError> {
    caller.require(Scope::Admin)?;
    let channel = parameter::channel(&channel)?;
    if retention(&node, &channel)?.is_some() {
        node.broker.clear_history(&channel).await.map_err(|error| node.broker_refusal(&error))?;
    }
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_is_a_position_or_an_offset() {
        assert_eq!(
            parse_since("12").expect("an offset"),
            StatedSince { epoch: Stated::None, offset: 12 }
        );
        let stated = parse_since("abcdEFGH:7").expect("a position");
        assert!(matches!(stated, StatedSince { epoch: Stated::Epoch(Some(_)), offset: 7 }));
        assert!(matches!(parse_since("foreign:7").expect("read").epoch, Stated::Epoch(None)));
        assert!(parse_since("abcdEFGH:").is_err());
        assert!(parse_since(":7").is_err());
        assert!(parse_since("-1").is_err());
    }
}
