//! One poll from question to answer: find what its number stands for, send its messages, read what is
//! new, wait when there is nothing, and keep what the answer's numbers stand for.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use carillon_broker_client::{NewPollPage, PollPage, Target};
use carillon_protocol::UserId;
use carillon_protocol::envelope::Refusal;
use tokio::time::Instant;

use super::gather::{self, EVENTS_MAX, Event, Gathered, Look};
use super::held::Woken;
use super::merge::{Heard, Stretch};
use super::origin::begin;
use super::page::{self, Page, Place, Step};
use super::pending;
use super::question::Question;
use super::rate::Toll;
use super::seat::{Credentials, Seat, Sitting};
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

/// What is asked, and from where.
pub(super) struct Asking {
    pub(super) question: Question,
    pub(super) remote: Option<IpAddr>,
}

/// Answers one poll; `sitting` is the seat that the former one of its chain left here.
///
/// # Errors
/// `UNAVAILABLE`, `RATE_LIMITED` where it was not counted before.
pub(super) async fn answer(
    node: &Arc<Node>,
    credentials: &Credentials,
    sitting: Option<Sitting>,
    Asking { question, remote }: Asking,
    toll: &mut Toll,
) -> Result<Vec<u8>, Refusal> {
    let claims = &*credentials.claims;
    let user = &claims.user;
    let deadline = Instant::now() + question.timeout.min(until_expiry(claims));
    let polling = node.pollers.enter(node, user);
    let is_new = sitting.is_none();
    let mut sitting = match sitting {
        Some(sitting) => sitting,
        // Boxed, like all that a poll which goes on here does not come to: what is moved and held stays small.
        None => Box::pin(Sitting::new(node, credentials, &question, remote)).await?,
    };
    let seat = sitting.seat();
    seat.held.go_on();
    if !seat.origin.wishes.present.is_empty() {
        Box::pin(be_present(node, user, &polling, &seat.origin.wishes)).await;
    }
    let (mut before, mut replies) = (None, None);
    if is_new {
        if seat.origin.answered.is_none() {
            Box::pin(begin(node, &mut seat.origin, &seat.channels.heard)).await?;
        }
        before = Some(seat.origin.wishes.clone());
        if let Some(messages) = question.messages {
            let mut sender = Sender {
                node,
                user,
                held: &mut seat.held,
                polling: &polling,
                channels: &mut seat.channels,
                origin: &mut seat.origin,
            };
            replies = Some(Box::pin(sender.send(messages)).await);
        }
    }
    let fleeting = seat.channels.is_fleeting();
    let waits =
        seat.origin.answered.is_none() && seat.origin.recovered && Instant::now() < deadline;
    if (waits || fleeting) && seat.held.is_deaf() {
        // Listen before the look: what is published between the two is found by it, and what comes after it
        // wakes us. The other order would lose it.
        Box::pin(seat.held.listen(&seat.channels.heard)).await?;
    }
    let id = seat.origin.id;
    // A client that goes away in the middle, or is refused, asks again with the same number.
    sitting.leaves_as = Some(id).filter(|id| fleeting && *id > 0);
    let seat = sitting.seat();
    let rest = std::mem::take(&mut seat.origin.rest);
    let is_split = !rest.is_empty();
    if is_new && (fleeting || is_split) {
        // Only now the former poll's ear is closed: what both hear is recognised. And only when its shard is where
        // this one's was: what this ear came too late for is still on its way to the other.
        node.hub.caught_up().await;
        let mut former = Box::pin(lingering(node, user, id)).await;
        former.push(rest);
        seat.held.hear_first(former, &seat.channels.heard);
    }
    let again = match before {
        Some(before) => Box::pin(repeat(node, claims, seat, before)).await?,
        None => None,
    };
    let answer = match again {
        Some(answer) => answer,
        None => {
            let found = match seat.origin.pending && !is_split {
                true => Box::pin(pending::find(node, user, seat)).await?,
                false => None,
            };
            let gathered = match found {
                Some(found) => found,
                None => {
                    look(node, claims, (seat, &mut *toll), deadline, (waits, replies.is_none()))
                        .await?
                }
            };
            keep(node, claims, seat, toll, gathered).await?
        }
    };
    let seat = sitting.seat();
    let body = write(&answer, replies.as_deref(), &seat.channels.errors);
    seat.channels.go_on();
    seat.answered_at = Some(Instant::now());
    seat.rate = toll.rate;
    sitting.leaves_as = Some(answer.last_poll_id);
    drop(sitting);
    drop(polling);
    Ok(body)
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
    let read = |text: String| Heard::read(text.as_bytes());
    stretches.map(|stretch| stretch.into_iter().flat_map(read).collect()).collect()
}

/// The answer that this question had before, if it had one and history still holds it; if not, what only that answer held
/// is heard once more.
async fn repeat(
    node: &Node,
    claims: &Claims,
    seat: &mut Seat,
    before: super::page::Wishes,
) -> Result<Option<Answer>, Refusal> {
    let Some((kept, page)) = seat.origin.answered.take() else { return Ok(None) };
    let (channels, origin) = (&seat.channels.heard, &mut seat.origin);
    let events = gather::again(node, seat.held.connection(), channels, &page).await;
    let Some(events) = events.map_err(|error| node.broker_refusal(&error))? else {
        // Its place is taken by the answer that is gone; this one cannot be asked for again.
        begin(node, origin, channels).await?;
        seat.held.hear_first(vec![page.only_here(0)], channels);
        return Ok(None);
    };
    seat.goes_on = false;
    seat.held.was_answered(&page);
    let mut answer = Answer::of(&kept, &page, events);
    if origin.wishes != before && origin.wishes != page.wishes {
        // The messages that came with the question now were not there when it was answered: they hold from its end on.
        let last = answer.last_poll_id;
        if let Some(Place { mut cursor, twins, .. }) = page.at(&kept, last) {
            for (channel, position) in origin.cursor.positions() {
                if cursor.get(channel.as_str()).is_none() {
                    cursor.set(channel, *position);
                }
            }
            let mut next = Page::new(&cursor, &cursor, Vec::new(), page.more, true, twins);
            (next.wishes, next.pending) = (origin.wishes.clone(), page.pending);
            let question = page::question(last, &seat.named);
            let new = NewPollPage { question, after: last, count: 1, body: next.to_text() };
            let kept = node.broker.keep_poll_page(&claims.user, new).await;
            answer.last_poll_id = kept.map_err(|error| node.broker_refusal(&error))?.first_id;
        }
    }
    Ok(Some(answer))
}

/// Reads what is new; where it `waits`, waits when there is nothing, and with one that is `paced` also for what comes soon.
async fn look(
    node: &Node,
    claims: &Claims,
    (seat, toll): (&mut Seat, &mut Toll),
    deadline: Instant,
    (waits, paced): (bool, bool),
) -> Result<Gathered, Refusal> {
    let next = seat.paced_until().filter(|_| paced);
    let mut look = if waits { Look::Here } else { Look::Storage };
    let mut gathered;
    loop {
        seat.held.looks();
        gathered = gather(node, seat, look).await?;
        if !waits || look == Look::Storage {
            break;
        }
        let now = Instant::now();
        if gathered.is_empty() && !seat.held.is_waiting(&seat.origin.cursor) {
            if toll.is_owed() {
                // Nothing would be answered before: by then there may be something, and one step does for both.
                if let Some(next) = next.filter(|next| *next > now && *next < deadline) {
                    tokio::time::sleep_until(next).await;
                    continue;
                }
                let (id, question) = seat.question();
                if toll.pay(node, &claims.user, Some((id, &question))).await?.is_some() {
                    seat.origin.kept = false;
                    break;
                }
            }
            match seat.held.wait(deadline).await {
                Woken::Arrived => {
                    let soon = Instant::now() + BREATH;
                    let until = next.map_or(soon, |next| next.max(soon)).min(deadline);
                    tokio::time::sleep_until(until).await;
                }
                // Nobody wakes it any more.
                Woken::Late | Woken::Ended => look = Look::Storage,
            }
        } else if let Some(next) = next.filter(|next| !gathered.more && *next > now) {
            let next = next.min(deadline);
            if next <= now {
                break;
            }
            tokio::time::sleep_until(next).await;
        } else {
            break;
        }
    }
    Ok(gathered)
}

async fn gather(node: &Node, seat: &mut Seat, look: Look) -> Result<Gathered, Refusal> {
    let (connection, origin) = (seat.held.connection(), &seat.origin);
    let (channels, from) = (&seat.channels.heard, &origin.cursor);
    let most = (look, EVENTS_MAX);
    let gathered = gather::gather(node, connection, channels, from, &origin.twins, most).await;
    let mut gathered = gathered.map_err(|error| node.broker_refusal(&error))?;
    let is_moved = |event: &Event| matches!(event.step, Step::Moved(..));
    if !seat.origin.recovered && gathered.events.iter().any(is_moved) {
        // The answer says of all its channels that they begin. A `resync` in it would read as if it spoke of one: what was
        // lost since the tops were read begins where it stands now, like the others.
        let origin = &mut seat.origin;
        (origin.cursor, gathered.twins) = (gathered.end.clone(), origin.twins.clone());
        gathered.events.clear();
        gathered.notifications.clear();
    }
    Ok(gathered)
}

/// Adds what was heard and keeps what the answer's numbers stand for. Until that is done, what was heard waits on: the same
/// question may be asked again.
async fn keep(
    node: &Node,
    claims: &Claims,
    seat: &mut Seat,
    toll: &mut Toll,
    gathered: Gathered,
) -> Result<Answer, Refusal> {
    let Gathered { mut events, mut end, more, recovered, twins, notifications, pending } = gathered;
    let (heard, looked_at, is_all) = seat.held.heard(&mut end, EVENTS_MAX - events.len());
    events.extend(heard);
    // The last of what is pending was found when there was no more of it.
    let is_pending = seat.origin.pending && (pending.is_empty() || more);
    let has_more = more || is_pending || !is_all || events.len() >= EVENTS_MAX;
    let origin = &mut seat.origin;
    let recovered = recovered && origin.recovered;
    if events.is_empty() && origin.kept && end == origin.cursor {
        if toll.is_owed() {
            toll.pay(node, &claims.user, None).await?;
        }
        let last_poll_id = origin.id;
        return Ok(Answer { events: Vec::new(), first_id: 0, last_poll_id, has_more, recovered });
    }
    let steps = events.iter().map(|event| event.step.clone()).collect();
    let mut page = Page::new(&origin.cursor, &end, steps, has_more, recovered, twins);
    page.wishes = origin.wishes.clone();
    page.pending = is_pending;
    let new = NewPollPage {
        question: page::question(origin.id, &seat.named),
        after: origin.after,
        count: events.len().max(1) as u64,
        body: page.to_text(),
    };
    let kept = toll.keep(node, &claims.user, new.clone()).await?;
    // The other answer to the same question, where there is one, holds them as well.
    notifications.iter().for_each(|notification| node.courier.delivered(notification));
    pending::mark(node, &claims.user, &pending).await;
    // The others were counted when they were heard.
    let read = events.iter().filter(|event| matches!(event.step, Step::Kept(..))).count();
    node.metrics.delivered(read as u64);
    if kept.body == new.body {
        seat.held.answered(looked_at);
        let answer = Answer::of(&kept, &page, events);
        origin.goes_on(answer.last_poll_id, end, page);
        return Ok(answer);
    }
    seat.goes_on = false;
    // The same question was answered elsewhere meanwhile: both get that answer.
    let other = Page::read(&kept);
    if let Some(other) = other
        && let Some(events) =
            gather::again(node, seat.held.connection(), &seat.channels.heard, &other)
                .await
                .map_err(|error| node.broker_refusal(&error))?
    {
        seat.held.was_answered(&other);
        return Ok(Answer::of(&kept, &other, events));
    }
    let kept = node
        .broker
        .keep_poll_page(&claims.user, NewPollPage { question: String::new(), ..new })
        .await;
    let kept = kept.map_err(|error| node.broker_refusal(&error))?;
    seat.held.answered(looked_at);
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
