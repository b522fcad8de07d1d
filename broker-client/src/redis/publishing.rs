//! Publishing and history: requests to scripts, answers to receipts and pages.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use carillon_protocol::{ChannelName, Epoch, MessageId, Position, Publication, Tag};
use redis::{Cmd, FromRedisValue, Pipeline, Value};

use super::commands::{Commands, is_unknown_script};
use super::names::Names;
use super::scripts::{self, Source};
use crate::broker::{EPOCH_LIFETIME, IDEMPOTENCY_WINDOW};
use crate::{BrokerError, HistoryPage, HistoryQuery, Publish, Receipt, Start};

/// Tops read in one pipeline.
const TOPS: usize = 1_000;

/// A publish made ready: which script, its arguments, how to read its answer.
struct Prepared {
    source: Option<&'static Source>,
    arguments: Vec<Vec<u8>>,
    keys: usize,
    id: MessageId,
}

fn prepare(names: &Names, request: &Publish) -> Prepared {
    let publication = &request.publication;
    let channel = &publication.channel;
    let body = publication.to_body();
    let heard = names.publications(channel).into_bytes();
    let text = |number: u128| number.to_string().into_bytes();
    let id = publication.id.clone();
    let window = text(IDEMPOTENCY_WINDOW.as_millis());
    let key = request
        .idempotency
        .as_ref()
        .map(|once| names.idempotency(channel, &once.sender, &once.key).into_bytes());
    match (&request.retention, key) {
        (Some(retention), key) => {
            let meta = names.meta(channel).into_bytes();
            let asked = if key.is_some() { window } else { b"0".to_vec() };
            let arguments = vec![
                meta.clone(),
                names.history(channel).into_bytes(),
                key.unwrap_or(meta),
                body,
                Tag::from_random(rand::random()).as_str().as_bytes().to_vec(),
                Epoch::from_random(rand::random()).as_str().as_bytes().to_vec(),
                text(u128::from(retention.size.max(1))),
                text(retention.age.as_millis().max(1)),
                text(u128::from(unix_ms())),
                heard,
                asked,
                id.as_str().as_bytes().to_vec(),
                b"PUBLISH".to_vec(),
                text(EPOCH_LIFETIME.as_millis()),
            ];
            Prepared { source: Some(&scripts::PUBLISH), arguments, keys: 3, id }
        }
        (None, Some(key)) => {
            let arguments = vec![
                key,
                body,
                heard,
                window,
                id.as_str().as_bytes().to_vec(),
                b"PUBLISH".to_vec(),
            ];
            Prepared { source: Some(&scripts::PUBLISH_ONCE), arguments, keys: 1, id }
        }
        (None, None) => {
            let mut message = b"- - - - ".to_vec();
            message.extend_from_slice(&body);
            Prepared { source: None, arguments: vec![heard, message], keys: 0, id }
        }
    }
}

impl Prepared {
    fn write(&self, command: &mut Cmd) {
        if self.source.is_some() {
            command.arg(self.keys);
        }
        for argument in &self.arguments {
            command.arg(&argument[..]);
        }
    }

    fn command(&self) -> Cmd {
        let mut command = match self.source {
            Some(source) => {
                let mut command = redis::cmd("EVALSHA");
                command.arg(&source.digest);
                command
            }
            None => redis::cmd("PUBLISH"),
        };
        self.write(&mut command);
        command
    }

    fn receipt(&self, answer: Value) -> Result<Receipt, BrokerError> {
        let garbled = |_| BrokerError::unavailable("an answer of Redis cannot be read");
        match (self.source, self.keys) {
            (None, _) => Ok(Receipt { id: self.id.clone(), position: None, duplicate: false }),
            (Some(_), 1) => {
                let (id, duplicate): (String, u8) =
                    FromRedisValue::from_redis_value(answer).map_err(garbled)?;
                Ok(Receipt { id: message_id(&id)?, position: None, duplicate: duplicate == 1 })
            }
            (Some(_), _) => {
                let (offset, epoch, tag, id, duplicate): (u64, String, String, String, u8) =
                    FromRedisValue::from_redis_value(answer).map_err(garbled)?;
                let position = position(&epoch, offset, &tag)?;
                Ok(Receipt {
                    id: message_id(&id)?,
                    position: Some(position),
                    duplicate: duplicate == 1,
                })
            }
        }
    }
}

pub(super) async fn publish(
    commands: &Commands,
    names: &Names,
    request: Publish,
) -> Result<Receipt, BrokerError> {
    let prepared = prepare(names, &request);
    let answer: Value = match prepared.source {
        Some(source) => {
            commands
                .script(source, |command| {
                    prepared.write(command);
                    command
                })
                .await?
        }
        None => commands.run(&prepared.command()).await?,
    };
    prepared.receipt(answer)
}

pub(super) async fn publish_batch(
    commands: &Commands,
    names: &Names,
    requests: Vec<Publish>,
) -> Vec<Result<Receipt, BrokerError>> {
    if requests.is_empty() {
        return Vec::new();
    }
    let prepared: Vec<Prepared> = requests.iter().map(|request| prepare(names, request)).collect();
    let mut answers = send(commands, &prepared).await;
    // A restarted server has forgotten the scripts: nothing of such an answer happened, so it is asked again.
    if matches!(&answers, Ok(answers) if answers.iter().any(unknown_script)) {
        for source in [&*scripts::PUBLISH, &*scripts::PUBLISH_ONCE] {
            let mut load = redis::cmd("SCRIPT");
            load.arg("LOAD").arg(source.text);
            if let Err(error) = commands.run::<String>(&load).await {
                return prepared.iter().map(|_| Err(error.clone())).collect();
            }
        }
        answers = send(commands, &prepared).await;
    }
    match answers {
        Err(error) => prepared.iter().map(|_| Err(error.clone())).collect(),
        Ok(answers) => prepared
            .iter()
            .zip(answers)
            .map(|(prepared, answer)| match answer {
                Value::ServerError(error) => Err(BrokerError::unavailable(error)),
                answer => prepared.receipt(answer),
            })
            .collect(),
    }
}

async fn send(commands: &Commands, prepared: &[Prepared]) -> Result<Vec<Value>, BrokerError> {
    let mut pipeline = Pipeline::with_capacity(prepared.len());
    // One refused message must not hide the others' receipts.
    pipeline.ignore_errors();
    for prepared in prepared {
        pipeline.add_command(prepared.command());
    }
    commands.pipeline(&pipeline).await
}

fn unknown_script(answer: &Value) -> bool {
    match answer {
        Value::ServerError(error) => is_unknown_script(&error.clone().into()),
        _ => false,
    }
}

pub(super) async fn tops(
    commands: &Commands,
    names: &Names,
    channels: &[ChannelName],
) -> Result<Vec<Position>, BrokerError> {
    let mut tops = Vec::with_capacity(channels.len());
    for chunk in channels.chunks(TOPS) {
        let mut pipeline = Pipeline::with_capacity(chunk.len());
        for channel in chunk {
            let mut command = redis::cmd("EVAL");
            command.arg(scripts::HISTORY.text);
            top_arguments(&mut command, names, channel);
            if chunk.len() > 1 {
                command = redis::cmd("EVALSHA");
                command.arg(&scripts::HISTORY.digest);
                top_arguments(&mut command, names, channel);
            }
            pipeline.add_command(command);
        }
        pipeline.ignore_errors();
        let mut answers = commands.pipeline(&pipeline).await?;
        if answers.iter().any(unknown_script) {
            let mut load = redis::cmd("SCRIPT");
            load.arg("LOAD").arg(scripts::HISTORY.text);
            commands.run::<String>(&load).await?;
            answers = commands.pipeline(&pipeline).await?;
        }
        for answer in answers {
            if let Value::ServerError(error) = answer {
                return Err(BrokerError::unavailable(error));
            }
            tops.push(read_page(None, Duration::MAX, answer)?.top);
        }
    }
    Ok(tops)
}

fn top_arguments(command: &mut Cmd, names: &Names, channel: &ChannelName) {
    command.arg(2).arg(names.meta(channel)).arg(names.history(channel));
    command.arg("top").arg(0).arg(0).arg(Epoch::from_random(rand::random()).as_str());
    command.arg(EPOCH_LIFETIME.as_millis() as u64);
}

pub(super) async fn history(
    commands: &Commands,
    names: &Names,
    channel: &ChannelName,
    query: HistoryQuery,
) -> Result<HistoryPage, BrokerError> {
    let (kind, offset) = match query.start {
        Start::After(offset) => ("after", offset),
        Start::Last => ("last", 0),
    };
    let epoch = Epoch::from_random(rand::random());
    let answer: Value = commands
        .script(&scripts::HISTORY, |command| {
            command.arg(2).arg(names.meta(channel)).arg(names.history(channel));
            command.arg(kind).arg(offset).arg(query.limit).arg(epoch.as_str());
            command.arg(EPOCH_LIFETIME.as_millis() as u64)
        })
        .await?;
    let mut page = read_page(Some(channel), query.age, answer)?;
    if query.start == Start::Last {
        page.publications.reverse();
        // The age filter may have cut the chain's older end only; offsets stay without holes.
    }
    page.publications.truncate(query.limit as usize);
    Ok(page)
}

pub(super) async fn clear(
    commands: &Commands,
    names: &Names,
    channel: &ChannelName,
) -> Result<Position, BrokerError> {
    let epoch = Epoch::from_random(rand::random());
    let _: i64 = commands
        .script(&scripts::CLEAR, |command| {
            command.arg(2).arg(names.meta(channel)).arg(names.history(channel)).arg(epoch.as_str());
            command.arg(EPOCH_LIFETIME.as_millis() as u64)
        })
        .await?;
    Ok(Position { epoch, offset: 0, tag: Position::START_TAG })
}

type Entry = (String, (String, Bytes, String, String, String, String));

/// Reads `history.lua`'s answer; entries older than `age` are left out.
fn read_page(
    channel: Option<&ChannelName>,
    age: Duration,
    answer: Value,
) -> Result<HistoryPage, BrokerError> {
    let garbled = |_| BrokerError::unavailable("an answer of Redis cannot be read");
    let (epoch, offset, tag, at_start, entries): (String, u64, String, Option<String>, Vec<Entry>) =
        FromRedisValue::from_redis_value(answer).map_err(garbled)?;
    let top = position(&epoch, offset, &tag)?;
    let horizon = unix_ms().saturating_sub(u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
    let mut publications = Vec::with_capacity(entries.len());
    for (id, (_, body, _, tag, _, previous)) in entries {
        let (Some(channel), Some((offset, at))) = (channel, id.split_once('-')) else { continue };
        let (Ok(offset), Ok(at)) = (offset.parse(), at.parse::<u64>()) else { continue };
        if at < horizon {
            continue;
        }
        let position = position(&epoch, offset, &tag)?;
        match Publication::from_body(channel.clone(), Some(position), Tag::parse(&previous), &body)
        {
            Ok(publication) => publications.push(publication),
            Err(error) => {
                tracing::warn!(%channel, offset, %error, "a history entry cannot be read")
            }
        }
    }
    Ok(HistoryPage { top, tag_at_start: at_start.as_deref().and_then(Tag::parse), publications })
}

fn position(epoch: &str, offset: u64, tag: &str) -> Result<Position, BrokerError> {
    match (Epoch::parse(epoch), Tag::parse(tag)) {
        (Some(epoch), Some(tag)) => Ok(Position { epoch, offset, tag }),
        _ => Err(BrokerError::unavailable("a position in Redis is not ours")),
    }
}

fn message_id(text: &str) -> Result<MessageId, BrokerError> {
    MessageId::new(text).map_err(BrokerError::unavailable)
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
