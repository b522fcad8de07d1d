//! The verdict on a run, from its records alone: it knows the product's promises (`cluster.md` 2,
//! `protocol.md` 6) and nothing of how the gateway keeps them.
//!
//! A client's hearing of a channel is a chain: it begins at a position that the server named (`subscribed`
//! without recovery, or `resync`), and every message after that must be the very next one of the same
//! history, through any number of connections, until the server names another beginning.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::records::{Place, Record, Rest, Rules};

/// How a promise was broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    /// A message is missing and the client was not told.
    Lost,
    /// A message came twice.
    Duplicated,
    /// A message came before one that stands in front of it.
    Reordered,
    /// A client went on in another history and was not told.
    Forked,
    /// A client was told to start over although nothing was lost to it.
    Needless,
    /// A message or an acknowledgement of something that storage never took.
    Phantom,
    /// A message on a channel that the client had not subscribed to.
    Uninvited,
    /// A client that could not get what it wanted when all was well.
    Unserved,
    /// Somebody is listed who is not there.
    Ghost,
    /// Somebody who is there is not listed.
    Missing,
    /// Connections are counted wrongly.
    Miscounted,
}

/// One broken promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) kind: Kind,
    pub(crate) detail: String,
}

/// Everything that is wrong with a run; empty for a good one.
pub(crate) fn judge(records: &[Record], rest: &Rest, rules: &Rules) -> Vec<Fault> {
    let mut judge = Judge::new(records, rules);
    for (at, record) in records.iter().enumerate() {
        judge.hear(at, record);
    }
    judge.rest(rest);
    judge.lost_with_storage();
    judge.faults
}

/// A message that storage took.
struct Kept<'a> {
    id: &'a str,
    offset: u64,
    before: Option<&'a str>,
    at: usize,
}

/// One client on one channel.
#[derive(Default)]
struct Ear {
    active: bool,
    /// Where the chain stands; `None` when the server named a beginning without a position.
    here: Option<Place>,
    /// When the server last named a beginning.
    began_at: usize,
    heard: HashSet<String>,
    heard_fleeting: HashSet<String>,
    /// The last message without history: when storage took it.
    last_fleeting: Option<usize>,
}

impl Ear {
    /// What is wrong with hearing this message now, if anything.
    fn next(&mut self, place: &Place, before: Option<&str>) -> Option<Kind> {
        let is_new = self.heard.insert(place.tag.clone());
        let here = self.here.as_ref()?;
        if place.epoch != here.epoch {
            Some(Kind::Forked)
        } else if place.offset <= here.offset {
            Some(if is_new { Kind::Reordered } else { Kind::Duplicated })
        } else if place.offset > here.offset + 1 {
            Some(Kind::Lost)
        } else {
            (before != Some(&*here.tag)).then_some(Kind::Forked)
        }
    }

    /// The same without history: each time that storage took it is heard once at most, and in order.
    fn next_fleeting(&mut self, id: &str, taken_at: Option<&Vec<usize>>) -> Option<Kind> {
        let is_new = self.heard_fleeting.insert(id.to_owned());
        let Some(taken_at) = taken_at else { return Some(Kind::Phantom) };
        let next = taken_at.iter().find(|at| self.last_fleeting.is_none_or(|last| **at > last));
        match next {
            Some(next) => {
                self.last_fleeting = Some(*next);
                None
            }
            None => Some(if is_new { Kind::Reordered } else { Kind::Duplicated }),
        }
    }
}

struct Judge<'a> {
    records: &'a [Record],
    rules: &'a Rules,
    /// Messages with history by channel and tag.
    kept: HashMap<(&'a str, &'a str), Kept<'a>>,
    /// When storage took the others, by channel and id: again after it lost their receipts.
    fleeting: HashMap<(&'a str, &'a str), Vec<usize>>,
    ears: BTreeMap<(usize, String), Ear>,
    /// The newest offset of each channel, as far as the records were read.
    tops: HashMap<&'a str, u64>,
    /// Channels that lost something so far.
    damaged: HashSet<&'a str>,
    all_lost: bool,
    faults: Vec<Fault>,
}

impl<'a> Judge<'a> {
    fn new(records: &'a [Record], rules: &'a Rules) -> Self {
        let mut kept = HashMap::new();
        let mut fleeting: HashMap<_, Vec<usize>> = HashMap::new();
        for (at, record) in records.iter().enumerate() {
            let Record::Appended { channel, id, place, before } = record else { continue };
            match place {
                Some(place) => {
                    let (offset, before) = (place.offset, before.as_deref());
                    kept.insert((&**channel, &*place.tag), Kept { id, offset, before, at });
                }
                None => fleeting.entry((&**channel, &**id)).or_default().push(at),
            }
        }
        Self {
            records,
            rules,
            kept,
            fleeting,
            ears: BTreeMap::new(),
            tops: HashMap::new(),
            damaged: HashSet::new(),
            all_lost: false,
            faults: repeated(records),
        }
    }

    fn fault(&mut self, kind: Kind, detail: String) {
        self.faults.push(Fault { kind, detail });
    }

    fn ear(&mut self, client: usize, channel: &str) -> &mut Ear {
        self.ears.entry((client, channel.to_owned())).or_default()
    }

    fn hear(&mut self, at: usize, record: &'a Record) {
        match record {
            Record::Appended { channel, place, .. } => {
                if let Some(place) = place {
                    self.tops.insert(channel, place.offset);
                }
            }
            Record::Forked { channel } => drop(self.damaged.insert(channel)),
            Record::Lost => self.all_lost = true,
            Record::Killed { .. } => {}
            Record::Acknowledged { channel, id, place, .. } => {
                self.acknowledged(channel, id, place.as_ref());
            }
            Record::Gone { client } => {
                for ((_, _), ear) in self.ears.iter_mut().filter(|((who, _), _)| who == client) {
                    ear.active = false;
                }
            }
            Record::Subscribed { client, channel, since, place, recovered: true, .. } => {
                let ear = self.ear(*client, channel);
                ear.active = true;
                if since.is_none() || since != place || ear.here != *since {
                    let here = ear.here.clone();
                    self.fault(
                        Kind::Forked,
                        format!("client {client} on {channel}: stood at {here:?}, gave {since:?}, was recovered at {place:?}"),
                    );
                }
            }
            Record::Subscribed { client, channel, since, place, reason, .. } => {
                if let Some(since) = since {
                    self.needed(*client, channel, Some(since), reason);
                }
                self.begin(at, *client, channel, place.clone());
            }
            Record::Resynced { client, channel, place, reason } => {
                let here = self.ear(*client, channel).here.clone();
                self.needed(*client, channel, here.as_ref(), reason);
                self.begin(at, *client, channel, place.clone());
            }
            Record::Unsubscribed { client, channel } => self.ear(*client, channel).active = false,
            Record::Delivered { client, channel, id, place } => {
                self.delivered(*client, channel, id, place.as_ref());
            }
        }
    }

    fn begin(&mut self, at: usize, client: usize, channel: &str, place: Option<Place>) {
        let ear = self.ear(client, channel);
        (ear.active, ear.here, ear.began_at) = (true, place, at);
        // Without a position nobody can know that a node which lags tells what another one told before: only
        // within one subscription does everything come once.
        (ear.last_fleeting, ear.heard_fleeting) = (None, HashSet::new());
    }

    /// A client must start over: something must have been lost to it.
    fn needed(&mut self, client: usize, channel: &str, here: Option<&Place>, reason: &str) {
        let Some(here) = here else { return };
        let top = self.tops.get(channel).copied().unwrap_or(0);
        let size = self.rules.history_size.get(channel).copied().unwrap_or(0);
        let trimmed = top.saturating_sub(here.offset) > size;
        if !(self.all_lost || self.damaged.contains(channel) || trimmed) {
            self.fault(
                Kind::Needless,
                format!("client {client} on {channel} at {here:?} was told {reason:?} although nothing was lost"),
            );
        }
    }

    fn acknowledged(&mut self, channel: &str, id: &str, place: Option<&Place>) {
        let known = match place {
            Some(place) => self.kept.get(&(channel, &*place.tag)).is_some_and(|kept| kept.id == id),
            None => self.fleeting.contains_key(&(channel, id)),
        };
        if !known {
            self.fault(Kind::Phantom, format!("{id} on {channel} was acknowledged at {place:?}"));
        }
    }

    fn delivered(&mut self, client: usize, channel: &str, id: &str, place: Option<&Place>) {
        let (kept, fleeting) = (&self.kept, &self.fleeting);
        let ear = self.ears.entry((client, channel.to_owned())).or_default();
        let before = ear.here.clone();
        let fault = match place {
            _ if !ear.active => Some(Kind::Uninvited),
            Some(place) => match kept.get(&(channel, &*place.tag)) {
                Some(kept) if kept.id == id && kept.offset == place.offset => {
                    ear.next(place, kept.before)
                }
                _ => Some(Kind::Phantom),
            },
            None => ear.next_fleeting(id, fleeting.get(&(channel, id))),
        };
        if place.is_some() {
            ear.here = place.cloned();
        }
        if let Some(kind) = fault {
            let detail =
                format!("client {client} on {channel}: {id} at {place:?}, after {before:?}");
            self.fault(kind, detail);
        }
    }

    /// All is well and quiet: everybody stands at the top, and everybody is counted once.
    fn rest(&mut self, rest: &Rest) {
        let mut faults = Vec::new();
        for (client, channel) in rest
            .wanted
            .iter()
            .flat_map(|(client, wanted)| wanted.iter().map(move |channel| (client, channel)))
        {
            let who = format!("client {client} on {channel}");
            let ear = self.ears.get(&(*client, channel.clone()));
            let Some(ear) = ear.filter(|ear| ear.active) else {
                faults.push((Kind::Unserved, format!("{who} is not subscribed at rest")));
                continue;
            };
            match (rest.tops.get(channel), &ear.here) {
                (Some(top), Some(here)) if top.epoch != here.epoch => {
                    faults.push((
                        Kind::Forked,
                        format!("{who} rests at {here:?}, storage at {top:?}"),
                    ));
                }
                (Some(top), Some(here)) if top != here => {
                    faults
                        .push((Kind::Lost, format!("{who} rests at {here:?}, storage at {top:?}")));
                }
                _ => {}
            }
        }
        for (user, (held, counted)) in &rest.connections {
            if held != counted {
                faults.push((
                    Kind::Miscounted,
                    format!("{user} holds {held} connections, {counted} are counted"),
                ));
            }
        }
        let (held, counted) = rest.connections_of_nodes;
        if held != counted {
            faults.push((
                Kind::Miscounted,
                format!("{held} connections are held, the nodes count {counted}"),
            ));
        }
        let lists = rest.present.iter().map(|(place, lists)| (place.as_str(), lists));
        for (place, (there, listed)) in lists.chain([("online", &rest.online)]) {
            for user in listed.difference(there) {
                faults.push((Kind::Ghost, format!("{user} is listed in {place}")));
            }
            for user in there.difference(listed) {
                faults.push((Kind::Missing, format!("{user} is not listed in {place}")));
            }
        }
        faults.into_iter().for_each(|(kind, detail)| self.fault(kind, detail));
    }

    /// What was acknowledged and then lost by storage: whoever was listening and has not heard it must have
    /// been told to start over since. Nobody can tell when the only node that knew of it died too.
    fn lost_with_storage(&mut self) {
        let records = self.records;
        let killed: HashSet<usize> = records
            .iter()
            .filter_map(|record| match record {
                Record::Killed { node } => Some(*node),
                _ => None,
            })
            .collect();
        let mut faults = Vec::new();
        for record in records {
            let Record::Acknowledged { channel, id, place: Some(place), node } = record else {
                continue;
            };
            let Some(kept) = self.kept.get(&(&**channel, &*place.tag)) else { continue };
            let forks = records[kept.at..].iter().any(|record| match record {
                Record::Forked { channel: forked } => forked == channel,
                Record::Lost => true,
                _ => false,
            });
            if !forks || killed.contains(node) {
                continue;
            }
            let deaf = self.ears.iter().filter(|((_, heard_on), ear)| {
                heard_on == channel
                    && ear.active
                    && ear.began_at < kept.at
                    && !ear.heard.contains(&place.tag)
            });
            faults.extend(deaf.map(|((client, _), _)| Fault {
                kind: Kind::Lost,
                detail: format!("client {client} on {channel} never heard of {id} at {place:?}, which was acknowledged and lost"),
            }));
        }
        self.faults.extend(faults);
    }
}

/// The same id taken twice by storage that had lost nothing in between.
fn repeated(records: &[Record]) -> Vec<Fault> {
    let mut taken: HashSet<(&str, &str)> = HashSet::new();
    let mut faults = Vec::new();
    for record in records {
        match record {
            Record::Appended { channel, id, .. } if !taken.insert((channel, id)) => {
                let detail = format!("{id} was taken twice on {channel}");
                faults.push(Fault { kind: Kind::Duplicated, detail });
            }
            Record::Forked { channel } => taken.retain(|(other, _)| other != channel),
            Record::Lost => taken.clear(),
            _ => {}
        }
    }
    faults
}

#[cfg(test)]
#[path = "checker_tests.rs"]
mod tests;
