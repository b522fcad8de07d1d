//! The records of a run, in the order in which they were made, with the time for people who read them.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::records::Record;

/// Cheap to clone; clones write the same records.
#[derive(Clone)]
pub(crate) struct Log {
    began: Instant,
    lines: Arc<Mutex<Vec<(u64, Line)>>>,
}

/// A record, or a word of the nemesis.
#[derive(Clone, Debug)]
pub(crate) enum Line {
    Record(Record),
    Note(String),
}

impl Log {
    /// An empty log that begins now.
    pub(crate) fn new() -> Self {
        Self { began: Instant::now(), lines: Arc::default() }
    }

    pub(crate) fn push(&self, record: Record) {
        self.line(Line::Record(record));
    }

    /// For people.
    pub(crate) fn note(&self, words: impl Into<String>) {
        self.line(Line::Note(words.into()));
    }

    fn line(&self, line: Line) {
        let at_ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.lines.lock().push((at_ms, line));
    }

    pub(crate) fn records(&self) -> Vec<Record> {
        let of = |(_, line): &(u64, Line)| match line {
            Line::Record(record) => Some(record.clone()),
            Line::Note(_) => None,
        };
        self.lines.lock().iter().filter_map(of).collect()
    }

    /// Everything, a line each.
    pub(crate) fn text(&self) -> String {
        let lines = self.lines.lock();
        let text = lines.iter().map(|(at_ms, line)| match line {
            Line::Record(record) => format!("{at_ms:>7} {record:?}\n"),
            Line::Note(words) => format!("{at_ms:>7} -- {words}\n"),
        });
        text.collect()
    }
}
