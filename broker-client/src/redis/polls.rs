//! Pages of long polls' answers: one list a user, and beside it in the same slot the count of a minute's polls. Where one server
//! has all keys, the pages of all who are about to be answered are kept together.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use carillon_protocol::UserId;
use redis::Value;

use super::crowd::{Asked, Crowd, Waiting, carry};
use super::names::Names;
use super::{Inner, RedisBroker, answer, scripts};
use crate::polls::{
    CountedPage, CountedPoll, NewPollPage, POLL_LIFETIME, POLL_PAGES_BYTES_MAX, POLL_PAGES_MAX,
    PollLimit, PollPage, PollState, PollStore,
};
use crate::store::Clock;
use crate::{BrokerError, RateCount};

/// The lifetime is given anew once in so long.
const RENEWED: Duration = Duration::from_secs(3_600);
/// Pages in one script: some 120 µs of Redis.
const TOGETHER_MAX: usize = 16;

/// Reads `first count before question body`; the body may hold anything.
fn parse(page: &str) -> Option<PollPage> {
    let mut parts = page.splitn(5, ' ');
    let first_id = parts.next()?.parse().ok()?;
    let count = parts.next()?.parse().ok()?;
    let (_before, _question) = (parts.next()?, parts.next()?);
    Some(PollPage { first_id, count, body: parts.next()?.to_owned() })
}

fn rate(count: u64, left_ms: i64) -> RateCount {
    RateCount { count, reset_in: Duration::from_millis(u64::try_from(left_ms).unwrap_or(0)) }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A page that is to be kept.
pub(super) struct Keeping {
    user: UserId,
    limit: Option<PollLimit>,
    page: NewPollPage,
}

type Kept = Result<CountedPage, BrokerError>;

/// Where callers ask for a page to be kept.
pub(super) type Keepers = Crowd<Keeping, Kept>;

impl Inner {
    /// Keeps pages in one step.
    async fn keep_asked(&self, asked: Vec<Asked<Keeping, Kept>>) {
        let (keeping, replies): (Vec<_>, Vec<_>) = asked.into_iter().map(Asked::into_parts).unzip();
        for (kept, reply) in self.keep_pages(keeping).await.into_iter().zip(replies) {
            // Whoever gave up asks again with the same number.
            let _gone = reply.send(kept);
        }
    }

    /// Keeps pages whose users' keys are on one server.
    async fn keep_pages(&self, keeping: Vec<Keeping>) -> Vec<Kept> {
        let kept = self.try_keep(&keeping).await;
        let mut kept = kept.map(Vec::into_iter);
        let keeping = keeping.into_iter();
        let read = |Keeping { limit, page, .. }| match &mut kept {
            Ok(values) => one_kept(limit, page, values),
            Err(error) => Err(error.clone()),
        };
        keeping.map(read).collect()
    }

    async fn try_keep(&self, keeping: &[Keeping]) -> Result<Vec<Value>, BrokerError> {
        let Some(first) = keeping.first() else { return Ok(Vec::new()) };
        let of_user =
            |keeping: &Keeping| <[String; 2]>::from(self.shared.names.polls(&keeping.user));
        let keys: Vec<String> = keeping.iter().flat_map(of_user).collect();
        let mut command =
            scripts::KEEP_POLL_PAGES.call(&keys.iter().map(String::as_str).collect::<Vec<_>>());
        command.arg(POLL_PAGES_MAX).arg(POLL_PAGES_BYTES_MAX).arg(ms(POLL_LIFETIME + RENEWED));
        command.arg(Clock::system().now().unix_ms());
        for Keeping { limit, page, .. } in keeping {
            command.arg(&page.question).arg(page.after).arg(page.count.max(1)).arg(&page.body);
            let window_ms = limit.map_or(0, |limit| ms(limit.window).max(1));
            command.arg(window_ms).arg(limit.map_or(0, |limit| limit.polls));
        }
        let place = self.layout.place(&Names::user_tag(&first.user));
        answer::items(self.layout.run(&place, &command).await?)
    }
}

/// Reads what the script answers for one page.
fn one_kept(
    limit: Option<PollLimit>,
    page: NewPollPage,
    values: &mut impl Iterator<Item = Value>,
) -> Result<CountedPage, BrokerError> {
    let mut next = || values.next().ok_or_else(missing);
    let (count, left, kept) = (answer::read(next()?)?, answer::read(next()?)?, next()?);
    let page = match kept {
        Value::Int(first) => {
            let first_id = u64::try_from(first).map_err(BrokerError::unavailable)?;
            Some(PollPage { first_id, count: page.count.max(1), body: page.body })
        }
        other => parse(&answer::read::<String>(other)?),
    };
    Ok(CountedPage { rate: limit.map(|_| rate(count, left)), page })
}

fn missing() -> BrokerError {
    BrokerError::unavailable("an answer is missing")
}

/// Spawned under the broker's tasks; it must not keep the broker alive.
pub(super) fn spawn(inner: &Arc<Inner>, waiting: Waiting<Keeping, Kept>) {
    let weak = Arc::downgrade(inner);
    let leave = move |asked| {
        let inner = weak.upgrade()?;
        Some(async move { inner.keep_asked(asked).await })
    };
    inner.shared.tasks.spawn(carry(inner.stop.clone(), waiting, TOGETHER_MAX, leave));
}

#[async_trait]
impl PollStore for RedisBroker {
    async fn count_poll(
        &self,
        user: &UserId,
        window: Option<Duration>,
        asked: Option<(u64, &str)>,
    ) -> Result<CountedPoll, BrokerError> {
        let (pages, counter) = self.inner.shared.names.polls(user);
        let (id, question) = asked.unwrap_or_default();
        let mut command = scripts::COUNT_POLL.call(&[&counter, &pages]);
        command.arg(window.map_or(0, |window| ms(window).max(1))).arg(id).arg(question);
        let place = self.inner.layout.place(&Names::user_tag(user));
        let (count, left, page): (u64, i64, String) =
            answer::read(self.inner.layout.run(&place, &command).await?)?;
        Ok(CountedPoll { rate: window.map(|_| rate(count, left)), answered: parse(&page) })
    }

    async fn find_poll_pages(
        &self,
        user: &UserId,
        id: u64,
        question: &str,
    ) -> Result<PollState, BrokerError> {
        let (pages, _counter) = self.inner.shared.names.polls(user);
        let mut command = scripts::FIND_POLL_PAGES.call(&[&pages]);
        command.arg(id).arg(question);
        let place = self.inner.layout.place(&Names::user_tag(user));
        let (origin, answered): (String, String) =
            answer::read(self.inner.layout.run(&place, &command).await?)?;
        Ok(PollState { origin: parse(&origin), answered: parse(&answered) })
    }

    async fn keep_poll_page(
        &self,
        user: &UserId,
        page: NewPollPage,
    ) -> Result<PollPage, BrokerError> {
        let kept = self.keep_counted_poll_page(user, None, page).await?;
        kept.page.ok_or_else(|| BrokerError::Invalid("a poll page cannot be read".to_owned()))
    }

    async fn keep_counted_poll_page(
        &self,
        user: &UserId,
        limit: Option<PollLimit>,
        page: NewPollPage,
    ) -> Result<CountedPage, BrokerError> {
        let keeping = Keeping { user: user.clone(), limit, page };
        if self.inner.layout.is_one_server() {
            return self.inner.keepers.ask(keeping).await?;
        }
        self.inner.keep_pages(vec![keeping]).await.pop().unwrap_or_else(|| Err(missing()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_read_as_the_script_writes_it() {
        let page = parse("17 3 400 16:ab {\"a\": \"b c\"}").expect("a page");
        assert_eq!(page, PollPage { first_id: 17, count: 3, body: "{\"a\": \"b c\"}".to_owned() });
        assert_eq!(parse("17 1 0  x").expect("no question").body, "x");
        assert_eq!(parse(""), None);
    }
}
