//! Polls a minute and user, counted over the cluster. `protocol.md` 5, rulings R27, R31.

use std::time::Duration;

use carillon_broker_client::{PollPage, RateCount};
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
    /// Counts one look at what was missed; `None` where the limit is switched off.
    ///
    /// # Errors
    /// `UNAVAILABLE`.
    pub(super) async fn count_missed(node: &Node, user: &UserId) -> Result<Option<Self>, Refusal> {
        let Some(limit) = limit(node) else { return Ok(None) };
        let key = format!("missed:{}", escape_segment(user.as_str()));
        let counted =
            node.broker.count(&key, WINDOW).await.map_err(|error| node.broker_refusal(&error))?;
        Ok(Some(Self { limit, counted }))
    }

    /// Counts one poll, as [`Rate::count_missed`]; with it comes what answered the same question before.
    ///
    /// # Errors
    /// `UNAVAILABLE`.
    pub(super) async fn count_poll(
        node: &Node,
        user: &UserId,
        asked: Option<(u64, &str)>,
    ) -> Result<(Option<Self>, Option<PollPage>), Refusal> {
        let limit = limit(node);
        if limit.is_none() && asked.is_none() {
            return Ok((None, None));
        }
        let counted = node.broker.count_poll(user, limit.map(|_| WINDOW), asked).await;
        let counted = counted.map_err(|error| node.broker_refusal(&error))?;
        let rate = limit.zip(counted.rate).map(|(limit, counted)| Self { limit, counted });
        Ok((rate, counted.answered))
    }

    /// What stands in an answer before anybody was counted; `None` where the limit is switched off.
    pub(super) fn uncounted(node: &Node) -> Option<Self> {
        let counted = RateCount { count: 0, reset_in: Duration::ZERO };
        limit(node).map(|limit| Self { limit, counted })
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

fn limit(node: &Node) -> Option<u64> {
    Some(u64::from(node.config.load().limits.polls_per_minute)).filter(|limit| *limit > 0)
}
