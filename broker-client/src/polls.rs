//! What long polls leave in the store: pages of answers, so that any node serves any poll and the
//! same question gets the same answer. Source: `protocol.md` 6, ruling R31.
//!
//! * Ids grow for each user, also when the store lost its data or the user's pages expired: a fresh
//!   counter begins at the wall clock's milliseconds, and behind the id that was asked with.
//! * A page holds `count` ids in a row. What stands for them is the caller's text.
//! * A user's newest [`POLL_PAGES_MAX`] pages are kept for [`POLL_LIFETIME`] after the last one.
//!
//! It must not know: events, cursors, HTTP.

use std::time::Duration;

use async_trait::async_trait;
use carillon_protocol::UserId;

use crate::{BrokerError, RateCount};

/// Pages kept for each user: the last 1,000 ids or more, when pages are full.
pub const POLL_PAGES_MAX: usize = 64;

/// Bytes of pages kept for each user; the newest page always stays.
pub const POLL_PAGES_BYTES_MAX: usize = 256 * 1024;

/// How long a user's pages outlive the last one.
pub const POLL_LIFETIME: Duration = Duration::from_secs(48 * 3600);

/// A page that is to be kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewPollPage {
    /// What was asked; asking it again finds this page. Empty when nobody can ask it again. No spaces.
    pub question: String,
    /// The id that was asked with: those given are greater. A store that lost its data, or whose clock went back, would
    /// give it again, and its page would answer itself for ever.
    pub after: u64,
    /// Ids to give it, at least 1.
    pub count: u64,
    /// What stands for them.
    pub body: String,
}

/// A kept page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PollPage {
    /// The first of its ids.
    pub first_id: u64,
    /// How many ids it has.
    pub count: u64,
    /// What the caller gave.
    pub body: String,
}

/// What is known when a poll begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PollState {
    /// The page that the id belongs to; `None` for an unknown or outdated id.
    pub origin: Option<PollPage>,
    /// The page that answered the same question before.
    pub answered: Option<PollPage>,
}

/// A poll that was counted, and whether its question was answered before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CountedPoll {
    /// `None` where nothing was to be counted.
    pub rate: Option<RateCount>,
    /// The page that answered the same question before.
    pub answered: Option<PollPage>,
}

/// How many polls a user may begin in a window that begins with the first one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PollLimit {
    /// Its length.
    pub window: Duration,
    /// How many.
    pub polls: u64,
}

/// A page that was kept by a poll that was counted with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CountedPage {
    /// `None` where nothing was to be counted.
    pub rate: Option<RateCount>,
    /// What was kept; `None` when it was one poll too many.
    pub page: Option<PollPage>,
}

/// See the module. Part of [`crate::Broker`].
#[async_trait]
pub trait PollStore: Send + Sync + 'static {
    /// Counts a poll of a user in a window that begins with the first one, where there is a window, and finds the page
    /// that answered a question, where there is a question, which was asked with an id.
    async fn count_poll(
        &self,
        user: &UserId,
        window: Option<Duration>,
        asked: Option<(u64, &str)>,
    ) -> Result<CountedPoll, BrokerError>;

    /// Finds the page of an id, and the page that answered a question that was asked with it.
    async fn find_poll_pages(
        &self,
        user: &UserId,
        id: u64,
        question: &str,
    ) -> Result<PollState, BrokerError>;

    /// Keeps a page under fresh ids; where the question was answered meanwhile, that answer instead.
    async fn keep_poll_page(
        &self,
        user: &UserId,
        page: NewPollPage,
    ) -> Result<PollPage, BrokerError>;

    /// Counts a poll as [`PollStore::count_poll`] does, and where it is not one too many keeps its page as
    /// [`PollStore::keep_poll_page`] does, in one step.
    async fn keep_counted_poll_page(
        &self,
        user: &UserId,
        limit: Option<PollLimit>,
        page: NewPollPage,
    ) -> Result<CountedPage, BrokerError>;
}
