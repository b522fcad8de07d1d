//! One channel's history: epoch, offsets, tags, retention. Time is a parameter; it knows nothing of
//! nodes, delivery or locks.

use std::collections::VecDeque;
use std::time::Duration;

use carillon_protocol::{Epoch, Position, Publication, Tag};
use tokio::time::Instant;

use crate::broker::EPOCH_LIFETIME;
use crate::{HistoryPage, HistoryQuery, Retention, Start};

struct Entry {
    at: Instant,
    publication: Publication,
}

/// The entries' offsets have no holes and the last one is the top's, or there are no entries.
pub(super) struct Log {
    top: Position,
    entries: VecDeque<Entry>,
    age: Duration,
    touched: Instant,
}

impl Log {
    /// A new life of a channel's history.
    pub(super) fn begin(now: Instant) -> Self {
        let epoch = Epoch::from_random(rand::random());
        Self {
            top: Position { epoch, offset: 0, tag: Position::START_TAG },
            entries: VecDeque::new(),
            age: Duration::ZERO,
            touched: now,
        }
    }

    /// Nothing was asked of it for so long that its epoch is over.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.touched) > self.age.saturating_add(EPOCH_LIFETIME)
    }

    /// The newest position; asking keeps the epoch alive.
    pub(super) fn top(&mut self, now: Instant) -> Position {
        self.touched = now;
        self.top
    }

    /// Gives the publication its place and keeps a copy for as long as `retention` says.
    pub(super) fn append(&mut self, publication: &mut Publication, kept: Retention, now: Instant) {
        let previous_tag = self.top.tag;
        self.top.offset += 1;
        self.top.tag = Tag::from_random(rand::random());
        self.age = kept.age;
        self.touched = now;
        publication.position = Some(self.top);
        publication.previous_tag = Some(previous_tag);
        self.entries.push_back(Entry { at: now, publication: publication.clone() });
        let surplus = self.entries.len().saturating_sub(kept.size as usize);
        self.entries.drain(..surplus);
        self.trim_aged(now);
    }

    /// Forgets what the last publish's retention no longer keeps.
    pub(super) fn trim_aged(&mut self, now: Instant) {
        let aged = self.aged(now, self.age);
        self.entries.drain(..aged);
        if self.entries.is_empty() {
            self.entries.shrink_to_fit();
        }
    }

    /// Reads a page; asking keeps the epoch alive.
    pub(super) fn read(&mut self, query: HistoryQuery, now: Instant) -> HistoryPage {
        self.touched = now;
        self.trim_aged(now);
        let hidden = self.aged(now, query.age);
        let visible = self.entries.len() - hidden;
        let limit = query.limit as usize;
        let (skipped, tag_at_start) = match query.start {
            Start::Last => (visible.saturating_sub(limit), None),
            Start::After(offset) => {
                let first = self.top.offset - visible as u64 + 1;
                let skipped =
                    offset.saturating_add(1).saturating_sub(first).min(visible as u64) as usize;
                (skipped, self.tag_at(offset, hidden))
            }
        };
        let publications = self
            .entries
            .range(hidden + skipped..)
            .take(limit)
            .map(|entry| entry.publication.clone())
            .collect();
        HistoryPage { top: self.top, tag_at_start, publications }
    }

    /// Cuts everything after `keep_offset`, as a promoted replica that never saw it would.
    pub(super) fn fork(&mut self, keep_offset: u64) {
        while self.top.offset > keep_offset {
            self.top.offset -= 1;
            self.top.tag = match self.entries.pop_back() {
                Some(lost) => lost.publication.previous_tag.unwrap_or(Position::START_TAG),
                // Trimmed before: its tag is gone for good, and any other one will not match.
                None => Tag::from_random(rand::random()),
            };
        }
        if keep_offset == 0 {
            self.top.tag = Position::START_TAG;
        }
    }

    /// Whether the position was lost: then a new epoch begins, with the same entries.
    pub(super) fn fence(&mut self, known: Position) -> bool {
        if known.epoch != self.top.epoch {
            return false;
        }
        let lost = match self.tag_at(known.offset, 0) {
            Some(tag) => tag != known.tag,
            // Beyond the top it is lost, before the oldest entry it was trimmed.
            None => known.offset > self.top.offset,
        };
        if lost {
            self.top.epoch = Epoch::from_random(rand::random());
            for entry in &mut self.entries {
                if let Some(position) = &mut entry.publication.position {
                    position.epoch = self.top.epoch;
                }
            }
        }
        lost
    }

    /// How many of the oldest entries are older than `age`.
    fn aged(&self, now: Instant, age: Duration) -> usize {
        self.entries.partition_point(|entry| now.saturating_duration_since(entry.at) > age)
    }

    /// The tag at `offset`, from the top, the entry itself or its successor.
    fn tag_at(&self, offset: u64, hidden: usize) -> Option<Tag> {
        if offset >= self.top.offset {
            return (offset == self.top.offset).then_some(self.top.tag);
        }
        let behind = usize::try_from(self.top.offset - offset).ok()?;
        let successor = self.entries.len().checked_sub(behind)?;
        if successor < hidden {
            return None;
        }
        self.entries.get(successor)?.publication.previous_tag
    }
}
