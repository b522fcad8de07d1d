//! The node's two clocks: wall time for what people read, monotonic time for deadlines. The monotonic one is
//! tokio's, which a simulation moves by hand.

use std::sync::LazyLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// The system's: a runtime with a clock of its own begins later.
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
    let start = *START;
    let now = tokio::time::Instant::now().into_std();
    3_600_000 + now.saturating_duration_since(start).as_millis() as u64
}
