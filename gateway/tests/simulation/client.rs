//! One client: it connects somewhere, subscribes from where it stood, publishes, dawdles, leaves and comes
//! back, as its own dice say; in the calm it does what a good client does. What it reads it records. It must
//! not know: what is right.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::log::Log;
use crate::records::{Place, Record};
use crate::session::{Heard, Session};
use crate::stage::{Hello, LOBBY, Stage};

/// A request without an answer after so long: the connection is given up.
const PATIENCE: Duration = Duration::from_secs(6);
/// How often a client in the calm says that it is there.
const HEARTBEAT: Duration = Duration::from_secs(4);

/// What the run tells all clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    /// Anything may happen.
    Storm,
    /// Be where you want to be, and stay.
    Calm,
    /// As before; and publish a last message on every channel of yours.
    LastWords,
}

/// What the run asks of a client at rest.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    pub(crate) user: String,
    pub(crate) connected: bool,
    pub(crate) joined: bool,
    pub(crate) owes_last_words: bool,
    pub(crate) subscribed: BTreeSet<String>,
    pub(crate) wants: BTreeSet<String>,
}

/// Who a client is.
pub(crate) struct Character {
    pub(crate) number: usize,
    pub(crate) user: String,
    pub(crate) sse: bool,
    pub(crate) wants: Vec<String>,
    /// Publishes on what it wants to hear.
    pub(crate) speaks: bool,
    /// Whether it holds presence, in the calm.
    pub(crate) joins: bool,
}

enum Asked {
    Publish {
        id: String,
        channel: String,
        size: usize,
    },
    Subscribe {
        channel: String,
        since: Option<Place>,
    },
    /// Unsubscribe, or subscribe to what is subscribed.
    Change(String),
    Join,
    Leave,
    Other,
}

/// See the module.
pub(crate) struct Client {
    character: Character,
    stage: Stage,
    log: Log,
    rng: StdRng,
    mood: watch::Receiver<Mood>,
    facts: Arc<Mutex<Facts>>,
    /// Where it stands on each channel, as far as it was told.
    known: BTreeMap<String, Place>,
    cursor: Option<String>,
    asked: BTreeMap<String, (Instant, Asked)>,
    numbers: u64,
    /// Publishes of which it does not know whether they happened.
    unsure: Vec<(String, String, usize)>,
    last_words: BTreeSet<String>,
    heard_at: Instant,
    spoke_at: Instant,
}

impl Client {
    pub(crate) fn new(
        character: Character,
        stage: &Stage,
        log: &Log,
        seed: u64,
        mood: watch::Receiver<Mood>,
    ) -> (Self, Arc<Mutex<Facts>>) {
        let owes_last_words = character.speaks;
        let (user, wants) = (character.user.clone(), character.wants.iter().cloned().collect());
        let facts = Facts { user, wants, owes_last_words, ..Facts::default() };
        let facts = Arc::new(Mutex::new(facts));
        let last_words = if character.speaks {
            character.wants.iter().cloned().collect()
        } else {
            BTreeSet::new()
        };
        let client = Self {
            rng: StdRng::seed_from_u64(seed ^ (character.number as u64 + 1) << 40),
            character,
            stage: stage.clone(),
            log: log.clone(),
            mood,
            facts: Arc::clone(&facts),
            known: BTreeMap::new(),
            cursor: None,
            asked: BTreeMap::new(),
            numbers: 0,
            unsure: Vec::new(),
            last_words,
            heard_at: Instant::now(),
            spoke_at: Instant::now(),
        };
        (client, facts)
    }

    fn mood(&self) -> Mood {
        *self.mood.borrow()
    }

    /// Lives until it is dropped.
    pub(crate) async fn live(mut self) {
        loop {
            let pause = self.rng.random_range(0..1_500);
            tokio::time::sleep(Duration::from_millis(pause)).await;
            let host = self.rng.random_range(0..self.stage.hosts());
            let hello = Hello {
                user: self.character.user.clone(),
                sse: self.character.sse,
                channels: if self.character.sse {
                    self.character.wants.clone()
                } else {
                    Vec::new()
                },
                cursor: self.cursor.clone(),
            };
            let Some(reached) = self.stage.connect(host, hello) else { continue };
            let session = Session::new(reached, self.character.sse);
            self.converse(session).await;
            self.gone();
        }
    }

    fn gone(&mut self) {
        self.log.push(Record::Gone { client: self.character.number });
        let mut facts = self.facts.lock();
        (facts.connected, facts.joined) = (false, false);
        facts.subscribed.clear();
        for (_, (_, asked)) in std::mem::take(&mut self.asked) {
            if let Asked::Publish { id, channel, size } = asked {
                self.unsure.push((id, channel, size));
            }
        }
    }

    /// Until the connection ends, one way or another.
    async fn converse(&mut self, mut session: Session) {
        self.heard_at = Instant::now();
        let mut acts_at = Instant::now() + self.thinks();
        let mut reads_at = Instant::now();
        loop {
            let now = Instant::now();
            let reads = reads_at <= now;
            let wakes_at = if reads { acts_at } else { acts_at.min(reads_at) };
            tokio::select! {
                biased;
                heard = session.next(reads) => match heard {
                    Heard::Message(message, cursor) => {
                        self.heard_at = Instant::now();
                        if !self.hear(&message, cursor, &mut session) {
                            return;
                        }
                    }
                    Heard::End => return,
                },
                () = tokio::time::sleep_until(wakes_at) => {
                    if Instant::now() < acts_at {
                        continue;
                    }
                    if self.given_up() {
                        return;
                    }
                    match self.act(&mut session) {
                        Act::Went => {}
                        Act::Dawdle(time) => reads_at = Instant::now() + time,
                        Act::Drop => return,
                    }
                    acts_at = Instant::now() + self.thinks();
                }
            }
        }
    }

    fn thinks(&mut self) -> Duration {
        Duration::from_millis(match self.mood() {
            Mood::Storm => self.rng.random_range(20..600),
            Mood::Calm | Mood::LastWords => self.rng.random_range(500..1_000),
        })
    }

    /// Nobody answered for too long.
    fn given_up(&self) -> bool {
        let connected = self.facts.lock().connected;
        let silent = !connected && self.heard_at.elapsed() > PATIENCE;
        silent || self.asked.values().any(|(at, _)| at.elapsed() > PATIENCE)
    }

    fn ask(&mut self, session: &mut Session, mut message: Value, asked: Asked) {
        self.spoke_at = Instant::now();
        self.numbers += 1;
        let number = self.numbers.to_string();
        message["ack_id"] = number.clone().into();
        session.say(&message);
        self.asked.insert(number, (Instant::now(), asked));
    }

    fn act(&mut self, session: &mut Session) -> Act {
        if !self.facts.lock().connected {
            return Act::Went;
        }
        match self.mood() {
            Mood::Storm => self.act_in_storm(session),
            Mood::Calm | Mood::LastWords => {
                self.act_in_calm(session);
                Act::Went
            }
        }
    }

    fn act_in_storm(&mut self, session: &mut Session) -> Act {
        let choice = self.rng.random_range(0..100);
        if choice < 5 {
            return Act::Drop;
        }
        if choice < 11 {
            return Act::Dawdle(Duration::from_millis(self.rng.random_range(500..5_000)));
        }
        if self.character.sse || self.subscribe_where_missing(session) {
            return Act::Went;
        }
        match choice {
            11..=17 => {
                let channel = self.any_wanted();
                if self.is_settled(&channel) {
                    let message = json!({"type": "unsubscribe", "channel": channel});
                    self.ask(session, message, Asked::Change(channel));
                }
            }
            18..=27 => {
                let joined = self.facts.lock().joined;
                if self.joins_or_leaves() {
                    return Act::Went;
                }
                if joined && self.rng.random_bool(0.3) {
                    // Joining again changes nothing, whether or not it succeeds.
                    let message = json!({"type": "presence:join", "channel": LOBBY});
                    self.ask(session, message, Asked::Other);
                } else {
                    self.join_or_leave(session, !joined);
                }
            }
            28..=35 => self.ask(session, json!({"type": "ping"}), Asked::Other),
            36..=39 => {
                // Subscribing to what is subscribed already changes nothing.
                let channel = self.any_wanted();
                if self.is_settled(&channel) {
                    let message = json!({"type": "subscribe", "channel": channel});
                    self.ask(session, message, Asked::Change(channel));
                }
            }
            _ if self.character.speaks => self.speak(session),
            _ => {}
        }
        Act::Went
    }

    fn act_in_calm(&mut self, session: &mut Session) {
        if self.character.sse || self.subscribe_where_missing(session) {
            return;
        }
        let (joined, joins) = (self.facts.lock().joined, self.character.joins);
        if joined != joins && !self.joins_or_leaves() {
            return self.join_or_leave(session, joins);
        }
        if self.mood() == Mood::LastWords
            && let Some(channel) = self.last_words.first().cloned()
            && !self.asked.values().any(|(_, asked)| matches!(asked, Asked::Publish { .. }))
        {
            let id = format!("{}-last-{channel}", self.character.number).replace(':', "-");
            return self.publish(session, id, channel, 10);
        }
        if self.spoke_at.elapsed() > HEARTBEAT {
            self.ask(session, json!({"type": "heartbeat"}), Asked::Other);
        }
    }

    /// Subscribed, and nothing asked that could change it.
    fn is_settled(&self, channel: &String) -> bool {
        let changes = self
            .asked
            .values()
            .any(|(_, asked)| matches!(asked, Asked::Change(other) if other == channel));
        !changes && self.facts.lock().subscribed.contains(channel)
    }

    fn any_wanted(&mut self) -> String {
        let index = self.rng.random_range(0..self.character.wants.len());
        self.character.wants[index].clone()
    }

    fn joins_or_leaves(&self) -> bool {
        self.asked.values().any(|(_, asked)| matches!(asked, Asked::Join | Asked::Leave))
    }

    fn join_or_leave(&mut self, session: &mut Session, joins: bool) {
        let (kind, asked) =
            if joins { ("presence:join", Asked::Join) } else { ("presence:leave", Asked::Leave) };
        self.ask(session, json!({"type": kind, "channel": LOBBY}), asked);
    }

    /// Whether there was something to subscribe to.
    fn subscribe_where_missing(&mut self, session: &mut Session) -> bool {
        let asked_for = |channel: &String| {
            self.asked.values().any(|(_, asked)| {
                matches!(asked, Asked::Subscribe { channel: other, .. } if other == channel)
            })
        };
        let subscribed = self.facts.lock().subscribed.clone();
        let missing: Vec<String> = self
            .character
            .wants
            .iter()
            .filter(|channel| !subscribed.contains(*channel) && !asked_for(channel))
            .cloned()
            .collect();
        for channel in &missing {
            let since = self.known.get(channel).cloned();
            let mut message = json!({"type": "subscribe", "channel": channel});
            if let Some(Place { epoch, offset, tag }) = &since {
                message["payload"] =
                    json!({"since": {"epoch": epoch, "offset": offset, "tag": tag}});
            }
            let asked = Asked::Subscribe { channel: channel.clone(), since };
            self.ask(session, message, asked);
        }
        !missing.is_empty()
    }

    fn speak(&mut self, session: &mut Session) {
        if let Some((id, channel, size)) = self.unsure.pop()
            && self.rng.random_bool(0.7)
        {
            return self.publish(session, id, channel, size);
        }
        for _ in 0..self.rng.random_range(1..=2) {
            self.numbers += 1;
            let id = format!("{}-{}", self.character.number, self.numbers);
            let (channel, size) = (self.any_wanted(), self.rng.random_range(0..900));
            self.publish(session, id, channel, size);
        }
    }

    fn publish(&mut self, session: &mut Session, id: String, channel: String, size: usize) {
        let payload = "x".repeat(size);
        let message = json!({"type": "message", "id": id, "channel": channel, "payload": payload});
        self.ask(session, message, Asked::Publish { id, channel, size });
    }

    /// `false`: it closes the connection itself.
    fn hear(&mut self, message: &Value, cursor: Option<String>, session: &mut Session) -> bool {
        let kind = message["type"].as_str().unwrap_or_default();
        let goes_on = match kind {
            "connect" => {
                self.facts.lock().connected = true;
                if !self.character.sse && self.mood() == Mood::Storm {
                    self.subscribe_where_missing(session);
                }
                true
            }
            "subscribed" => {
                self.subscribed(message);
                true
            }
            "unsubscribed" => {
                if let Some(channel) = self.wanted(&message["payload"]["channel"]) {
                    self.facts.lock().subscribed.remove(&channel);
                    self.log.push(Record::Unsubscribed { client: self.character.number, channel });
                }
                true
            }
            "resync" => {
                self.resynced(message);
                true
            }
            "ack" => {
                self.answered(message, true, session);
                true
            }
            // An event stream cannot ask again; its client comes back later, from where it stood.
            "error" if self.character.sse => return false,
            "error" => {
                self.answered(message, false, session);
                true
            }
            "disconnect" => false,
            _ => {
                self.delivered(message);
                true
            }
        };
        if cursor.is_some() {
            self.cursor = cursor;
        }
        goes_on
    }

    fn wanted(&self, channel: &Value) -> Option<String> {
        let channel = channel.as_str()?;
        self.character.wants.iter().find(|wanted| *wanted == channel).cloned()
    }

    fn learn(&mut self, channel: &str, place: Option<&Place>) {
        match place {
            Some(place) => drop(self.known.insert(channel.to_owned(), place.clone())),
            None => drop(self.known.remove(channel)),
        }
    }

    fn subscribed(&mut self, message: &Value) {
        let payload = &message["payload"];
        let Some(channel) = self.wanted(&payload["channel"]) else { return };
        let asked = self.asked.values().find_map(|(_, asked)| match asked {
            Asked::Subscribe { channel: other, since } if *other == channel => Some(since.clone()),
            _ => None,
        });
        let since = match asked {
            Some(since) => since,
            // An event stream gives its cursor, which holds where it stood.
            None if self.character.sse => self.known.get(&channel).cloned(),
            // Subscribed again: where it stands is no news.
            None => return,
        };
        let place = place(payload);
        let recovered = payload["recovered"] == json!(true);
        self.facts.lock().subscribed.insert(channel.clone());
        self.learn(&channel, place.as_ref());
        self.log.push(Record::Subscribed {
            client: self.character.number,
            channel,
            since,
            place,
            recovered,
            reason: payload["reason"].as_str().unwrap_or_default().to_owned(),
        });
    }

    fn resynced(&mut self, message: &Value) {
        let Some(channel) = self.wanted(&message["channel"]) else { return };
        let place = place(&message["payload"]);
        self.learn(&channel, place.as_ref());
        self.log.push(Record::Resynced {
            client: self.character.number,
            channel,
            place,
            reason: message["payload"]["reason"].as_str().unwrap_or_default().to_owned(),
        });
    }

    fn delivered(&mut self, message: &Value) {
        if message["type"] != "message" {
            return;
        }
        let Some(channel) = self.wanted(&message["channel"]) else { return };
        let place = place(message);
        if place.is_some() {
            self.learn(&channel, place.as_ref());
        }
        self.log.push(Record::Delivered {
            client: self.character.number,
            channel,
            id: message["id"].as_str().unwrap_or_default().to_owned(),
            place,
        });
    }

    fn answered(&mut self, message: &Value, good: bool, session: &Session) {
        let number = message["ack_id"].as_str().unwrap_or_default();
        match self.asked.remove(number).map(|(_, asked)| asked) {
            Some(Asked::Publish { id, channel, .. }) if good => {
                if self.mood() == Mood::LastWords && id.contains("-last-") {
                    self.last_words.remove(&channel);
                    self.facts.lock().owes_last_words = !self.last_words.is_empty();
                }
                let place = place(&message["payload"]["data"]);
                let node = session.life();
                self.log.push(Record::Acknowledged { channel, id, place, node });
            }
            Some(Asked::Publish { id, channel, size }) => self.unsure.push((id, channel, size)),
            Some(Asked::Join) if good => self.facts.lock().joined = true,
            // It may have happened; in the calm it is asked for again.
            Some(Asked::Join | Asked::Leave) => self.facts.lock().joined = false,
            _ => {}
        }
    }
}

enum Act {
    Went,
    Dawdle(Duration),
    Drop,
}

/// A position, where the document has one.
pub(crate) fn place(document: &Value) -> Option<Place> {
    Some(Place {
        epoch: document["epoch"].as_str()?.to_owned(),
        offset: document["offset"].as_u64()?,
        tag: document["tag"].as_str()?.to_owned(),
    })
}
