//! Pages of long polls' answers: one list a user, and beside it in the same slot the count of a minute's polls.

use std::time::Duration;

use async_trait::async_trait;
use carillon_protocol::UserId;
use redis::Value;

use super::names::Names;
use super::{RedisBroker, answer, scripts};
use crate::polls::{
    CountedPage, CountedPoll, NewPollPage, POLL_LIFETIME, POLL_PAGES_BYTES_MAX, POLL_PAGES_MAX,
    PollLimit, PollPage, PollState, PollStore,
};
use crate::store::Clock;
use crate::{BrokerError, RateCount};

/// The lifetime is given anew once in so long.
const RENEWED: Duration = Duration::from_secs(3_600);

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
        let (pages, counter) = self.inner.shared.names.polls(user);
        let mut command = scripts::KEEP_POLL_PAGE.call(&[&pages, &counter]);
        command.arg(&page.question).arg(page.after).arg(page.count.max(1)).arg(&page.body);
        command.arg(POLL_PAGES_MAX).arg(POLL_PAGES_BYTES_MAX).arg(ms(POLL_LIFETIME + RENEWED));
        command.arg(Clock::system().now().unix_ms());
        if let Some(limit) = limit {
            command.arg(ms(limit.window).max(1)).arg(limit.polls);
        }
        let place = self.inner.layout.place(&Names::user_tag(user));
        let (count, left, kept): (u64, i64, Value) =
            answer::read(self.inner.layout.run(&place, &command).await?)?;
        let page = match kept {
            Value::Int(first) => {
                let first_id = u64::try_from(first).map_err(BrokerError::unavailable)?;
                Some(PollPage { first_id, count: page.count.max(1), body: page.body })
            }
            other => parse(&answer::read::<String>(other)?),
        };
        Ok(CountedPage { rate: limit.map(|_| rate(count, left)), page })
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
