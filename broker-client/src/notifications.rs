//! Notifications as stored things: one record, an inbox for each recipient, and an outbox that drives
//! the fan-out to user channels. Source: the uno document, `http-api.md` 3, `channels.md` 4,
//! rulings R6 and R33–R37.
//!
//! * `create` is whole or not at all. Where all of Redis is one server, record, inbox entries and
//!   outbox entry are one script for up to 1,000 recipients. Beyond, and on several servers, record
//!   and outbox entry are one, and the inboxes follow from the outbox, whoever lives to write them;
//!   writing one twice changes nothing.
//! * Delivery and reading are each recipient's own; the record's status is the aggregate (R33).
//! * Expired and aged-out entries go when their inbox is touched next, records by themselves: there
//!   is no scan and no timer. Everything is gone after [`NotificationLimits::age_max`].
//! * Every future may be dropped at any await; every call may be repeated after an error.
//!
//! What it must not know: how user channels are published to, HTTP, who may ask.

mod entity;
mod memory;
mod new;
mod record;
mod redis_layout;
mod redis_outbox;
mod redis_store;

use std::time::Duration;

use async_trait::async_trait;
use carillon_protocol::UserId;

pub use entity::{
    Notification, NotificationAction, NotificationPriority, NotificationStatus, NotificationType,
};
pub use memory::MemoryNotifications;
pub use new::NewNotification;
pub use redis_store::RedisNotifications;

use crate::store::{NotificationId, Page, StoreError};

/// Every script that keeps notifications in Redis.
pub(crate) fn scripts() -> Vec<&'static crate::store::Script> {
    let mut scripts = redis_store::scripts();
    scripts.extend(redis_outbox::scripts());
    scripts
}

/// What bounds stored notifications.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotificationLimits {
    /// Recipients of one notification.
    pub recipients_max: usize,
    /// Bytes of one notification as JSON, its recipients not counted.
    pub bytes_max: usize,
    /// How long a notification is kept, whatever its expiry.
    pub age_max: Duration,
    /// How long an expired one is still found, as `expired`.
    pub expired_kept: Duration,
    /// Entries in one user's inbox; the oldest go first.
    pub entries_max: u32,
}

impl Default for NotificationLimits {
    fn default() -> Self {
        Self {
            recipients_max: 10_000,
            bytes_max: 64 * 1024,
            age_max: Duration::from_secs(30 * 24 * 3600),
            expired_kept: Duration::from_secs(3600),
            entries_max: 10_000,
        }
    }
}

/// What of a user's notifications is listed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NotificationQuery {
    /// Only those with this status for this user: what the others did does not count here.
    pub status: Option<NotificationStatus>,
    /// Only those of this type.
    pub kind: Option<NotificationType>,
    /// Only those of this priority.
    pub priority: Option<NotificationPriority>,
    /// Only those that count as unread.
    pub unread: bool,
    /// Leaves out all that arrived after another page with this [`NotificationPage::as_of`], so that
    /// pages do not shift while new ones arrive.
    pub as_of: Option<i64>,
    /// Which page.
    pub page: Page,
}

impl NotificationQuery {
    /// All, the first page.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Only those with this status for this user.
    #[must_use]
    pub fn status(mut self, status: NotificationStatus) -> Self {
        self.status = Some(status);
        self
    }

    /// Only those of this type.
    #[must_use]
    pub fn of_type(mut self, kind: NotificationType) -> Self {
        self.kind = Some(kind);
        self
    }

    /// Only those of this priority.
    #[must_use]
    pub fn priority(mut self, priority: NotificationPriority) -> Self {
        self.priority = Some(priority);
        self
    }

    /// Only those that count as unread.
    #[must_use]
    pub fn unread(mut self) -> Self {
        self.unread = true;
        self
    }

    /// This page, as of the moment of another where it is to fit that.
    #[must_use]
    pub fn page(mut self, page: Page, as_of: Option<i64>) -> Self {
        (self.page, self.as_of) = (page, as_of);
        self
    }
}

/// One page, newest first.
#[derive(Clone, Debug, PartialEq)]
pub struct NotificationPage {
    /// The page's notifications; none when it lies behind the end.
    pub notifications: Vec<Notification>,
    /// How many the query finds on all pages, at the same moment as the page.
    pub total: u64,
    /// For [`NotificationQuery::as_of`] of the following pages.
    pub as_of: i64,
}

/// A notification whose fan-out is claimed: publish it to the user channels of
/// [`OutboxEntry::waiting`], in order, under an idempotency key made of its id, then acknowledge.
#[derive(Clone, Debug, PartialEq)]
pub struct OutboxEntry {
    /// What is published.
    pub notification: Notification,
    /// How many recipients are known to be served.
    pub published: usize,
}

impl OutboxEntry {
    /// Recipients not yet known to be served.
    #[must_use]
    pub fn waiting(&self) -> &[UserId] {
        self.notification.recipients.get(self.published..).unwrap_or_default()
    }
}

/// See the module. Implementations are cheap handles.
#[async_trait]
pub trait NotificationStore: Send + Sync + 'static {
    /// Stores one for all its recipients, whole or not at all. It has an outbox entry, unless it is
    /// expired already.
    async fn create(&self, new: NewNotification) -> Result<Notification, StoreError>;

    /// Any notification, for callers who may see all of them.
    async fn find(&self, id: &NotificationId) -> Result<Option<Notification>, StoreError>;

    /// A notification that is in this user's inbox; a foreign id is like an unknown one.
    async fn find_for(
        &self,
        user: &UserId,
        id: &NotificationId,
    ) -> Result<Option<Notification>, StoreError>;

    /// A page of the user's inbox.
    async fn list(
        &self,
        user: &UserId,
        query: &NotificationQuery,
    ) -> Result<NotificationPage, StoreError>;

    /// How many the user has not read, the expired ones not counted.
    async fn unread_count(&self, user: &UserId) -> Result<u64, StoreError>;

    /// Marks one read by this user, and so delivered. Again changes nothing. `None` where it is not
    /// in the user's inbox.
    async fn mark_read(
        &self,
        user: &UserId,
        id: &NotificationId,
    ) -> Result<Option<Notification>, StoreError>;

    /// Marks all read that count as unread; how many this call marked.
    async fn mark_all_read(&self, user: &UserId) -> Result<u64, StoreError>;

    /// Deletes one for everybody; whether it was there.
    async fn delete(&self, id: &NotificationId) -> Result<bool, StoreError>;

    /// Takes one out of this user's inbox alone; whether it was there.
    async fn dismiss(&self, user: &UserId, id: &NotificationId) -> Result<bool, StoreError>;

    /// The user's connection or poll has these; how many were pending. Ids that are not in the
    /// user's inbox count for nothing.
    async fn mark_delivered(
        &self,
        user: &UserId,
        ids: &[NotificationId],
    ) -> Result<u64, StoreError>;

    /// What none of the user's connections and polls has yet, oldest first, at most `limit`. The rest
    /// follows once these are marked delivered.
    async fn pending(&self, user: &UserId, limit: usize) -> Result<Vec<Notification>, StoreError>;

    /// Claims at most about `limit` due entries for `lease`; a claim that is neither advanced nor
    /// acknowledged by then falls to the next who asks. Finishes creations and deletions that others
    /// began and did not live to finish.
    async fn claim_outbox(
        &self,
        limit: usize,
        lease: Duration,
    ) -> Result<Vec<OutboxEntry>, StoreError>;

    /// So many recipients are served; the claim goes on for `lease`. `false`: stop, there is nothing
    /// left to do (deleted, gone, or acknowledged by another).
    async fn advance_outbox(
        &self,
        id: &NotificationId,
        published: usize,
        lease: Duration,
    ) -> Result<bool, StoreError>;

    /// All recipients are served; `false` when that was known.
    async fn ack_outbox(&self, id: &NotificationId) -> Result<bool, StoreError>;
}
