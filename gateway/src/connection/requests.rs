//! What a client may ask of the gateway, performed and answered. One function a request; the
//! session decided what it means, the policy decides whether it may.

use carillon_broker_client::{InboundEntry, Receipt};
use carillon_protocol::envelope::{Correlation, Refusal, ServerMessage};
use carillon_protocol::publication::Exclude;
use carillon_protocol::session::{ClientPublish, Request, Session};
use carillon_protocol::{ChannelName, CloseCode, ErrorCode, Payload};

use super::Transport;
use super::driver::Driver;
use crate::application::calls::Message;
use crate::dispatch::NOTIFICATIONS;
use crate::hub::Labels;
use crate::node::Outgoing;
use crate::policy::{Action, Decision};
use crate::relay::ChannelTraits;
use crate::transport::poll::own_polls;

/// A channel as a client names it, resolved: the hub's channel and which labels are meant.
#[derive(Clone, Debug)]
pub(crate) struct Named {
    pub(crate) channel: ChannelName,
    pub(crate) label: Box<str>,
    pub(super) labels: Labels,
}

impl Named {
    /// Whether it is one of the two labels of the user's own stream.
    pub(super) fn is_of_stream(&self) -> bool {
        self.labels != Labels::ALL || &*self.label == NOTIFICATIONS
    }
}

/// Performs one request and answers it; the answer is queued, not yet flushed.
pub(super) async fn perform(driver: &mut Driver, request: Request, correlation: Correlation) {
    let outcome = match request {
        Request::Subscribe(subscribe) => driver.subscribe(subscribe, &correlation).await,
        Request::Unsubscribe(channel) => {
            driver.unsubscribe(&channel, &correlation);
            Ok(())
        }
        Request::Publish(publish) => {
            return publish_all(driver, vec![(publish, correlation)]).await;
        }
        Request::Authenticate(token) => driver.authenticate(&token).await.map(|expires_at| {
            driver.answer(Session::done(
                correlation.clone(),
                &serde_json::json!({"expires_at": expires_at}),
            ));
        }),
        Request::Inbound { kind, payload, id } => {
            driver.inbound(&kind, &payload, id, &correlation).await
        }
        Request::PresenceJoin { channel, name, metadata } => {
            driver.presence_join(channel, name, metadata, &correlation).await
        }
        Request::PresenceLeave(channel) => driver.presence_leave(&channel).await.map(|data| {
            driver.answer(Session::done(correlation.clone(), &data));
        }),
        Request::PresenceHeartbeat(channel) => {
            driver.presence_heartbeat(&channel).await.map(|data| {
                driver.answer(Session::done(correlation.clone(), &data));
            })
        }
        Request::SetStatus(status) => driver.set_status(status).await.map(|data| {
            driver.answer(Session::done(correlation.clone(), &data));
        }),
        Request::NotificationRead(id) => driver.mark_read(&id).await.map(|data| {
            driver.answer(Session::done(correlation.clone(), &data));
        }),
        Request::NotificationReadAll => driver.mark_all_read().await.map(|data| {
            driver.answer(Session::done(correlation.clone(), &data));
        }),
    };
    if let Err(refusal) = outcome {
        driver.say(&Session::refused(correlation, &refusal));
    }
}

/// Publishes in order, pipelined, and answers each; the answers are queued, not yet flushed.
pub(super) async fn publish_all(driver: &Driver, run: Vec<(ClientPublish, Correlation)>) {
    let mut outgoing = Vec::with_capacity(run.len());
    let mut correlations = Vec::with_capacity(run.len());
    for (publish, correlation) in run {
        outgoing.push(driver.outgoing(publish).await);
        correlations.push(correlation);
    }
    let results = driver.node.publish_batch(outgoing).await;
    for (result, correlation) in results.into_iter().zip(correlations) {
        match result {
            Ok(receipt) => driver.answer(Session::done(correlation, &receipt_data(&receipt))),
            Err(refusal) => driver.say(&Session::refused(correlation, &refusal)),
        }
    }
}

impl Driver {
    fn answer(&self, message: Option<ServerMessage>) {
        if let Some(message) = message {
            self.connection.push(&message);
        }
    }

    /// Resolves `notifications` and the user's own stream (R7).
    pub(crate) fn resolve(&self, name: &ChannelName) -> Result<Named, Refusal> {
        let stream =
            self.connection.user.as_ref().and_then(|user| ChannelName::user_stream(user.as_str()));
        if name.as_str() == NOTIFICATIONS {
            let channel = stream.ok_or_else(|| {
                Refusal::new(ErrorCode::Forbidden, "Notifications are a user's own")
            })?;
            return Ok(Named {
                channel,
                label: NOTIFICATIONS.into(),
                labels: Labels { notifications: true, others: false },
            });
        }
        let own = stream.is_some_and(|stream| stream == *name);
        let labels = if own { Labels { notifications: false, others: true } } else { Labels::ALL };
        Ok(Named { channel: name.clone(), label: name.as_str().into(), labels })
    }

    /// Whether the policy lets this connection act on a channel; the channel's traits.
    pub(crate) async fn allowed(
        &self,
        action: Action,
        channel: &ChannelName,
    ) -> Result<(ChannelTraits, bool), Refusal> {
        let policy = self.node.policy.load_full();
        match policy.decide(action, self.claims.as_deref(), channel) {
            Decision::Allow => {}
            Decision::Refuse(refusal) => return Err(refusal),
            Decision::Ask => self.ask_application(action, channel).await?,
        }
        let namespace = policy.find(channel).map(|found| found.namespace);
        let traits = ChannelTraits {
            history_age: namespace.and_then(|namespace| namespace.retention).map(|kept| kept.age),
        };
        Ok((traits, namespace.is_some_and(|namespace| namespace.conflate)))
    }

    fn unsubscribe(&mut self, name: &ChannelName, correlation: &Correlation) {
        if let Some(rare) = &mut self.rare {
            rare.subscriptions_owed.retain(|(owed, _)| **owed != *name.as_str());
        }
        if let Ok(named) = self.resolve(name)
            && let Some(own) = self.subscriptions.get(&named.channel).cloned()
        {
            if let Some(rare) = &mut self.rare
                && named.is_of_stream()
            {
                rare.stream_resumed = None;
            }
            let labels = Labels {
                notifications: own.labels.notifications && !named.labels.notifications,
                others: own.labels.others && !named.labels.others,
            };
            if labels == Labels::NONE && own.interests.is_some() {
                self.unask(&named.channel);
            } else if labels == Labels::NONE {
                self.drop_subscription(&named.channel);
            } else {
                self.node.hub.relabel(&self.connection.id, &named.channel, own.key, labels);
                if let Some(own) = self.subscriptions.get_mut(&named.channel) {
                    own.labels = labels;
                }
            }
        }
        let reply = ServerMessage::new("unsubscribed", &serde_json::json!({"channel": name}))
            .on(name.as_str());
        for message in Session::own_reply(reply, correlation) {
            self.connection.push(&message);
        }
    }

    /// The client's own subscription ends; the user's persistent ones on the channel stay.
    fn unask(&mut self, channel: &ChannelName) {
        if let Some(own) = self.subscriptions.get_mut(channel) {
            (own.asked, own.automatic, own.filter) = (false, true, None);
            self.node.hub.interest(
                &self.connection.id,
                channel,
                own.key,
                false,
                own.interests.clone(),
            );
        }
    }

    /// Ends one subscription, silently.
    pub(crate) fn drop_subscription(&mut self, channel: &ChannelName) {
        if let Some(own) = self.subscriptions.remove(channel) {
            self.node.hub.unsubscribe(&self.connection.id, channel, own.key);
            self.node.relay.leave(channel);
            self.connection.outbox.forget_position(channel.as_str());
            if own.interests.is_some() {
                self.owe_interests();
            }
        }
    }

    /// Ends all subscriptions, silently.
    pub(super) fn release_subscriptions(&mut self) {
        let channels: Vec<ChannelName> = self.subscriptions.keys().cloned().collect();
        for channel in channels {
            self.drop_subscription(&channel);
        }
    }

    /// Whom idempotency is scoped to (R2).
    fn sender(&self) -> String {
        match &self.connection.user {
            Some(user) => format!("u:{user}"),
            None => format!("c:{}", self.connection.id),
        }
    }

    /// What a client wants published, if it may.
    async fn outgoing(&self, publish: ClientPublish) -> Result<Outgoing, Refusal> {
        if publish.channel.as_str() == NOTIFICATIONS {
            return Err(Refusal::new(
                ErrorCode::Forbidden,
                "Notifications are published by backends",
            ));
        }
        self.allowed(Action::Publish, &publish.channel).await?;
        let mut exclude = Exclude::default();
        if publish.relay {
            exclude.connections.push(self.connection.id.clone());
            if self.connection.transport == Transport::Poll {
                exclude.connections.extend(
                    self.connection.user.as_ref().and_then(|user| own_polls(user.as_str())),
                );
            }
        }
        Ok(Outgoing {
            channel: publish.channel,
            kind: publish.kind,
            payload: publish.payload,
            id: publish.id,
            idempotency_key: None,
            user_id: self.connection.user.clone(),
            exclude,
            meta: None,
            sender: self.sender(),
            history: publish.history,
            traceparent: None,
        })
    }

    /// Replaces the token; the new expiry, Unix seconds. A different user is refused, and
    /// subscriptions that the new token does not allow end (R18).
    async fn authenticate(&mut self, token: &str) -> Result<i64, Refusal> {
        let claims = self.node.verify(token).await?;
        if Some(&claims.user) != self.connection.user.as_ref() {
            return Err(Refusal::new(ErrorCode::Forbidden, "The token is another user's"));
        }
        let expires_at = claims.expires_at;
        self.connection.set_token(claims.token_id.as_deref(), claims.issued_at);
        // Noted before it is looked at once more: what is revoked in between finds one of the two.
        if self.node.revoked.refuses(&claims) {
            self.connection.outbox.close(CloseCode::TokenRevoked);
        }
        self.claims = Some(Box::new(claims));
        let generation = self.connection.renew_token();
        self.node.heartbeat.expire(&self.connection, expires_at, generation);
        self.recheck_subscriptions().await;
        Ok(expires_at)
    }

    /// Ends subscriptions that are no longer allowed, each with an `error`.
    pub(crate) async fn recheck_subscriptions(&mut self) {
        let channels: Vec<ChannelName> = self
            .subscriptions
            .iter()
            .filter(|(_, own)| !own.automatic)
            .map(|(channel, _)| channel.clone())
            .collect();
        self.end_refused(channels).await;
        self.sync_interests(&None).await;
    }

    /// A call to the application (`channels.md` 6): by webhook, answered later, or queued on the `inbound` stream.
    async fn inbound(
        &mut self,
        kind: &str,
        payload: &Payload,
        id: Option<Box<str>>,
        correlation: &Correlation,
    ) -> Result<(), Refusal> {
        let message = Message {
            kind,
            id: id.as_deref(),
            user: self.connection.user.as_ref(),
            connection: Some(&self.connection.id),
            channel: None,
            payload,
        };
        let json = message.to_json();
        if let Some(calls) = &self.node.application.calls {
            let queue = self.calls.get_or_insert_default();
            return calls.take(
                &self.node.tasks,
                &self.connection,
                queue,
                json,
                correlation.clone(),
            );
        }
        let entry = InboundEntry { kind: kind.to_owned(), json };
        let queued = self.node.broker.append_inbound(&entry).await;
        let entry_id = queued.map_err(|error| self.node.broker_refusal(&error))?;
        let data = serde_json::json!({"status": "queued", "queued": true, "id": entry_id});
        self.answer(Session::done(correlation.clone(), &data));
        Ok(())
    }

    /// Waits until the application answered every call of this connection: at most the webhook's time-out.
    pub(crate) async fn calls_answered(&self) {
        if let Some(queue) = &self.calls {
            queue.answered().await;
        }
    }
}

/// What an ack to a publish holds.
#[must_use]
pub fn receipt_data(receipt: &Receipt) -> serde_json::Value {
    serde_json::json!({
        "id": receipt.id,
        "offset": receipt.position.map(|position| position.offset),
        "epoch": receipt.position.map(|position| position.epoch),
        "tag": receipt.position.map(|position| position.tag),
        "duplicate": receipt.duplicate,
    })
}
