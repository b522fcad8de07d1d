//! What a check found: figures against their bounds and the judge's verdict, as JSON and for a reader.

use super::judge::Verdict;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// Times, in milliseconds when read.
pub(crate) struct Latency(Histogram<u64>);

impl Default for Latency {
    fn default() -> Self {
        Self(Histogram::new_with_bounds(1, 600_000_000_000, 3).expect("constant bounds"))
    }
}

impl Latency {
    /// Adds one.
    pub(crate) fn record(&mut self, time: Duration) {
        self.record_ns(time.as_nanos() as u64);
    }

    /// Adds one.
    pub(crate) fn record_ns(&mut self, ns: u64) {
        self.0.saturating_record(ns.max(1));
    }

    /// Forgets all, and gives what there was.
    pub(crate) fn take(&mut self) -> Self {
        std::mem::take(self)
    }

    /// Takes in another's.
    pub(crate) fn add(&mut self, other: &Self) {
        self.0.add(&other.0).expect("equal bounds");
    }

    /// How many.
    pub(crate) fn count(&self) -> u64 {
        self.0.len()
    }

    /// A quantile, milliseconds; 0 where there is none.
    pub(crate) fn ms(&self, quantile: f64) -> f64 {
        if self.0.is_empty() { 0.0 } else { self.0.value_at_quantile(quantile) as f64 / 1e6 }
    }
}

/// One measured figure.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Figure {
    pub(crate) name: String,
    pub(crate) value: f64,
    pub(crate) unit: String,
    /// It must not be more; `None` is only told.
    pub(crate) most: Option<f64>,
}

impl Figure {
    /// One that is only told.
    pub(crate) fn told(name: impl Into<String>, value: f64, unit: &str) -> Self {
        Self { name: name.into(), value, unit: unit.to_owned(), most: None }
    }

    /// One that must not be more than `most`.
    pub(crate) fn at_most(name: impl Into<String>, value: f64, unit: &str, most: f64) -> Self {
        Self { most: Some(most), ..Self::told(name, value, unit) }
    }

    fn kept(&self) -> bool {
        self.most.is_none_or(|most| self.value <= most)
    }
}

/// See the module.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) scenario: String,
    pub(crate) seed: u64,
    pub(crate) clients: usize,
    pub(crate) nodes: usize,
    pub(crate) seconds: f64,
    /// What was broken, and when (seconds).
    pub(crate) faults: Vec<String>,
    pub(crate) figures: Vec<Figure>,
    pub(crate) verdict: Verdict,
    /// Connects tried again, by reason.
    pub(crate) retried: BTreeMap<String, u64>,
    /// Publishes tried again, by reason.
    pub(crate) refused: BTreeMap<String, u64>,
    /// What went wrong beside.
    pub(crate) problems: Vec<String>,
    pub(crate) passed: bool,
}

impl Report {
    /// Decides whether it passed.
    pub(crate) fn close(mut self) -> Self {
        self.passed = self.verdict.clean()
            && self.problems.is_empty()
            && self.figures.iter().all(Figure::kept);
        self
    }

    /// For a reader at a terminal.
    pub(crate) fn human(&self) -> String {
        let Self { scenario, seed, clients, nodes, seconds, verdict, .. } = self;
        let mut text = format!(
            "{} {scenario}: seed {seed}, {nodes} nodes, {clients} clients, {seconds:.0} s\n",
            if self.passed { "ok  " } else { "FAIL" }
        );
        let mut row = |name: &str, value: &str| text.push_str(&format!("  {name:<46}{value}\n"));
        for fault in &self.faults {
            row("broke", fault);
        }
        for figure in &self.figures {
            let bound = figure.most.map_or(String::new(), |most| {
                format!("  (at most {most}{})", if figure.kept() { "" } else { ", NOT KEPT" })
            });
            row(&figure.name, &format!("{:.1} {}{bound}", figure.value, figure.unit));
        }
        row(
            "acknowledged / not, delivered, recovered",
            &format!(
                "{} / {}, {}, {}",
                verdict.acknowledged, verdict.unacknowledged, verdict.delivered, verdict.recovered
            ),
        );
        row(
            "lost, vanished, duplicated, reordered, forked",
            &format!(
                "{}, {}, {}, {}, {}",
                verdict.lost,
                verdict.vanished,
                verdict.duplicated,
                verdict.reordered,
                verdict.forked
            ),
        );
        row(
            "ghosts, wrong counts, told needlessly",
            &format!("{}, {}, {}", verdict.ghosts, verdict.miscounted, verdict.needless),
        );
        let list = |counts: &BTreeMap<String, u64>| {
            let all: Vec<String> =
                counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
            if all.is_empty() { "none".to_owned() } else { all.join(", ") }
        };
        row("told that something may be missing", &list(&verdict.told));
        row("connects tried again", &list(&self.retried));
        row("publishes tried again", &list(&self.refused));
        for words in verdict.examples.iter().chain(&self.problems) {
            row("!", words);
        }
        text
    }
}
