//! The node's two clocks: wall time for what people read, monotonic time for deadlines.

use std::sync::LazyLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Unix milliseconds.
#[must_use]
pub fn unix_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

/// Milliseconds since the process began to ask; never goes back, begins at one hour so that
/// subtraction of any sane interval stays positive.
#[must_use]
pub fn monotonic_ms() -> u64 {
    3_600_000 + START.elapsed().as_millis() as u64
}
