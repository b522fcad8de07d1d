//! A subscription as it is kept, and the changes that both stores make to it.

use carillon_protocol::UserId;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::new::checked_labels;
use super::{
    NewSubscription, Subscription, SubscriptionLimits, SubscriptionPatch, SubscriptionStatus,
};
use crate::store::{Invalid, Moment, SubscriptionId, bucket_digits, sortable_id, spread};

/// Buckets over which users are spread; a subscription's id begins with its user's.
const BUCKETS: u32 = 36 * 36;

/// Where a user's subscriptions are, in two digits. Part of every id, so that an id alone leads there.
pub(super) fn bucket_of(user: &UserId) -> String {
    bucket_digits(spread(user.as_str()) % BUCKETS)
}

/// The document's entity with the status that was set, and what the document does not show.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Record {
    subscription: Subscription,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    payload_filter: Option<Value>,
}

impl Record {
    pub(super) fn new(
        new: NewSubscription,
        now: Moment,
        limits: &SubscriptionLimits,
    ) -> Result<Self, Invalid> {
        let new = new.checked()?;
        let id = format!("{}{}", bucket_of(&new.user_id), sortable_id(now));
        let mut subscription = Subscription::new(SubscriptionId::made(&id), new, now);
        let payload_filter = subscription.payload_filter.take();
        if subscription.channels().is_empty() {
            let field = if subscription.topic.is_some() { "topic" } else { "resource_id" };
            return Err(Invalid::new(field, "is too long for a channel name"));
        }
        let record = Self { subscription, payload_filter };
        record.check_size(limits)?;
        Ok(record)
    }

    pub(super) fn id(&self) -> &SubscriptionId {
        &self.subscription.id
    }

    pub(super) fn user(&self) -> &UserId {
        &self.subscription.user_id
    }

    pub(super) fn json(&self) -> String {
        serde_json::to_string(self).expect("our own types are JSON")
    }

    /// As it is at a moment.
    pub(super) fn at(&self, now: Moment) -> Subscription {
        let mut subscription = self.subscription.clone();
        subscription.payload_filter.clone_from(&self.payload_filter);
        if subscription.status != SubscriptionStatus::Cancelled && subscription.is_expired(now) {
            subscription.status = SubscriptionStatus::Expired;
        }
        subscription
    }

    pub(super) fn set_status(&mut self, status: SubscriptionStatus, now: Moment) {
        self.subscription.update_status(status, now);
    }

    pub(super) fn apply(
        &mut self,
        patch: &SubscriptionPatch,
        now: Moment,
        limits: &SubscriptionLimits,
    ) -> Result<(), Invalid> {
        let subscription = &mut self.subscription;
        if let Some(labels) = &patch.labels {
            subscription.labels = checked_labels(labels.clone())?;
        }
        if let Some(metadata) = &patch.metadata {
            subscription.metadata.clone_from(metadata);
        }
        if let Some(expires_at) = patch.expires_at {
            subscription.expires_at = expires_at;
        }
        subscription.updated_at = now;
        self.check_size(limits)
    }

    /// When it ends, if it does: from then on it does not count.
    fn ends_at(&self) -> Option<Moment> {
        let subscription = &self.subscription;
        let set = matches!(
            subscription.status,
            SubscriptionStatus::Cancelled | SubscriptionStatus::Expired
        );
        let expires = subscription.expires_at.map(|at| at.max(subscription.updated_at));
        let ended = set.then_some(subscription.updated_at);
        ended.into_iter().chain(expires).min()
    }

    pub(super) fn has_ended(&self, now: Moment) -> bool {
        self.ends_at().is_some_and(|at| at <= now)
    }

    /// When nothing of it is left, if ever.
    pub(super) fn purge_at(&self, limits: &SubscriptionLimits) -> Option<Moment> {
        self.ends_at().map(|at| at.after(limits.ended_kept))
    }

    fn check_size(&self, limits: &SubscriptionLimits) -> Result<(), Invalid> {
        if self.json().len() > limits.bytes_max {
            let problem = format!("is larger than {} bytes", limits.bytes_max);
            return Err(Invalid::new("subscription", problem));
        }
        Ok(())
    }
}
