//! Reading what is new since a cursor: every channel in offset order, the channels merged by time. Where the listener is
//! live, from what the hub still holds, whose bytes all listeners share; else, and where that does not reach back, from history.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use carillon_broker_client::{BrokerError, NotificationId, Start};
use carillon_protocol::{ChannelName, ConnectionId, Cursor, Filter, Position, Publication};
use futures_util::future::try_join_all;

use super::page::{Page, Step, TWINS_MAX};
use crate::connection::Connection;
use crate::dispatch::{Dispatch, encode};
use crate::filters::Verdicts;
use crate::interests::{Interests, matching};
use crate::node::Node;
use crate::notifications::{is_expired, is_notification};
use crate::relay::{Bridge, PAGE};

/// Most events of an answer.
pub(super) const EVENTS_MAX: usize = 100;
/// Bytes of events after which an answer ends early (but always with one event).
const BYTES_MAX: usize = 1024 * 1024;

/// A channel that a poll hears.
#[derive(Clone, Debug)]
pub(super) struct Listened {
    /// The channel.
    pub(super) channel: ChannelName,
    /// Age of its history; `None` without history.
    pub(super) age: Option<Duration>,
    /// Whether it is conflated.
    pub(super) conflate: bool,
    /// The poll itself names it, not only the user's persistent subscriptions.
    pub(super) asked: bool,
    /// The user's persistent subscriptions on it.
    pub(super) interests: Option<Interests>,
    /// What a message that subscribed asked for.
    pub(super) filter: Option<Arc<Filter>>,
}

impl Listened {
    /// Ids of the persistent subscriptions that match, for a publication that this poll hears.
    fn hears(&self, listener: &Connection, publication: &Publication) -> Option<Vec<Box<str>>> {
        if !hears(listener, publication) {
            return None;
        }
        let mut verdicts = Verdicts::on(&publication.payload);
        let ids = self.interests.as_ref().map_or_else(Vec::new, |interests| {
            matching(interests, &publication.kind, &mut verdicts)
        });
        let passes = |filter| verdicts.passes(filter);
        let asked = self.asked && self.filter.as_ref().is_none_or(passes);
        (asked || !ids.is_empty()).then_some(ids)
    }
}

/// One event: how it moves the cursor, and its document, which begins with the message's id.
#[derive(Debug)]
pub(super) struct Event {
    pub(super) step: Step,
    pub(super) document: Bytes,
}

/// What was found.
#[derive(Debug)]
pub(super) struct Gathered {
    pub(super) events: Vec<Event>,
    /// The cursor behind it.
    pub(super) end: Cursor,
    /// History holds more.
    pub(super) more: bool,
    /// No channel had lost anything.
    pub(super) recovered: bool,
    pub(super) twins: Vec<u64>,
    /// Notifications among the events: with the answer the user has them.
    pub(super) notifications: Vec<Arc<Dispatch>>,
    /// The same, where they were pending.
    pub(super) pending: Vec<NotificationId>,
}

impl Gathered {
    /// Nothing was found.
    pub(super) fn is_empty(&self) -> bool {
        self.events.is_empty()
    }
}

/// A publication, and which of the user's persistent subscriptions match it.
type Heard = (Arc<Dispatch>, Vec<Box<str>>);

/// What one channel has, in order.
struct Lane {
    index: usize,
    publications: VecDeque<Heard>,
    /// Where the channel stands behind them, and why that is elsewhere than expected.
    moved: Option<(Position, &'static str)>,
    /// The last position read, hidden publications included.
    end: Position,
    exhausted: bool,
}

/// Where a gathering looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// What this node has heard will do: the listener is woken by what comes.
    Here,
    /// Nobody will wake the listener: what storage holds.
    Storage,
}

/// Reads what is new for this listener, at most `events_max` events.
pub(super) async fn gather(
    node: &Node,
    listener: &Connection,
    channels: &[Listened],
    from: &Cursor,
    known_twins: &[u64],
    (look, events_max): (Look, usize),
) -> Result<Gathered, BrokerError> {
    let lanes = read_lanes(node, listener, channels, from, look).await?;
    Ok(merge(listener, lanes, from, known_twins, events_max))
}

async fn read_lanes(
    node: &Node,
    listener: &Connection,
    channels: &[Listened],
    from: &Cursor,
    look: Look,
) -> Result<Vec<Lane>, BrokerError> {
    let kept = channels.iter().filter_map(|listened| {
        let index = from.positions().iter().position(|(name, _)| *name == listened.channel)?;
        Some((index, listened, from.positions()[index].1, listened.age?))
    });
    let mut lanes = Vec::new();
    let mut unknown: Vec<(usize, &Listened, Position, Duration)> = Vec::new();
    for (index, listened, at, age) in kept {
        let here = (look == Look::Here)
            .then(|| node.hub.since(&listener.id, &listened.channel, at))
            .flatten();
        match here {
            Some(news) if news.is_empty() => {}
            Some(news) => lanes.push(heard_lane(listener, index, listened, at, news)),
            None => unknown.push((index, listened, at, age)),
        }
    }
    if !unknown.is_empty() {
        lanes.extend(Box::pin(read_from_storage(node, listener, unknown)).await?);
    }
    Ok(lanes)
}

/// What the node has heard on a channel since the listener's position.
fn heard_lane(
    listener: &Connection,
    index: usize,
    listened: &Listened,
    at: Position,
    news: Vec<Arc<Dispatch>>,
) -> Lane {
    let end = news.last().and_then(|last| last.publication.position).unwrap_or(at);
    let heard = |dispatch: Arc<Dispatch>| {
        let ids = listened.hears(listener, &dispatch.publication)?;
        Some((dispatch, ids))
    };
    let publications = news.into_iter().filter_map(heard).collect();
    Lane { index, publications, moved: None, end, exhausted: true }
}

async fn read_from_storage(
    node: &Node,
    listener: &Connection,
    kept: Vec<(usize, &Listened, Position, Duration)>,
) -> Result<Vec<Lane>, BrokerError> {
    // One look at all tops is cheaper than a read of each history, and mostly the end of it.
    let names: Vec<ChannelName> =
        kept.iter().map(|(_, listened, ..)| listened.channel.clone()).collect();
    let tops = node.broker.tops(&names).await?;
    let changed = kept.into_iter().zip(tops).filter(|((_, _, at, _), top)| at != top);
    try_join_all(
        changed.map(|((index, listened, at, age), _)| {
            read_lane(node, listener, index, listened, at, age)
        }),
    )
    .await
}

async fn read_lane(
    node: &Node,
    listener: &Connection,
    index: usize,
    listened: &Listened,
    at: Position,
    age: Duration,
) -> Result<Lane, BrokerError> {
    let channel = &listened.channel;
    let mut lane =
        Lane { index, publications: VecDeque::new(), moved: None, end: at, exhausted: false };
    while lane.publications.len() < EVENTS_MAX {
        let page = node
            .relay
            .history(channel, Start::After(lane.end.offset), EVENTS_MAX as u32, age)
            .await?;
        let bridge = Bridge::judge(&lane.end.into(), &page);
        if bridge != Bridge::Whole {
            lane.moved = Some((page.top, bridge.reason()));
            lane.exhausted = true;
            break;
        }
        for publication in &page.publications {
            lane.end = publication.position.unwrap_or(lane.end);
            if let Some(ids) = listened.hears(listener, publication) {
                let dispatch = Arc::new(Dispatch::new(publication.clone()));
                lane.publications.push_back((dispatch, ids));
            }
        }
        if lane.end.offset >= page.top.offset {
            lane.exhausted = true;
            break;
        }
    }
    Ok(lane)
}

/// Whether a publication is for this listener (R9, R17).
pub(super) fn hears(listener: &Connection, publication: &Publication) -> bool {
    if is_expired(publication) {
        return false;
    }
    let exclude = &publication.exclude;
    if exclude.is_empty() {
        return true;
    }
    let own = listener.user.as_ref().and_then(|user| own_polls(user.as_str()));
    !exclude.covers(&listener.id, listener.user.as_ref())
        && own.is_none_or(|own| !exclude.connections.contains(&own))
}

/// All polls of a user as one sender: what is relayed never comes back to them.
#[must_use]
pub(crate) fn own_polls(user: &str) -> Option<ConnectionId> {
    ConnectionId::new(&format!("poll:{user}")).ok()
}

fn merge(
    listener: &Connection,
    mut lanes: Vec<Lane>,
    from: &Cursor,
    known_twins: &[u64],
    events_max: usize,
) -> Gathered {
    let mut end = from.clone();
    let channels = from.positions();
    let mut twins: VecDeque<u64> = known_twins.iter().copied().collect();
    let (mut events, mut notifications) = (Vec::new(), Vec::new());
    let mut bytes = 0;
    let mut recovered = true;
    while events.len() < events_max && (bytes < BYTES_MAX || events.is_empty()) {
        let next = lanes
            .iter_mut()
            .filter(|lane| !lane.publications.is_empty() || lane.moved.is_some())
            .min_by_key(|lane| {
                let first = lane.publications.front();
                first.map_or(i64::MAX, |(first, _)| first.publication.timestamp_ms)
            });
        let Some(lane) = next else { break };
        let (channel, _) = &channels[lane.index];
        let Some((dispatch, ids)) = lane.publications.pop_front() else {
            if let Some((position, reason)) = lane.moved.take() {
                recovered = false;
                lane.end = position;
                end.set(channel, position);
                let step = Step::Moved(lane.index, position, reason.to_owned());
                events.push(Event { document: resync(listener, channel, reason, position), step });
            }
            continue;
        };
        let publication = &dispatch.publication;
        let Some(position) = publication.position else { continue };
        let index = lane.index;
        end.set(channel, position);
        if publication.kind.starts_with("entity:") {
            let id = hash(publication.id.as_str());
            if twins.contains(&id) || heard_elsewhere(&lanes, channels, index, publication) {
                continue;
            }
            twins.push_back(id);
            if twins.len() > TWINS_MAX {
                twins.pop_front();
            }
        }
        if is_notification(publication) {
            let id = hash(publication.id.as_str());
            if let Some(at) = twins.iter().position(|twin| *twin == id) {
                // It was pending when these polls began.
                twins.remove(at);
                continue;
            }
            notifications.push(Arc::clone(&dispatch));
        }
        let document = document_of(&dispatch, listener, &ids);
        bytes += document.len();
        events.push(Event { step: Step::Kept(index, position.offset, position.tag), document });
    }
    let mut more = false;
    for lane in &lanes {
        if lane.publications.is_empty() && lane.moved.is_none() {
            // Behind the last visible publication only hidden ones were read.
            end.set(&channels[lane.index].0, lane.end);
        }
        more |= !lane.publications.is_empty() || lane.moved.is_some() || !lane.exhausted;
    }
    more |= events.len() >= events_max;
    let (twins, pending) = (twins.into(), Vec::new());
    Gathered { events, end, more, recovered, twins, notifications, pending }
}

fn document_of(dispatch: &Dispatch, listener: &Connection, ids: &[Box<str>]) -> Bytes {
    if ids.is_empty() {
        dispatch.frame(listener.dress).clone()
    } else {
        dispatch.frame_for(listener.dress, ids)
    }
}

/// Whether the same entity event waits on a more specific channel (R14).
fn heard_elsewhere(
    lanes: &[Lane],
    channels: &[(ChannelName, Position)],
    index: usize,
    event: &Publication,
) -> bool {
    let own = channels[index].0.as_str().len();
    lanes.iter().any(|lane| {
        lane.index != index
            && channels[lane.index].0.as_str().len() > own
            && lane.publications.iter().any(|(other, _)| other.publication.id == event.id)
    })
}

pub(super) fn hash(id: &str) -> u64 {
    use std::hash::BuildHasher;
    foldhash::fast::FixedState::default().hash_one(id)
}

fn resync(listener: &Connection, channel: &ChannelName, reason: &str, position: Position) -> Bytes {
    let message = crate::hub::resync_message(channel, reason, Some(position));
    let id = crate::ids::message_id();
    encode(&message.envelope(id.as_str(), crate::clock::unix_ms()), listener.dress)
}

/// Makes the events of a kept page again; `None` when history no longer holds them all, or holds them in another epoch, which
/// the client must be told of.
pub(super) async fn again(
    node: &Node,
    listener: &Connection,
    channels: &[Listened],
    page: &Page,
) -> Result<Option<Vec<Event>>, BrokerError> {
    let Some(from) = page.from() else { return Ok(None) };
    let mut held: Vec<VecDeque<Publication>> = vec![VecDeque::new(); from.positions().len()];
    for (index, (channel, at)) in from.positions().iter().enumerate() {
        let of_channel = |step: &Step| match step {
            Step::Kept(at, offset, _) if *at == index => Some(*offset),
            _ => None,
        };
        let Some(last) = page.steps.iter().filter_map(of_channel).max() else { continue };
        let listened = channels.iter().find(|listened| listened.channel == *channel);
        let Some(age) = listened.and_then(|listened| listened.age) else { return Ok(None) };
        let mut offset = at.offset;
        while offset < last {
            let read: Arc<_> = node.relay.history(channel, Start::After(offset), PAGE, age).await?;
            let Some(end) = read.publications.last().and_then(|last| last.position) else {
                return Ok(None);
            };
            offset = end.offset;
            held[index].extend(read.publications.iter().cloned());
        }
    }
    let mut events = Vec::with_capacity(page.steps.len());
    for step in &page.steps {
        let document = match step {
            Step::Heard(document) | Step::Passing(_, _, document) => {
                Bytes::copy_from_slice(document.get().as_bytes())
            }
            Step::Moved(index, position, reason) => {
                let Some((channel, _)) = from.positions().get(*index) else { return Ok(None) };
                resync(listener, channel, reason, *position)
            }
            Step::Kept(index, offset, tag) => {
                let (Some(lane), Some((_, at))) =
                    (held.get_mut(*index), from.positions().get(*index))
                else {
                    return Ok(None);
                };
                let expected = Position { epoch: at.epoch, offset: *offset, tag: *tag };
                let same = |publication: &Publication| publication.position == Some(expected);
                let Some(at) = lane.iter().position(same) else { return Ok(None) };
                let Some(publication) = lane.drain(..=at).next_back() else { return Ok(None) };
                let listened = channels
                    .iter()
                    .find(|listened| listened.channel == publication.channel)
                    .and_then(|listened| listened.hears(listener, &publication));
                let ids = listened.unwrap_or_default();
                document_of(&Dispatch::new(publication), listener, &ids)
            }
        };
        events.push(Event { step: step.clone(), document });
    }
    Ok(Some(events))
}
