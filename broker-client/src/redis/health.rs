//! What is known about each link, added up to the broker's one health, and the node's ear with its
//! `Interrupted` and `Restored`. Knows no sockets.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use super::dial::DialError;
use crate::{Event, Health};

/// Names a link within this process.
pub(super) type LinkId = u64;

#[derive(Default)]
struct LinkState {
    commands: Option<String>,
    hearing: Option<String>,
}

/// Adds up the links' states.
pub(super) struct Board {
    links: Mutex<BTreeMap<LinkId, LinkState>>,
    health: watch::Sender<Health>,
}

impl Board {
    pub(super) fn new() -> Self {
        Self { links: Mutex::default(), health: watch::Sender::new(Health::Starting) }
    }

    pub(super) fn watch(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    /// A link that is neither up nor known to be down.
    pub(super) fn add(&self, id: LinkId) {
        let waiting = || Some("connecting".to_owned());
        self.links.lock().insert(id, LinkState { commands: waiting(), hearing: waiting() });
    }

    pub(super) fn remove(&self, id: LinkId) {
        let mut links = self.links.lock();
        links.remove(&id);
        self.judge(&links, false);
    }

    /// `None`: the link's commands work.
    pub(super) fn commands(&self, id: LinkId, problem: Option<&DialError>) {
        let mut links = self.links.lock();
        let Some(link) = links.get_mut(&id) else { return };
        link.commands = problem.map(|problem| problem.reason().to_owned());
        self.judge(&links, matches!(problem, Some(DialError::Refused(_))));
    }

    /// `None`: the link hears all it was asked to.
    pub(super) fn hearing(&self, id: LinkId, problem: Option<&str>) {
        let mut links = self.links.lock();
        let Some(link) = links.get_mut(&id) else { return };
        link.hearing = problem.map(str::to_owned);
        self.judge(&links, false);
    }

    /// Why commands on this link fail.
    pub(super) fn problem(&self, id: LinkId) -> String {
        let links = self.links.lock();
        let known = links.get(&id).and_then(|link| link.commands.clone());
        known.unwrap_or_else(|| "the connection to Redis was lost".to_owned())
    }

    fn judge(&self, links: &BTreeMap<LinkId, LinkState>, answered: bool) {
        let problem =
            links.values().find_map(|link| link.commands.as_ref().or(link.hearing.as_ref()));
        let problem = match (problem, links.is_empty()) {
            (None, true) => Some("no Redis server is known"),
            (problem, _) => problem.map(String::as_str),
        };
        self.health.send_if_modified(|health| {
            let next = match (problem, &*health) {
                (None, _) => Health::Up,
                // A server that refuses us was reached: waiting longer does not help, somebody must look.
                (Some(_), Health::Starting) if !answered => Health::Starting,
                (Some(problem), _) => Health::Down(problem.to_owned()),
            };
            let changed = *health != next;
            if changed {
                match &next {
                    Health::Down(reason) => tracing::warn!(%reason, "Redis is unavailable"),
                    _ => tracing::info!("Redis is up"),
                }
                *health = next;
            }
            changed
        });
    }
}

/// The node's one queue of events. A full queue holds the links that read from Redis.
pub(super) struct Ears {
    events: mpsc::Sender<Event>,
    /// Links whose deliveries may be missing. Held while telling, so that the node hears both words in
    /// the order in which they became true.
    interrupted: tokio::sync::Mutex<BTreeSet<LinkId>>,
}

impl Ears {
    pub(super) fn new(events: mpsc::Sender<Event>) -> Self {
        Self { events, interrupted: tokio::sync::Mutex::default() }
    }

    /// Something was heard. Nobody listening is no failure: a backend may only publish.
    pub(super) async fn hear(&self, event: Event) {
        if let Err(mpsc::error::TrySendError::Full(event)) = self.events.try_send(event) {
            let _ = self.events.send(event).await;
        }
    }

    /// Deliveries of this link may be missing from now on.
    pub(super) async fn lost(&self, id: LinkId) {
        let mut interrupted = self.interrupted.lock().await;
        if interrupted.insert(id) {
            self.hear(Event::Interrupted).await;
        }
    }

    /// The link hears all it should. The last one to say so makes the node audit.
    pub(super) async fn restored(&self, id: LinkId, audit: bool) {
        let mut interrupted = self.interrupted.lock().await;
        if (interrupted.remove(&id) || audit) && interrupted.is_empty() {
            self.hear(Event::Restored).await;
        }
    }

    /// A server lost what it held, and may be heard all the while: the node audits as after an interruption.
    pub(super) async fn doubted(&self) {
        // Where a link is interrupted, its return says the same.
        if self.interrupted.lock().await.is_empty() {
            self.hear(Event::Restored).await;
        }
    }
}

/// Counters of this broker, for metrics. All only grow, but the age.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RedisStats {
    /// How long ago the node last heard itself on each pub/sub connection: the oldest. `None` before the
    /// first time, or without connections.
    pub canary_age: Option<Duration>,
    /// Command connections made after the first one of each server.
    pub command_reconnects: u64,
    /// Pub/sub connections made after the first one of each server.
    pub hearing_reconnects: u64,
    /// Round trips that were answered.
    pub round_trips: u64,
    /// Time they took together.
    pub round_trip_time: Duration,
}
