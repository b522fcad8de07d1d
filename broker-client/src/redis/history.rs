//! Reading and clearing history.

use carillon_protocol::{ChannelName, Position, Publication};
use redis::Value;

use super::layout::{Call, Layout};
use super::names::Names;
use super::publishing::{beginning, random_epoch};
use super::{answer, message, scripts};
use crate::broker::EPOCH_LIFETIME;
use crate::{BrokerError, HistoryPage, HistoryQuery, Start};

/// Channels in one command: Redis serves others between two of them.
const TOPS_MAX: usize = 256;

pub(super) async fn tops(
    layout: &Layout,
    names: &Names,
    channels: &[ChannelName],
) -> Result<Vec<Position>, BrokerError> {
    if channels.is_empty() {
        return Ok(Vec::new());
    }
    // One server answers many channels with one command; elsewhere they lie in different slots.
    let together = if layout.is_one_server() { TOPS_MAX } else { 1 };
    let mut reads = Vec::with_capacity(channels.len().div_ceil(together));
    for channels in channels.chunks(together) {
        let mut command = redis::cmd("MGET");
        channels.iter().for_each(|channel| _ = command.arg(names.meta(channel)));
        reads.push(Call { place: layout.place(channels[0].as_str()), command });
    }
    let mut tops = Vec::with_capacity(channels.len());
    let mut missing = Vec::new();
    for metas in layout.run_all(reads).await {
        for meta in answer::items(metas?)? {
            tops.push(match meta {
                Value::Nil => {
                    missing.push(tops.len());
                    beginning(random_epoch())
                }
                meta => answer::position(answer::bytes(&meta)?)?.0,
            });
        }
    }
    let of = |indices: &[usize]| -> Vec<&ChannelName> {
        indices.iter().map(|index| &channels[*index]).collect()
    };
    let begins = missing.chunks(together).map(|some| begin(layout, names, &of(some))).collect();
    let mut begun = Vec::with_capacity(missing.len());
    for metas in layout.run_all(begins).await {
        for meta in answer::items(metas?)? {
            begun.push(answer::position(answer::bytes(&meta)?)?.0);
        }
    }
    for (index, top) in missing.into_iter().zip(begun) {
        tops[index] = top;
    }
    if tops.len() != channels.len() {
        return Err(BrokerError::unavailable("an answer is missing"));
    }
    Ok(tops)
}

/// Begins epochs where there are none; the channels lie together.
fn begin(layout: &Layout, names: &Names, channels: &[&ChannelName]) -> Call {
    let keys: Vec<String> =
        channels.iter().flat_map(|channel| [names.meta(channel), names.history(channel)]).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let mut command = scripts::TOP.call(&keys);
    command.arg(EPOCH_LIFETIME.as_millis() as u64);
    channels.iter().for_each(|_| _ = command.arg(random_epoch().as_str()));
    let place = layout.place(channels.first().map_or("", |channel| channel.as_str()));
    Call { place, command }
}

pub(super) async fn history(
    layout: &Layout,
    names: &Names,
    channel: &ChannelName,
    query: HistoryQuery,
) -> Result<HistoryPage, BrokerError> {
    let place = layout.place(channel.as_str());
    let (word, offset) = match query.start {
        Start::After(offset) => ("after", offset),
        Start::Last => ("last", 0),
    };
    let mut command = scripts::HISTORY.call(&[&names.meta(channel), &names.history(channel)]);
    let age_ms = u64::try_from(query.age.as_millis()).unwrap_or(u64::MAX).min(1 << 50);
    // Lua counts in floating point: an offset that nobody reached must not become one that somebody did.
    command.arg(word).arg(offset.min(1 << 52)).arg(query.limit).arg(age_ms);
    let value = layout.run(&place, &command).await?;
    if value == Value::Nil {
        let begin = begin(layout, names, &[channel]);
        let metas = answer::items(layout.run(&begin.place, &begin.command).await?)?;
        let meta = metas.first().ok_or_else(|| BrokerError::unavailable("an answer is missing"))?;
        let top = answer::position(answer::bytes(meta)?)?.0;
        let tag_at_start = (query.start == Start::After(top.offset)).then_some(top.tag);
        return Ok(HistoryPage { top, tag_at_start, publications: Vec::new() });
    }
    let mut items = answer::items(value)?.into_iter();
    let (Some(meta), Some(tag)) = (items.next(), items.next()) else {
        return Err(BrokerError::unavailable("a page of history is cut"));
    };
    let top = answer::position(answer::bytes(&meta)?)?.0;
    let mut publications = Vec::with_capacity(items.len());
    for item in items {
        let (offset, tag, previous, body) = answer::entry(item)?;
        let position = Position { epoch: top.epoch, offset, tag };
        match Publication::from_body(channel.clone(), Some(position), Some(previous), &body) {
            Ok(publication) => publications.push(publication),
            Err(error) => {
                tracing::warn!(%channel, offset, %error, "a history entry cannot be read");
            }
        }
    }
    Ok(HistoryPage { top, tag_at_start: answer::tag(&tag)?, publications })
}

pub(super) async fn clear(
    layout: &Layout,
    names: &Names,
    channel: &ChannelName,
) -> Result<Position, BrokerError> {
    let epoch = random_epoch();
    let keys = [&*names.meta(channel), &names.history(channel), &names.publications(channel)];
    let mut command = scripts::CLEAR.call(&keys);
    command.arg(epoch.as_str()).arg(EPOCH_LIFETIME.as_millis() as u64);
    command.arg(layout.publish_verb()).arg(message::RENEWED);
    layout.run(&layout.place(channel.as_str()), &command).await?;
    Ok(beginning(epoch))
}

pub(super) async fn fence(
    layout: &Layout,
    names: &Names,
    known: &[(ChannelName, Position)],
) -> Result<Vec<bool>, BrokerError> {
    let calls = known.iter().map(|(channel, position)| {
        let keys = [&*names.meta(channel), &names.history(channel), &names.publications(channel)];
        let mut command = scripts::FENCE.call(&keys);
        command.arg(position.epoch.as_str()).arg(position.offset).arg(position.tag.as_str());
        command.arg(random_epoch().as_str()).arg(layout.publish_verb()).arg(message::RENEWED);
        Call { place: layout.place(channel.as_str()), command }
    });
    let answers = layout.run_all(calls.collect()).await.into_iter();
    answers.map(|answer| Ok(answer::read::<u8>(answer?)? == 1)).collect()
}
