//! Publishing: a request becomes one command, or several of a batch do; the answer becomes receipts.

pub(super) mod together;

use carillon_protocol::{Epoch, MessageId, Position, Tag};
use redis::{Cmd, Value};
use smallvec::{SmallVec, smallvec};

use super::layout::{Call, Layout, Place, settled};
use super::names::Names;
use super::{answer, scripts};
use crate::broker::{EPOCH_LIFETIME, IDEMPOTENCY_WINDOW};
use crate::{BrokerError, Publish, Receipt, Retention};

/// Publications in one script: some 130 µs of Redis, which serves others between two of them.
const TOGETHER_MAX: usize = 16;

/// Keys of idempotency: of the message id, of the caller's key, or of both.
type Once = SmallVec<[String; 1]>;

/// Publications that happen together or not at all: some millisecond of Redis.
const TURN_MAX: usize = 128;

/// What the scripts are told of a publication that history keeps.
struct Kept<'a> {
    meta: String,
    history: String,
    heard: String,
    /// Keys of idempotency.
    once: Once,
    body: Vec<u8>,
    tag: Tag,
    size: u32,
    age_ms: u64,
    lifetime_ms: u64,
    id: &'a MessageId,
}

fn kept<'a>(names: &Names, request: &'a Publish, retention: Retention) -> Kept<'a> {
    let channel = &request.publication.channel;
    let age_ms = u64::try_from(retention.age.as_millis()).unwrap_or(u64::MAX / 4);
    let age_ms = age_ms.clamp(1, u64::MAX / 4);
    Kept {
        meta: names.meta(channel),
        history: names.history(channel),
        heard: names.publications(channel),
        once: once(names, request),
        body: request.publication.to_body(),
        tag: Tag::from_random(rand::random()),
        size: retention.size,
        age_ms,
        lifetime_ms: age_ms.saturating_add(EPOCH_LIFETIME.as_millis() as u64),
        id: &request.publication.id,
    }
}

fn once(names: &Names, request: &Publish) -> Once {
    let channel = &request.publication.channel;
    let keys =
        request.idempotency.iter().flat_map(|once| once.keys().map(|key| (&once.sender, key)));
    keys.map(|(sender, key)| names.idempotency(channel, sender, key)).collect()
}

fn window_ms() -> u64 {
    IDEMPOTENCY_WINDOW.as_millis() as u64
}

/// The command of one request.
fn alone(layout: &Layout, names: &Names, request: &Publish) -> Cmd {
    let verb = layout.publish_verb();
    if let Some(retention) = request.retention {
        let one = kept(names, request, retention);
        let mut keys: SmallVec<[&str; 5]> = smallvec![&*one.meta, &*one.history, &*one.heard];
        keys.extend(one.once.iter().map(String::as_str));
        let mut command = scripts::PUBLISH.call(&keys);
        command.arg(&one.body[..]).arg(one.tag.as_str()).arg(random_epoch().as_str());
        command.arg(one.size).arg(one.age_ms).arg(one.lifetime_ms).arg(verb);
        if !one.once.is_empty() {
            command.arg(one.id.as_str()).arg(window_ms());
        }
        return command;
    }
    let heard = names.publications(&request.publication.channel);
    let once = once(names, request);
    let keys = std::iter::once(&*heard).chain(once.iter().map(String::as_str));
    let mut command = scripts::PUBLISH_PASSING.call(&keys.collect::<SmallVec<[&str; 3]>>());
    command.arg(verb).arg(request.publication.to_body());
    if !once.is_empty() {
        command.arg(window_ms()).arg(request.publication.id.as_str());
    }
    command
}

/// The command of several that history keeps.
fn together(layout: &Layout, all: &[Kept<'_>]) -> Cmd {
    let mut keys: Vec<&str> = Vec::with_capacity(all.len() * 4);
    for one in all {
        keys.extend([&*one.meta, &*one.history, &*one.heard]);
        keys.extend(one.once.first().map(String::as_str));
    }
    let mut command = scripts::PUBLISH_MANY.call(&keys);
    command.arg(random_epoch().as_str()).arg(layout.publish_verb()).arg(window_ms());
    for one in all {
        command.arg(&one.body[..]).arg(one.tag.as_str());
        command.arg(one.size).arg(one.age_ms).arg(one.lifetime_ms);
        command.arg(one.once.first().map_or("", |_| one.id.as_str()));
    }
    command
}

/// Which requests of a batch go in one command, by their indices. What one server gets stays in order; a cluster's slots may
/// move apart, so there each goes by itself.
fn divide(layout: &Layout, requests: &[Publish]) -> Vec<(Place, Vec<usize>)> {
    let mut groups: Vec<(Place, Vec<usize>)> = Vec::new();
    // The last group of each server, while others may join it.
    let mut open: Vec<usize> = Vec::new();
    for (index, request) in requests.iter().enumerate() {
        let place = layout.place(request.publication.channel.as_str());
        let joins = may_join(request);
        let joined = open.iter().position(|at| groups[*at].0.is_same_server(&place));
        if let Some(at) = joined {
            if joins && groups[open[at]].1.len() < TOGETHER_MAX {
                groups[open[at]].1.push(index);
                continue;
            }
            open.swap_remove(at);
        }
        if joins && !layout.is_cluster() {
            open.push(groups.len());
        }
        groups.push((place, vec![index]));
    }
    groups
}

/// Whether a request may go with others. The script for many knows one key of idempotency for each.
fn may_join(request: &Publish) -> bool {
    let two_keys = request.idempotency.as_ref().is_some_and(|once| once.other_key.is_some());
    request.retention.is_some() && !two_keys
}

/// Reads what the scripts answer.
fn receipt(request: &Publish, value: &Value) -> Result<Receipt, BrokerError> {
    let id = request.publication.id.clone();
    if request.retention.is_none() {
        return match value {
            Value::BulkString(first) => {
                Ok(Receipt { id: message_id(first)?, position: None, duplicate: true })
            }
            _ => Ok(Receipt { id, position: None, duplicate: false }),
        };
    }
    let text = answer::bytes(value)?;
    match text.strip_prefix(b"!") {
        None => Ok(Receipt { id, position: Some(answer::position(text)?.0), duplicate: false }),
        Some(first) => {
            let (position, rest) = answer::position(first)?;
            Ok(Receipt { id: message_id(rest)?, position: Some(position), duplicate: true })
        }
    }
}

async fn publish(
    layout: &Layout,
    names: &Names,
    request: &Publish,
) -> Result<Receipt, BrokerError> {
    let place = layout.place(request.publication.channel.as_str());
    let value = layout.run(&place, &alone(layout, names, request)).await?;
    receipt(request, &value)
}

async fn publish_batch(
    layout: &Layout,
    names: &Names,
    requests: &[Publish],
) -> Vec<Result<Receipt, BrokerError>> {
    // A cluster's batch is divided by slots.
    let turn = if layout.is_cluster() { requests.len().max(1) } else { TURN_MAX };
    let mut receipts = Vec::with_capacity(requests.len());
    for requests in requests.chunks(turn) {
        receipts.extend(publish_turn(layout, names, requests).await);
    }
    receipts
}

async fn publish_turn(
    layout: &Layout,
    names: &Names,
    requests: &[Publish],
) -> Vec<Result<Receipt, BrokerError>> {
    let (mut shares, mut calls) = (Vec::new(), Vec::new());
    let groups = divide(layout, requests);
    // By one script throughout: of two, a server may know the one and not the other.
    let several = groups.len() > 1 && !layout.is_cluster();
    for (place, share) in groups {
        let first = &requests[share[0]];
        let many = share.len() > 1 || several && may_join(first);
        let command = if many {
            let all = share.iter().filter_map(|index| {
                let request = &requests[*index];
                request.retention.map(|retention| kept(names, request, retention))
            });
            together(layout, &all.collect::<Vec<_>>())
        } else {
            alone(layout, names, first)
        };
        calls.push(Call { place, command });
        shares.push((share, many));
    }
    let answers = layout.run_in_order(calls, TURN_MAX).await;
    let mut receipts: Vec<_> = requests.iter().map(|_| Err(missing())).collect();
    for ((share, many), answer) in shares.into_iter().zip(answers) {
        let answers = match answer {
            Ok(Value::Array(answers)) if many => answers.into_iter().map(Ok).collect(),
            answer => vec![answer; share.len()],
        };
        for (index, answer) in share.into_iter().zip(answers) {
            receipts[index] =
                answer.and_then(settled).and_then(|value| receipt(&requests[index], &value));
        }
    }
    receipts
}

fn missing() -> BrokerError {
    BrokerError::unavailable("an answer is missing")
}

pub(super) fn random_epoch() -> Epoch {
    Epoch::from_random(rand::random())
}

fn message_id(text: &[u8]) -> Result<MessageId, BrokerError> {
    let text = std::str::from_utf8(text).map_err(BrokerError::unavailable)?;
    MessageId::new(text).map_err(BrokerError::unavailable)
}

/// The place before the first publication.
pub(super) fn beginning(epoch: Epoch) -> Position {
    Position { epoch, offset: 0, tag: Position::START_TAG }
}
