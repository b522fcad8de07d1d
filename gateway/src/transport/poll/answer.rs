//! One poll from question to answer: find what its number stands for, send its messages, read what is
//! new, wait when there is nothing, and keep what the answer's numbers stand for.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use carillon_broker_client::{NewPollPage, PollPage};
use carillon_protocol::envelope::Refusal;
use carillon_protocol::{ChannelName, Cursor, ErrorCode};
use tokio::time::Instant;

use super::gather::{self, EVENTS_MAX, Event, Gathered, Listened};
use super::held::{Held, Woken};
use super::page::{self, Page};
use super::question::Question;
use crate::auth::Claims;
use crate::clock;
use crate::interests::{Interests, by_channel};
use crate::node::Node;
use crate::policy::Action;
use crate::rest::store_refusal;

/// How long a woken poll waits for what comes in the same breath: fewer answers, fewer polls.
const BREATH: Duration = Duration::from_millis(20);
/// Channels that persistent subscriptions add to a poll: each is looked at with every poll.
const INTERESTS_MAX: usize = 256;
/// Empty pages that are followed from a number to the next.
const FOLLOWED_MAX: usize = 16;

/// What a poll number stands for.
struct Origin {
    id: u64,
    cursor: Cursor,
    twins: Vec<u64>,
    /// Whether `id` stands for exactly this cursor.
    kept: bool,
    /// The number was known, or none was given.
    recovered: bool,
    /// The same question was answered already.
    answered: Option<(PollPage, Page)>,
}

/// The parts of an answer.
struct Answer {
    events: Vec<Bytes>,
    first_id: u64,
    last_poll_id: u64,
    has_more: bool,
    recovered: bool,
}

/// Answers one poll.
///
/// # Errors
/// `UNAVAILABLE`.
pub(super) async fn answer(
    node: &Arc<Node>,
    claims: &Claims,
    question: Question,
    remote: Option<IpAddr>,
) -> Result<Vec<u8>, Refusal> {
    let deadline = Instant::now() + question.timeout.min(until_expiry(claims));
    let mut held = Held::open(node, claims, question.profile, remote)?;
    let (mut channels, errors) = channels(&held, node, claims, &question.channels).await;
    add_interests(&mut channels, &held, node, claims).await?;
    let mut origin = find(node, claims, &question, &channels).await?;
    begin(node, &mut origin, &channels).await?;
    let replies = match question.messages {
        Some(messages) => Some(held.send(messages).await),
        None => None,
    };
    let answer = match repeat(node, &held, &channels, &mut origin).await? {
        Some(answer) => answer,
        None => read(node, claims, &mut held, &channels, &origin, deadline).await?,
    };
    Ok(write(&answer, replies.as_deref(), &errors))
}

fn until_expiry(claims: &Claims) -> Duration {
    let left_ms = claims.expires_at.saturating_mul(1_000).saturating_sub(clock::unix_ms());
    Duration::from_millis(left_ms.max(0) as u64)
}

/// The user's own stream and the channels asked for; those that are refused, for the answer.
async fn channels(
    held: &Held,
    node: &Node,
    claims: &Claims,
    asked: &[String],
) -> (Vec<Listened>, Vec<serde_json::Value>) {
    let mut channels: Vec<Listened> = Vec::new();
    let own = ChannelName::user_stream(claims.user.as_str());
    if let Some(own) = &own {
        let retention = node.policy.load().find(own).and_then(|found| found.namespace.retention);
        channels.push(Listened {
            channel: own.clone(),
            age: retention.map(|kept| kept.age),
            conflate: false,
            asked: true,
            interests: None,
        });
    }
    let automatic = channels.len();
    let limit = node.config.load().limits.subscriptions_per_connection as usize;
    let mut errors = Vec::new();
    let named: Vec<ChannelName> =
        asked.iter().filter_map(|name| ChannelName::new(name).ok()).collect();
    held.driver.ask_ahead(&named).await;
    for name in asked {
        match listened(held, name).await {
            Ok(one) if channels.iter().any(|known| known.channel == one.channel) => {}
            Ok(_) if limit > 0 && channels.len() - automatic >= limit => {
                let refusal =
                    Refusal::new(ErrorCode::SubscriptionLimit, "Too many channels in one poll");
                errors.push(error(name, &refusal));
            }
            Ok(one) => channels.push(one),
            Err(refusal) => errors.push(error(name, &refusal)),
        }
    }
    (channels, errors)
}

async fn listened(held: &Held, name: &str) -> Result<Listened, Refusal> {
    let name = ChannelName::new(name)
        .map_err(|invalid| Refusal::new(ErrorCode::InvalidMessage, invalid.to_string()))?;
    let channel = held.driver.resolve(&name)?.channel;
    let (traits, conflate) = held.driver.allowed(Action::Subscribe, &name).await?;
    Ok(Listened { channel, age: traits.history_age, conflate, asked: true, interests: None })
}

/// The user's persistent subscriptions: on the channels asked for, and on those that they add.
async fn add_interests(
    channels: &mut Vec<Listened>,
    held: &Held,
    node: &Node,
    claims: &Claims,
) -> Result<(), Refusal> {
    let active = node.subscriptions.active_for(&claims.user).await;
    let active = active.map_err(|error| store_refusal(node, error))?;
    let mut wanted: Vec<_> = by_channel(&active, &node.filters).into_iter().collect();
    // In one order on every node: the channels are part of what a poll's number stands for.
    wanted.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
    wanted.truncate(INTERESTS_MAX);
    for (channel, interests) in wanted {
        let interests: Interests = interests.into();
        if let Some(known) = channels.iter_mut().find(|known| known.channel == channel) {
            known.interests = Some(interests);
        } else if let Ok((traits, conflate)) =
            held.driver.allowed(Action::Subscribe, &channel).await
        {
            let age = traits.history_age;
            let interests = Some(interests);
            channels.push(Listened { channel, age, conflate, asked: false, interests });
        }
    }
    Ok(())
}

fn error(channel: &str, refusal: &Refusal) -> serde_json::Value {
    serde_json::json!({"channel": channel, "code": refusal.code.name(), "message": refusal.message})
}

/// Looks the number up.
async fn find(
    node: &Node,
    claims: &Claims,
    question: &Question,
    channels: &[Listened],
) -> Result<Origin, Refusal> {
    let fresh = |cursor, recovered| Origin {
        id: 0,
        cursor,
        twins: Vec::new(),
        kept: false,
        recovered,
        answered: None,
    };
    let mut id = question.last_poll_id;
    if id == 0 {
        return Ok(match &question.since {
            None => fresh(Cursor::default(), true),
            Some(Ok(cursor)) => fresh(cursor.clone(), true),
            Some(Err(())) => fresh(Cursor::default(), false),
        });
    }
    for _ in 0..FOLLOWED_MAX {
        let key = page::question(id, channels.iter().map(|listened| &listened.channel));
        let state = node.broker.find_poll_pages(&claims.user, id, &key).await;
        let state = state.map_err(|error| node.broker_refusal(&error))?;
        let read = |kept: PollPage| Page::read(&kept).map(|page| (kept, page));
        let answered = state.answered.and_then(read);
        // An answer without events only moved the cursor: go on from there.
        if let Some((kept, page)) = &answered
            && page.steps.is_empty()
        {
            id = kept.first_id;
            continue;
        }
        let at = state.origin.and_then(read).and_then(|(kept, page)| page.at(&kept, id));
        return Ok(match at {
            Some((cursor, twins)) => {
                Origin { id, cursor, twins, kept: true, recovered: true, answered }
            }
            None => fresh(Cursor::default(), false),
        });
    }
    Ok(fresh(Cursor::default(), false))
}

/// Channels that the cursor does not know begin now.
async fn begin(node: &Node, origin: &mut Origin, channels: &[Listened]) -> Result<(), Refusal> {
    if origin.answered.is_some() {
        return Ok(());
    }
    let asked: Vec<&ChannelName> = channels.iter().map(|listened| &listened.channel).collect();
    page::trim(&mut origin.cursor, &asked);
    let new: Vec<ChannelName> = channels
        .iter()
        .filter(|listened| {
            listened.age.is_some() && origin.cursor.get(listened.channel.as_str()).is_none()
        })
        .map(|listened| listened.channel.clone())
        .collect();
    if new.is_empty() {
        return Ok(());
    }
    let tops = node.broker.tops(&new).await.map_err(|error| node.broker_refusal(&error))?;
    for (channel, top) in new.iter().zip(tops) {
        origin.cursor.set(channel, top);
    }
    origin.kept = false;
    Ok(())
}

/// The answer that this question had before, if it had one and history still holds it.
async fn repeat(
    node: &Node,
    held: &Held,
    channels: &[Listened],
    origin: &mut Origin,
) -> Result<Option<Answer>, Refusal> {
    let Some((kept, page)) = origin.answered.take() else { return Ok(None) };
    let events = gather::again(node, held.connection(), channels, &page).await;
    match events.map_err(|error| node.broker_refusal(&error))? {
        Some(events) => Ok(Some(Answer::of(&kept, &page, events))),
        None => {
            // Its place is taken by the answer that is gone; this one cannot be asked for again.
            begin(node, origin, channels).await?;
            Ok(None)
        }
    }
}

/// Reads what is new; waits when there is nothing.
async fn read(
    node: &Node,
    claims: &Claims,
    held: &mut Held,
    channels: &[Listened],
    origin: &Origin,
    deadline: Instant,
) -> Result<Answer, Refusal> {
    let connection = Arc::clone(held.connection());
    let gather = async |events_max| {
        let gathered =
            gather::gather(node, &connection, channels, &origin.cursor, &origin.twins, events_max)
                .await;
        gathered.map_err(|error| node.broker_refusal(&error))
    };
    let mut gathered = gather(EVENTS_MAX).await?;
    let mut heard = Vec::new();
    if gathered.events.is_empty() && origin.recovered && Instant::now() < deadline {
        // Listen before the last look: what is published between the two is found by it, and what comes
        // after it wakes us. The other order would lose it.
        held.listen(channels).await?;
        gathered = gather(EVENTS_MAX).await?;
        while gathered.events.is_empty() && heard.is_empty() {
            let woken = held.wait(deadline).await;
            if woken == Woken::Arrived {
                tokio::time::sleep(BREATH).await;
            }
            heard = held.heard();
            gathered = gather(EVENTS_MAX - heard.len()).await?;
            if woken != Woken::Arrived {
                break;
            }
        }
    }
    gathered.events.extend(heard);
    keep(node, claims, held, channels, origin, gathered).await
}

/// Keeps what the answer's numbers stand for.
async fn keep(
    node: &Node,
    claims: &Claims,
    held: &Held,
    channels: &[Listened],
    origin: &Origin,
    gathered: Gathered,
) -> Result<Answer, Refusal> {
    let Gathered { events, end, more, recovered, twins, notifications } = gathered;
    let recovered = recovered && origin.recovered;
    if events.is_empty() && origin.kept && end == origin.cursor {
        let last_poll_id = origin.id;
        return Ok(Answer {
            events: Vec::new(),
            first_id: 0,
            last_poll_id,
            has_more: more,
            recovered,
        });
    }
    let steps = events.iter().map(|event| event.step.clone()).collect();
    let page = Page::new(&origin.cursor, &end, steps, more, recovered, twins);
    let new = NewPollPage {
        question: page::question(origin.id, channels.iter().map(|listened| &listened.channel)),
        count: events.len().max(1) as u64,
        body: page.to_text(),
    };
    let kept = node.broker.keep_poll_page(&claims.user, new.clone()).await;
    let kept = kept.map_err(|error| node.broker_refusal(&error))?;
    // The other answer to the same question, where there is one, holds them as well.
    notifications.iter().for_each(|notification| node.courier.delivered(notification));
    if kept.body == new.body {
        return Ok(Answer::of(&kept, &page, events));
    }
    // The same question was answered elsewhere meanwhile: both get that answer.
    let other = Page::read(&kept);
    if let Some(other) = other
        && let Some(events) = gather::again(node, held.connection(), channels, &other)
            .await
            .map_err(|error| node.broker_refusal(&error))?
    {
        return Ok(Answer::of(&kept, &other, events));
    }
    let kept = node
        .broker
        .keep_poll_page(&claims.user, NewPollPage { question: String::new(), ..new })
        .await;
    let kept = kept.map_err(|error| node.broker_refusal(&error))?;
    Ok(Answer::of(&kept, &page, events))
}

impl Answer {
    fn of(kept: &PollPage, page: &Page, events: Vec<Event>) -> Self {
        Self {
            events: events.into_iter().map(|event| event.document).collect(),
            first_id: kept.first_id,
            last_poll_id: kept.first_id + kept.count.max(1) - 1,
            has_more: page.more,
            recovered: page.recovered,
        }
    }
}

/// The body. A message's own id stands as `message_id`, because an event's `id` is its number.
fn write(answer: &Answer, replies: Option<&[Bytes]>, errors: &[serde_json::Value]) -> Vec<u8> {
    let mut out =
        Vec::with_capacity(128 + answer.events.iter().map(|event| event.len() + 48).sum::<usize>());
    out.extend_from_slice(b"{\"events\":[");
    for (index, document) in answer.events.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        let id = answer.first_id + index as u64;
        out.extend_from_slice(format!("{{\"id\":{id},").as_bytes());
        match document.strip_prefix(b"{\"id\":") {
            Some(rest) => {
                out.extend_from_slice(b"\"message_id\":");
                out.extend_from_slice(rest);
            }
            None => out.extend_from_slice(document.strip_prefix(b"{").unwrap_or(b"}")),
        }
    }
    let tail =
        format!("],\"last_poll_id\":{},\"has_more\":{}", answer.last_poll_id, answer.has_more);
    out.extend_from_slice(tail.as_bytes());
    if let Some(replies) = replies {
        out.extend_from_slice(b",\"replies\":[");
        out.extend_from_slice(&replies.join(&b","[..]));
        out.push(b']');
    }
    if !answer.recovered {
        out.extend_from_slice(b",\"recovered\":false");
    }
    if !errors.is_empty() {
        out.extend_from_slice(b",\"errors\":");
        out.extend_from_slice(serde_json::Value::from(errors).to_string().as_bytes());
    }
    out.push(b'}');
    out
}
