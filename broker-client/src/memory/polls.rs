//! Pages of long polls' answers, in memory. Time is a parameter of what keeps them.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use carillon_protocol::UserId;
use foldhash::fast::RandomState;
use tokio::time::Instant;

use super::MemoryBroker;
use crate::BrokerError;
use crate::polls::{
    CountedPage, CountedPoll, NewPollPage, POLL_LIFETIME, POLL_PAGES_BYTES_MAX, POLL_PAGES_MAX,
    PollLimit, PollPage, PollState, PollStore,
};

/// Users whose pages are looked at for each one kept, so that what expired goes without a sweep.
const SWEEP_USERS: usize = 4_096;

/// Pages by user.
#[derive(Default)]
pub(super) struct Polls {
    users: HashMap<String, Pages, RandomState>,
    kept_since_sweep: usize,
}

struct Pages {
    last_id: u64,
    /// In order of their ids.
    pages: VecDeque<(String, PollPage)>,
    bytes: usize,
    expires_at: Instant,
}

impl Pages {
    /// The page that answered a question: its ids are greater than the one that was asked with.
    fn answered(&self, after: u64, question: &str) -> Option<PollPage> {
        let later = self.pages.iter().rev().take_while(|(_, page)| page.first_id > after);
        let same = |(asked, _): &&(String, PollPage)| !question.is_empty() && asked == question;
        later.into_iter().find(same).map(|(_, page)| page.clone())
    }

    fn origin(&self, id: u64) -> Option<PollPage> {
        let behind = self.pages.partition_point(|(_, page)| page.first_id <= id);
        let (_, page) = self.pages.get(behind.checked_sub(1)?)?;
        (id - page.first_id < page.count).then(|| page.clone())
    }

    fn forget_oldest(&mut self) {
        if let Some((_, oldest)) = self.pages.pop_front() {
            self.bytes -= oldest.body.len();
        }
    }
}

impl Polls {
    pub(super) fn answered(
        &self,
        user: &str,
        after: u64,
        question: &str,
        now: Instant,
    ) -> Option<PollPage> {
        self.users.get(user).filter(|pages| pages.expires_at > now)?.answered(after, question)
    }

    pub(super) fn find(&self, user: &str, id: u64, question: &str, now: Instant) -> PollState {
        let Some(pages) = self.users.get(user).filter(|pages| pages.expires_at > now) else {
            return PollState::default();
        };
        PollState { origin: pages.origin(id), answered: pages.answered(id, question) }
    }

    pub(super) fn keep(
        &mut self,
        user: &str,
        new: NewPollPage,
        unix_ms: u64,
        now: Instant,
    ) -> PollPage {
        self.sweep(now);
        let pages = self.users.entry(user.to_owned()).or_insert_with(|| Pages {
            last_id: 0,
            pages: VecDeque::new(),
            bytes: 0,
            expires_at: now,
        });
        if pages.expires_at <= now {
            pages.pages.clear();
            pages.bytes = 0;
        }
        pages.expires_at = now + POLL_LIFETIME;
        if let Some(page) = pages.answered(new.after, &new.question) {
            return page;
        }
        let count = new.count.max(1);
        let first_id = pages.last_id.max(new.after).saturating_add(1).max(unix_ms);
        pages.last_id = first_id + count - 1;
        let page = PollPage { first_id, count, body: new.body };
        pages.bytes += page.body.len();
        pages.pages.push_back((new.question, page.clone()));
        while pages.pages.len() > POLL_PAGES_MAX
            || (pages.pages.len() > 1 && pages.bytes > POLL_PAGES_BYTES_MAX)
        {
            pages.forget_oldest();
        }
        page
    }

    fn sweep(&mut self, now: Instant) {
        self.kept_since_sweep += 1;
        if self.kept_since_sweep >= SWEEP_USERS {
            self.kept_since_sweep = 0;
            self.users.retain(|_, pages| pages.expires_at > now);
        }
    }
}

#[async_trait]
impl PollStore for MemoryBroker {
    async fn count_poll(
        &self,
        user: &UserId,
        window: Option<Duration>,
        asked: Option<(u64, &str)>,
    ) -> Result<CountedPoll, BrokerError> {
        let (shared, now) = (self.0.available()?, Instant::now());
        let count = |window| shared.windows.lock().count(&format!("poll {user}"), window, now);
        let answered =
            |(after, question)| shared.polls.lock().answered(user.as_str(), after, question, now);
        Ok(CountedPoll { rate: window.map(count), answered: asked.and_then(answered) })
    }

    async fn find_poll_pages(
        &self,
        user: &UserId,
        id: u64,
        question: &str,
    ) -> Result<PollState, BrokerError> {
        Ok(self.0.available()?.polls.lock().find(user.as_str(), id, question, Instant::now()))
    }

    async fn keep_poll_page(
        &self,
        user: &UserId,
        page: NewPollPage,
    ) -> Result<PollPage, BrokerError> {
        Ok(self.0.available()?.polls.lock().keep(user.as_str(), page, unix_ms(), Instant::now()))
    }

    async fn keep_counted_poll_page(
        &self,
        user: &UserId,
        limit: Option<PollLimit>,
        page: NewPollPage,
    ) -> Result<CountedPage, BrokerError> {
        let rate = self.count_poll(user, limit.map(|limit| limit.window), None).await?.rate;
        let too_many = rate.zip(limit).is_some_and(|(rate, limit)| rate.count > limit.polls);
        let page = if too_many { None } else { Some(self.keep_poll_page(user, page).await?) };
        Ok(CountedPage { rate, page })
    }
}

fn unix_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
