//! Polls a minute and user, counted over the cluster. `protocol.md` 5, rulings R27, R31.

use std::time::Duration;

use carillon_broker_client::{NewPollPage, PollLimit, PollPage, RateCount};
use carillon_protocol::channel::escape_segment;
use carillon_protocol::envelope::Refusal;
use carillon_protocol::{ErrorCode, UserId};

use crate::clock;
use crate::node::Node;

const WINDOW: Duration = Duration::from_secs(60);
/// Polls that must be left for one to be counted late.
const ROOM: u64 = 8;
const TOO_MANY: &str = "Too many polls";

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

    /// What stands in an answer before anybody was counted; `None` where the limit is switched off.
    pub(super) fn uncounted(node: &Node) -> Option<Self> {
        let counted = RateCount { count: 0, reset_in: Duration::ZERO };
        limit(node).map(|limit| Self { limit, counted })
    }

    /// `RATE_LIMITED` when it was one too many.
    pub(super) fn refusal(&self) -> Option<Refusal> {
        let retry_after_ms = self.counted.reset_in.as_millis().max(1) as u64;
        (self.counted.count > self.limit).then(|| {
            Refusal::new(ErrorCode::RateLimited, TOO_MANY).with("retry_after_ms", retry_after_ms)
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

/// What a poll counts for, and whether it was counted: when it begins, unless its answer is at hand and there is room
/// for it without doubt; then in the same step as its answer is kept.
#[derive(Debug)]
pub(super) struct Toll {
    limit: Option<u64>,
    owed: bool,
    /// What was counted; `None` before, and where the limit is switched off.
    pub(super) rate: Option<Rate>,
}

impl Toll {
    /// Of a poll that begins.
    pub(super) fn new(node: &Node) -> Self {
        Self { limit: limit(node), owed: true, rate: None }
    }

    /// Whether a poll that goes on from one with this rate may be counted with its answer. Each node may have one such poll
    /// of the user on its way: the limit is exact up to so many nodes.
    pub(super) fn may_be_late(&self, last: Option<Rate>) -> bool {
        let room = |rate: Rate| rate.limit.saturating_sub(rate.counted.count) >= ROOM;
        self.limit.is_none() || last.is_some_and(room)
    }

    /// Whether the poll is still to be counted.
    pub(super) fn is_owed(&self) -> bool {
        self.owed
    }

    /// Counts the poll now; what answered the same question before.
    ///
    /// # Errors
    /// `RATE_LIMITED`, `UNAVAILABLE`.
    pub(super) async fn pay(
        &mut self,
        node: &Node,
        user: &UserId,
        asked: Option<(u64, &str)>,
    ) -> Result<Option<PollPage>, Refusal> {
        self.owed = false;
        if self.limit.is_none() && asked.is_none() {
            return Ok(None);
        }
        let counted = node.broker.count_poll(user, self.limit.map(|_| WINDOW), asked).await;
        let counted = counted.map_err(|error| node.broker_refusal(&error))?;
        self.paid(counted.rate)?;
        Ok(counted.answered)
    }

    /// Keeps the page of the answer, and counts the poll if that is owed.
    ///
    /// # Errors
    /// `RATE_LIMITED`, `UNAVAILABLE`.
    pub(super) async fn keep(
        &mut self,
        node: &Node,
        user: &UserId,
        page: NewPollPage,
    ) -> Result<PollPage, Refusal> {
        let owed = std::mem::take(&mut self.owed);
        let limit = self.limit.filter(|_| owed);
        let limit = limit.map(|polls| PollLimit { window: WINDOW, polls });
        let kept = node.broker.keep_counted_poll_page(user, limit, page).await;
        let kept = kept.map_err(|error| node.broker_refusal(&error))?;
        self.paid(kept.rate)?;
        kept.page.ok_or_else(|| Refusal::new(ErrorCode::RateLimited, TOO_MANY))
    }

    fn paid(&mut self, counted: Option<RateCount>) -> Result<(), Refusal> {
        let counted = self.limit.zip(counted).map(|(limit, counted)| Rate { limit, counted });
        self.rate = counted.or(self.rate);
        self.rate.as_ref().and_then(Rate::refusal).map_or(Ok(()), Err)
    }
}

fn limit(node: &Node) -> Option<u64> {
    Some(u64::from(node.config.load().limits.polls_per_minute)).filter(|limit| *limit > 0)
}
