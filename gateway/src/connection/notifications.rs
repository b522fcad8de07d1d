//! A connection's part in notifications: what is pending comes after the welcome, and its read
//! marks go to the store and to the user's other devices. `channels.md` 4, ruling R33.

use bytes::Bytes;
use carillon_broker_client::{Notification, NotificationId, StoreError};
use carillon_protocol::envelope::Refusal;
use carillon_protocol::publication::Exclude;
use carillon_protocol::{Envelope, ErrorCode, Payload, UserId};

use super::driver::{Driver, RETRY};
use crate::clock;
use crate::dispatch::{Dress, NOTIFICATIONS, encode};
use crate::notifications::{Mark, NOTIFICATION, tell_devices};
use crate::rest::store_refusal;

/// Pending notifications sent before they are marked.
pub(super) const PAGE: usize = 100;
/// Pages of one connect; an inbox holds no more.
const PAGES_MAX: usize = 100;

/// What the store says of a user's pending notifications.
pub(super) type Pending = Result<Vec<Notification>, StoreError>;

/// A stored notification as it is sent to one of its recipients who was not there when it was published.
pub(crate) fn pending_document(notification: &Notification, user: &UserId, dress: Dress) -> Bytes {
    let payload = Payload::of(&notification.pushed_to(user));
    let envelope = Envelope {
        id: notification.id.as_str(),
        kind: NOTIFICATION,
        channel: Some(NOTIFICATIONS),
        payload: &payload,
        timestamp_ms: clock::unix_ms(),
        ..Envelope::EMPTY
    };
    encode(&envelope, dress)
}

impl Driver {
    /// Sends what none of the user's connections has yet, oldest first. When the store is out of
    /// reach, it follows as soon as it is back.
    pub(super) async fn send_pending(&mut self) {
        let Some(user) = self.connection.user.clone() else { return };
        let first = self.node.notifications.pending(&user, PAGE).await;
        self.send_pending_from(first).await;
    }

    /// The same with the first page.
    pub(super) async fn send_pending_from(&mut self, first: Pending) {
        let Some(user) = self.connection.user.clone() else { return };
        self.pending_owed = false;
        let (mut asked, mut last) = (first, None);
        for _ in 0..PAGES_MAX {
            let page = match asked {
                Ok(page) => page,
                Err(error) => {
                    tracing::debug!(%error, "pending notifications wait for the store");
                    self.pending_owed = true;
                    self.retry = Some(Box::pin(tokio::time::sleep(RETRY)));
                    return;
                }
            };
            // What could not be marked comes again; it was sent.
            let Some(newest) = page.last().map(|newest| newest.id.clone()) else { break };
            if last.replace(newest.clone()) == Some(newest) {
                break;
            }
            if !self.send_page(&user, &page).await {
                return;
            }
            if page.len() < PAGE {
                break;
            }
            asked = self.node.notifications.pending(&user, PAGE).await;
        }
        self.connection.outbox.end_pending();
    }

    /// Queues a page as there is room, and marks it. `false` when the connection ends.
    async fn send_page(&mut self, user: &UserId, page: &[Notification]) -> bool {
        if !self.drained().await {
            return false;
        }
        for notification in page {
            let bytes = pending_document(notification, user, self.connection.dress);
            self.connection.outbox.push_pending(
                notification.id.as_str(),
                &bytes,
                self.connection.dress,
            );
            if !self.connection.outbox.has_room() && !self.drained().await {
                return false;
            }
        }
        self.connection.outbox.flush();
        let ids: Vec<NotificationId> =
            page.iter().map(|notification| notification.id.clone()).collect();
        if let Err(error) = self.node.notifications.mark_delivered(user, &ids).await {
            tracing::debug!(%error, "pending notifications may come twice");
        }
        true
    }

    fn reader(&self) -> Result<UserId, Refusal> {
        self.connection
            .user
            .clone()
            .ok_or_else(|| Refusal::new(ErrorCode::Forbidden, "Notifications are a user's own"))
    }

    /// Marks one read; what the ack says.
    pub(super) async fn mark_read(&self, id: &str) -> Result<serde_json::Value, Refusal> {
        let user = self.reader()?;
        let missing = || Refusal::new(ErrorCode::NotFound, "No such notification");
        let id = NotificationId::new(id).map_err(|_| missing())?;
        let marked = self.node.notifications.mark_read(&user, &id).await;
        marked.map_err(|error| store_refusal(&self.node, error))?.ok_or_else(missing)?;
        Ok(self.tell_others(&user, Mark::one(&id)).await)
    }

    /// Marks all read; what the ack says.
    pub(super) async fn mark_all_read(&self) -> Result<serde_json::Value, Refusal> {
        let user = self.reader()?;
        let marked = self.node.notifications.mark_all_read(&user).await;
        marked.map_err(|error| store_refusal(&self.node, error))?;
        Ok(self.tell_others(&user, Mark::all()).await)
    }

    async fn tell_others(&self, user: &UserId, mark: Mark) -> serde_json::Value {
        let mut exclude = Exclude::default();
        exclude.connections.push(self.connection.id.clone());
        tell_devices(&self.node, user, &mark, exclude).await;
        mark.payload
    }
}
