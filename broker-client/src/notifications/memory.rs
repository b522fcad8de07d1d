//! Notifications in one process: the words of `notifications.rs` under one lock that is never held
//! across an await. Several handles of one store stand for several nodes.

mod inbox;

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use carillon_protocol::UserId;
use parking_lot::Mutex;

use self::inbox::{Entry, Inbox};
use super::record::{Document, Record};
use super::{
    NewNotification, Notification, NotificationLimits, NotificationPage, NotificationQuery,
    NotificationStore, OutboxEntry,
};
use crate::store::{Clock, Moment, NotificationId, StoreError};

/// [`NotificationStore`] in memory. Cheap to clone; clones share everything.
#[derive(Clone)]
pub struct MemoryNotifications(Arc<Inner>);

struct Inner {
    limits: NotificationLimits,
    clock: Clock,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    records: HashMap<NotificationId, Record>,
    inboxes: HashMap<UserId, Inbox>,
    /// When each record goes.
    purge: BTreeSet<(Moment, NotificationId)>,
    /// When each waiting fan-out is due.
    outbox: BTreeSet<(Moment, NotificationId)>,
    due: HashMap<NotificationId, Moment>,
}

impl MemoryNotifications {
    /// An empty store.
    #[must_use]
    pub fn new(limits: NotificationLimits, clock: Clock) -> Self {
        Self(Arc::new(Inner { limits, clock, state: Mutex::default() }))
    }

    /// Notifications held at present, those included that nobody has looked for since they expired.
    #[must_use]
    pub fn held(&self) -> usize {
        self.0.state.lock().records.len()
    }
}

impl Default for MemoryNotifications {
    fn default() -> Self {
        Self::new(NotificationLimits::default(), Clock::system())
    }
}

impl fmt::Debug for MemoryNotifications {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryNotifications").field("held", &self.held()).finish_non_exhaustive()
    }
}

impl State {
    /// Every call begins here: what is past its time is not there.
    fn sweep(&mut self, now: Moment) {
        while let Some((at, _)) = self.purge.first()
            && *at <= now
            && let Some((_, id)) = self.purge.pop_first()
        {
            self.forget(&id);
        }
    }

    fn forget(&mut self, id: &NotificationId) {
        self.settle_outbox(id);
        let Some(record) = self.records.remove(id) else { return };
        for user in &record.document.body.recipients {
            self.take_out(user, id);
        }
    }

    fn take_out(&mut self, user: &UserId, id: &NotificationId) -> bool {
        let Some(inbox) = self.inboxes.get_mut(user) else { return false };
        let was = inbox.take_out(id);
        if inbox.is_empty() {
            self.inboxes.remove(user);
        }
        was
    }

    fn set_due(&mut self, id: &NotificationId, due: Moment) {
        if let Some(before) = self.due.insert(id.clone(), due) {
            self.outbox.remove(&(before, id.clone()));
        }
        self.outbox.insert((due, id.clone()));
    }

    fn settle_outbox(&mut self, id: &NotificationId) -> bool {
        let due = self.due.remove(id);
        due.is_some_and(|due| self.outbox.remove(&(due, id.clone())))
    }

    fn notification(&self, id: &NotificationId, now: Moment) -> Option<Notification> {
        self.records.get(id).map(|record| record.clone().into_notification(now))
    }

    fn read(&mut self, user: &UserId, id: &NotificationId, now: Moment) {
        if let Some(record) = self.records.get_mut(id) {
            record.delivered_at.get_or_insert(now);
            if !record.reads.iter().any(|(reader, _)| reader == user) {
                record.reads.push((user.clone(), now));
            }
        }
    }
}

impl MemoryNotifications {
    /// Locks, with what is past its time gone.
    fn state(&self) -> (parking_lot::MutexGuard<'_, State>, Moment) {
        let now = self.0.clock.now();
        let mut state = self.0.state.lock();
        state.sweep(now);
        (state, now)
    }
}

#[async_trait]
impl NotificationStore for MemoryNotifications {
    async fn create(&self, new: NewNotification) -> Result<Notification, StoreError> {
        let new = new.checked(&self.0.limits)?;
        let (mut state, now) = self.state();
        let document = Document::new(new, now);
        let id = document.id.clone();
        let entry = Entry::of(&document, &self.0.limits);
        for user in &document.body.recipients {
            let inbox = state.inboxes.entry(user.clone()).or_default();
            inbox.add(id.clone(), entry.clone(), now, self.0.limits.entries_max as usize);
        }
        state.purge.insert((document.purge_at(&self.0.limits), id.clone()));
        if !document.is_expired(now) {
            state.set_due(&id, now);
        }
        let record = Record { indexed: true, ..Record::new(document) };
        state.records.insert(id, record.clone());
        Ok(record.into_notification(now))
    }

    async fn find(&self, id: &NotificationId) -> Result<Option<Notification>, StoreError> {
        let (state, now) = self.state();
        Ok(state.notification(id, now))
    }

    async fn find_for(
        &self,
        user: &UserId,
        id: &NotificationId,
    ) -> Result<Option<Notification>, StoreError> {
        let (state, now) = self.state();
        let holds = state.inboxes.get(user).is_some_and(|inbox| inbox.holds(id));
        Ok(if holds { state.notification(id, now) } else { None })
    }

    async fn list(
        &self,
        user: &UserId,
        query: &NotificationQuery,
    ) -> Result<NotificationPage, StoreError> {
        let (state, now) = self.state();
        let Some(inbox) = state.inboxes.get(user) else {
            return Ok(NotificationPage {
                notifications: Vec::new(),
                total: 0,
                as_of: query.as_of.unwrap_or(0),
            });
        };
        let (ids, total, as_of) = inbox.page(query, now);
        let notifications = ids.iter().filter_map(|id| state.notification(id, now)).collect();
        Ok(NotificationPage { notifications, total, as_of })
    }

    async fn unread_count(&self, user: &UserId) -> Result<u64, StoreError> {
        let (mut state, now) = self.state();
        Ok(state.inboxes.get_mut(user).map_or(0, |inbox| inbox.unread(now).len() as u64))
    }

    async fn mark_read(
        &self,
        user: &UserId,
        id: &NotificationId,
    ) -> Result<Option<Notification>, StoreError> {
        let (mut state, now) = self.state();
        let Some(inbox) = state.inboxes.get_mut(user).filter(|inbox| inbox.holds(id)) else {
            return Ok(None);
        };
        inbox.read(id);
        state.read(user, id, now);
        Ok(state.notification(id, now))
    }

    async fn mark_all_read(&self, user: &UserId) -> Result<u64, StoreError> {
        let (mut state, now) = self.state();
        let Some(inbox) = state.inboxes.get_mut(user) else { return Ok(0) };
        let unread: Vec<_> = inbox.unread(now).iter().map(|(_, id)| id.clone()).collect();
        for id in &unread {
            inbox.read(id);
        }
        for id in &unread {
            state.read(user, id, now);
        }
        Ok(unread.len() as u64)
    }

    async fn delete(&self, id: &NotificationId) -> Result<bool, StoreError> {
        let (mut state, _) = self.state();
        let Some(record) = state.records.get(id) else { return Ok(false) };
        let purge = (record.document.purge_at(&self.0.limits), id.clone());
        state.purge.remove(&purge);
        state.forget(id);
        Ok(true)
    }

    async fn dismiss(&self, user: &UserId, id: &NotificationId) -> Result<bool, StoreError> {
        let (mut state, _) = self.state();
        Ok(state.take_out(user, id))
    }

    async fn mark_delivered(
        &self,
        user: &UserId,
        ids: &[NotificationId],
    ) -> Result<u64, StoreError> {
        let (mut state, now) = self.state();
        let mut delivered = 0;
        for id in ids {
            let Some(inbox) = state.inboxes.get_mut(user).filter(|inbox| inbox.holds(id)) else {
                continue;
            };
            delivered += u64::from(inbox.deliver(id));
            if let Some(record) = state.records.get_mut(id) {
                record.delivered_at.get_or_insert(now);
            }
        }
        Ok(delivered)
    }

    async fn pending(&self, user: &UserId, limit: usize) -> Result<Vec<Notification>, StoreError> {
        let (state, now) = self.state();
        let Some(inbox) = state.inboxes.get(user) else { return Ok(Vec::new()) };
        let ids = inbox.pending(now).take(limit);
        Ok(ids.filter_map(|id| state.notification(id, now)).collect())
    }

    async fn claim_outbox(
        &self,
        limit: usize,
        lease: Duration,
    ) -> Result<Vec<OutboxEntry>, StoreError> {
        let (mut state, now) = self.state();
        let due: Vec<_> = state
            .outbox
            .iter()
            .take_while(|(due, _)| *due <= now)
            .take(limit)
            .map(|(_, id)| id.clone())
            .collect();
        let mut entries = Vec::with_capacity(due.len());
        for id in due {
            match state.records.get(&id) {
                Some(record) if !record.document.is_expired(now) => {
                    let published = record.published;
                    let notification = record.clone().into_notification(now);
                    entries.push(OutboxEntry { notification, published });
                    state.set_due(&id, now.after(lease));
                }
                _ => drop(state.settle_outbox(&id)),
            }
        }
        Ok(entries)
    }

    async fn advance_outbox(
        &self,
        id: &NotificationId,
        published: usize,
        lease: Duration,
    ) -> Result<bool, StoreError> {
        let (mut state, now) = self.state();
        if !state.due.contains_key(id) {
            return Ok(false);
        }
        let Some(record) = state.records.get_mut(id) else { return Ok(false) };
        record.published = published;
        state.set_due(id, now.after(lease));
        Ok(true)
    }

    async fn ack_outbox(&self, id: &NotificationId) -> Result<bool, StoreError> {
        let (mut state, _) = self.state();
        Ok(state.settle_outbox(id))
    }
}
