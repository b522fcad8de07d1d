//! Persistent subscriptions: what a user listens to on every connection, kept until it is deleted
//! or ends. Source: the uno document, `http-api.md` 4, `channels.md` 5, rulings R6, R16 and R37.
//!
//! * A store keeps and answers; whoever changes a subscription tells the nodes what it got back, so
//!   that live connections follow.
//! * Expired and cancelled ones match nothing, do not count against the limit, and go after
//!   [`SubscriptionLimits::ended_kept`]; there is no scan and no timer.
//! * Changes of one subscription never overwrite each other.
//! * Every future may be dropped at any await; every call but `create` may be repeated after an error.
//!
//! What it must not know: who may subscribe to a channel, connections, HTTP.

mod entity;
mod memory;
mod new;
mod record;
mod redis_store;

use std::time::Duration;

use async_trait::async_trait;
use carillon_protocol::UserId;

pub use entity::{Subscription, SubscriptionQuery, SubscriptionStatus, SubscriptionType};
pub use memory::MemorySubscriptions;
pub use new::{NewSubscription, SubscriptionPatch};
pub use redis_store::RedisSubscriptions;

use crate::store::{Page, StoreError, SubscriptionId};

/// Every script that keeps subscriptions in Redis.
pub(crate) fn scripts() -> Vec<&'static crate::store::Script> {
    redis_store::scripts()
}

/// What bounds stored subscriptions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubscriptionLimits {
    /// Active and paused ones of one user.
    pub per_user: u32,
    /// Bytes of one as JSON.
    pub bytes_max: usize,
    /// How long an expired or cancelled one is still found.
    pub ended_kept: Duration,
}

impl Default for SubscriptionLimits {
    fn default() -> Self {
        Self { per_user: 1_000, bytes_max: 16 * 1024, ended_kept: Duration::from_secs(24 * 3600) }
    }
}

/// One page, oldest first.
#[derive(Clone, Debug, PartialEq)]
pub struct SubscriptionPage {
    /// The page's subscriptions; none when it lies behind the end.
    pub subscriptions: Vec<Subscription>,
    /// How many there are on all pages.
    pub total: u64,
}

/// See the module. Implementations are cheap handles.
#[async_trait]
pub trait SubscriptionStore: Send + Sync + 'static {
    /// Stores a new one, also where an equal one exists (R37).
    async fn create(&self, new: NewSubscription) -> Result<Subscription, StoreError>;

    /// Any subscription; the caller compares its user (R6).
    async fn find(&self, id: &SubscriptionId) -> Result<Option<Subscription>, StoreError>;

    /// A page of the user's.
    async fn list(
        &self,
        user: &UserId,
        status: Option<SubscriptionStatus>,
        page: Page,
    ) -> Result<SubscriptionPage, StoreError>;

    /// Changes the status; the changed subscription, or `None` where there is none. One that is past
    /// its expiry stays `expired` until that is moved.
    async fn set_status(
        &self,
        id: &SubscriptionId,
        status: SubscriptionStatus,
    ) -> Result<Option<Subscription>, StoreError>;

    /// Changes labels, metadata, expiry; the changed subscription, or `None` where there is none.
    async fn update(
        &self,
        id: &SubscriptionId,
        patch: &SubscriptionPatch,
    ) -> Result<Option<Subscription>, StoreError>;

    /// Deletes it; as it was, or `None` where there was none.
    async fn delete(&self, id: &SubscriptionId) -> Result<Option<Subscription>, StoreError>;

    /// All that are active now, oldest first: what a connecting user listens to.
    async fn active_for(&self, user: &UserId) -> Result<Vec<Subscription>, StoreError>;
}

/// One page out of all, and how many pass.
fn paged(
    all: Vec<Subscription>,
    status: Option<SubscriptionStatus>,
    page: Page,
) -> SubscriptionPage {
    let mut passing = all;
    passing.retain(|subscription| status.is_none_or(|status| subscription.status == status));
    let total = passing.len() as u64;
    let offset = usize::try_from(page.offset()).unwrap_or(usize::MAX);
    let subscriptions = passing.into_iter().skip(offset).take(page.size() as usize).collect();
    SubscriptionPage { subscriptions, total }
}
