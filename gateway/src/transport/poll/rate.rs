//! Polls a minute and user, counted over the cluster. `protocol.md` 5, rulings R27, R31.

use std::time::Duration;

use carillon_broker_client::RateCount;
use carillon_protocol::channel::escape_segment;
use carillon_protocol::envelope::Refusal;
use carillon_protocol::{ErrorCode, UserId};

use crate::clock;
use crate::node::Node;

const WINDOW: Duration = Duration::from_secs(60);

/// What was counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rate {
    limit: u64,
    counted: RateCount,
}

impl Rate {
    /// Counts one call; `None` where the limit is switched off.
    ///
    /// # Errors
    /// `UNAVAILABLE`.
    pub(super) async fn count(
        node: &Node,
        counter: &str,
        user: &UserId,
    ) -> Result<Option<Self>, Refusal> {
        let limit = u64::from(node.config.load().limits.polls_per_minute);
        if limit == 0 {
            return Ok(None);
        }
        let key = format!("{counter}:{}", escape_segment(user.as_str()));
        let counted =
            node.broker.count(&key, WINDOW).await.map_err(|error| node.broker_refusal(&error))?;
        Ok(Some(Self { limit, counted }))
    }

    /// `RATE_LIMITED` when it was one too many.
    pub(super) fn refusal(&self) -> Option<Refusal> {
        let retry_after_ms = self.counted.reset_in.as_millis().max(1) as u64;
        (self.counted.count > self.limit).then(|| {
            Refusal::new(ErrorCode::RateLimited, "Too many polls")
                .with("retry_after_ms", retry_after_ms)
        })
    }

    /// Names and values; the reset is when the window ends, Unix seconds.
    pub(super) fn headers(&self) -> [(&'static str, u64); 3] {
        let reset_ms = clock::unix_ms().max(0) as u64 + self.counted.reset_in.as_millis() as u64;
        [
            ("x-ratelimit-limit", self.limit),
            ("x-ratelimit-remaining", self.limit.saturating_sub(self.counted.count)),
            ("x-ratelimit-reset", reset_ms.div_ceil(1_000)),
        ]
    }
}
