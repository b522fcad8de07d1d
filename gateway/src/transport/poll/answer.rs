//! One poll from question to answer: find what its number stands for, send its messages, read what is
//! new, wait when there is nothing, and keep what the answer's numbers stand for.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use carillon_broker_client::{NewPollPage, PollPage, Target};
use carillon_protocol::UserId;
use carillon_protocol::envelope::Refusal;
use serde_json::value::RawValue;
use tokio::time::Instant;

use super::gather::{self, EVENTS_MAX, Event, Gathered, Listened};
use super::held::{Held, Woken};
use super::merge::Stretch;
use super::origin::{self, Channels, Origin, begin, key};
use super::page::Page;
use super::question::Question;
use super::sent::{Sender, be_present};
use crate::auth::Claims;
use crate::clock;
use crate::cluster;
use crate::node::Node;

/// How long a woken poll waits for what comes in the same breath: fewer answers, fewer polls.
const BREATH: Duration = Duration::from_millis(20);

/// The parts of an answer.
struct Answer {
    events: Vec<Bytes>,
    first_id: u64,
    last_poll_id: u64,
    has_more: bool,
    recovered: bool,
}

/// A poll's connection; where it is to linger under a number, that is what its end does, also in the middle of a wait.
struct Sitting {
    node: Arc<Node>,
    user: UserId,
    held: Option<Held>,
    linger_as: Option<u64>,
    channels: Vec<Listened>,
}

impl Drop for Sitting {
    fn drop(&mut self) {
        if let (Some(mut held), Some(id)) = (self.held.take(), self.linger_as) {
            held.keep_fleeting(&self.channels);
            self.node.pollers.linger(&self.user, id, held);
        }
    }
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
    let user = &claims.user;
    let mut held = Held::open(node, claims, question.profile, remote)?;
    let polling = node.pollers.enter(node, user);
    let mut channels = Channels::asked(&held, node, claims, &question.channels).await;
    let named = channels.heard.clone();
    let mut origin = origin::find(node, claims, &question, &named).await?;
    channels.restore(&held, node, &mut origin.wishes).await;
    channels.add_interests(&held, node, claims).await?;
    be_present(node, user, &polling, &origin.wishes).await;
    if origin.answered.is_none() {
        begin(node, &mut origin, &channels.heard).await?;
    }
    let before = origin.wishes.clone();
    let replies = match question.messages {
        Some(messages) => {
            let mut sender = Sender {
                node,
                user,
                held: &mut held,
                polling: &polling,
                channels: &mut channels,
                origin: &mut origin,
            };
            Some(sender.send(messages).await)
        }
        None => None,
    };
    let fleeting = channels.is_fleeting();
    let Channels { heard: channels, errors, .. } = channels;
    let mut sitting = Sitting {
        node: Arc::clone(node),
        user: user.clone(),
        held: Some(held),
        linger_as: None,
        channels: channels.clone(),
    };
    let Some(held) = sitting.held.as_mut() else { return Ok(Vec::new()) };
    let again = repeat(node, claims, held, &channels, &named, &mut origin, before).await?;
    let answer = match again {
        Some(answer) => answer,
        None => {
            if fleeting {
                // Listen here before the former poll's ear is closed: what both hear is recognised. And close that only when
                // its shard is where this one's was: what this ear came too late for is still on its way to the other.
                held.listen(&channels).await?;
                node.hub.caught_up().await;
                let former = lingering(node, user, origin.id).await;
                held.hear_first(former, &channels);
                // A client that goes away in the middle asks again with the same number.
                sitting.linger_as = (origin.id > 0).then_some(origin.id);
            }
            read(node, claims, held, &channels, &named, &origin, deadline).await?
        }
    };
    if fleeting && !held.is_deaf() {
        sitting.linger_as = Some(answer.last_poll_id);
    }
    drop(sitting);
    drop(polling);
    Ok(write(&answer, replies.as_deref(), &errors))
}

fn until_expiry(claims: &Claims) -> Duration {
    let left_ms = claims.expires_at.saturating_mul(1_000).saturating_sub(clock::unix_ms());
    Duration::from_millis(left_ms.max(0) as u64)
}

/// What was heard on channels without history since the poll ended that this one goes on from, on whichever node.
async fn lingering(node: &Node, user: &UserId, id: u64) -> Vec<Stretch> {
    if id == 0 {
        return Vec::new();
    }
    let here = node.pollers.take_linger(user, id);
    if !here.is_empty() || node.cluster.nodes().len() <= 1 {
        return here;
    }
    let question = cluster::Question::TakeLinger { user: user.clone(), id };
    // As text: a value would come back with its keys in another order, and numbers rounded.
    let answers = node.cluster.ask::<Vec<Vec<String>>>(&Target::All, question).await;
    let stretches = answers.unwrap_or_default().into_iter().flatten();
    let read = |document| RawValue::from_string(document).ok();
    stretches.map(|stretch| stretch.into_iter().filter_map(read).collect()).collect()
}

/// The answer that this question had before, if it had one and history still holds it.
async fn repeat(
    node: &Node,
    claims: &Claims,
    held: &Held,
    channels: &[Listened],
    named: &[Listened],
    origin: &mut Origin,
    before: super::page::Wishes,
) -> Result<Option<Answer>, Refusal> {
    let Some((kept, page)) = origin.answered.take() else { return Ok(None) };
    let events = gather::again(node, held.connection(), channels, &page).await;
    let Some(events) = events.map_err(|error| node.broker_refusal(&error))? else {
        // Its place is taken by the answer that is gone; this one cannot be asked for again.
        begin(node, origin, channels).await?;
        return Ok(None);
    };
    let mut answer = Answer::of(&kept, &page, events);
    if origin.wishes != before && origin.wishes != page.wishes {
        // The messages that came with the question now were not there when it was answered: they hold from its end on.
        let last = answer.last_poll_id;
        if let Some((mut cursor, twins)) = page.at(&kept, last) {
            for (channel, position) in origin.cursor.positions() {
                if cursor.get(channel.as_str()).is_none() {
                    cursor.set(channel, *position);
                }
            }
            let mut next = Page::new(&cursor, &cursor, Vec::new(), page.more, true, twins);
            next.wishes = origin.wishes.clone();
            let question = key(last, named);
            let new = NewPollPage { question, after: last, count: 1, body: next.to_text() };
            let kept = node.broker.keep_poll_page(&claims.user, new).await;
            answer.last_poll_id = kept.map_err(|error| node.broker_refusal(&error))?.first_id;
        }
    }
    Ok(Some(answer))
}

/// Reads what is new; waits when there is nothing.
async fn read(
    node: &Node,
    claims: &Claims,
    held: &mut Held,
    channels: &[Listened],
    named: &[Listened],
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
    let is_empty =
        |gathered: &Gathered, held: &mut Held| gathered.events.is_empty() && held.waiting() == 0;
    if is_empty(&gathered, held) && origin.recovered && Instant::now() < deadline {
        // Listen before the last look: what is published between the two is found by it, and what comes
        // after it wakes us. The other order would lose it.
        held.listen(channels).await?;
        gathered = gather(EVENTS_MAX).await?;
        while is_empty(&gathered, held) {
            let woken = held.wait(deadline).await;
            if woken == Woken::Arrived {
                tokio::time::sleep(BREATH).await;
            }
            gathered = gather(EVENTS_MAX).await?;
            if woken != Woken::Arrived {
                break;
            }
        }
    }
    gathered.events.extend(held.heard(EVENTS_MAX - gathered.events.len()));
    gathered.more |= held.waiting() > 0;
    keep(node, claims, held, channels, named, origin, gathered).await
}

/// Keeps what the answer's numbers stand for.
async fn keep(
    node: &Node,
    claims: &Claims,
    held: &Held,
    channels: &[Listened],
    named: &[Listened],
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
    let mut page = Page::new(&origin.cursor, &end, steps, more, recovered, twins);
    page.wishes = origin.wishes.clone();
    let new = NewPollPage {
        question: key(origin.id, named),
        after: origin.after,
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
