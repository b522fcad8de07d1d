//! The judge: from a log to a verdict. Knows logs alone, so that it can be shown bad ones.
//!
//! A client's life on a channel is cut into *spans*. A span begins where the server said that
//! delivery begins and ends where it said that something may be missing. Within a span every
//! offset follows the one before, each message once, each behind the message that history has before it; the last span
//! of a client that stayed reaches the top and equals history. What a span skips without such a word is
//! lost; what it continues in another history is a fork.

mod verdict;

use super::log::{Beginning, Channel, Heard, History, Lane, Log, Number, Place};
use std::collections::{HashMap, HashSet};

pub(crate) use verdict::Verdict;

/// Who is told later than this after data was lost was told for nothing: longer than any node or client here
/// is stopped or away.
const TOLD_WITHIN_MS: u64 = 45_000;

/// Judges a log.
pub(crate) fn judge(log: &Log) -> Verdict {
    let mut court = Court {
        truth: log.histories.iter().map(|history| (history.channel, Truth::of(history))).collect(),
        sent: HashMap::new(),
        identity: HashMap::new(),
        losses_ms: log.losses_ms.clone(),
        verdict: Verdict::default(),
    };
    court.hear_publishers(log);
    court.hear_histories(log);
    for lane in &log.lanes {
        court.hear_lane(lane);
    }
    court.hear_counts(log);
    court.verdict
}

/// A channel's history, to look things up in.
struct Truth {
    epoch: u64,
    top: u64,
    first: u64,
    by_offset: HashMap<u64, (Option<u64>, Number)>,
}

impl Truth {
    fn of(history: &History) -> Self {
        let by_offset = history
            .messages
            .iter()
            .map(|(place, number)| (place.offset, (place.tag, *number)))
            .collect();
        let first = history.messages.first().map_or(history.top + 1, |(place, _)| place.offset);
        Self { epoch: history.epoch, top: history.top, first, by_offset }
    }

    /// The tag of the message before `place`, where history holds both.
    fn tag_before(&self, place: &Place) -> Option<u64> {
        if place.epoch != self.epoch || place.tag.is_none() {
            return None;
        }
        let (tag, _) = self.by_offset.get(&place.offset)?;
        if *tag != place.tag {
            return None;
        }
        self.by_offset.get(&place.offset.checked_sub(1)?)?.0
    }
}

/// One stretch without a word from the server that something may be missing.
struct Span {
    epoch: u64,
    /// Delivery begins behind this offset.
    start: u64,
    last: u64,
    last_tag: Option<u64>,
    seen: HashMap<u64, Option<u64>>,
    skipped: HashSet<u64>,
}

impl Span {
    fn at(place: &Place) -> Self {
        Self {
            epoch: place.epoch,
            start: place.offset,
            last: place.offset,
            last_tag: place.tag,
            seen: HashMap::new(),
            skipped: HashSet::new(),
        }
    }
}

struct Court {
    truth: HashMap<Channel, Truth>,
    sent: HashMap<(Channel, Number), u64>,
    /// Which message stands at a place: the same for everybody who ever saw it.
    identity: HashMap<(Channel, Place), Number>,
    losses_ms: Vec<u64>,
    verdict: Verdict,
}

impl Court {
    fn hear_publishers(&mut self, log: &Log) {
        for published in &log.published {
            let (channel, number) = (published.channel, published.number);
            self.sent.insert((channel, number), published.sent_ms);
            let Some(place) = published.acknowledged else {
                self.verdict.unacknowledged += 1;
                continue;
            };
            self.verdict.acknowledged += 1;
            let kept = log.losses_ms.last().is_none_or(|lost| published.sent_ms > *lost);
            let Some(truth) = self.truth.get(&channel).filter(|_| kept) else { continue };
            // Whoever found that a tail was lost has begun a new epoch with what is there: the tag tells the message.
            let same_life = place.epoch == truth.epoch;
            let there = truth.by_offset.get(&place.offset).is_some_and(|(tag, held)| {
                let same = if place.tag.is_some() { *tag == place.tag } else { same_life };
                *held == number && same
            });
            let trimmed = same_life && place.offset < truth.first;
            if !there && !trimmed {
                self.verdict.vanished += 1;
                self.verdict.note(|| {
                    format!("channel {channel}: message {number} was acknowledged at offset {} and history does not hold it there", place.offset)
                });
            }
        }
    }

    /// A number that stands twice in one history was published twice.
    fn hear_histories(&mut self, log: &Log) {
        for history in &log.histories {
            let mut numbers = HashSet::new();
            for (place, number) in &history.messages {
                self.identity.insert((history.channel, *place), *number);
                if !numbers.insert(*number) {
                    self.verdict.duplicated += 1;
                    self.verdict.note(|| {
                        format!(
                            "channel {}: message {number} stands twice in history",
                            history.channel
                        )
                    });
                }
            }
        }
    }

    fn hear_lane(&mut self, lane: &Lane) {
        let mut span: Option<Span> = None;
        let mut numbers = HashSet::new();
        for heard in &lane.heard {
            match heard {
                Heard::Begun { at_ms, place, how } => match how {
                    Beginning::Recovered => {
                        self.verdict.recovered += 1;
                        if let (Some(span), Some(place)) = (&span, place)
                            && place.epoch != span.epoch
                        {
                            self.fork(lane, "recovered in another epoch", place.offset);
                        }
                    }
                    Beginning::First => {
                        self.close(lane, span.take(), false);
                        let place = place.or_else(|| self.first_sent_after(lane.channel, *at_ms));
                        span = place.as_ref().map(Span::at);
                    }
                    Beginning::Refused(reason) => {
                        self.told(lane, reason, *at_ms);
                        self.close(lane, span.take(), false);
                        span = place.as_ref().map(Span::at);
                    }
                },
                Heard::Resync { at_ms, place, reason } => {
                    self.told(lane, reason, *at_ms);
                    self.close(lane, span.take(), false);
                    span = place.as_ref().map(Span::at);
                }
                Heard::Message { number, place } => {
                    self.verdict.delivered += 1;
                    let before = self.identity.insert((lane.channel, *place), *number);
                    if before.is_some_and(|before| before != *number) {
                        self.fork(lane, "another message at the same place", place.offset);
                    }
                    let again = !numbers.insert(*number);
                    let span = span.get_or_insert_with(|| {
                        Span::at(&Place {
                            offset: place.offset.saturating_sub(1),
                            tag: None,
                            ..*place
                        })
                    });
                    let known = self.follow(lane, span, place);
                    // Where data was lost, a message that was repeated may rightly stand in both histories.
                    if again && !known && self.losses_ms.is_empty() {
                        self.verdict.duplicated += 1;
                        self.verdict.note(|| {
                            format!(
                                "{} heard message {number} of channel {} twice",
                                lane.client, lane.channel
                            )
                        });
                    }
                }
            }
        }
        self.close(lane, span, lane.stayed);
    }

    /// The next message of a span; whether it was counted as heard twice.
    fn follow(&mut self, lane: &Lane, span: &mut Span, place: &Place) -> bool {
        if place.epoch != span.epoch {
            self.fork(lane, "another epoch without a word", place.offset);
            *span = Span::at(place);
            span.seen.insert(place.offset, place.tag);
            return false;
        }
        if place.offset > span.last {
            let next = span.last + 1;
            if place.offset == next {
                let before =
                    self.truth.get(&lane.channel).and_then(|truth| truth.tag_before(place));
                if let (Some(before), Some(last)) = (before, span.last_tag)
                    && before != last
                {
                    self.fork(lane, "it follows another message than the one heard", place.offset);
                }
            }
            span.skipped.extend(next..place.offset);
            span.last = place.offset;
            span.last_tag = place.tag;
            span.seen.insert(place.offset, place.tag);
            return false;
        }
        if span.skipped.remove(&place.offset) {
            span.seen.insert(place.offset, place.tag);
            self.verdict.reordered += 1;
            self.verdict.note(|| {
                format!(
                    "{} heard offset {} of channel {} after {}",
                    lane.client, place.offset, lane.channel, span.last
                )
            });
            return false;
        }
        if span.seen.get(&place.offset).is_some_and(|tag| *tag != place.tag) {
            self.fork(lane, "an offset used twice without a word", place.offset);
            return false;
        }
        self.verdict.duplicated += 1;
        self.verdict.note(|| {
            format!(
                "{} heard offset {} of channel {} twice",
                lane.client, place.offset, lane.channel
            )
        });
        true
    }

    /// Ends a span. One that must reach the top is compared with history.
    fn close(&mut self, lane: &Lane, span: Option<Span>, to_the_top: bool) {
        let Some(span) = span else { return };
        let truth = self.truth.get(&lane.channel).filter(|_| to_the_top);
        let Some(truth) = truth else {
            if !span.skipped.is_empty() {
                let mut skipped: Vec<u64> = span.skipped.into_iter().collect();
                skipped.sort_unstable();
                self.lose(lane, &skipped);
            }
            return;
        };
        if span.epoch != truth.epoch || span.last > truth.top {
            return self.fork(lane, "still in a history that is gone", span.last);
        }
        let due = (span.start + 1).max(truth.first)..=truth.top;
        let lost: Vec<u64> = due.filter(|offset| !span.seen.contains_key(offset)).collect();
        let foreign = span.seen.iter().find(|(offset, tag)| {
            truth.by_offset.get(offset).is_some_and(|(held, _)| held != *tag)
        });
        let foreign = foreign.map(|(offset, _)| *offset);
        if let Some(offset) = foreign {
            self.fork(lane, "history holds another message there", offset);
        }
        if !lost.is_empty() {
            self.lose(lane, &lost);
        }
    }

    /// Where a subscription begins that was not told: before the first message sent afterwards.
    fn first_sent_after(&self, channel: Channel, at_ms: u64) -> Option<Place> {
        let truth = self.truth.get(&channel)?;
        let sent_after = |number: Number| {
            self.sent.get(&(channel, number)).is_some_and(|sent_ms| *sent_ms > at_ms)
        };
        let first = truth
            .by_offset
            .iter()
            .filter(|(_, (_, number))| sent_after(*number))
            .map(|(offset, _)| *offset)
            .min()?;
        // What was sent before may still arrive behind it in time, in front of it by offset.
        Some(Place { epoch: truth.epoch, offset: first - 1, tag: None })
            .filter(|_| self.losses_ms.is_empty())
    }

    fn told(&mut self, lane: &Lane, reason: &str, at_ms: u64) {
        *self.verdict.told.entry(reason.to_owned()).or_default() += 1;
        let before = self.losses_ms.iter().rev().find(|lost_ms| **lost_ms <= at_ms);
        if before.is_none_or(|lost_ms| at_ms - lost_ms > TOLD_WITHIN_MS) {
            self.verdict.needless += 1;
            self.verdict.note(|| {
                format!(
                    "{} was told {reason:?} on channel {} although nothing was lost",
                    lane.client, lane.channel
                )
            });
        }
    }

    fn lose(&mut self, lane: &Lane, offsets: &[u64]) {
        self.verdict.lost += offsets.len() as u64;
        self.verdict.note(|| {
            let (first, last) = (offsets[0], offsets[offsets.len() - 1]);
            format!(
                "{} never heard {} messages of channel {}, offsets {first} to {last}",
                lane.client,
                offsets.len(),
                lane.channel
            )
        });
    }

    fn fork(&mut self, lane: &Lane, what: &str, offset: u64) {
        self.verdict.forked += 1;
        self.verdict.note(|| {
            format!("{} on channel {}, offset {offset}: {what}", lane.client, lane.channel)
        });
    }

    fn hear_counts(&mut self, log: &Log) {
        for count in log.counts.iter().filter(|count| count.expected != count.found) {
            self.verdict.miscounted += 1;
            self.verdict
                .note(|| format!("{}: {} instead of {}", count.what, count.found, count.expected));
        }
        for ghost in &log.ghosts {
            self.verdict.ghosts += 1;
            self.verdict.note(|| format!("{ghost} left and is shown as present"));
        }
        for missing in &log.missing {
            self.verdict.ghosts += 1;
            self.verdict.note(|| format!("{missing} is present and not shown"));
        }
    }
}

#[cfg(test)]
mod tests;
