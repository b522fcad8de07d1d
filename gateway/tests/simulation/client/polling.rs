//! A client that polls: with the number of its last answer, at whatever node; what it says goes with a poll. It hangs up
//! in the middle, loses answers and asks again.

use std::time::Duration;

use rand::Rng;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Asked, Client, Mood, PATIENCE};
use crate::records::Record;

/// Longest that a poll is asked to be held, seconds.
const HELD_SECONDS_MAX: f64 = 2.0;

impl Client {
    pub(super) async fn poll_on(&mut self) {
        let mut host = 0;
        loop {
            let longest_ms = match self.mood() {
                Mood::Storm if self.rng.random_bool(0.1) => 6_000,
                Mood::Storm => 500,
                Mood::Calm | Mood::LastWords => 200,
            };
            let pause = self.rng.random_range(0..=longest_ms);
            tokio::time::sleep(Duration::from_millis(pause)).await;
            // As often as not at the node that answered last, where its seat is.
            if self.rng.random() {
                host = self.rng.random_range(0..self.stage.hosts());
            }
            let body = self.question();
            let Some(poll) = self.stage.poll(host, &self.character.user, &body) else {
                self.is_unsure();
                continue;
            };
            // Whoever hangs up does not know what was done.
            let hangs_up = self.mood() == Mood::Storm && self.rng.random_bool(0.15);
            let longest_ms = if hangs_up { 1_500 } else { PATIENCE.as_millis() as u64 };
            let shortest_ms = if hangs_up { 0 } else { longest_ms };
            let patience = Duration::from_millis(self.rng.random_range(shortest_ms..=longest_ms));
            let answer = tokio::time::timeout(patience, poll.answer).await;
            match answer {
                Ok(Ok((200, answer))) => self.answer(&answer, poll.life),
                _ => self.facts.lock().connected = false,
            }
            self.is_unsure();
        }
    }

    fn question(&mut self) -> Value {
        let last: u64 = self.cursor.as_deref().map_or(0, |last| last.parse().expect("a number"));
        let timeout = match self.cursor {
            None => 0.0,
            Some(_) => self.rng.random_range(0.0..HELD_SECONDS_MAX),
        };
        let mut body = json!({
            "user_id": self.character.user,
            "last_poll_id": last,
            "timeout": timeout,
            "channels": self.character.wants,
        });
        let says = self.says();
        if !says.is_empty() {
            body["messages"] = says.into();
        }
        body
    }

    fn says(&mut self) -> Vec<Value> {
        if !self.character.speaks || self.cursor.is_none() {
            return Vec::new();
        }
        let said = match self.mood() {
            Mood::Storm if self.rng.random_bool(0.6) => match self.unsure.pop() {
                Some(said) => said,
                None => {
                    self.numbers += 1;
                    let id = format!("{}-{}", self.character.number, self.numbers);
                    (id, self.any_wanted(), self.rng.random_range(0..900))
                }
            },
            Mood::LastWords => match self.last_words.first().cloned() {
                Some(channel) => {
                    let id = format!("{}-last-{channel}", self.character.number).replace(':', "-");
                    (id, channel, 10)
                }
                None => return Vec::new(),
            },
            _ => return Vec::new(),
        };
        let (id, channel, size) = said;
        self.numbers += 1;
        let number = self.numbers.to_string();
        let message = json!({"type": "message", "id": id, "channel": channel, "payload": "x".repeat(size), "ack_id": number});
        self.asked.insert(number, (Instant::now(), Asked::Publish { id, channel, size }));
        vec![message]
    }

    fn answer(&mut self, answer: &Value, life: usize) {
        let none = Vec::new();
        let list = |name: &str| answer[name].as_array().unwrap_or(&none);
        let (client, first) = (self.character.number, self.cursor.is_none());
        // One that names no channels says it of all of them.
        let refused = answer["recovered"] == json!(false)
            && !list("events").iter().any(|event| event["type"] == "resync");
        for channel in self.character.wants.clone() {
            if first {
                let (since, place, reason) = (None, None, "poll".to_owned());
                self.log.push(Record::Subscribed {
                    client,
                    channel,
                    since,
                    place,
                    recovered: false,
                    reason,
                });
            } else if refused {
                let reason = "poll".to_owned();
                self.log.push(Record::Resynced { client, channel, place: None, reason });
            }
        }
        for reply in list("replies") {
            self.answered(reply, reply["type"] == "ack", life);
        }
        for event in list("events") {
            if event["type"] == "resync" {
                self.resynced(event);
                continue;
            }
            let mut event = event.clone();
            event["id"] = event["message_id"].take();
            self.delivered(&event);
        }
        self.cursor = Some(answer["last_poll_id"].to_string());
        self.facts.lock().connected = true;
    }
}
