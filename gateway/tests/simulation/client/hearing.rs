//! What a client makes of what it reads, and records.

use serde_json::{Value, json};

use super::{Asked, Client, Mood};
use crate::records::{Place, Record};
use crate::session::Session;

impl Client {
    /// `false`: it closes the connection itself.
    pub(super) fn hear(
        &mut self,
        message: &Value,
        cursor: Option<String>,
        session: &mut Session,
    ) -> bool {
        let kind = message["type"].as_str().unwrap_or_default();
        let goes_on = match kind {
            "connect" => {
                self.facts.lock().connected = true;
                if !self.is_stream() && self.mood() == Mood::Storm {
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
                self.answered(message, true, session.life());
                true
            }
            // An event stream cannot ask again; its client comes back later, from where it stood.
            "error" if self.is_stream() => return false,
            "error" => {
                self.answered(message, false, session.life());
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

    pub(super) fn wanted(&self, channel: &Value) -> Option<String> {
        let channel = channel.as_str()?;
        self.character.wants.iter().find(|wanted| *wanted == channel).cloned()
    }

    pub(super) fn learn(&mut self, channel: &str, place: Option<&Place>) {
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
            None if self.is_stream() => self.known.get(&channel).cloned(),
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

    pub(super) fn resynced(&mut self, message: &Value) {
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

    pub(super) fn delivered(&mut self, message: &Value) {
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

    pub(super) fn answered(&mut self, message: &Value, good: bool, life: usize) {
        let number = message["ack_id"].as_str().unwrap_or_default();
        match self.asked.remove(number).map(|(_, asked)| asked) {
            Some(Asked::Publish { id, channel, .. }) if good => {
                if self.mood() == Mood::LastWords && id.contains("-last-") {
                    self.last_words.remove(&channel);
                    self.facts.lock().owes_last_words = !self.last_words.is_empty();
                }
                let place = place(&message["payload"]["data"]);
                self.log.push(Record::Acknowledged { channel, id, place, node: life });
            }
            Some(Asked::Publish { id, channel, size }) => self.unsure.push((id, channel, size)),
            Some(Asked::Join) if good => self.facts.lock().joined = true,
            // It may have happened; in the calm it is asked for again.
            Some(Asked::Join | Asked::Leave) => self.facts.lock().joined = false,
            _ => {}
        }
    }
}

/// A position, where the document has one.
pub(crate) fn place(document: &Value) -> Option<Place> {
    Some(Place {
        epoch: document["epoch"].as_str()?.to_owned(),
        offset: document["offset"].as_u64()?,
        tag: document["tag"].as_str()?.to_owned(),
    })
}
