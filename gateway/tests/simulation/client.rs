//! One client: it connects somewhere, subscribes from where it stood, publishes, dawdles, leaves and comes
//! back, as its own dice say; in the calm it does what a good client does. What it reads it records. It must
//! not know: what is right.

mod acting;
mod hearing;
mod polling;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::log::Log;
use crate::records::{Place, Record};
use crate::session::{Heard, Session};
use crate::stage::{Hello, Stage};

pub(crate) use hearing::place;

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
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    pub(crate) user: String,
    pub(crate) way: Way,
    /// For who polls: the last poll was answered.
    pub(crate) connected: bool,
    pub(crate) joined: bool,
    pub(crate) owes_last_words: bool,
    pub(crate) subscribed: BTreeSet<String>,
    pub(crate) wants: BTreeSet<String>,
}

/// How a client hears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    WebSocket,
    Stream,
    Poll,
}

/// Who a client is.
pub(crate) struct Character {
    pub(crate) number: usize,
    pub(crate) user: String,
    pub(crate) way: Way,
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
        let facts = Facts {
            user,
            way: character.way,
            connected: false,
            joined: false,
            owes_last_words,
            subscribed: BTreeSet::new(),
            wants,
        };
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

    fn is_stream(&self) -> bool {
        self.character.way == Way::Stream
    }

    fn mood(&self) -> Mood {
        *self.mood.borrow()
    }

    /// Lives until it is dropped.
    pub(crate) async fn live(mut self) {
        if self.character.way == Way::Poll {
            return self.poll_on().await;
        }
        loop {
            let pause = self.rng.random_range(0..1_500);
            tokio::time::sleep(Duration::from_millis(pause)).await;
            let host = self.rng.random_range(0..self.stage.hosts());
            let hello = Hello {
                user: self.character.user.clone(),
                sse: self.is_stream(),
                channels: if self.is_stream() { self.character.wants.clone() } else { Vec::new() },
                cursor: self.cursor.clone(),
            };
            let Some(reached) = self.stage.connect(host, hello) else { continue };
            let session = Session::new(reached, self.is_stream());
            self.converse(session).await;
            self.gone();
        }
    }

    fn gone(&mut self) {
        self.log.push(Record::Gone { client: self.character.number });
        let mut facts = self.facts.lock();
        (facts.connected, facts.joined) = (false, false);
        facts.subscribed.clear();
        drop(facts);
        self.is_unsure();
    }

    /// Nobody will answer any more.
    fn is_unsure(&mut self) {
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
}

enum Act {
    Went,
    Dawdle(Duration),
    Drop,
}
