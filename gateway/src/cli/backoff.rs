//! How long to wait before trying again: full jitter, so that many clients do not come back at once.

use std::time::Duration;

use rand::Rng as _;

/// Waits that grow to a bound, each drawn from zero to its bound.
#[derive(Debug)]
pub(super) struct Backoff {
    first: Duration,
    longest: Duration,
    attempt: u32,
}

impl Backoff {
    pub(super) fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, attempt: 0 }
    }

    /// It worked: the next wait is a first one.
    pub(super) fn reset(&mut self) {
        self.attempt = 0;
    }

    /// The next wait.
    pub(super) fn next(&mut self) -> Duration {
        let bound = self.first.saturating_mul(1 << self.attempt.min(16)).min(self.longest);
        self.attempt = self.attempt.saturating_add(1);
        bound.mul_f64(rand::rng().random_range(0.0..1.0))
    }
}
