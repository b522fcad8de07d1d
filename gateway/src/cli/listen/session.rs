//! What the terminal client remembers through reconnects: its channels and where it stands in each.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

/// Where we stand in a channel. The texts are the server's and go back as they came.
#[derive(Clone, Debug, PartialEq)]
struct Place {
    offset: u64,
    epoch: Value,
    tag: Value,
}

/// Something to show or to act on.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::cli) enum Heard {
    /// A message of a channel.
    Message(Value),
    /// A word about the session, for standard error.
    Note(String),
    /// The welcome.
    Connected,
    /// The server is about to close.
    Disconnect {
        /// Whether coming back makes sense.
        reconnect: bool,
        /// For people.
        reason: String,
    },
    /// Not before so long.
    RetryAfter(Duration),
}

/// Channels and places.
#[derive(Debug)]
pub(in crate::cli) struct Session {
    channels: Vec<String>,
    places: BTreeMap<String, Place>,
}

/// Heard without asking; asked for only to resume (R7).
const OWN: &str = "notifications";

impl Session {
    pub(in crate::cli) fn new(channels: &[String]) -> Self {
        Self { channels: channels.to_vec(), places: BTreeMap::new() }
    }

    /// What to send on a new connection: a subscribe a channel, from where we stand.
    pub(in crate::cli) fn requests(&self) -> Vec<String> {
        let own = (self.places.contains_key(OWN)
            && !self.channels.iter().any(|channel| channel == OWN))
        .then_some(OWN);
        let channels = self.channels.iter().map(String::as_str).chain(own);
        channels
            .map(|channel| {
                let mut payload = json!({});
                if let Some(place) = self.places.get(channel) {
                    payload["since"] = json!({"offset": place.offset, "epoch": place.epoch});
                    if !place.tag.is_null() {
                        payload["since"]["tag"] = place.tag.clone();
                    }
                }
                json!({"type": "subscribe", "channel": channel, "payload": payload}).to_string()
            })
            .collect()
    }

    /// Takes a text frame: one document, or one a line.
    pub(in crate::cli) fn hear(&mut self, frame: &str) -> Vec<Heard> {
        let whole = serde_json::from_str::<Value>(frame).map(|value| vec![value]);
        let documents = whole.unwrap_or_else(|_| {
            frame.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
        });
        documents.into_iter().flat_map(|document| self.take(document)).collect()
    }

    fn take(&mut self, message: Value) -> Vec<Heard> {
        let payload = &message["payload"];
        let channel =
            message["channel"].as_str().or_else(|| payload["channel"].as_str()).unwrap_or_default();
        match message["type"].as_str().unwrap_or_default() {
            "connect" | "connection" | "connected" => {
                for entry in payload["channels"].as_array().map(Vec::as_slice).unwrap_or_default() {
                    if let (Some(channel), Some(place)) = (entry["channel"].as_str(), place(entry))
                    {
                        // Where we stood before the reconnect is what we resume from.
                        self.places.entry(channel.to_owned()).or_insert(place);
                    }
                }
                let user = payload["user_id"]
                    .as_str()
                    .map(|user| format!(" as {user}"))
                    .unwrap_or_default();
                vec![Heard::Connected, Heard::Note(format!("connected{user}"))]
            }
            "subscribed" => {
                let recovered = payload["recovered"] == Value::Bool(true);
                let fresh = payload["reason"] == "fresh" || !self.places.contains_key(channel);
                let note = match (recovered, fresh) {
                    (true, _) => {
                        format!("resumed {channel}, {} missed messages follow", payload["count"])
                    }
                    (false, true) => format!("subscribed to {channel}"),
                    (false, false) => format!("{channel} could not be resumed: messages were lost"),
                };
                let note = Heard::Note(note);
                if !recovered {
                    self.stand(channel.to_owned(), place(payload));
                }
                vec![note]
            }
            "resync" => {
                let note = format!(
                    "resync of {channel}: messages were lost ({})",
                    payload["reason"].as_str().unwrap_or("?")
                );
                self.stand(channel.to_owned(), place(payload));
                vec![Heard::Note(note)]
            }
            "disconnect" => {
                let reason = payload["reason"].as_str().unwrap_or("disconnected").to_owned();
                // 4401: the token that we have stays expired.
                let reconnect =
                    payload["reconnect"] != Value::Bool(false) && payload["code"] != 4401;
                let after = payload["retry_after_ms"].as_u64().map(Duration::from_millis);
                let mut heard: Vec<_> = after.map(Heard::RetryAfter).into_iter().collect();
                heard.push(Heard::Disconnect { reconnect, reason });
                heard
            }
            "error" => {
                let text = |name: &str| payload[name].as_str().unwrap_or_default();
                let about =
                    if channel.is_empty() { String::new() } else { format!(" ({channel})") };
                vec![Heard::Note(format!("error {}: {}{about}", text("code"), text("message")))]
            }
            "ack" | "unsubscribed" | "pong" | "heartbeat" => Vec::new(),
            _ => {
                if let Some(new) = place(&message) {
                    let known = self.places.get(channel).filter(|old| old.epoch == new.epoch);
                    // After a reconnect a live message may come before the replay that holds it too.
                    if known.is_some_and(|old| new.offset <= old.offset) {
                        return Vec::new();
                    }
                    self.places.insert(channel.to_owned(), new);
                }
                vec![Heard::Message(message)]
            }
        }
    }

    fn stand(&mut self, channel: String, place: Option<Place>) {
        match place {
            Some(place) => self.places.insert(channel, place),
            None => self.places.remove(&channel),
        };
    }
}

/// The position in a message, a welcome's entry or a `subscribed`'s payload.
fn place(value: &Value) -> Option<Place> {
    let epoch = value["epoch"].clone();
    epoch.is_string().then_some(())?;
    Some(Place { offset: value["offset"].as_u64()?, epoch, tag: value["tag"].clone() })
}
