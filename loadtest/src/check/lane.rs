//! One client's view of its channels: the last position of each, what was heard, and what to ask for
//! when it comes back. The same for every transport.

use super::log::{Beginning, Channel, Heard, Number, Place};
use crate::mark::Mark;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;

/// A message as the server dresses it (profile `social`).
#[derive(Debug, Deserialize)]
pub(crate) struct Envelope<'a> {
    #[serde(rename = "type", borrow)]
    pub(crate) kind: Cow<'a, str>,
    #[serde(borrow, default)]
    pub(crate) channel: Option<Cow<'a, str>>,
    #[serde(default)]
    pub(crate) offset: Option<u64>,
    #[serde(borrow, default)]
    pub(crate) epoch: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    pub(crate) tag: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    pub(crate) ack_id: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    pub(crate) payload: Option<&'a RawValue>,
}

/// The payload of `subscribed`, `resync`, `disconnect`, `error` and of an ack's `data`.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Said {
    #[serde(default)]
    pub(crate) channel: Option<String>,
    #[serde(default)]
    pub(crate) offset: Option<u64>,
    #[serde(default)]
    pub(crate) epoch: Option<String>,
    #[serde(default)]
    pub(crate) tag: Option<String>,
    #[serde(default)]
    pub(crate) recovered: bool,
    #[serde(default)]
    pub(crate) reason: Option<String>,
    #[serde(default)]
    pub(crate) code: Option<serde_json::Value>,
    #[serde(default)]
    pub(crate) retry_after_ms: Option<u64>,
    #[serde(default)]
    pub(crate) data: Option<Box<Said>>,
}

impl Said {
    /// Reads a payload; what is not said is absent.
    pub(crate) fn read(payload: Option<&RawValue>) -> Self {
        payload.and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or_default()
    }

    /// The position in it.
    pub(crate) fn position(&self) -> Option<Position> {
        let (epoch, offset) = (self.epoch.clone()?, self.offset?);
        Some(Position { epoch, offset, tag: self.tag.clone() })
    }
}

/// A position in the server's own words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) epoch: String,
    pub(crate) offset: u64,
    pub(crate) tag: Option<String>,
}

impl Position {
    /// For the log.
    pub(crate) fn place(&self) -> Place {
        Place::of(&self.epoch, self.offset, self.tag.as_deref())
    }

    /// For `since`.
    pub(crate) fn json(&self) -> serde_json::Value {
        let mut json = serde_json::json!({"epoch": self.epoch, "offset": self.offset});
        if let Some(tag) = &self.tag {
            json["tag"] = tag.as_str().into();
        }
        json
    }
}

/// One channel of one client.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) index: Channel,
    pub(crate) name: String,
    /// The last position known; what a subscription asks for.
    pub(crate) position: Option<Position>,
    /// The present connection hears it.
    pub(crate) live: bool,
    /// The present connection was opened with a position for it.
    pub(crate) asked: bool,
    /// Highest number heard.
    pub(crate) number: Number,
    pub(crate) heard: Vec<Heard>,
}

/// What a message meant.
#[derive(Debug, PartialEq)]
pub(crate) enum Meaning {
    /// A measured message, due then.
    Message { channel: Channel, due_ns: u64 },
    /// A channel is heard from now on.
    Subscribed,
    /// The server sends the client away.
    Disconnect { retry_after_ms: u64 },
    /// A publish was accepted (`position`) or refused.
    Answer { ack_id: String, position: Option<Position>, code: Option<String> },
    /// A subscribe was refused.
    Refused { channel: Option<String>, code: String },
    /// Anything else.
    Other,
}

/// All channels of one client.
#[derive(Debug)]
pub(crate) struct Lanes(pub(crate) Vec<Lane>);

impl Lanes {
    /// Channels of these indices, named as given.
    pub(crate) fn new(channels: impl IntoIterator<Item = (Channel, String)>) -> Self {
        let lane = |(index, name)| Lane {
            index,
            name,
            position: None,
            live: false,
            asked: false,
            number: 0,
            heard: Vec::new(),
        };
        Self(channels.into_iter().map(lane).collect())
    }

    /// Whether all are heard now.
    pub(crate) fn all_live(&self) -> bool {
        self.0.iter().all(|lane| lane.live)
    }

    /// A connection begins (or is over): nothing is heard.
    pub(crate) fn begin(&mut self) {
        for lane in &mut self.0 {
            lane.live = false;
            lane.asked = lane.position.is_some();
        }
    }

    fn find(&mut self, name: &str) -> Option<&mut Lane> {
        self.0.iter_mut().find(|lane| lane.name == name)
    }

    /// Takes in one message.
    pub(crate) fn hear(&mut self, text: &[u8], at_ms: u64) -> Meaning {
        let Ok(envelope) = serde_json::from_slice::<Envelope<'_>>(text) else {
            return Meaning::Other;
        };
        match &*envelope.kind {
            "message" => self.hear_message(&envelope),
            "subscribed" => {
                let said = Said::read(envelope.payload);
                let position = said.position();
                let name = said.channel.as_deref().or(envelope.channel.as_deref());
                let Some(lane) = name.and_then(|name| self.find(name)) else {
                    return Meaning::Other;
                };
                let how = match (lane.asked, said.recovered) {
                    (_, true) => Beginning::Recovered,
                    (false, false) => Beginning::First,
                    (true, false) => Beginning::Refused(said.reason.unwrap_or_default()),
                };
                let place = position.as_ref().map(Position::place);
                lane.heard.push(Heard::Begun { at_ms, place, how });
                lane.position = position.or(lane.position.take());
                lane.live = true;
                Meaning::Subscribed
            }
            "resync" => {
                let said = Said::read(envelope.payload);
                let position = said.position();
                let Some(lane) = envelope.channel.as_deref().and_then(|name| self.find(name))
                else {
                    return Meaning::Other;
                };
                lane.heard.push(Heard::Resync {
                    at_ms,
                    place: position.as_ref().map(Position::place),
                    reason: said.reason.unwrap_or_default(),
                });
                lane.position = position;
                Meaning::Other
            }
            "disconnect" => {
                let said = Said::read(envelope.payload);
                Meaning::Disconnect { retry_after_ms: said.retry_after_ms.unwrap_or(0) }
            }
            "ack" | "error" | "carillon-error" => answer(&envelope),
            _ => Meaning::Other,
        }
    }

    fn hear_message(&mut self, envelope: &Envelope<'_>) -> Meaning {
        let mark = envelope.payload.and_then(|raw| Mark::find(raw.get().as_bytes(), &mut 0));
        let (Some((mark, _)), Some(offset), Some(epoch)) =
            (mark, envelope.offset, envelope.epoch.as_deref())
        else {
            return Meaning::Other;
        };
        let Some(lane) = envelope.channel.as_deref().and_then(|name| self.find(name)) else {
            return Meaning::Other;
        };
        let tag = envelope.tag.as_deref();
        let place = Place::of(epoch, offset, tag);
        lane.heard.push(Heard::Message { number: mark.sequence, place });
        lane.number = lane.number.max(mark.sequence);
        match &mut lane.position {
            // The epoch's text is the same for hours.
            Some(position) if position.epoch == epoch => {
                position.offset = offset;
                position.tag = tag.map(str::to_owned);
            }
            other => {
                let (epoch, tag) = (epoch.to_owned(), tag.map(str::to_owned));
                *other = Some(Position { epoch, offset, tag });
            }
        }
        Meaning::Message { channel: mark.channel, due_ns: mark.due_ns }
    }
}

fn answer(envelope: &Envelope<'_>) -> Meaning {
    let said = Said::read(envelope.payload);
    let code = said.code.as_ref().map(|code| code.as_str().unwrap_or_default().to_owned());
    match (&envelope.ack_id, envelope.kind == "ack") {
        (Some(ack_id), _) => Meaning::Answer {
            ack_id: ack_id.clone().into_owned(),
            position: said.data.and_then(|data| data.position()),
            code,
        },
        (None, false) => Meaning::Refused {
            channel: envelope.channel.as_deref().map(str::to_owned),
            code: code.unwrap_or_default(),
        },
        (None, true) => Meaning::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lanes() -> Lanes {
        Lanes::new([(3, "room:3".to_owned())])
    }

    #[test]
    fn message_moves_the_position_that_is_asked_for_next() {
        let mut lanes = lanes();
        let subscribed = br#"{"type":"subscribed","channel":"room:3","payload":{"channel":"room:3","offset":4,"epoch":"e","tag":"t","recovered":false,"reason":"fresh"}}"#;
        assert_eq!(lanes.hear(subscribed, 1), Meaning::Subscribed);
        let mark = Mark { channel: 3, sequence: 9, due_ns: 77 }.payload(0);
        let message = format!(
            r#"{{"type":"message","channel":"room:3","offset":5,"epoch":"e","tag":"u","payload":{mark}}}"#
        );
        assert_eq!(lanes.hear(message.as_bytes(), 2), Meaning::Message { channel: 3, due_ns: 77 });
        let lane = &lanes.0[0];
        assert!(lanes.all_live());
        assert_eq!(
            lane.position.as_ref().map(Position::json),
            Some(serde_json::json!({"epoch": "e", "offset": 5, "tag": "u"}))
        );
        assert!(matches!(
            lane.heard[..],
            [Heard::Begun { how: Beginning::First, .. }, Heard::Message { number: 9, .. }]
        ));
    }

    #[test]
    fn refusal_counts_as_told_only_where_a_position_was_given() {
        let mut lanes = lanes();
        lanes.0[0].position = Some(Position { epoch: "e".to_owned(), offset: 1, tag: None });
        lanes.begin();
        lanes.hear(br#"{"type":"subscribed","payload":{"channel":"room:3","offset":4,"epoch":"f","recovered":false,"reason":"epoch"}}"#, 1);
        let refused = Beginning::Refused("epoch".to_owned());
        assert!(matches!(&lanes.0[0].heard[0], Heard::Begun { how, .. } if *how == refused));
    }

    #[test]
    fn answers_are_told_from_refusals() {
        let mut lanes = lanes();
        let ack = br#"{"type":"ack","ack_id":"7","payload":{"ack_id":"7","status":"success","data":{"id":"x","offset":2,"epoch":"e","tag":"t"}}}"#;
        let Meaning::Answer { ack_id, position: Some(position), .. } = lanes.hear(ack, 1) else {
            panic!("an answer");
        };
        assert_eq!((ack_id.as_str(), position.offset), ("7", 2));
        let error = br#"{"type":"error","channel":"room:3","payload":{"code":"UNAVAILABLE"}}"#;
        let refused =
            Meaning::Refused { channel: Some("room:3".to_owned()), code: "UNAVAILABLE".to_owned() };
        assert_eq!(lanes.hear(error, 1), refused);
    }
}
