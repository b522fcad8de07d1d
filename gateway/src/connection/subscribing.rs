//! Subscribing: where a subscription begins, and what its client is told of that. A fresh one is live at once; one that has
//! something to catch up with is registered as "behind" first, and led to live by `catch_up`.
//! Source: `protocol.md` 6, rulings R3, R7, R17, R21.

use std::sync::Arc;
use std::time::Duration;

use carillon_broker_client::{BrokerError, Start};
use carillon_protocol::envelope::{Correlation, Refusal, ServerMessage};
use carillon_protocol::session::{Session, Subscribe};
use carillon_protocol::{ErrorCode, Filter, Position, Since};

use super::catch_up::NOWHERE;
use super::driver::Driver;
use super::requests::Named;
use super::subscriptions::Own;
use crate::dispatch::Dispatch;
use crate::hub::{Behind, Labels, Subscription};
use crate::policy::Action;
use crate::relay::{Bridge, ChannelTraits, PAGE};

/// Most messages that `limit` without `since` may ask for.
pub(crate) const LAST_MAX: u32 = 1_000;

/// Where a subscription begins.
#[derive(Clone, Copy, Debug)]
pub(super) enum Beginning {
    /// Now.
    Now,
    /// With the last N messages.
    Last(u32),
    /// After a position.
    Since(Since, u32),
}

impl Beginning {
    fn of(request: &Subscribe) -> Self {
        match (request.since, request.limit) {
            (Some(since), limit) => Self::Since(since, limit.unwrap_or(PAGE).clamp(1, PAGE)),
            (None, Some(limit)) if limit > 0 => Self::Last(limit.min(LAST_MAX)),
            (None, _) => Self::Now,
        }
    }
}

impl Driver {
    /// A client's subscribe request: checked, performed, answered.
    pub(crate) async fn subscribe(
        &mut self,
        request: Subscribe,
        correlation: &Correlation,
    ) -> Result<(), Refusal> {
        let named = self.resolve(&request.channel)?;
        let (traits, conflate) = self.allowed(Action::Subscribe, &request.channel).await?;
        let filter = match &request.filter {
            Some(document) => {
                Some(self.node.filters.share(Filter::new(document).map_err(|invalid| {
                    Refusal::new(ErrorCode::InvalidMessage, invalid.to_string())
                        .with("field", "payload.filter")
                })?))
            }
            None => None,
        };
        let beginning = Beginning::of(&request);
        if self.subscriptions.get(&named.channel).is_some_and(|own| own.asked) {
            return self
                .subscribe_again(&named, beginning, request.filter.is_some(), filter, correlation)
                .await;
        }
        let limit = self.node.config.load().limits.subscriptions_per_connection as usize;
        if limit > 0 && self.subscriptions.values().filter(|own| !own.automatic).count() >= limit {
            return Err(Refusal::new(
                ErrorCode::SubscriptionLimit,
                "Too many subscriptions on this connection",
            )
            .with("limit", limit));
        }
        if let Some(own) = self.subscriptions.get_mut(&named.channel) {
            // Heard already for the user's persistent subscriptions.
            (own.asked, own.automatic) = (true, false);
            self.node.hub.interest(
                &self.connection.id,
                &named.channel,
                own.key,
                true,
                own.interests.clone(),
            );
            return self.subscribe_again(&named, beginning, true, filter, correlation).await;
        }
        if let Err(error) = self.node.relay.join(&named.channel, traits).await {
            self.node.relay.leave(&named.channel);
            return Err(self.node.broker_refusal(&error));
        }
        if named.channel.as_str().starts_with("entity:") {
            self.connection.outbox.watch_twins();
        }
        let own = self.register(&named, traits, conflate, filter, beginning, correlation, false);
        self.subscriptions.insert(named.channel.clone(), own);
        let begun = self.begin(&named, beginning, correlation).await;
        if begun.is_err() {
            self.drop_subscription(&named.channel);
        }
        begun
    }

    /// Puts the subscription into the hub. A fresh one is live, and answered, at once; one with
    /// something to catch up with is behind.
    #[expect(clippy::too_many_arguments, reason = "the parts of one subscription")]
    pub(super) fn register(
        &self,
        named: &Named,
        traits: ChannelTraits,
        conflate: bool,
        filter: Option<Arc<Filter>>,
        beginning: Beginning,
        correlation: &Correlation,
        automatic: bool,
    ) -> Own {
        let fresh = matches!(beginning, Beginning::Now) || traits.history_age.is_none();
        let subscription = Subscription {
            connection: Arc::clone(&self.connection),
            behind: (!fresh).then(|| Behind::at(NOWHERE)),
            labels: if automatic { Labels::ALL } else { named.labels },
            filter: filter.clone(),
            conflate,
            asked: true,
            interests: None,
            wakes: false,
        };
        let labels = subscription.labels;
        let reason = match beginning {
            Beginning::Since(..) => "no_history",
            _ => "fresh",
        };
        let key = self.node.hub.subscribe(
            &named.channel,
            subscription,
            || self.node.relay.position(&named.channel),
            |position| {
                if fresh && !automatic {
                    self.say_subscribed(named, traits, position, Err(reason), 0, correlation);
                }
            },
        );
        Own { key, labels, filter, traits, automatic, asked: true, interests: None }
    }

    /// Leads a new subscription from its beginning to live.
    async fn begin(
        &mut self,
        named: &Named,
        beginning: Beginning,
        correlation: &Correlation,
    ) -> Result<(), Refusal> {
        let Some(own) = self.subscriptions.get(&named.channel) else { return Ok(()) };
        let Some(age) = own.traits.history_age else { return Ok(()) };
        let (traits, key) = (own.traits, own.key);
        let whole = own.labels == Labels::ALL && own.filter.is_none();
        let (start, limit) = match beginning {
            Beginning::Now => return Ok(()),
            Beginning::Last(count) => (Start::Last, count),
            Beginning::Since(since, limit) => (Start::After(since.offset), limit),
        };
        let page = match self.node.relay.history(&named.channel, start, limit, age).await {
            Ok(page) => page,
            Err(error) => return Err(self.node.broker_refusal(&error)),
        };
        let from = match beginning {
            Beginning::Since(since, _) => {
                let bridge = Bridge::judge(&since, &page);
                self.node.metrics.recovered(bridge == Bridge::Whole);
                if bridge == Bridge::Trimmed {
                    // The same history: delivery begins at its top (R21), which this node may not have heard yet.
                    let (top, reason) = (page.top, Err(bridge.reason()));
                    self.say_subscribed(named, traits, Some(top), reason, 0, correlation);
                    self.catch_up(&named.channel, top, true).await;
                    return Ok(());
                }
                if bridge != Bridge::Whole {
                    let hub = self.node.hub.clone();
                    hub.go_live(&self.connection.id, &named.channel, key, |position| {
                        self.say_subscribed(
                            named,
                            traits,
                            position,
                            Err(bridge.reason()),
                            0,
                            correlation,
                        );
                    });
                    return Ok(());
                }
                // What is owed would replay it once more.
                let owed =
                    self.rare.as_mut().map(|rare| std::mem::take(&mut rare.subscriptions_owed));
                let other = |name: &str| self.channel_of(name).as_ref() != Some(&named.channel);
                let owed = owed.into_iter().flatten().filter(|(name, _)| other(name)).collect();
                if let Some(rare) = &mut self.rare {
                    rare.subscriptions_owed = owed;
                }
                let tag = since.tag.or(page.tag_at_start).unwrap_or(Position::START_TAG);
                let from = Position { epoch: page.top.epoch, offset: since.offset, tag };
                if named.is_of_stream() && whole {
                    self.rare.get_or_insert_default().stream_resumed =
                        Some((named.label.clone(), from));
                }
                let missed = page.top.offset - since.offset;
                self.say_subscribed(named, traits, Some(from), Ok(()), missed, correlation);
                from
            }
            Beginning::Last(_) | Beginning::Now => {
                let count = page.publications.len() as u64;
                self.say_subscribed(
                    named,
                    traits,
                    Some(page.top),
                    Err("fresh"),
                    count,
                    correlation,
                );
                page.top
            }
        };
        let mut last = from;
        for publication in &page.publications {
            last = publication.position.unwrap_or(last);
            let dispatch = Arc::new(Dispatch::new(publication.clone()));
            if !self.replay(&named.channel, &dispatch).await {
                return Ok(());
            }
        }
        let read_all = last.offset >= page.top.offset;
        self.catch_up(&named.channel, last, read_all).await;
        Ok(())
    }

    /// A second subscribe to a channel: no error, delivers once; with a position it replays first.
    pub(super) async fn subscribe_again(
        &mut self,
        named: &Named,
        beginning: Beginning,
        replaces_filter: bool,
        filter: Option<Arc<Filter>>,
        correlation: &Correlation,
    ) -> Result<(), Refusal> {
        let Some(own) = self.subscriptions.get_mut(&named.channel) else { return Ok(()) };
        own.labels = Labels {
            notifications: own.labels.notifications || named.labels.notifications,
            others: own.labels.others || named.labels.others,
        };
        let (key, labels, traits) = (own.key, own.labels, own.traits);
        self.node.hub.relabel(&self.connection.id, &named.channel, key, labels);
        if let (Some(_), Some(rare)) = (&filter, &mut self.rare)
            && named.is_of_stream()
        {
            // From now on not everything is sent.
            rare.stream_resumed = None;
        }
        if replaces_filter {
            own.filter.clone_from(&filter);
            self.node.hub.refilter(&self.connection.id, &named.channel, key, filter);
        }
        if matches!(beginning, Beginning::Now) || traits.history_age.is_none() {
            let hub = self.node.hub.clone();
            let mut said = false;
            hub.at_position(&self.connection.id, &named.channel, key, |position| {
                said = true;
                self.say_subscribed(named, traits, position, Err("fresh"), 0, correlation);
            });
            if !said {
                self.say_subscribed(named, traits, None, Err("fresh"), 0, correlation);
            }
            return Ok(());
        }
        if let (Beginning::Since(since, _), Some(age)) = (beginning, traits.history_age)
            && self.was_sent(named, &since, age).await
        {
            let tag = since.tag.unwrap_or(Position::START_TAG);
            let position = since.epoch.map(|epoch| Position { epoch, offset: since.offset, tag });
            let reply = subscribed(&named.label, traits, position, Ok(()), 0);
            for message in Session::own_reply(reply, correlation) {
                self.connection.push(&message);
            }
            return Ok(());
        }
        if !self.node.relay.hears(&named.channel) {
            let closed = BrokerError::unavailable("the channel is not open yet");
            return Err(self.node.broker_refusal(&closed));
        }
        let (hub, id) = (self.node.hub.clone(), self.connection.id.clone());
        let stood = hub.fall_behind(&id, &named.channel, key, NOWHERE);
        let begun = self.begin(named, beginning, correlation).await;
        match stood {
            // The subscription was there before this request, and goes on from where it stood: what came meanwhile
            // was not delivered.
            Some(stood) if begun.is_err() => {
                hub.fall_behind(&id, &named.channel, key, stood);
                self.connection.outbox.mark_behind();
            }
            None if begun.is_err() => hub.go_live(&id, &named.channel, key, |_| {}),
            _ => {}
        }
        begun
    }

    /// Whether all that followed a position of the user's stream was sent on this connection, because its other label resumed
    /// from there or before (R7: the two are one stream).
    async fn was_sent(&self, named: &Named, since: &Since, age: Duration) -> bool {
        let resumed = self.rare.as_ref().and_then(|rare| rare.stream_resumed.as_ref());
        let Some((label, from)) = resumed.filter(|_| named.is_of_stream()) else { return false };
        if *label == named.label || since.epoch != Some(from.epoch) || since.offset < from.offset {
            return false;
        }
        // A fork must show (R3).
        let start = Start::After(since.offset);
        let page = self.node.relay.history(&named.channel, start, 1, age).await;
        page.is_ok_and(|page| Bridge::judge(since, &page) == Bridge::Whole)
    }

    /// `subscribed`, with the request's correlation.
    fn say_subscribed(
        &self,
        named: &Named,
        traits: ChannelTraits,
        position: Option<Position>,
        recovered: Result<(), &'static str>,
        count: u64,
        correlation: &Correlation,
    ) {
        if let Some(position) = position {
            self.connection.outbox.set_position(&named.channel, position);
        }
        let reply = subscribed(&named.label, traits, position, recovered, count);
        for message in Session::own_reply(reply, correlation) {
            self.connection.push(&message);
        }
    }
}

/// `subscribed` with its payload: where delivery begins, and whether what was missed follows.
#[must_use]
pub(crate) fn subscribed(
    label: &str,
    traits: ChannelTraits,
    position: Option<Position>,
    recovered: Result<(), &'static str>,
    count: u64,
) -> ServerMessage {
    let mut payload = serde_json::json!({
        "channel": label,
        "offset": position.map(|position| position.offset),
        "epoch": position.map(|position| position.epoch),
        "tag": position.map(|position| position.tag),
        "recoverable": traits.history_age.is_some(),
        "recovered": recovered.is_ok(),
        "count": count,
    });
    if let Err(reason) = recovered {
        payload["reason"] = reason.into();
    }
    ServerMessage::new("subscribed", &payload).on(label)
}
