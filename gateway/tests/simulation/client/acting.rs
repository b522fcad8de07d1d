//! What a client does by itself: in the storm by its dice, in the calm as a good client would.

use std::time::Duration;

use rand::Rng;
use serde_json::json;

use super::{Act, Asked, Client, HEARTBEAT, Mood};
use crate::records::Place;
use crate::scene::LOBBY;
use crate::session::Session;

impl Client {
    pub(super) fn act(&mut self, session: &mut Session) -> Act {
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
        if self.is_stream() || self.subscribe_where_missing(session) {
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
        if self.is_stream() || self.subscribe_where_missing(session) {
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

    pub(super) fn any_wanted(&mut self) -> String {
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
    pub(super) fn subscribe_where_missing(&mut self, session: &mut Session) -> bool {
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

    pub(super) fn publish(
        &mut self,
        session: &mut Session,
        id: String,
        channel: String,
        size: usize,
    ) {
        let payload = "x".repeat(size);
        let message = json!({"type": "message", "id": id, "channel": channel, "payload": payload});
        self.ask(session, message, Asked::Publish { id, channel, size });
    }
}
