//! Pages of long polls' answers: one sorted set and one hash a user, both in one slot.

use async_trait::async_trait;
use carillon_protocol::UserId;

use super::names::Names;
use super::{RedisBroker, answer, scripts};
use crate::BrokerError;
use crate::polls::{
    NewPollPage, POLL_LIFETIME, POLL_PAGES_BYTES_MAX, POLL_PAGES_MAX, PollPage, PollState,
    PollStore,
};

/// Reads `first count question body`; the body may hold anything.
fn parse(page: &str) -> Option<PollPage> {
    let mut parts = page.splitn(4, ' ');
    let first_id = parts.next()?.parse().ok()?;
    let count = parts.next()?.parse().ok()?;
    let _question = parts.next()?;
    Some(PollPage { first_id, count, body: parts.next()?.to_owned() })
}

#[async_trait]
impl PollStore for RedisBroker {
    async fn find_poll_pages(
        &self,
        user: &UserId,
        id: u64,
        question: &str,
    ) -> Result<PollState, BrokerError> {
        let (pages, state) = self.inner.shared.names.polls(user);
        let mut command = scripts::FIND_POLL_PAGES.call(&[&pages, &state]);
        command.arg(id).arg(question);
        let place = self.inner.layout.place(&Names::user_tag(user));
        let (origin, answered): (String, String) =
            answer::read(self.inner.layout.run(&place, &command).await?)?;
        let origin =
            parse(&origin).filter(|page| page.first_id <= id && id - page.first_id < page.count);
        Ok(PollState { origin, answered: parse(&answered) })
    }

    async fn keep_poll_page(
        &self,
        user: &UserId,
        page: NewPollPage,
    ) -> Result<PollPage, BrokerError> {
        let (pages, state) = self.inner.shared.names.polls(user);
        let lifetime_ms = POLL_LIFETIME.as_millis() as u64;
        let mut command = scripts::KEEP_POLL_PAGE.call(&[&pages, &state]);
        command.arg(&page.question).arg(page.count.max(1)).arg(&page.body);
        command.arg(POLL_PAGES_MAX).arg(POLL_PAGES_BYTES_MAX).arg(lifetime_ms).arg(page.after);
        let place = self.inner.layout.place(&Names::user_tag(user));
        let kept: String = answer::read(self.inner.layout.run(&place, &command).await?)?;
        parse(&kept).ok_or_else(|| BrokerError::Invalid("a poll page cannot be read".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_read_as_the_script_writes_it() {
        let page = parse("17 3 16:ab {\"a\": \"b c\"}").expect("a page");
        assert_eq!(page, PollPage { first_id: 17, count: 3, body: "{\"a\": \"b c\"}".to_owned() });
        assert_eq!(parse("17 1  x").expect("no question").body, "x");
        assert_eq!(parse(""), None);
    }
}
