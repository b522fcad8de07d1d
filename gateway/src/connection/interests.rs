//! A connection's part in persistent subscriptions: it listens to what its user's active ones name.

use std::sync::Arc;

use carillon_broker_client::{StoreError, Subscription as StoredSubscription};
use carillon_protocol::{ChannelName, Cursor};

use super::driver::{Driver, RETRY};
use super::subscriptions::Own;
use super::welcome::Resume;
use crate::hub::{Behind, Labels, Subscription};
use crate::interests::{Interests, by_channel};
use crate::policy::Action;

/// What the store says of a user's active subscriptions.
pub(super) type Active = Result<Vec<StoredSubscription>, StoreError>;

impl Driver {
    /// Joins and leaves channels until they are those of the user's active subscriptions. A channel
    /// that the cursor knows goes on where it stood there. What fails is tried again soon.
    pub(super) async fn sync_interests(&mut self, resume: &Resume) {
        let Some(user) = self.connection.user.clone() else { return };
        let active = self.node.subscriptions.active_for(&user).await;
        self.join_active(active, resume).await;
    }

    /// The same with what the store says.
    pub(super) async fn join_active(&mut self, active: Active, resume: &Resume) {
        self.interests_owed = false;
        let kept = self.rare.as_mut().and_then(|rare| rare.interests_resume.take());
        let resume = resume.as_ref().or(kept.as_ref());
        let wanted = match active {
            Ok(active) => by_channel(&active, &self.node.filters),
            Err(error) => {
                tracing::debug!(%error, "persistent subscriptions wait for the store");
                self.owe_interests();
                self.keep_interests_resume(resume.cloned());
                return;
            }
        };
        let over: Vec<ChannelName> = self
            .subscriptions
            .iter()
            .filter(|(channel, own)| own.interests.is_some() && !wanted.contains_key(*channel))
            .map(|(channel, _)| channel.clone())
            .collect();
        for channel in over {
            self.set_interests(&channel, None);
        }
        let channels: Vec<ChannelName> = wanted.keys().cloned().collect();
        self.ask_ahead(&channels).await;
        for (channel, interests) in wanted {
            self.join_interests(channel, interests.into(), resume).await;
        }
        if self.interests_owed {
            // What could not be joined yet still begins where the cursor stands.
            self.keep_interests_resume(resume.cloned());
        }
    }

    fn keep_interests_resume(&mut self, resume: Resume) {
        if resume.is_some() {
            self.rare.get_or_insert_default().interests_resume = resume;
        }
    }

    /// The user's persistent subscriptions are looked at again soon.
    pub(super) fn owe_interests(&mut self) {
        self.interests_owed = true;
        self.retry = Some(Box::pin(tokio::time::sleep(RETRY)));
    }

    async fn join_interests(
        &mut self,
        channel: ChannelName,
        interests: Interests,
        resume: Option<&Result<Cursor, ()>>,
    ) {
        let Ok((traits, conflate)) = self.allowed(Action::Subscribe, &channel).await else {
            self.set_interests(&channel, None);
            return;
        };
        if self.subscriptions.contains_key(&channel) {
            self.set_interests(&channel, Some(interests));
            return;
        }
        if let Err(error) = self.node.relay.join(&channel, traits).await {
            tracing::debug!(%error, "a persistent subscription waits for the broker");
            self.node.relay.leave(&channel);
            self.owe_interests();
            return;
        }
        if channel.as_str().starts_with("entity:") {
            self.connection.outbox.watch_twins();
        }
        let known = resume.and_then(|cursor| cursor.as_ref().ok()?.get(channel.as_str()));
        let from = known.filter(|_| traits.history_age.is_some());
        let subscription = Subscription {
            connection: Arc::clone(&self.connection),
            // Nothing is delivered before what was missed.
            behind: from.map(Behind::at),
            labels: Labels::ALL,
            filter: None,
            conflate,
            asked: false,
            interests: Some(Arc::clone(&interests)),
            wakes: false,
        };
        let outbox = &self.connection.outbox;
        let key = self.node.hub.subscribe(
            &channel,
            subscription,
            || self.node.relay.position(&channel),
            |position| {
                if let Some(position) = from.or(position) {
                    outbox.set_position(&channel, position);
                }
            },
        );
        let own = Own {
            key,
            labels: Labels::ALL,
            filter: None,
            traits,
            automatic: true,
            asked: false,
            interests: Some(interests),
        };
        self.subscriptions.insert(channel.clone(), own);
        match from {
            Some(from) => self.catch_up(&channel, from, false).await,
            None if matches!(resume, Some(Err(()))) && traits.history_age.is_some() => {
                self.resync(&channel, key, "cursor");
            }
            None => {}
        }
    }

    /// Replaces the interests on one channel; nobody listens any more where none are left and the
    /// client did not ask itself.
    fn set_interests(&mut self, channel: &ChannelName, interests: Option<Interests>) {
        let Some(own) = self.subscriptions.get_mut(channel) else { return };
        own.interests.clone_from(&interests);
        let (key, asked) = (own.key, own.asked);
        if !asked && interests.is_none() {
            self.drop_subscription(channel);
        } else {
            self.node.hub.interest(&self.connection.id, channel, key, asked, interests);
        }
    }
}
