//! The `inbound` stream and its lifecycle events within one process. Words: `crate::application`.
//!
//! It must not know: channels' histories, Redis, sockets.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use carillon_protocol::{ChannelName, ConnectionId, time};
use tokio::time::Instant;

use super::{MemoryBroker, Node};
use crate::application::{self, DEAD_LETTERS_MAX};
use crate::presence::unix_ms;
use crate::{
    ApplicationStore, BrokerError, EventKind, EventKinds, Happening, InboundEntry, InboundFrom,
    InboundMessage, InboundRead, NodeId,
};

/// Newest entries that are kept; far fewer than in Redis, because no other process can read them.
const INBOUND_MAX: usize = 10_000;

/// `milliseconds-number`.
type EntryId = (u64, u64);

/// What all nodes share.
#[derive(Default)]
pub(super) struct Application {
    kinds: AtomicU8,
    entries: VecDeque<(EntryId, Entry)>,
    last: EntryId,
    sequence: u64,
    groups: HashMap<String, Group>,
    dead: VecDeque<(InboundMessage, String)>,
    leases: HashMap<String, (NodeId, Instant)>,
    open: HashMap<NodeId, BTreeMap<ConnectionId, String>>,
    heard: BTreeMap<ChannelName, HashSet<NodeId>>,
}

#[derive(Clone)]
struct Entry {
    kind: String,
    sequence: Option<u64>,
    json: String,
}

#[derive(Default)]
struct Group {
    last: EntryId,
    pending: BTreeMap<EntryId, Pending>,
}

struct Pending {
    consumer: String,
    handed_out: Instant,
    deliveries: u64,
}

/// What a node reported and did not take back (R43).
#[derive(Default)]
pub(super) struct Reported {
    open: HashMap<ConnectionId, String>,
    heard: HashSet<ChannelName>,
}

fn text((ms, number): EntryId) -> String {
    format!("{ms}-{number}")
}

fn parse(id: &str) -> EntryId {
    let (ms, number) = id.split_once('-').unwrap_or((id, "0"));
    (ms.parse().unwrap_or(0), number.parse().unwrap_or(0))
}

impl Application {
    /// Everything is gone but what the nodes want told.
    pub(super) fn lose(&mut self) {
        let kinds = AtomicU8::new(self.kinds.load(Ordering::Relaxed));
        *self = Self { kinds, ..Self::default() };
    }

    fn append(&mut self, entry: Entry) -> String {
        let now = u64::try_from(unix_ms()).unwrap_or(0);
        let (last_ms, number) = self.last;
        self.last = if now > last_ms { (now, 0) } else { (last_ms, number + 1) };
        if self.entries.len() == INBOUND_MAX {
            self.entries.pop_front();
        }
        self.entries.push_back((self.last, entry));
        text(self.last)
    }

    pub(super) fn append_message(&mut self, entry: &InboundEntry) -> String {
        self.append(Entry { kind: entry.kind.clone(), sequence: None, json: entry.json.clone() })
    }

    /// Client's messages, oldest first.
    pub(super) fn messages(&self) -> Vec<(String, InboundEntry)> {
        let messages = self.entries.iter().filter(|(_, entry)| entry.sequence.is_none());
        messages
            .map(|(id, entry)| {
                let entry = InboundEntry { kind: entry.kind.clone(), json: entry.json.clone() };
                (text(*id), entry)
            })
            .collect()
    }

    /// Appends an event, if its kind is told.
    pub(super) fn tell(&mut self, kind: EventKind, data: &str) {
        if !EventKinds::from_bits(self.kinds.load(Ordering::Relaxed)).contains(kind) {
            return;
        }
        self.sequence += 1;
        let (name, sequence, at) = (kind.name(), self.sequence, time::rfc3339(unix_ms()));
        let json = format!(
            r#"{{"kind":"event","type":"{name}","sequence":{sequence},"timestamp":"{at}","data":{data}}}"#
        );
        self.append(Entry { kind: name.to_owned(), sequence: Some(sequence), json });
    }

    fn open(&mut self, node: &NodeId, connection: &ConnectionId, about: &str, told: bool) {
        let open = self.open.entry(node.clone()).or_default();
        if open.insert(connection.clone(), about.to_owned()).is_none() && told {
            self.tell(EventKind::ConnectionOpened, about);
        }
    }

    fn close(&mut self, node: &NodeId, connection: &ConnectionId, about: &str) {
        if self.open.get_mut(node).is_some_and(|open| open.remove(connection).is_some()) {
            self.tell(EventKind::ConnectionClosed, about);
        }
    }

    fn occupy(&mut self, node: &NodeId, channel: &ChannelName, told: bool) {
        let nodes = self.heard.entry(channel.clone()).or_default();
        let first = nodes.is_empty();
        nodes.insert(node.clone());
        if first && told {
            self.tell(EventKind::ChannelOccupied, &application::channel_data(channel));
        }
    }

    fn vacate(&mut self, node: &NodeId, channel: &ChannelName) {
        let Some(nodes) = self.heard.get_mut(channel) else { return };
        if nodes.remove(node) && nodes.is_empty() {
            self.heard.remove(channel);
            self.tell(EventKind::ChannelVacated, &application::channel_data(channel));
        }
    }

    /// Lets go what a node held, told.
    pub(super) fn sweep(&mut self, node: &NodeId) {
        for about in self.open.remove(node).unwrap_or_default().into_values() {
            self.tell(EventKind::ConnectionClosed, &application::lost_data(&about));
        }
        let held = self.heard.iter().filter(|(_, nodes)| nodes.contains(node));
        let held: Vec<ChannelName> = held.map(|(channel, _)| channel.clone()).collect();
        for channel in held {
            self.vacate(node, &channel);
        }
    }

    fn read(&mut self, read: &InboundRead, now: Instant) -> Vec<InboundMessage> {
        let group = self.groups.entry(read.group.clone()).or_default();
        let wanted: Vec<EntryId> = match &read.from {
            InboundFrom::New => {
                let new = self.entries.iter().map(|(id, _)| *id).filter(|id| *id > group.last);
                new.take(read.limit).collect()
            }
            InboundFrom::Own(after) => {
                let after = parse(after);
                let own = group
                    .pending
                    .iter()
                    .filter(|(id, pending)| pending.consumer == read.consumer && **id > after);
                own.map(|(id, _)| *id).take(read.limit).collect()
            }
            InboundFrom::Abandoned(idle) => {
                let abandoned = group.pending.iter().filter(|(_, pending)| {
                    now.saturating_duration_since(pending.handed_out) >= *idle
                });
                abandoned.map(|(id, _)| *id).take(read.limit).collect()
            }
        };
        let mut messages = Vec::with_capacity(wanted.len());
        for id in wanted {
            group.last = group.last.max(id);
            let found = self.entries.binary_search_by_key(&id, |(id, _)| *id);
            let Ok(at) = found else {
                group.pending.remove(&id);
                continue;
            };
            let entry = self.entries[at].1.clone();
            let pending = group.pending.entry(id).or_insert_with(|| Pending {
                consumer: String::new(),
                handed_out: now,
                deliveries: 0,
            });
            pending.consumer.clone_from(&read.consumer);
            pending.handed_out = now;
            pending.deliveries += 1;
            messages.push(InboundMessage {
                id: text(id),
                is_event: entry.sequence.is_some(),
                kind: entry.kind,
                sequence: entry.sequence,
                json: entry.json,
                deliveries: pending.deliveries,
            });
        }
        messages
    }

    fn ack(&mut self, group: &str, id: &str) -> bool {
        self.groups.get_mut(group).is_some_and(|group| group.pending.remove(&parse(id)).is_some())
    }
}

impl Node {
    /// Tells an event of a change that was just made.
    pub(super) fn tell(&self, kind: EventKind, data: &str) {
        self.cluster.0.application.lock().tell(kind, data);
    }

    /// Writes again what this node reported: in silence after it was lost, told after it was taken back.
    pub(super) fn restore_application(&self, told: bool) {
        let reported = self.reported.lock();
        let mut application = self.cluster.0.application.lock();
        for (connection, about) in &reported.open {
            application.open(&self.id, connection, about, told);
        }
        for channel in &reported.heard {
            application.occupy(&self.id, channel, told);
        }
    }
}

#[async_trait]
impl ApplicationStore for MemoryBroker {
    fn tell_events(&self, kinds: EventKinds) {
        self.0.cluster.0.application.lock().kinds.store(kinds.bits(), Ordering::Relaxed);
    }

    async fn report(&self, happenings: &[Happening]) -> Result<(), BrokerError> {
        let (node, shared) = (&self.0.id, self.0.available()?);
        let mut reported = self.0.reported.lock();
        let mut application = shared.application.lock();
        for happening in happenings {
            match happening {
                Happening::Opened { connection, about } => {
                    reported.open.insert(connection.clone(), about.clone());
                    application.open(node, connection, about, true);
                }
                Happening::Closed { connection, about } => {
                    reported.open.remove(connection);
                    application.close(node, connection, about);
                }
                Happening::Occupied(channel) => {
                    reported.heard.insert(channel.clone());
                    application.occupy(node, channel, true);
                }
                Happening::Vacated(channel) => {
                    reported.heard.remove(channel);
                    application.vacate(node, channel);
                }
                Happening::Lost => application.sequence += 1,
            }
        }
        Ok(())
    }

    async fn read_inbound(&self, read: &InboundRead) -> Result<Vec<InboundMessage>, BrokerError> {
        Ok(self.0.available()?.application.lock().read(read, Instant::now()))
    }

    async fn ack_inbound(&self, group: &str, ids: &[String]) -> Result<(), BrokerError> {
        let mut application = self.0.available()?.application.lock();
        for id in ids {
            application.ack(group, id);
        }
        Ok(())
    }

    async fn bury_inbound(
        &self,
        group: &str,
        message: &InboundMessage,
        reason: &str,
    ) -> Result<(), BrokerError> {
        let mut application = self.0.available()?.application.lock();
        if application.ack(group, &message.id) {
            if application.dead.len() == DEAD_LETTERS_MAX as usize {
                application.dead.pop_front();
            }
            application.dead.push_back((message.clone(), reason.to_owned()));
        }
        Ok(())
    }

    async fn dead_letters(
        &self,
        limit: usize,
    ) -> Result<Vec<(InboundMessage, String)>, BrokerError> {
        let application = self.0.available()?.application.lock();
        let skipped = application.dead.len().saturating_sub(limit);
        Ok(application.dead.iter().skip(skipped).cloned().collect())
    }

    async fn hold_lease(&self, name: &str, lease: Duration) -> Result<bool, BrokerError> {
        let now = Instant::now();
        let mut application = self.0.available()?.application.lock();
        let others = application
            .leases
            .get(name)
            .is_some_and(|(node, until)| *node != self.0.id && *until > now);
        if !others {
            application.leases.insert(name.to_owned(), (self.0.id.clone(), now + lease));
        }
        Ok(!others)
    }

    async fn release_lease(&self, name: &str) -> Result<(), BrokerError> {
        let mut application = self.0.available()?.application.lock();
        if application.leases.get(name).is_some_and(|(node, _)| *node == self.0.id) {
            application.leases.remove(name);
        }
        Ok(())
    }
}
