//! Notifications as a backend makes and reads them; the users' devices hear of both.

use std::sync::Arc;

use carillon_protocol::UserId;
use carillon_protocol::publication::Exclude;
use serde_json::{Value, json};

use super::{Core, NotFound, RealtimeError, message_id};
use crate::questions::Question;
use crate::{
    Clock, NewNotification, Notification, NotificationId, NotificationPage, NotificationQuery,
};

/// See the module. Cheap to clone.
///
/// ```
/// # use carillon_broker_client::realtime::Realtime;
/// # use carillon_broker_client::{
/// #     MemoryCluster, NewNotification, NotificationPriority, NotificationQuery, NotificationType,
/// # };
/// # use carillon_protocol::UserId;
/// # let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
/// # runtime.block_on(async {
/// # let realtime = Realtime::memory(&MemoryCluster::new());
/// let notifications = realtime.notifications();
/// let (jane, bob) = (UserId::new("user-456")?, UserId::new("user-789")?);
/// let new = NewNotification::new(
///     "New message",
///     "You have a new message from Jane",
///     [jane.clone(), bob.clone()],
/// )
/// .kind(NotificationType::MESSAGE)
/// .priority(NotificationPriority::Normal)
/// .sender(UserId::new("user-123")?)
/// .resource("message", "message-789")
/// .action("View", "view", serde_json::json!({"id": "message-789"}))
/// .action("Reply", "reply", serde_json::json!({"id": "message-789"}));
/// let stored = notifications.create(new).await?;
/// println!("Created notification with ID {}", stored.id);
///
/// let unread = NotificationQuery::new().unread().of_type(NotificationType::MESSAGE);
/// assert_eq!(notifications.list(&jane, &unread).await?.total, 1);
/// assert_eq!(notifications.mark_all_read(&jane).await?, 1);
/// assert_eq!(notifications.unread_count(&jane).await?, 0);
/// assert_eq!(notifications.unread_count(&bob).await?, 1);
/// # realtime.close().await;
/// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
/// ```
#[derive(Clone)]
pub struct NotificationService {
    core: Arc<Core>,
}

impl NotificationService {
    pub(super) fn of(core: &Arc<Core>) -> Self {
        Self { core: Arc::clone(core) }
    }

    /// Stores one for all its recipients, whole or not at all (R35); the nodes carry it to them.
    ///
    /// # Errors
    /// [`RealtimeError::Invalid`] with the field; [`RealtimeError::Unavailable`].
    pub async fn create(&self, new: NewNotification) -> Result<Notification, RealtimeError> {
        let stored = self.core.notifications.create(new).await?;
        // Without it the nodes look within a second.
        if let Err(error) = self.core.asker.tell_all(Question::OutboxFilled).await {
            tracing::debug!(%error, "the nodes find a new notification by themselves");
        }
        Ok(stored)
    }

    /// Any notification.
    ///
    /// # Errors
    /// [`NotFound::Notification`]; [`RealtimeError::Unavailable`].
    pub async fn find(&self, id: &NotificationId) -> Result<Notification, RealtimeError> {
        self.core.notifications.find(id).await?.ok_or(MISSING)
    }

    /// A page of a user's, newest first.
    ///
    /// # Errors
    /// [`RealtimeError::Unavailable`].
    pub async fn list(
        &self,
        user: &UserId,
        query: &NotificationQuery,
    ) -> Result<NotificationPage, RealtimeError> {
        Ok(self.core.notifications.list(user, query).await?)
    }

    /// How many a user has not read, the expired ones not counted.
    ///
    /// # Errors
    /// [`RealtimeError::Unavailable`].
    pub async fn unread_count(&self, user: &UserId) -> Result<u64, RealtimeError> {
        Ok(self.core.notifications.unread_count(user).await?)
    }

    /// Marks one read by a user, and tells their devices. Again changes nothing.
    ///
    /// # Errors
    /// [`NotFound::Notification`] also for one that is not theirs; [`RealtimeError::Unavailable`].
    pub async fn mark_read(
        &self,
        user: &UserId,
        id: &NotificationId,
    ) -> Result<Notification, RealtimeError> {
        let marked = self.core.notifications.mark_read(user, id).await?.ok_or(MISSING)?;
        let mark = json!({"notification_id": id, "read_at": Clock::system().now()});
        self.tell_devices(user, "notification_read", &mark).await;
        Ok(marked)
    }

    /// Marks all of a user's read, and tells their devices; how many this call marked.
    ///
    /// # Errors
    /// [`RealtimeError::Unavailable`].
    pub async fn mark_all_read(&self, user: &UserId) -> Result<u64, RealtimeError> {
        let marked = self.core.notifications.mark_all_read(user).await?;
        if marked > 0 {
            let mark = json!({"read_at": Clock::system().now()});
            self.tell_devices(user, "notification_read_all", &mark).await;
        }
        Ok(marked)
    }

    /// Deletes one for everybody.
    ///
    /// # Errors
    /// [`NotFound::Notification`]; [`RealtimeError::Unavailable`].
    pub async fn delete(&self, id: &NotificationId) -> Result<(), RealtimeError> {
        if self.core.notifications.delete(id).await? { Ok(()) } else { Err(MISSING) }
    }

    /// Takes one out of a user's list alone.
    ///
    /// # Errors
    /// [`NotFound::Notification`] also for one that is not theirs; [`RealtimeError::Unavailable`].
    pub async fn dismiss(&self, user: &UserId, id: &NotificationId) -> Result<(), RealtimeError> {
        if self.core.notifications.dismiss(user, id).await? { Ok(()) } else { Err(MISSING) }
    }

    /// The mark stands whether or not the devices hear of it.
    async fn tell_devices(&self, user: &UserId, kind: &str, mark: &Value) {
        let payload = carillon_protocol::Payload::of(mark);
        let told = self.core.to_user(user, message_id(), kind, payload, Exclude::default()).await;
        if let Err(error) = told {
            tracing::debug!(%error, "a user's devices were not told what was read");
        }
    }
}

const MISSING: RealtimeError = RealtimeError::NotFound(NotFound::Notification);
