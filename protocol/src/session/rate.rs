//! A token bucket that also notices abuse: refusals that go on for three seconds (R27, `protocol.md` 5).

/// A pause in refusals of this length ends a run of abuse.
const ABUSE_GAP_MS: u64 = 1_000;
/// Refusals running this long are abuse.
const ABUSE_RUN_MS: u64 = 3_000;

/// What happens to a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Goes on.
    Admit,
    /// Refused; worth trying again after so long.
    Refuse {
        /// Milliseconds until one message would be admitted.
        retry_after_ms: u64,
    },
    /// Refused for three seconds running.
    Abuse,
}

/// Bucket of `rate` messages refilled at `rate` a second. Zero admits everything.
#[derive(Clone, Debug)]
pub struct Rate {
    per_second: u32,
    /// Thousandths of a message left.
    level_milli: u64,
    filled_at_ms: u64,
    refused_since_ms: u64,
    refused_at_ms: u64,
}

impl Rate {
    /// A full bucket.
    #[must_use]
    pub fn new(per_second: u32, now_ms: u64) -> Self {
        Self {
            per_second,
            level_milli: u64::from(per_second) * 1_000,
            filled_at_ms: now_ms,
            refused_since_ms: 0,
            refused_at_ms: 0,
        }
    }

    /// Changes the rate; what is left stays, up to the new bucket. A bucket that had no bound begins full.
    pub fn adjust(&mut self, per_second: u32, now_ms: u64) {
        if per_second == self.per_second {
            return;
        }
        if self.per_second == 0 {
            *self = Self::new(per_second, now_ms);
            return;
        }
        self.refill(now_ms);
        self.per_second = per_second;
        self.level_milli = self.level_milli.min(u64::from(per_second) * 1_000);
    }

    /// Lets time flow in without taking anything.
    pub fn refill(&mut self, now_ms: u64) {
        let rate = u64::from(self.per_second);
        let elapsed_ms = now_ms.saturating_sub(self.filled_at_ms);
        self.level_milli = (self.level_milli + elapsed_ms.saturating_mul(rate)).min(rate * 1_000);
        self.filled_at_ms = now_ms.max(self.filled_at_ms);
    }

    /// Takes one message out.
    pub fn take(&mut self, now_ms: u64) -> Verdict {
        if self.per_second == 0 {
            return Verdict::Admit;
        }
        self.refill(now_ms);
        let rate = u64::from(self.per_second);
        if self.level_milli >= 1_000 {
            self.level_milli -= 1_000;
            return Verdict::Admit;
        }
        if self.refused_at_ms == 0 || now_ms.saturating_sub(self.refused_at_ms) > ABUSE_GAP_MS {
            self.refused_since_ms = now_ms;
        }
        self.refused_at_ms = now_ms.max(1);
        if now_ms.saturating_sub(self.refused_since_ms) >= ABUSE_RUN_MS {
            return Verdict::Abuse;
        }
        Verdict::Refuse { retry_after_ms: (1_000 - self.level_milli).div_ceil(rate).max(1) }
    }

    /// Whole messages that would be admitted now.
    #[must_use]
    pub fn remaining(&self) -> u64 {
        self.level_milli / 1_000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_rate_holds_from_now_on() {
        let mut rate = Rate::new(2, 0);
        assert_eq!((rate.take(0), rate.take(0)), (Verdict::Admit, Verdict::Admit));
        rate.adjust(10, 0);
        assert_eq!(rate.take(0), Verdict::Refuse { retry_after_ms: 100 });
        assert_eq!(rate.take(100), Verdict::Admit);
        rate.adjust(0, 100);
        assert!((0..1_000).all(|_| rate.take(100) == Verdict::Admit));
        rate.adjust(3, 100);
        assert_eq!((0..4).filter(|_| rate.take(100) == Verdict::Admit).count(), 3);
        rate.refill(10_000);
        rate.adjust(1, 10_000);
        assert_eq!(rate.remaining(), 1);
    }
}
