//! What the judge says of a run: counts, and some findings in words.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How many findings are described in words.
const EXAMPLES_MAX: usize = 20;

/// What the log shows. Everything but the first counts and `told` must be zero.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Verdict {
    /// Messages that the server acknowledged.
    pub(crate) acknowledged: u64,
    /// Messages that were never acknowledged; they may exist or not.
    pub(crate) unacknowledged: u64,
    /// Messages heard, by all clients together.
    pub(crate) delivered: u64,
    /// Subscriptions that went on after a cut with nothing missing.
    pub(crate) recovered: u64,
    /// Times that a client was told that something may be missing, by reason.
    pub(crate) told: BTreeMap<String, u64>,
    /// Messages that a client should have heard, and neither did nor was told.
    pub(crate) lost: u64,
    /// Acknowledged messages that history does not hold although Redis kept its data.
    pub(crate) vanished: u64,
    /// Messages heard twice.
    pub(crate) duplicated: u64,
    /// Messages heard after a later one.
    pub(crate) reordered: u64,
    /// Spans that continue in another history without a word.
    pub(crate) forked: u64,
    /// Times that a client was told although nothing was lost.
    pub(crate) needless: u64,
    /// Users shown as present who left, and present ones not shown.
    pub(crate) ghosts: u64,
    /// Counts that are wrong at rest.
    pub(crate) miscounted: u64,
    /// Some findings in words.
    pub(crate) examples: Vec<String>,
}

impl Verdict {
    /// Whether every promise was kept.
    pub(crate) fn clean(&self) -> bool {
        self.lost + self.vanished + self.duplicated + self.reordered + self.forked + self.needless
            == 0
            && self.ghosts + self.miscounted == 0
    }

    pub(super) fn note(&mut self, text: impl FnOnce() -> String) {
        if self.examples.len() < EXAMPLES_MAX {
            self.examples.push(text());
        }
    }
}
