//! Subscriptions in one process: the words of `subscriptions.rs` under one lock that is never held
//! across an await. Several handles of one store stand for several nodes.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use carillon_protocol::UserId;
use parking_lot::Mutex;

use super::record::Record;
use super::{
    NewSubscription, Subscription, SubscriptionLimits, SubscriptionPage, SubscriptionPatch,
    SubscriptionStatus, SubscriptionStore, paged,
};
use crate::store::{Clock, Moment, Page, StoreError, SubscriptionId};

/// [`SubscriptionStore`] in memory. Cheap to clone; clones share everything.
#[derive(Clone)]
pub struct MemorySubscriptions(Arc<Inner>);

struct Inner {
    limits: SubscriptionLimits,
    clock: Clock,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    records: HashMap<SubscriptionId, Record>,
    users: HashMap<UserId, BTreeSet<(Moment, SubscriptionId)>>,
    /// When each that has an end is purged.
    purge: BTreeSet<(Moment, SubscriptionId)>,
}

impl MemorySubscriptions {
    /// An empty store.
    #[must_use]
    pub fn new(limits: SubscriptionLimits, clock: Clock) -> Self {
        Self(Arc::new(Inner { limits, clock, state: Mutex::default() }))
    }

    /// Locks, with what is past its time gone.
    fn state(&self) -> (parking_lot::MutexGuard<'_, State>, Moment) {
        let now = self.0.clock.now();
        let mut state = self.0.state.lock();
        while state.purge.first().is_some_and(|(at, _)| *at <= now)
            && let Some((_, id)) = state.purge.pop_first()
        {
            state.take(&id, &self.0.limits);
        }
        (state, now)
    }

    fn change(
        &self,
        id: &SubscriptionId,
        change: impl FnOnce(&mut Record, Moment) -> Result<(), StoreError>,
    ) -> Result<Option<Subscription>, StoreError> {
        let (mut state, now) = self.state();
        let Some(mut record) = state.records.get(id).cloned() else { return Ok(None) };
        change(&mut record, now)?;
        let changed = record.at(now);
        state.take(id, &self.0.limits);
        state.put(record, now, &self.0.limits);
        Ok(Some(changed))
    }

    fn all_of(&self, user: &UserId) -> Vec<Subscription> {
        let (state, now) = self.state();
        let ids = state.users.get(user).into_iter().flatten();
        ids.filter_map(|(_, id)| state.records.get(id)).map(|record| record.at(now)).collect()
    }
}

impl State {
    fn put(&mut self, record: Record, now: Moment, limits: &SubscriptionLimits) {
        let created_at = record.at(now).created_at;
        let own = self.users.entry(record.user().clone()).or_default();
        own.insert((created_at, record.id().clone()));
        if let Some(at) = record.purge_at(limits) {
            self.purge.insert((at, record.id().clone()));
        }
        self.records.insert(record.id().clone(), record);
    }

    fn take(&mut self, id: &SubscriptionId, limits: &SubscriptionLimits) -> Option<Record> {
        let record = self.records.remove(id)?;
        if let Some(at) = record.purge_at(limits) {
            self.purge.remove(&(at, id.clone()));
        }
        if let Some(own) = self.users.get_mut(record.user()) {
            own.retain(|(_, its)| its != id);
            if own.is_empty() {
                self.users.remove(record.user());
            }
        }
        Some(record)
    }

    /// Room for one more of this user's, or not.
    fn make_room(&mut self, user: &UserId, now: Moment, limits: &SubscriptionLimits) -> bool {
        let Some(own) = self.users.get(user) else { return limits.per_user > 0 };
        let (total, limit) = (own.len(), limits.per_user as usize);
        let mut ended: Vec<_> = own
            .iter()
            .filter_map(|(_, id)| self.records.get(id))
            .filter(|record| record.has_ended(now))
            .map(|record| (record.purge_at(limits), record.id().clone()))
            .collect();
        if total - ended.len() >= limit {
            return false;
        }
        ended.sort_unstable();
        for (_, id) in ended.iter().take((total + 1).saturating_sub(2 * limit)) {
            self.take(id, limits);
        }
        true
    }
}

impl Default for MemorySubscriptions {
    fn default() -> Self {
        Self::new(SubscriptionLimits::default(), Clock::system())
    }
}

impl fmt::Debug for MemorySubscriptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemorySubscriptions").finish_non_exhaustive()
    }
}

#[async_trait]
impl SubscriptionStore for MemorySubscriptions {
    async fn create(&self, new: NewSubscription) -> Result<Subscription, StoreError> {
        let (mut state, now) = self.state();
        let record = Record::new(new, now, &self.0.limits)?;
        if !state.make_room(record.user(), now, &self.0.limits) {
            return Err(StoreError::LimitReached { limit: u64::from(self.0.limits.per_user) });
        }
        let created = record.at(now);
        state.put(record, now, &self.0.limits);
        Ok(created)
    }

    async fn find(&self, id: &SubscriptionId) -> Result<Option<Subscription>, StoreError> {
        let (state, now) = self.state();
        Ok(state.records.get(id).map(|record| record.at(now)))
    }

    async fn list(
        &self,
        user: &UserId,
        status: Option<SubscriptionStatus>,
        page: Page,
    ) -> Result<SubscriptionPage, StoreError> {
        Ok(paged(self.all_of(user), status, page))
    }

    async fn set_status(
        &self,
        id: &SubscriptionId,
        status: SubscriptionStatus,
    ) -> Result<Option<Subscription>, StoreError> {
        self.change(id, |record, now| {
            record.set_status(status, now);
            Ok(())
        })
    }

    async fn update(
        &self,
        id: &SubscriptionId,
        patch: &SubscriptionPatch,
    ) -> Result<Option<Subscription>, StoreError> {
        self.change(id, |record, now| Ok(record.apply(patch, now, &self.0.limits)?))
    }

    async fn delete(&self, id: &SubscriptionId) -> Result<Option<Subscription>, StoreError> {
        let (mut state, now) = self.state();
        Ok(state.take(id, &self.0.limits).map(|record| record.at(now)))
    }

    async fn active_for(&self, user: &UserId) -> Result<Vec<Subscription>, StoreError> {
        let mut all = self.all_of(user);
        all.retain(|subscription| subscription.status == SubscriptionStatus::Active);
        Ok(all)
    }
}
