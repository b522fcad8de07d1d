//! Joining history to live messages without a gap or a duplicate.
//!
//! A subscription that is behind has nothing delivered to it while history is read and queued page by page, as the socket
//! drains. Then the hub makes it live under its lock, from its hot tail where that suffices. One walk serves who resumes and a
//! slow reader whose queue was full. Source: `channels.md` 7, rulings R3, R17, R21.

use std::sync::Arc;

use carillon_broker_client::Start;
use carillon_protocol::{ChannelName, Epoch, Position};

use super::driver::{Driver, RETRY};
use super::outbox::Pushed;
use super::subscriptions::Own;
use crate::dispatch::Dispatch;
use crate::filters::Verdicts;
use crate::hub::Next;
use crate::interests::matching;
use crate::notifications::{is_expired, is_notification};
use crate::relay::{Bridge, PAGE};

impl Driver {
    /// Leads every subscription that fell behind back to live.
    pub(super) async fn catch_up_all(&mut self) {
        let channels: Vec<(ChannelName, Own)> = self
            .subscriptions
            .iter()
            .map(|(channel, own)| (channel.clone(), own.clone()))
            .collect();
        for (channel, own) in channels {
            if let Some(from) = self.node.hub.behind_at(&self.connection.id, &channel, own.key)
                && from != NOWHERE
            {
                self.catch_up(&channel, from, false).await;
            }
        }
        if self.rare.as_ref().is_some_and(|rare| !rare.subscriptions_owed.is_empty()) {
            self.subscribe_owed().await;
        }
        let doubts = self.connection.take_doubts();
        if doubts.policy {
            self.recheck_subscriptions().await;
        }
        if doubts.grants {
            self.ask_again().await;
        }
        if self.connection.take_interests_changed() || self.interests_owed {
            self.sync_interests(&None).await;
        }
        if self.pending_owed {
            self.send_pending().await;
        }
        self.connection.outbox.flush();
    }

    /// Leads one subscription from `from` to live; what it sees on the way is queued as there is room.
    pub(super) async fn catch_up(
        &mut self,
        channel: &ChannelName,
        mut from: Position,
        mut read_all: bool,
    ) {
        let Some(own) = self.subscriptions.get(channel).cloned() else { return };
        let Some(age) = own.traits.history_age else { return };
        loop {
            match self.node.hub.next(&self.connection.id, channel, own.key, from, read_all) {
                Next::Live | Next::Gone => return,
                Next::Tail(dispatches) => {
                    for dispatch in dispatches {
                        from = dispatch.publication.position.unwrap_or(from);
                        if !self.replay(channel, &dispatch).await {
                            return;
                        }
                    }
                    read_all = false;
                }
                Next::History => {
                    let page = match self
                        .node
                        .relay
                        .history(channel, Start::After(from.offset), PAGE, age)
                        .await
                    {
                        Ok(page) => page,
                        Err(error) => {
                            tracing::debug!(%error, %channel, "catching up waits for the broker");
                            self.retry = Some(Box::pin(tokio::time::sleep(RETRY)));
                            return;
                        }
                    };
                    let bridge = Bridge::judge(&from.into(), &page);
                    if bridge != Bridge::Whole {
                        self.resync(channel, own.key, bridge.reason());
                        return;
                    }
                    for publication in &page.publications {
                        from = publication.position.unwrap_or(from);
                        if !self
                            .replay(channel, &Arc::new(Dispatch::new(publication.clone())))
                            .await
                        {
                            return;
                        }
                    }
                    read_all = from.offset >= page.top.offset;
                }
            }
        }
    }

    /// Tells the client that a channel goes on elsewhere, and makes the subscription live there.
    pub(super) fn resync(
        &self,
        channel: &ChannelName,
        key: crate::hub::SubscriptionKey,
        reason: &str,
    ) {
        self.node.metrics.resync();
        self.node.hub.go_live(&self.connection.id, channel, key, |position| {
            if let Some(position) = position {
                self.connection.outbox.set_position(channel, position);
            }
            self.connection.push(&crate::hub::resync_message(channel, reason, position));
        });
        self.connection.outbox.flush();
    }

    /// Queues one publication from history if this subscription hears it, waiting for room. `false`
    /// when the connection ends.
    pub(super) async fn replay(&mut self, channel: &ChannelName, dispatch: &Arc<Dispatch>) -> bool {
        let Some(own) = self.subscriptions.get(channel) else { return false };
        let publication = &dispatch.publication;
        let admitted = own.labels.admit(dispatch)
            && !publication.exclude.covers(&self.connection.id, self.connection.user.as_ref())
            && !is_expired(publication);
        if !admitted {
            return true;
        }
        let mut verdicts = Verdicts::on(&publication.payload);
        let asked = own.asked && own.filter.as_ref().is_none_or(|filter| verdicts.passes(filter));
        let ids = own.interests.as_ref().map_or_else(Vec::new, |interests| {
            matching(interests, &publication.kind, &mut verdicts)
        });
        if !asked && ids.is_empty() {
            return true;
        }
        loop {
            match self.connection.outbox.push_for(dispatch, self.connection.dress, 0, &ids) {
                Pushed::First | Pushed::Queued => {
                    if is_notification(publication) {
                        self.node.courier.delivered(dispatch);
                    }
                    return true;
                }
                Pushed::Closed => return false,
                Pushed::Full => {
                    if !self.drained().await {
                        return false;
                    }
                }
            }
        }
    }
}

/// Placeholder of a subscription whose position is not known yet: no history is called so.
pub(super) const NOWHERE: Position =
    Position { epoch: NO_EPOCH, offset: u64::MAX, tag: Position::START_TAG };
const NO_EPOCH: Epoch = Epoch::NONE;
