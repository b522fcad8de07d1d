//! A notification as it is kept: what never changes as one document, the marks beside it.

use carillon_protocol::UserId;
use serde::{Deserialize, Serialize};

use super::{NewNotification, Notification, NotificationLimits};
use crate::store::{Moment, NotificationId};

/// The part that never changes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Document {
    pub(super) id: NotificationId,
    pub(super) created_at: Moment,
    pub(super) body: NewNotification,
}

/// The whole.
#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) document: Document,
    pub(super) delivered_at: Option<Moment>,
    /// Who read it, and when.
    pub(super) reads: Vec<(UserId, Moment)>,
    /// Every recipient's inbox has it.
    pub(super) indexed: bool,
    /// Recipients served by the fan-out.
    pub(super) published: usize,
    /// Deleted, not yet out of all inboxes.
    pub(super) gone: bool,
}

impl Document {
    pub(super) fn new(body: NewNotification, now: Moment) -> Self {
        let id = NotificationId::made(&crate::store::sortable_id(now));
        Self { id, created_at: now, body }
    }

    pub(super) fn is_expired(&self, now: Moment) -> bool {
        self.body.expires_at.is_some_and(|expires| expires <= now)
    }

    /// When nothing of it is left.
    pub(super) fn purge_at(&self, limits: &NotificationLimits) -> Moment {
        let aged = self.created_at.after(limits.age_max);
        self.body.expires_at.map_or(aged, |expires| {
            aged.min(expires.max(self.created_at).after(limits.expired_kept))
        })
    }

    /// When it stops counting as unread.
    pub(super) fn unread_until(&self, limits: &NotificationLimits) -> Moment {
        let purge_at = self.purge_at(limits);
        self.body.expires_at.map_or(purge_at, |expires| expires.min(purge_at))
    }
}

impl Record {
    pub(super) fn new(document: Document) -> Self {
        Self {
            document,
            delivered_at: None,
            reads: Vec::new(),
            indexed: false,
            published: 0,
            gone: false,
        }
    }

    pub(super) fn into_notification(mut self, now: Moment) -> Notification {
        self.reads.sort_by_key(|(_, at)| *at);
        let Document { id, created_at, body } = self.document;
        let mut notification = Notification::new(id, body, created_at);
        notification.delivered_at = self.delivered_at;
        notification.read_by = self.reads.into_iter().map(|(user, _)| user).collect();
        notification.refresh_status(now);
        notification
    }
}
