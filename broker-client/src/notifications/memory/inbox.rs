//! One user's inbox: which notifications they have, in order of arrival, and how far each came for
//! them. It does not know records; whoever owns those takes entries out when theirs goes.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::super::record::Document;
use super::super::{
    NotificationLimits, NotificationPriority, NotificationQuery, NotificationStatus,
    NotificationType,
};
use crate::store::{Moment, NotificationId};

/// What the inbox itself knows of a notification.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    created_ms: i64,
    expires_at: Option<Moment>,
    unread_until: Moment,
    priority: NotificationPriority,
    kind: NotificationType,
    /// Strictly increasing in the inbox, about Unix milliseconds.
    order: i64,
    pending: bool,
    read: bool,
}

#[derive(Default, Debug)]
pub(super) struct Inbox {
    entries: HashMap<NotificationId, Entry>,
    order: BTreeMap<i64, NotificationId>,
    unread: BTreeSet<(Moment, NotificationId)>,
}

impl Entry {
    pub(super) fn of(document: &Document, limits: &NotificationLimits) -> Self {
        Self {
            created_ms: document.created_at.unix_ms(),
            expires_at: document.body.expires_at,
            unread_until: document.unread_until(limits),
            priority: document.body.priority,
            kind: document.body.kind.clone(),
            order: 0,
            pending: true,
            read: false,
        }
    }

    fn own_status(&self, now: Moment) -> NotificationStatus {
        if self.expires_at.is_some_and(|expires| expires <= now) {
            NotificationStatus::Expired
        } else if self.read {
            NotificationStatus::Read
        } else if self.pending {
            NotificationStatus::Pending
        } else {
            NotificationStatus::Delivered
        }
    }

    fn passes(&self, query: &NotificationQuery, now: Moment) -> bool {
        let own = self.own_status(now);
        query.status.is_none_or(|status| status == own)
            && query.kind.as_ref().is_none_or(|kind| *kind == self.kind)
            && query.priority.is_none_or(|priority| priority == self.priority)
            && (!query.unread || (!self.read && own != NotificationStatus::Expired))
    }
}

impl Inbox {
    pub(super) fn add(
        &mut self,
        id: NotificationId,
        mut entry: Entry,
        now: Moment,
        entries_max: usize,
    ) {
        let after_top = self.order.last_key_value().map_or(i64::MIN, |(top, _)| top + 1);
        entry.order = entry.created_ms.max(after_top);
        if entry.unread_until > now {
            self.unread.insert((entry.unread_until, id.clone()));
        }
        self.order.insert(entry.order, id.clone());
        self.entries.insert(id, entry);
        while self.order.len() > entries_max
            && let Some((_, oldest)) = self.order.first_key_value()
        {
            let oldest = oldest.clone();
            self.take_out(&oldest);
        }
    }

    pub(super) fn take_out(&mut self, id: &NotificationId) -> bool {
        let Some(entry) = self.entries.remove(id) else { return false };
        self.order.remove(&entry.order);
        self.unread.remove(&(entry.unread_until, id.clone()));
        true
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn holds(&self, id: &NotificationId) -> bool {
        self.entries.contains_key(id)
    }

    pub(super) fn deliver(&mut self, id: &NotificationId) -> bool {
        self.entries.get_mut(id).is_some_and(|entry| std::mem::take(&mut entry.pending))
    }

    pub(super) fn read(&mut self, id: &NotificationId) {
        if let Some(entry) = self.entries.get_mut(id) {
            entry.pending = false;
            entry.read = true;
            self.unread.remove(&(entry.unread_until, id.clone()));
        }
    }

    /// What counts as unread; what no longer does leaves in passing.
    pub(super) fn unread(&mut self, now: Moment) -> &BTreeSet<(Moment, NotificationId)> {
        while self.unread.first().is_some_and(|(until, _)| *until <= now) {
            self.unread.pop_first();
        }
        &self.unread
    }

    /// Oldest first.
    pub(super) fn pending(&self, now: Moment) -> impl Iterator<Item = &NotificationId> {
        self.order.values().filter(move |id| {
            self.entries.get(*id).is_some_and(|entry| {
                entry.pending && entry.own_status(now) == NotificationStatus::Pending
            })
        })
    }

    /// The page's ids, the total, and the moment that both are of.
    pub(super) fn page(
        &self,
        query: &NotificationQuery,
        now: Moment,
    ) -> (Vec<NotificationId>, u64, i64) {
        let top = self.order.last_key_value().map_or(0, |(top, _)| *top);
        let as_of = query.as_of.unwrap_or(top);
        let (mut ids, mut total) = (Vec::new(), 0);
        let offset = query.page.offset();
        for id in self.order.range(..=as_of).rev().map(|(_, id)| id) {
            if self.entries.get(id).is_some_and(|entry| entry.passes(query, now)) {
                total += 1;
                if total > offset && total <= offset + u64::from(query.page.size()) {
                    ids.push(id.clone());
                }
            }
        }
        (ids, total, as_of)
    }
}
