//! Fixed rate windows. Time is a parameter.

use std::collections::HashMap;
use std::time::Duration;

use foldhash::fast::RandomState;
use tokio::time::Instant;

use crate::RateCount;

/// How often windows that are over are dropped.
const SWEEP_EVERY: Duration = Duration::from_secs(60);

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
