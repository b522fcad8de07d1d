//! Publishing: a request becomes one command, its answer a receipt.

use carillon_protocol::{Epoch, MessageId, Position, Tag};
use redis::{Cmd, Value};

use super::layout::{Call, Layout};
use super::message::WITHOUT_HISTORY;
use super::names::Names;
use super::{answer, scripts};
use crate::broker::{EPOCH_LIFETIME, IDEMPOTENCY_WINDOW};
use crate::{BrokerError, Publish, Receipt, Retention};

/// A publish made ready.
struct Prepared {
    call: Call,
    id: MessageId,
    kept: bool,
}

fn prepare(layout: &Layout, names: &Names, request: &Publish) -> Prepared {
    let channel = &request.publication.channel;
    let body = request.publication.to_body();
    let id = &request.publication.id;
    let heard = names.publications(channel);
    let verb = layout.publish_verb();
    let key = request
        .idempotency
        .as_ref()
        .map(|once| names.idempotency(channel, &once.sender, &once.key));
    let window_ms = IDEMPOTENCY_WINDOW.as_millis() as u64;
    let without_history = || [WITHOUT_HISTORY, &body].concat();
    let command = match (request.retention, key) {
        (Some(Retention { size, age }), key) => {
            let (meta, history) = (names.meta(channel), names.history(channel));
            let mut command = match &key {
                Some(key) => scripts::PUBLISH.call(&[&meta, &history, &heard, key]),
                None => scripts::PUBLISH.call(&[&meta, &history, &heard]),
            };
            let age_ms =
                u64::try_from(age.as_millis()).unwrap_or(u64::MAX / 4).clamp(1, u64::MAX / 4);
            command.arg(&body[..]).arg(random_tag().as_str()).arg(random_epoch().as_str());
            command
                .arg(size)
                .arg(age_ms)
                .arg(age_ms.saturating_add(EPOCH_LIFETIME.as_millis() as u64))
                .arg(verb);
            if key.is_some() {
                command.arg(id.as_str()).arg(window_ms);
            }
            command
        }
        (None, Some(key)) => {
            let mut command = scripts::PUBLISH_ONCE.call(&[&key, &heard]);
            command.arg(without_history()).arg(window_ms).arg(id.as_str()).arg(verb);
            command
        }
        (None, None) => {
            let mut command = Cmd::new();
            command.arg(verb).arg(heard).arg(without_history());
            command
        }
    };
    let call = Call { place: layout.place(channel.as_str()), command };
    Prepared { call, id: id.clone(), kept: request.retention.is_some() }
}

/// Reads what the scripts answer.
fn receipt(id: MessageId, kept: bool, value: &Value) -> Result<Receipt, BrokerError> {
    if !kept {
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

pub(super) async fn publish(
    layout: &Layout,
    names: &Names,
    request: &Publish,
) -> Result<Receipt, BrokerError> {
    let prepared = prepare(layout, names, request);
    let value = layout.run(&prepared.call.place, &prepared.call.command).await?;
    receipt(prepared.id, prepared.kept, &value)
}

pub(super) async fn publish_batch(
    layout: &Layout,
    names: &Names,
    requests: &[Publish],
) -> Vec<Result<Receipt, BrokerError>> {
    let mut about = Vec::with_capacity(requests.len());
    let mut calls = Vec::with_capacity(requests.len());
    for request in requests {
        let prepared = prepare(layout, names, request);
        about.push((prepared.id, prepared.kept));
        calls.push(prepared.call);
    }
    let values = layout.run_in_order(calls).await;
    about.into_iter().zip(values).map(|((id, kept), value)| receipt(id, kept, &value?)).collect()
}

pub(super) fn random_epoch() -> Epoch {
    Epoch::from_random(rand::random())
}

fn random_tag() -> Tag {
    Tag::from_random(rand::random())
}

fn message_id(text: &[u8]) -> Result<MessageId, BrokerError> {
    let text = std::str::from_utf8(text).map_err(BrokerError::unavailable)?;
    MessageId::new(text).map_err(BrokerError::unavailable)
}

/// The place before the first publication.
pub(super) fn beginning(epoch: Epoch) -> Position {
    Position { epoch, offset: 0, tag: Position::START_TAG }
}
