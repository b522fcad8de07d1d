//! What a poll number stands for: a page of an answer, kept as the cursor that it was read from and
//! one short step for each event. Payloads are not kept: history has them, and what had no
//! history is small.

use carillon_broker_client::PollPage;
use carillon_protocol::{ChannelName, Cursor, Epoch, Position, Tag};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha1::{Digest, Sha1};

use super::merge::{Heard, Stretch, passed};

/// Most channels whose positions a cursor carries on although a poll did not ask for them.
const CARRIED_MAX: usize = 64;
/// Entity events remembered from one page to the next, to drop twins (R14), and notifications that were sent as pending.
pub(super) const TWINS_MAX: usize = 128;

/// How one event moves the cursor. Numbers of channels count the positions of the page's cursor.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Step {
    /// A publication that history holds: channel, offset, tag.
    #[serde(rename = "k")]
    Kept(usize, u64, Tag),
    /// Without a position: the document.
    #[serde(rename = "h")]
    Heard(Box<RawValue>),
    /// Heard on a channel without history: the channel as the client knows it, the message's stamp, the document.
    #[serde(rename = "p")]
    Passing(ChannelName, u64, Box<RawValue>),
    /// A channel goes on elsewhere: channel, place and reason.
    #[serde(rename = "m")]
    Moved(usize, Position, String),
}

/// What a chain of polls asked for by messages; it goes from page to page.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Wishes {
    /// Subscribed, beside what each poll names.
    #[serde(rename = "s", skip_serializing_if = "Vec::is_empty", default)]
    pub(super) subscribed: Vec<Subscribed>,
    /// Present there.
    #[serde(rename = "p", skip_serializing_if = "Vec::is_empty", default)]
    pub(super) present: Vec<Present>,
}

/// One channel that a message subscribed to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Subscribed {
    /// The channel as the client named it.
    #[serde(rename = "c")]
    pub(super) name: String,
    /// Its filter.
    #[serde(rename = "f", skip_serializing_if = "Option::is_none", default)]
    pub(super) filter: Option<serde_json::Value>,
}

/// One resource where a message joined.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Present {
    /// The presence channel.
    #[serde(rename = "c")]
    pub(super) resource: ChannelName,
    /// Display name.
    #[serde(rename = "n", skip_serializing_if = "Option::is_none", default)]
    pub(super) name: Option<String>,
    /// What is listed with it.
    #[serde(rename = "m", skip_serializing_if = "Option::is_none", default)]
    pub(super) metadata: Option<serde_json::Value>,
}

impl Wishes {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// See the module.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Page {
    /// The cursor that it was read from, as text.
    #[serde(rename = "c")]
    from: String,
    /// The cursor after its last event, where the steps do not lead there.
    #[serde(rename = "e", skip_serializing_if = "Option::is_none", default)]
    end: Option<String>,
    /// One each event.
    #[serde(rename = "s")]
    pub(super) steps: Vec<Step>,
    /// More is waiting.
    #[serde(rename = "m")]
    pub(super) more: bool,
    /// Nothing was lost before it.
    #[serde(rename = "r")]
    pub(super) recovered: bool,
    /// Hashes of the entity events up to its end, and of what was sent as pending.
    #[serde(rename = "t", skip_serializing_if = "Vec::is_empty", default)]
    pub(super) twins: Vec<u64>,
    /// What the polls that go on from here ask for without saying so.
    #[serde(rename = "w", skip_serializing_if = "Wishes::is_empty", default)]
    pub(super) wishes: Wishes,
    /// Behind its end, notifications may be pending that the user was not sent.
    #[serde(rename = "p", skip_serializing_if = "std::ops::Not::not", default)]
    pub(super) pending: bool,
}

/// What one of a page's ids stands for.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) cursor: Cursor,
    /// Entity events and notifications known there.
    pub(super) twins: Vec<u64>,
    /// What the page holds behind it that is nowhere else.
    pub(super) rest: Stretch,
}

impl Page {
    /// A page read from `from` that leads to `end`.
    pub(super) fn new(
        from: &Cursor,
        end: &Cursor,
        steps: Vec<Step>,
        more: bool,
        recovered: bool,
        twins: Vec<u64>,
    ) -> Self {
        let lead_there = led(from, &steps).as_ref() == Some(end);
        Self {
            from: from.to_text(),
            end: (!lead_there).then(|| end.to_text()),
            steps,
            more,
            recovered,
            twins,
            wishes: Wishes::default(),
            pending: false,
        }
    }

    /// The text that the store keeps.
    pub(super) fn to_text(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Reads a kept page; `None` for one of another version.
    pub(super) fn read(kept: &PollPage) -> Option<Self> {
        serde_json::from_str(&kept.body).ok()
    }

    /// The cursor that it was read from.
    pub(super) fn from(&self) -> Option<Cursor> {
        Cursor::parse(&self.from).ok()
    }

    /// What one of its ids stands for.
    pub(super) fn at(&self, kept: &PollPage, id: u64) -> Option<Place> {
        if id + 1 >= kept.first_id + kept.count {
            let end = self
                .end
                .as_ref()
                .map_or_else(|| self.after(self.steps.len()), |end| Cursor::parse(end).ok());
            return Some(Place { cursor: end?, twins: self.twins.clone(), rest: Vec::new() });
        }
        let events = usize::try_from(id.checked_sub(kept.first_id)?).ok()? + 1;
        let behind = self.steps.get(events..).unwrap_or_default();
        // Twins of what will be read again are not known yet.
        let is_kept = |step: &Step| matches!(step, Step::Kept(..));
        let twins = if behind.iter().any(is_kept) { Vec::new() } else { self.twins.clone() };
        Some(Place { cursor: self.after(events)?, twins, rest: self.only_here(events) })
    }

    /// What it holds behind so many events that is nowhere else.
    pub(super) fn only_here(&self, events: usize) -> Stretch {
        let behind = self.steps.get(events..).unwrap_or_default();
        let read = |step: &Step| match step {
            Step::Heard(document) => Some(Heard::of(document.clone())),
            Step::Passing(_, stamp, document) => Some(Heard::stamped(*stamp, document.clone())),
            Step::Kept(..) | Step::Moved(..) => None,
        };
        behind.iter().filter_map(read).collect()
    }

    fn after(&self, events: usize) -> Option<Cursor> {
        led(&self.from()?, self.steps.get(..events).unwrap_or(&self.steps))
    }
}

/// Where steps lead from a cursor.
fn led(from: &Cursor, steps: &[Step]) -> Option<Cursor> {
    let mut cursor = from.clone();
    let channel = |index: usize| from.positions().get(index).map(|(channel, _)| channel);
    for step in steps {
        match step {
            Step::Kept(index, offset, tag) => {
                let channel = channel(*index)?;
                let epoch =
                    cursor.get(channel.as_str()).map_or(Epoch::NONE, |position| position.epoch);
                cursor.set(channel, Position { epoch, offset: *offset, tag: *tag });
            }
            Step::Moved(index, position, _) => cursor.set(channel(*index)?, *position),
            Step::Passing(channel, stamp, _) => cursor.set(channel, passed(*stamp)),
            Step::Heard(_) => {}
        }
    }
    Some(cursor)
}

/// The store's key of a question: the id and the channels asked. Empty for what cannot be repeated.
pub(super) fn question(id: u64, channels: &str) -> String {
    if id == 0 { String::new() } else { format!("{id}:{channels}") }
}

/// The channels of a question, in few letters.
pub(super) fn digest<'a>(channels: impl Iterator<Item = &'a ChannelName>) -> Box<str> {
    let mut names: Vec<&str> = channels.map(ChannelName::as_str).collect();
    names.sort_unstable();
    let mut digest = Sha1::new();
    for name in names {
        digest.update(name.as_bytes());
        digest.update(b" ");
    }
    let digest = digest.finalize();
    digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect::<String>().into()
}

/// Drops positions that nobody asks for, when there are too many.
pub(super) fn trim(cursor: &mut Cursor, asked: &[&ChannelName]) {
    let idle: Vec<ChannelName> = cursor
        .positions()
        .iter()
        .map(|(name, _)| name)
        .filter(|name| !asked.contains(name))
        .cloned()
        .collect();
    for channel in idle.iter().take(idle.len().saturating_sub(CARRIED_MAX)) {
        cursor.remove(channel.as_str());
    }
}
