//! The `inbound` stream and its lifecycle events over Redis. Words: `crate::application`.
//!
//! What a node holds open (`…:open:…:{node}`, `…:heard:…:{node}`), leases and dead letters share the stream's slot, so
//! that each change and its event are one step in every layout. Presence and status change elsewhere: on one server
//! their scripts tell the event themselves, else [`Inner::tell_once`] does.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use carillon_protocol::{ChannelName, ConnectionId, time};
use foldhash::HashMap;
use parking_lot::Mutex;
use redis::Value;

use super::layout::{Call, Place};
use super::names::Names;
use super::{Inner, RedisBroker, answer, scripts};
use crate::application::{self, DEAD_LETTERS_MAX, INBOUND_MAX};
use crate::{
    ApplicationStore, BrokerError, EventKind, EventKinds, Happening, InboundEntry, InboundFrom,
    InboundMessage, InboundRead,
};

/// Things that one script holds or lets go: about a millisecond of Redis.
const TOGETHER: usize = 200;

/// How long after the last event the ids of told ones are known.
const TOLD_FOR: Duration = Duration::from_secs(3_600);

/// What this node holds, to write it again when Redis lost it (R43).
#[derive(Default)]
pub(super) struct Reported {
    kinds: AtomicU8,
    open: Mutex<HashMap<ConnectionId, String>>,
    heard: Mutex<foldhash::HashSet<ChannelName>>,
    /// What a report that was not answered may or may not have changed; its repetition decides.
    doubtful: Mutex<foldhash::HashSet<(Kept, String)>>,
    /// Reporting and restoring, one at a time.
    order: tokio::sync::Mutex<()>,
    /// As [`super::presence::Held`] knows it.
    written_at: AtomicU64,
}

/// Keys that a script which may tell an event gets behind its own, and where they are.
pub(super) struct InStep {
    pub(super) keys: Vec<String>,
}

/// What a node holds: connections or channels.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Kept {
    Connections,
    Channels,
}

impl Kept {
    fn index(self, names: &Names, node: &str) -> String {
        let key = match self {
            Self::Connections => "open",
            Self::Channels => "heard",
        };
        format!("{}:{node}", names.beside_inbound(key))
    }

    fn kinds(self) -> (EventKind, EventKind) {
        match self {
            Self::Connections => (EventKind::ConnectionOpened, EventKind::ConnectionClosed),
            Self::Channels => (EventKind::ChannelOccupied, EventKind::ChannelVacated),
        }
    }
}

fn now() -> String {
    time::rfc3339(crate::presence::unix_ms())
}

impl Inner {
    fn stream(&self) -> (String, Place) {
        let stream = self.shared.names.inbound();
        let place = self.layout.common(&stream);
        (stream, place)
    }

    /// The name of a kind that is told, else nothing.
    pub(super) fn told(&self, kind: EventKind) -> &'static str {
        let kinds = EventKinds::from_bits(self.reported.kinds.load(Ordering::Relaxed));
        if kinds.contains(kind) { kind.name() } else { "" }
    }

    /// The stream's keys where every key lives on one server: a script may tell in its own step.
    pub(super) fn in_step(&self) -> Option<InStep> {
        self.layout.is_one_server().then(|| InStep {
            keys: vec![self.shared.names.inbound(), self.shared.names.beside_inbound("sequence")],
        })
    }

    /// Tells events of changes that other servers made, each `id kind time data`, in order and each once, whoever else
    /// tells it as well.
    pub(super) async fn tell_once(&self, events: &[String]) -> Result<(), BrokerError> {
        let ((stream, place), names) = (self.stream(), &self.shared.names);
        let (sequence, told) = (names.beside_inbound("sequence"), names.beside_inbound("told"));
        let mut tell = scripts::APPLICATION_TELL_ONCE.call(&[&stream, &sequence, &told]);
        tell.arg(INBOUND_MAX).arg(TOLD_FOR.as_millis() as u64).arg(events);
        self.layout.run(&place, &tell).await.map(drop)
    }

    async fn tell_now(&self, kind: &str, data: &str) -> Result<(), BrokerError> {
        let (stream, place) = self.stream();
        let sequence = self.shared.names.beside_inbound("sequence");
        let mut tell = scripts::APPLICATION_TELL.call(&[&stream, &sequence]);
        tell.arg(kind).arg(now()).arg(data).arg(INBOUND_MAX);
        self.layout.run(&place, &tell).await.map(drop)
    }

    /// A call that holds things for a node or lets them go.
    fn change(
        &self,
        kept: Kept,
        node: &str,
        hold: bool,
        event: &str,
        things: &[(String, String)],
    ) -> Call {
        let (names, (stream, place)) = (&self.shared.names, self.stream());
        let mut keys = vec![stream, names.beside_inbound("sequence"), kept.index(names, node)];
        if kept == Kept::Channels {
            keys.push(names.beside_inbound("occupied"));
        }
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let mut command = scripts::APPLICATION_HOLD.call(&keys);
        command.arg(if hold { "hold" } else { "release" }).arg(event).arg(now()).arg(INBOUND_MAX);
        for (thing, data) in things {
            command.arg(thing).arg(data);
        }
        Call { place, command }
    }

    /// What a node holds according to Redis.
    async fn kept(&self, kept: Kept, node: &str) -> Result<Vec<(String, String)>, BrokerError> {
        let mut command = redis::cmd("HGETALL");
        command.arg(kept.index(&self.shared.names, node));
        answer::read(self.layout.run(&self.stream().1, &command).await?)
    }

    async fn run_in_order(&self, calls: Vec<Call>) -> Result<(), BrokerError> {
        self.layout.run_in_order(calls, 1).await.into_iter().try_for_each(|result| result.map(drop))
    }

    /// Lets go what a node held, told. May be repeated.
    pub(super) async fn sweep_application(&self, node: &str) -> Result<(), BrokerError> {
        for kept in [Kept::Connections, Kept::Channels] {
            let event = self.told(kept.kinds().1);
            let things: Vec<(String, String)> = self
                .kept(kept, node)
                .await?
                .into_iter()
                .map(|(thing, data)| {
                    let data = if kept == Kept::Connections {
                        application::lost_data(&data)
                    } else {
                        data
                    };
                    (thing, data)
                })
                .collect();
            let calls = things
                .chunks(TOGETHER)
                .map(|things| self.change(kept, node, false, event, things))
                .collect();
            self.run_in_order(calls).await?;
        }
        Ok(())
    }

    /// Whether what this node holds must be written again, for Redis may be another one.
    pub(super) fn application_doubted(&self, connects: u64) -> bool {
        self.reported.written_at.load(Ordering::Relaxed) != connects
    }

    /// Writes again what this node holds, and lets go what it does not: in silence after Redis lost it, told after
    /// survivors took it back.
    pub(super) async fn restore_application(
        &self,
        told: bool,
        connects: u64,
    ) -> Result<(), BrokerError> {
        let _one_at_a_time = self.reported.order.lock().await;
        let node = self.shared.node.as_str();
        let doubtful = self.reported.doubtful.lock().clone();
        let open = self.reported.open.lock().clone();
        let open: Vec<_> =
            open.into_iter().map(|(id, about)| (id.as_str().to_owned(), about)).collect();
        let heard = self.reported.heard.lock().clone();
        let heard: Vec<_> = heard
            .iter()
            .map(|channel| (channel.as_str().to_owned(), application::channel_data(channel)))
            .collect();
        for (kept, mut held) in [(Kept::Connections, open), (Kept::Channels, heard)] {
            let is_doubtful = |thing: &String| doubtful.contains(&(kept, thing.clone()));
            held.retain(|(thing, _)| !is_doubtful(thing));
            let (hold, release) = kept.kinds();
            let event = if told { self.told(hold) } else { "" };
            let stale: Vec<_> = {
                let held: foldhash::HashSet<&String> =
                    held.iter().map(|(thing, _)| thing).collect();
                let known = self.kept(kept, node).await?;
                let is_stale = |thing: &String| !held.contains(thing) && !is_doubtful(thing);
                known.into_iter().filter(|(thing, _)| is_stale(thing)).collect()
            };
            let event_stale = if told { self.told(release) } else { "" };
            let mut calls: Vec<Call> = held
                .chunks(TOGETHER)
                .map(|things| self.change(kept, node, true, event, things))
                .collect();
            let over = stale.chunks(TOGETHER);
            calls.extend(over.map(|things| self.change(kept, node, false, event_stale, things)));
            self.run_in_order(calls).await?;
        }
        self.reported.written_at.store(connects, Ordering::Relaxed);
        Ok(())
    }

    /// Lets everything of this node go, told.
    pub(super) async fn retire_application(&self) -> Result<(), BrokerError> {
        self.reported.open.lock().clear();
        self.reported.heard.lock().clear();
        self.sweep_application(self.shared.node.as_str()).await
    }

    fn note(&self, happening: &Happening) {
        match happening {
            Happening::Opened { connection, about } => {
                self.reported.open.lock().insert(connection.clone(), about.clone());
            }
            Happening::Closed { connection, .. } => {
                self.reported.open.lock().remove(connection);
            }
            Happening::Occupied(channel) => {
                self.reported.heard.lock().insert(channel.clone());
            }
            Happening::Vacated(channel) => {
                self.reported.heard.lock().remove(channel);
            }
            Happening::Lost => {}
        }
    }

    /// Appends a client's message.
    pub(super) async fn append_message(&self, entry: &InboundEntry) -> Result<String, BrokerError> {
        let (stream, place) = self.stream();
        let mut command = redis::cmd("XADD");
        command.arg(stream).arg("MAXLEN").arg("~").arg(INBOUND_MAX).arg("*");
        command.arg("kind").arg("message").arg("type").arg(&entry.kind);
        command.arg("data").arg(&entry.json);
        answer::read(self.layout.run(&place, &command).await?)
    }
}

/// A happening as the script has it: what is kept, hold or release, thing, data.
fn thing(happening: &Happening) -> Option<(Kept, bool, (String, String))> {
    let connection = |id: &ConnectionId, about: &String| (id.as_str().to_owned(), about.clone());
    let channel =
        |channel: &ChannelName| (channel.as_str().to_owned(), application::channel_data(channel));
    Some(match happening {
        Happening::Opened { connection: id, about } => {
            (Kept::Connections, true, connection(id, about))
        }
        Happening::Closed { connection: id, about } => {
            (Kept::Connections, false, connection(id, about))
        }
        Happening::Occupied(name) => (Kept::Channels, true, channel(name)),
        Happening::Vacated(name) => (Kept::Channels, false, channel(name)),
        Happening::Lost => return None,
    })
}

/// Reads fields of an entry; `None` for one that was trimmed or is none of ours.
fn message(id: String, fields: Value, deliveries: u64) -> Option<(InboundMessage, String)> {
    let fields: HashMap<String, String> =
        redis::from_redis_value::<Vec<(String, String)>>(fields).ok()?.into_iter().collect();
    let message = InboundMessage {
        id,
        is_event: fields.get("kind").is_some_and(|kind| kind == "event"),
        kind: fields.get("type")?.clone(),
        sequence: fields.get("sequence").and_then(|number| number.parse().ok()),
        json: fields.get("data")?.clone(),
        deliveries,
    };
    Some((message, fields.get("reason").cloned().unwrap_or_default()))
}

#[async_trait]
impl ApplicationStore for RedisBroker {
    fn tell_events(&self, kinds: EventKinds) {
        self.inner.reported.kinds.store(kinds.bits(), Ordering::Relaxed);
    }

    async fn report(&self, happenings: &[Happening]) -> Result<(), BrokerError> {
        let inner = &self.inner;
        let _one_at_a_time = inner.reported.order.lock().await;
        let things = happenings.iter().filter_map(thing).map(|(kept, _, (thing, _))| (kept, thing));
        inner.reported.doubtful.lock().extend(things);
        let node = inner.shared.node.as_str();
        let mut calls: Vec<Call> = Vec::new();
        let mut run: Option<(Kept, bool, Vec<(String, String)>)> = None;
        let close = |run: Option<(Kept, bool, Vec<(String, String)>)>, calls: &mut Vec<Call>| {
            let Some((kept, hold, things)) = run else { return };
            let kinds = kept.kinds();
            let event = inner.told(if hold { kinds.0 } else { kinds.1 });
            calls.extend(
                things.chunks(TOGETHER).map(|things| inner.change(kept, node, hold, event, things)),
            );
        };
        for happening in happenings {
            let Some((kept, hold, thing)) = thing(happening) else {
                close(run.take(), &mut calls);
                inner.run_in_order(std::mem::take(&mut calls)).await?;
                inner.tell_now("", "").await?;
                continue;
            };
            match &mut run {
                Some((of, holds, things)) if (*of, *holds) == (kept, hold) => things.push(thing),
                _ => {
                    close(run.take(), &mut calls);
                    run = Some((kept, hold, vec![thing]));
                }
            }
        }
        close(run, &mut calls);
        inner.run_in_order(calls).await?;
        happenings.iter().for_each(|happening| inner.note(happening));
        inner.reported.doubtful.lock().clear();
        Ok(())
    }

    async fn read_inbound(&self, read: &InboundRead) -> Result<Vec<InboundMessage>, BrokerError> {
        let (stream, place) = self.inner.stream();
        let mut command = scripts::APPLICATION_READ.call(&[&stream]);
        command.arg(&read.group).arg(&read.consumer).arg(read.limit.max(1));
        match &read.from {
            InboundFrom::New => command.arg("new").arg(""),
            InboundFrom::Own(after) => command.arg("own").arg(after),
            InboundFrom::Abandoned(idle) => command.arg("abandoned").arg(idle.as_millis() as u64),
        };
        let entries: Vec<(String, Value, u64)> =
            answer::read(self.inner.layout.run(&place, &command).await?)?;
        let (mut messages, mut lost) = (Vec::with_capacity(entries.len()), Vec::new());
        for (id, fields, deliveries) in entries {
            match message(id.clone(), fields, deliveries) {
                Some((message, _)) => messages.push(message),
                None => lost.push(id),
            }
        }
        if !lost.is_empty() {
            // Trimmed before anybody was done with them: nobody can be.
            tracing::warn!(group = %read.group, entries = lost.len(), "inbound entries were trimmed unread");
            self.ack_inbound(&read.group, &lost).await?;
        }
        Ok(messages)
    }

    async fn ack_inbound(&self, group: &str, ids: &[String]) -> Result<(), BrokerError> {
        if ids.is_empty() {
            return Ok(());
        }
        let (stream, place) = self.inner.stream();
        let mut command = redis::cmd("XACK");
        command.arg(stream).arg(group).arg(ids);
        self.inner.layout.run(&place, &command).await.map(drop)
    }

    async fn bury_inbound(
        &self,
        group: &str,
        message: &InboundMessage,
        reason: &str,
    ) -> Result<(), BrokerError> {
        let (stream, place) = self.inner.stream();
        let dead = self.inner.shared.names.beside_inbound("dead");
        let mut command = scripts::APPLICATION_BURY.call(&[&stream, &dead]);
        command.arg(group).arg(&message.id).arg(DEAD_LETTERS_MAX);
        command.arg("id").arg(&message.id).arg("reason").arg(reason).arg("at").arg(now());
        command.arg("kind").arg(if message.is_event { "event" } else { "message" });
        command.arg("type").arg(&message.kind).arg("data").arg(&message.json);
        if let Some(sequence) = message.sequence {
            command.arg("sequence").arg(sequence);
        }
        self.inner.layout.run(&place, &command).await.map(drop)
    }

    async fn dead_letters(
        &self,
        limit: usize,
    ) -> Result<Vec<(InboundMessage, String)>, BrokerError> {
        let mut command = redis::cmd("XREVRANGE");
        command.arg(self.inner.shared.names.beside_inbound("dead"));
        command.arg("+").arg("-").arg("COUNT").arg(limit);
        let entries: Vec<(String, Value)> =
            answer::read(self.inner.layout.run(&self.inner.stream().1, &command).await?)?;
        Ok(entries.into_iter().rev().filter_map(|(id, fields)| message(id, fields, 0)).collect())
    }

    async fn hold_lease(&self, name: &str, lease: Duration) -> Result<bool, BrokerError> {
        let ms = (lease.as_millis() as u64).max(1);
        let held: u8 = answer::read(self.lease(name, ms).await?)?;
        Ok(held == 1)
    }

    async fn release_lease(&self, name: &str) -> Result<(), BrokerError> {
        self.lease(name, 0).await.map(drop)
    }
}

impl RedisBroker {
    async fn lease(&self, name: &str, ms: u64) -> Result<Value, BrokerError> {
        let inner = &self.inner;
        let key = format!("{}:{name}", inner.shared.names.beside_inbound("lease"));
        let mut command = scripts::APPLICATION_LEASE.call(&[&key]);
        command.arg(inner.shared.node.as_str()).arg(ms);
        inner.layout.run(&inner.stream().1, &command).await
    }
}
