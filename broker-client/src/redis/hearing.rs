//! What a link hears: a pub/sub connection of our own that serves its wishes (`hearing/wishes.rs`).
//!
//! The client library's push channel is unbounded and its resubscribing is not to be trusted. Here the
//! wishes are ours; every connection begins with all of them, and only confirmed interest stands. A node that does
//! not drain its events stops this task from reading: Redis then feels it, not our memory.

mod wishes;

use std::cell::Cell;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;
pub(super) use wishes::{Hearing, Wish};

use super::dial::Line;
use super::endpoint::Endpoint;
use super::link::{Link, jittered};
use super::message;
use super::resp::{self, Frame, Front};
use crate::Event;

const CANARY_EVERY: Duration = Duration::from_secs(1);
/// So many canaries that were published and not heard mean a deaf connection.
const CANARIES_MISSED_MAX: u32 = 5;
/// Channels in one SUBSCRIBE: Redis serves others between two of them.
const CHUNK: usize = 1_000;
/// Wishes that changed and were not sent yet; beyond that a fresh connection is cheaper.
const CHANGES_MAX: usize = 200_000;
const RETRY_MIN: Duration = Duration::from_millis(20);
const RETRY_MAX: Duration = Duration::from_millis(500);
const READ_BYTES: usize = 32 * 1024;
/// Smaller bodies are copied: one that shares the read buffer would keep all of it alive in a hot tail.
const SHARED_BYTES_MIN: usize = 16 * 1024;

/// Keeps a connection to wherever the link's commands go, for as long as the link lives.
pub(super) async fn run(link: &Link) {
    let mut address = link.address();
    let mut retry = RETRY_MIN;
    let name = format!("carillon-{}-hearing", link.shared.node);
    let (mut connected_before, mut stood) = (false, false);
    loop {
        let endpoint = match address.wait_for(Option::is_some).await {
            Ok(endpoint) => endpoint.clone(),
            Err(_) => return,
        };
        let Some(endpoint) = endpoint else { continue };
        let reason = match link.shared.dialer.dial(&endpoint, &name).await {
            Ok(line) => {
                if std::mem::replace(&mut connected_before, true) {
                    let counter = &link.shared.counters.hearing_reconnects;
                    counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                }
                let (keys, audit) = link.hearing.begin();
                let mut ear = Ear::new(link, audit);
                let reason = tokio::select! {
                    reason = ear.listen(line, keys) => reason,
                    moved = elsewhere(link, &endpoint) => moved,
                };
                let owes = ear.owes_audit();
                stood = ear.stands;
                link.hearing.end(owes);
                if stood {
                    tracing::debug!(%reason, "the pub/sub connection to Redis ended");
                    retry = RETRY_MIN;
                }
                reason
            }
            Err(error) => error.reason().to_owned(),
        };
        link.shared.board.hearing(link.id, Some(&reason));
        if std::mem::take(&mut stood) {
            link.shared.ears.lost(link.id).await;
        }
        link.shared.layout_doubted.notify_one();
        tokio::time::sleep(jittered(retry)).await;
        retry = (retry * 2).min(RETRY_MAX);
    }
}

async fn elsewhere(link: &Link, here: &Endpoint) -> String {
    let mut address = link.address();
    let left = address
        .wait_for(|address| address.as_ref().is_some_and(|address| address != here))
        .await
        .is_ok();
    if !left {
        std::future::pending::<()>().await;
    }
    format!("commands left {here}")
}

/// Confirmations come in the order asked.
struct Asked {
    left: usize,
    /// What is asked with one channel at a time, to tell a confirmation from the server's own word.
    leaves: Option<Bytes>,
    waiters: Vec<oneshot::Sender<()>>,
    /// All wishes of the beginning stand with this one.
    stands: bool,
}

/// One connection's life.
struct Ear<'a> {
    link: &'a Link,
    canary: Bytes,
    buffer: BytesMut,
    out: BytesMut,
    asked: VecDeque<Asked>,
    audit: bool,
    stands: bool,
    canaries_missed: Cell<u32>,
}

impl<'a> Ear<'a> {
    fn new(link: &'a Link, audit: bool) -> Self {
        Self {
            link,
            canary: link.shared.names.canary(link.id).into(),
            buffer: BytesMut::with_capacity(READ_BYTES),
            out: BytesMut::new(),
            asked: VecDeque::new(),
            audit,
            stands: false,
            canaries_missed: Cell::new(0),
        }
    }

    /// Somebody still waits, or was never told.
    fn owes_audit(&self) -> bool {
        self.audit || self.asked.iter().any(|asked| !asked.waiters.is_empty())
    }

    async fn listen(&mut self, line: Line, keys: Vec<Bytes>) -> String {
        let (mut reader, mut writer) = tokio::io::split(line.socket);
        resp::write(&mut self.out, [&b"SUBSCRIBE"[..], &self.canary].into_iter());
        self.asked.push_back(Asked {
            left: 1,
            leaves: None,
            waiters: Vec::new(),
            stands: keys.is_empty(),
        });
        self.ask(true, &keys);
        if let Some(last) = self.asked.back_mut() {
            last.stands = true;
        }
        let mut tick = tokio::time::interval(CANARY_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut singing: Option<Pin<Box<dyn Future<Output = bool> + Send + 'a>>> = None;
        loop {
            tokio::select! {
                read = reader.read_buf(&mut self.buffer) => match read {
                    Ok(0) => return "Redis closed the pub/sub connection".to_owned(),
                    Ok(_) => if let Err(reason) = self.take_all().await {
                        return reason;
                    },
                    Err(error) => return error.to_string(),
                },
                written = writer.write_buf(&mut self.out), if !self.out.is_empty() => {
                    if let Err(error) = written {
                        return error.to_string();
                    }
                    if self.out.is_empty() {
                        self.out = BytesMut::new();
                        if let Err(error) = writer.flush().await {
                            return error.to_string();
                        }
                    }
                }
                () = self.link.hearing.changed.notified() => if let Err(reason) = self.take_changes() {
                    return reason;
                },
                _ = tick.tick() => {
                    if self.canaries_missed.get() >= CANARIES_MISSED_MAX {
                        return "the pub/sub connection is deaf".to_owned();
                    }
                    if singing.is_none() {
                        singing = Some(Box::pin(sing(self.link, self.canary.clone())));
                    }
                }
                sung = async { singing.as_mut().expect("asked for only while some").await }, if singing.is_some() => {
                    singing = None;
                    // Silence counts only while commands work.
                    self.canaries_missed.set(self.canaries_missed.get() + u32::from(sung));
                }
            }
        }
    }

    /// Asks for channels, or leaves them.
    fn ask(&mut self, hear: bool, keys: &[Bytes]) {
        let (verb, chunk): (&[u8], usize) = match (self.link.shared.sharded, hear) {
            // A cluster takes channels of one slot in a command; one at a time is never wrong.
            (true, true) => (b"SSUBSCRIBE", 1),
            (true, false) => (b"SUNSUBSCRIBE", 1),
            (false, true) => (b"SUBSCRIBE", CHUNK),
            (false, false) => (b"UNSUBSCRIBE", CHUNK),
        };
        for chunk in keys.chunks(chunk) {
            let mut parts = Vec::with_capacity(chunk.len() + 1);
            parts.push(verb);
            parts.extend(chunk.iter().map(|key| &key[..]));
            resp::write(&mut self.out, parts.into_iter());
            let leaves = (!hear).then(|| chunk[0].clone());
            self.asked.push_back(Asked {
                left: chunk.len(),
                leaves,
                waiters: Vec::new(),
                stands: false,
            });
        }
    }

    fn take_changes(&mut self) -> Result<(), String> {
        let (changes, waiters) = self.link.hearing.take_changes();
        let count = changes.len();
        let (hear, leave): (Vec<_>, Vec<_>) = changes.into_iter().partition(|(_, hear)| *hear);
        for (verb, keys) in [(false, leave), (true, hear)] {
            let keys: Vec<Bytes> = keys.into_iter().map(|(key, _)| key).collect();
            self.ask(verb, &keys);
        }
        if !waiters.is_empty() {
            match self.asked.back_mut() {
                Some(last) => last.waiters.extend(waiters),
                // All they wished was answered before they were taken up.
                None => waiters.into_iter().for_each(|waiter| _ = waiter.send(())),
            }
        }
        if count > CHANGES_MAX {
            Err("too many changes of interest at once".to_owned())
        } else {
            Ok(())
        }
    }

    async fn take_all(&mut self) -> Result<(), String> {
        let mut at = 0;
        let missing = loop {
            match resp::read(&self.buffer, at).map_err(|garbled| garbled.to_string())? {
                Front::Partial(missing) => break missing,
                Front::Whole(frame, next) => match self.push(&frame) {
                    Push::Message { key, body } if body.len() < SHARED_BYTES_MIN => {
                        let body = Bytes::copy_from_slice(&self.buffer[body]);
                        let event = self.event(&self.buffer[key], body);
                        at = next;
                        if let Some(event) = event {
                            self.link.shared.ears.hear(event).await;
                        }
                    }
                    Push::Message { key, body } => {
                        let shared = self.buffer.split_to(next).freeze();
                        at = 0;
                        if let Some(event) = self.event(&shared[key], shared.slice(body)) {
                            self.link.shared.ears.hear(event).await;
                        }
                    }
                    Push::Confirmed => {
                        at = next;
                        self.confirmed().await;
                    }
                    Push::Left(key) => {
                        let key = self.buffer[key].to_vec();
                        at = next;
                        let expected = self.asked.front().and_then(|asked| asked.leaves.as_deref());
                        if !self.link.shared.sharded || expected == Some(&key[..]) {
                            self.confirmed().await;
                        } else if self.link.hearing.wish_of(&key).is_some() {
                            return Err("the cluster moved a slot".to_owned());
                        }
                    }
                    Push::Refused(text) => {
                        let text = String::from_utf8_lossy(&self.buffer[text]).into_owned();
                        at = next;
                        // Leaving a channel whose slot is elsewhere is done already.
                        if self.asked.front().is_some_and(|asked| asked.leaves.is_some()) {
                            self.confirmed().await;
                        } else {
                            return Err(text);
                        }
                    }
                    Push::Other => at = next,
                },
            }
        };
        self.buffer.advance(at);
        self.buffer.reserve(missing.max(READ_BYTES / 4));
        Ok(())
    }

    fn push(&self, frame: &Frame) -> Push {
        match frame {
            Frame::Error(text) => Push::Refused(text.clone()),
            Frame::Array(items) => match &items[..] {
                [Frame::Text(kind), Frame::Text(key), last] => {
                    match (&self.buffer[kind.clone()], last) {
                        (b"message" | b"smessage", Frame::Text(body)) => {
                            Push::Message { key: key.clone(), body: body.clone() }
                        }
                        (b"subscribe" | b"ssubscribe", _) => Push::Confirmed,
                        (b"unsubscribe" | b"sunsubscribe", _) => Push::Left(key.clone()),
                        _ => Push::Other,
                    }
                }
                _ => Push::Other,
            },
            _ => Push::Other,
        }
    }

    fn event(&self, key: &[u8], body: Bytes) -> Option<Event> {
        if key == self.canary {
            self.link.hearing.canary_heard();
            self.canaries_missed.set(0);
            return None;
        }
        match self.link.hearing.wish_of(key)? {
            Wish::Told => Some(Event::Told(body)),
            Wish::Channel(channel) if body == message::RENEWED => Some(Event::Renewed(channel)),
            Wish::Channel(channel) => match message::read(channel.clone(), &body) {
                Some(publication) => Some(Event::Publication(publication)),
                None => {
                    tracing::warn!(%channel, "a publication cannot be read");
                    None
                }
            },
        }
    }

    async fn confirmed(&mut self) {
        let Some(front) = self.asked.front_mut() else { return };
        front.left = front.left.saturating_sub(1);
        if front.left > 0 {
            return;
        }
        let Some(done) = self.asked.pop_front() else { return };
        let mut audit = false;
        for waiter in done.waiters {
            // Who gave up was told that it does not stand: now it does, and an audit is due.
            audit |= waiter.send(()).is_err();
        }
        if done.stands {
            self.stands = true;
            audit |= std::mem::take(&mut self.audit);
            self.link.shared.board.hearing(self.link.id, None);
        }
        if done.stands || audit {
            self.link.shared.ears.restored(self.link.id, audit).await;
        }
    }
}

enum Push {
    Message { key: std::ops::Range<usize>, body: std::ops::Range<usize> },
    Confirmed,
    Left(std::ops::Range<usize>),
    Refused(std::ops::Range<usize>),
    Other,
}

/// Publishes a canary through the commands; whether that worked.
async fn sing(link: &Link, canary: Bytes) -> bool {
    let mut command = redis::cmd("PUBLISH");
    command.arg(&canary[..]).arg("1");
    matches!(link.send(&command).await, Ok(redis::Value::Int(_)))
}
