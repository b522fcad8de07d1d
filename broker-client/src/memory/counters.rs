//! Fixed rate windows and the `inbound` stream. Time is a parameter.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use foldhash::fast::RandomState;
use tokio::time::Instant;

use crate::{InboundEntry, RateCount};

/// How often windows that are over are dropped.
const SWEEP_EVERY: Duration = Duration::from_secs(60);

/// Newest entries of `inbound` that are kept; far fewer than in Redis, because no other process can read them.
const INBOUND_MAX: usize = 1_000;

/// Calls counted under keys.
pub(super) struct Windows {
    windows: HashMap<String, (Instant, u64), RandomState>,
    sweep_at: Instant,
}

impl Default for Windows {
    fn default() -> Self {
        Self { windows: HashMap::default(), sweep_at: Instant::now() + SWEEP_EVERY }
    }
}

impl Windows {
    pub(super) fn count(&mut self, key: &str, window: Duration, now: Instant) -> RateCount {
        if now >= self.sweep_at {
            self.windows.retain(|_, (end, _)| *end > now);
            self.sweep_at = now + SWEEP_EVERY;
        }
        let (end, count) = match self.windows.get_mut(key) {
            Some(open) => open,
            None => self.windows.entry(key.to_owned()).or_insert((now + window, 0)),
        };
        if *end <= now {
            (*end, *count) = (now + window, 0);
        }
        *count += 1;
        RateCount { count: *count, reset_in: *end - now }
    }
}

/// The newest entries with their ids.
#[derive(Default)]
pub(super) struct Inbound {
    entries: VecDeque<(String, InboundEntry)>,
    last: (u64, u64),
}

impl Inbound {
    /// Appends under `unix_ms-number`, greater than every id before.
    pub(super) fn append(&mut self, entry: InboundEntry, unix_ms: u64) -> String {
        let (last_ms, number) = self.last;
        self.last = if unix_ms > last_ms { (unix_ms, 0) } else { (last_ms, number + 1) };
        let id = format!("{}-{}", self.last.0, self.last.1);
        if self.entries.len() == INBOUND_MAX {
            self.entries.pop_front();
        }
        self.entries.push_back((id.clone(), entry));
        id
    }

    pub(super) fn entries(&self) -> Vec<(String, InboundEntry)> {
        self.entries.iter().cloned().collect()
    }
}
