//! Persistent subscriptions as a backend makes and changes them; live connections follow within a second.

use std::sync::Arc;

use carillon_protocol::UserId;

use super::{Core, NotFound, RealtimeError};
use crate::questions::Question;
use crate::{
    NewSubscription, Page, Subscription, SubscriptionId, SubscriptionPage, SubscriptionPatch,
    SubscriptionStatus,
};

/// How often a change is told again before the nodes are left to find it by themselves.
const TELLS_MAX: u32 = 3;

/// See the module. Cheap to clone.
///
/// ```
/// # use carillon_broker_client::realtime::{NotFound, Realtime, RealtimeError};
/// # use carillon_broker_client::{
/// #     MemoryCluster, NewSubscription, Page, SubscriptionPatch, SubscriptionStatus,
/// # };
/// # use carillon_protocol::UserId;
/// # let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
/// # runtime.block_on(async {
/// # let realtime = Realtime::memory(&MemoryCluster::new());
/// let subscriptions = realtime.subscriptions();
/// let jane = UserId::new("user-456")?;
/// let stored = subscriptions
///     .create(
///         NewSubscription::resource(jane.clone(), "post", "post-789")
///             .label("important")
///             .metadata("notification_channel", "email"),
///     )
///     .await?;
/// println!("Created subscription with ID {}", stored.id);
///
/// let paused = subscriptions.update_status(&stored.id, SubscriptionStatus::Paused).await?;
/// assert_eq!(paused.status, SubscriptionStatus::Paused);
/// let patch = SubscriptionPatch::new().labels(["important", "post-updates"]);
/// assert_eq!(subscriptions.update(&stored.id, &patch).await?.labels.len(), 2);
/// assert_eq!(subscriptions.list(&jane, None, Page::default()).await?.total, 1);
///
/// subscriptions.delete(&stored.id).await?;
/// let gone = subscriptions.find(&stored.id).await;
/// assert_eq!(gone, Err(RealtimeError::NotFound(NotFound::Subscription)));
/// # realtime.close().await;
/// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
/// ```
#[derive(Clone)]
pub struct SubscriptionService {
    core: Arc<Core>,
}

impl SubscriptionService {
    pub(super) fn of(core: &Arc<Core>) -> Self {
        Self { core: Arc::clone(core) }
    }

    /// Stores a new one, also where an equal one exists (R37).
    ///
    /// # Errors
    /// [`RealtimeError::Invalid`] with the field; [`RealtimeError::LimitReached`];
    /// [`RealtimeError::Unavailable`].
    pub async fn create(&self, new: NewSubscription) -> Result<Subscription, RealtimeError> {
        self.changing(&new.user_id).await;
        let stored = self.core.subscriptions.create(new).await?;
        self.changed(&stored.user_id).await;
        Ok(stored)
    }

    /// Any subscription.
    ///
    /// # Errors
    /// [`NotFound::Subscription`]; [`RealtimeError::Unavailable`].
    pub async fn find(&self, id: &SubscriptionId) -> Result<Subscription, RealtimeError> {
        self.core.subscriptions.find(id).await?.ok_or(MISSING)
    }

    /// A page of a user's, oldest first.
    ///
    /// # Errors
    /// [`RealtimeError::Unavailable`].
    pub async fn list(
        &self,
        user: &UserId,
        status: Option<SubscriptionStatus>,
        page: Page,
    ) -> Result<SubscriptionPage, RealtimeError> {
        Ok(self.core.subscriptions.list(user, status, page).await?)
    }

    /// Pauses, revives, cancels.
    ///
    /// # Errors
    /// [`NotFound::Subscription`]; [`RealtimeError::Unavailable`].
    pub async fn update_status(
        &self,
        id: &SubscriptionId,
        status: SubscriptionStatus,
    ) -> Result<Subscription, RealtimeError> {
        let user = self.find(id).await?.user_id;
        self.changing(&user).await;
        let changed = self.core.subscriptions.set_status(id, status).await?.ok_or(MISSING)?;
        self.changed(&changed.user_id).await;
        Ok(changed)
    }

    /// Changes labels, metadata, expiry.
    ///
    /// # Errors
    /// [`NotFound::Subscription`]; [`RealtimeError::Invalid`]; [`RealtimeError::Unavailable`].
    pub async fn update(
        &self,
        id: &SubscriptionId,
        patch: &SubscriptionPatch,
    ) -> Result<Subscription, RealtimeError> {
        let user = self.find(id).await?.user_id;
        self.changing(&user).await;
        let changed = self.core.subscriptions.update(id, patch).await?.ok_or(MISSING)?;
        self.changed(&changed.user_id).await;
        Ok(changed)
    }

    /// Deletes it.
    ///
    /// # Errors
    /// [`NotFound::Subscription`]; [`RealtimeError::Unavailable`].
    pub async fn delete(&self, id: &SubscriptionId) -> Result<(), RealtimeError> {
        let user = self.find(id).await?.user_id;
        self.changing(&user).await;
        let deleted = self.core.subscriptions.delete(id).await?.ok_or(MISSING)?;
        self.changed(&deleted.user_id).await;
        Ok(())
    }

    /// Has the nodes look in a while, should this process die before it can say that something changed.
    async fn changing(&self, user: &UserId) {
        let question = Question::SubscriptionsChanging(user.clone());
        if let Err(error) = self.core.asker.tell_all(question).await {
            tracing::debug!(%error, "nobody was told that a subscription is about to change");
        }
    }

    /// Has live connections follow.
    async fn changed(&self, user: &UserId) {
        for _ in 0..TELLS_MAX {
            let told = self.core.asker.tell_all(Question::SubscriptionsChanged(user.clone())).await;
            match told {
                Ok(()) => return,
                Err(error) => tracing::debug!(%error, "a changed subscription could not be told"),
            }
        }
    }
}

const MISSING: RealtimeError = RealtimeError::NotFound(NotFound::Subscription);
