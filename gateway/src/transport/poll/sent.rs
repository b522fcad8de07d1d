//! What a poll sends along: its messages, performed as a WebSocket client's would be and answered in `replies`.
//! `protocol.md` 6, ruling R32.
//!
//! A poll is over before its subscriptions and its presence are: they become wishes, which go on with the poll's number.

use std::sync::Arc;

use bytes::Bytes;
use carillon_broker_client::Start;
use carillon_protocol::client_message::Unreadable;
use carillon_protocol::envelope::{Correlation, Refusal, ServerMessage};
use carillon_protocol::session::{Request, Session, Step, Subscribe};
use carillon_protocol::{ChannelName, ClientMessage, ErrorCode, Filter, Position, UserId};
use serde_json::{Value, json};

use super::held::Held;
use super::origin::{Channels, Origin, begin};
use super::page::{Present, Subscribed, Wishes};
use crate::cluster::Question as Asked;
use crate::connection::requests::Named;
use crate::connection::subscribing::{LAST_MAX, subscribed};
use crate::node::Node;
use crate::policy::Action;
use crate::pollers::Polling;
use crate::presence::member;
use crate::relay::{Bridge, ChannelTraits};
use carillon_broker_client::Target;

/// One poll while its messages are performed.
pub(super) struct Sender<'a> {
    pub(super) node: &'a Arc<Node>,
    pub(super) user: &'a UserId,
    pub(super) held: &'a mut Held,
    pub(super) polling: &'a Polling,
    pub(super) channels: &'a mut Channels,
    pub(super) origin: &'a mut Origin,
}

impl Sender<'_> {
    /// Performs all, in order; the replies.
    pub(super) async fn send(
        &mut self,
        messages: Vec<Result<ClientMessage, Unreadable>>,
    ) -> Vec<Bytes> {
        self.held.absorb();
        for message in messages {
            match self.held.driver.interpret(message) {
                Step::Reply(replies) => replies.iter().for_each(|reply| self.say(reply)),
                Step::Perform(request, correlation) => self.perform(request, correlation).await,
                Step::Goodbye(correlation) => self.done(correlation, &json!({})),
                Step::Close(_) => {}
            }
        }
        self.held.driver.calls_answered().await;
        self.held.connection().outbox.take()
    }

    fn say(&self, message: &ServerMessage) {
        self.held.connection().push(message);
    }

    fn answer(&self, reply: ServerMessage, correlation: &Correlation) {
        Session::own_reply(reply, correlation).iter().for_each(|reply| self.say(reply));
    }

    fn done(&self, correlation: Correlation, data: &Value) {
        if let Some(ack) = Session::done(correlation, data) {
            self.say(&ack);
        }
    }

    async fn perform(&mut self, request: Request, correlation: Correlation) {
        let outcome = match request {
            Request::Subscribe(subscribe) => self.subscribe(subscribe, &correlation).await,
            Request::Unsubscribe(name) => self.unsubscribe(&name, &correlation),
            Request::PresenceJoin { channel, name, metadata } => {
                self.join(channel, name, metadata, &correlation).await
            }
            Request::PresenceLeave(resource) => {
                let left = self.leave(&resource).await;
                left.map(|left| {
                    let data = json!({"channel": resource, "left": left});
                    self.done(correlation.clone(), &data);
                })
            }
            Request::PresenceHeartbeat(resource) => {
                let present = self.origin.wishes.present.iter().any(|at| at.resource == resource);
                let data = json!({"channel": resource});
                if present {
                    // Whoever polls is there: it was seen to before the messages.
                    self.done(correlation.clone(), &data);
                    Ok(())
                } else {
                    let refusal =
                        Refusal::new(ErrorCode::Conflict, "These polls have not joined there");
                    Err(refusal.with("channel", resource.as_str()))
                }
            }
            other => return self.held.driver.perform(other, correlation).await,
        };
        if let Err(refusal) = outcome {
            self.say(&Session::refused(correlation, &refusal));
        }
    }

    /// The channel is heard by this poll and by those that go on from it.
    async fn subscribe(
        &mut self,
        request: Subscribe,
        correlation: &Correlation,
    ) -> Result<(), Refusal> {
        let wrong = |invalid: &dyn std::fmt::Display| {
            Refusal::new(ErrorCode::InvalidMessage, invalid.to_string())
                .with("field", "payload.filter")
        };
        let filter = request.filter.as_ref().map(Filter::new).transpose();
        let filter = filter.map_err(|invalid| wrong(&invalid))?;
        let filter = filter.map(|filter| self.node.filters.share(filter));
        let named = self.held.driver.resolve(&request.channel)?;
        self.channels.add(self.held, self.node, request.channel.as_str(), filter).await?;
        let listened = self.channels.heard.iter().find(|known| known.channel == named.channel);
        let traits = ChannelTraits { history_age: listened.and_then(|listened| listened.age) };
        let (recovered, count) = self.place(&named, &request, traits).await?;
        begin(self.node, self.origin, &self.channels.heard).await?;
        let name = request.channel.as_str().to_owned();
        self.wish(|wishes| {
            let filter = match wishes.subscribed.iter().position(|known| known.name == name) {
                Some(at) => request.filter.or(wishes.subscribed.remove(at).filter),
                None => request.filter,
            };
            wishes.subscribed.push(Subscribed { name, filter });
        });
        let position = self.origin.cursor.get(named.channel.as_str());
        let position = position.filter(|_| traits.history_age.is_some());
        self.answer(subscribed(&named.label, traits, position, recovered, count), correlation);
        Ok(())
    }

    /// Moves the cursor to where the request begins; what `subscribed` says of it.
    async fn place(
        &mut self,
        named: &Named,
        request: &Subscribe,
        traits: ChannelTraits,
    ) -> Result<(Result<(), &'static str>, u64), Refusal> {
        let Some(age) = traits.history_age else {
            let reason = if request.since.is_some() { "no_history" } else { "fresh" };
            return Ok((Err(reason), 0));
        };
        let (start, limit) = match (request.since, request.limit) {
            (Some(since), _) => (Start::After(since.offset), 1),
            (None, Some(limit)) if limit > 0 => (Start::Last, limit.min(LAST_MAX)),
            (None, _) => return Ok((Err("fresh"), 0)),
        };
        let page = self.node.relay.history(&named.channel, start, limit, age).await;
        let page = page.map_err(|error| self.node.broker_refusal(&error))?;
        let (position, outcome) = match request.since {
            Some(since) => match Bridge::judge(&since, &page) {
                Bridge::Whole => {
                    let tag = since.tag.or(page.tag_at_start).unwrap_or(Position::START_TAG);
                    let from = Position { epoch: page.top.epoch, offset: since.offset, tag };
                    (from, (Ok(()), page.top.offset - since.offset))
                }
                broken => (page.top, (Err(broken.reason()), 0)),
            },
            None => {
                let first = page.publications.first().and_then(|first| {
                    let position = first.position?;
                    let tag = first.previous_tag.unwrap_or(Position::START_TAG);
                    Some(Position { offset: position.offset - 1, tag, ..position })
                });
                (first.unwrap_or(page.top), (Err("fresh"), page.publications.len() as u64))
            }
        };
        self.origin.cursor.set(&named.channel, position);
        self.origin.kept = false;
        Ok(outcome)
    }

    fn unsubscribe(
        &mut self,
        name: &ChannelName,
        correlation: &Correlation,
    ) -> Result<(), Refusal> {
        if let Ok(named) = self.held.driver.resolve(name) {
            if self.channels.heard.first().is_some_and(|own| own.channel == named.channel) {
                let refusal = Refusal::new(
                    ErrorCode::InvalidMessage,
                    "A poll always hears the user's own channel",
                );
                return Err(refusal.with("channel", name.as_str()));
            }
            self.channels.drop_asked(&named.channel);
            self.wish(|wishes| wishes.subscribed.retain(|known| known.name != name.as_str()));
        }
        let reply = ServerMessage::new("unsubscribed", &json!({"channel": name})).on(name.as_str());
        self.answer(reply, correlation);
        Ok(())
    }

    async fn join(
        &mut self,
        resource: ChannelName,
        name: Option<Box<str>>,
        metadata: Option<Value>,
        correlation: &Correlation,
    ) -> Result<(), Refusal> {
        self.held.driver.allowed(Action::Presence, &resource).await?;
        let known = self.held.driver.claims.as_ref().and_then(|claims| claims.name.clone());
        let member = member(self.user.clone(), known.or(name).map(Into::into), metadata)?;
        let present = Present {
            resource: resource.clone(),
            name: member.name.clone(),
            metadata: member.metadata.clone(),
        };
        self.channels.add(self.held, self.node, resource.as_str(), None).await?;
        let joined = self.node.presence.join(&self.polling.connection, &resource, member).await;
        let everyone = joined.map_err(|error| self.node.broker_refusal(&error))?.everyone;
        self.held.own_joins.push(resource.clone());
        self.wish(|wishes| {
            wishes.present.retain(|at| at.resource != resource);
            wishes.present.push(present);
            // Joining subscribes as well (R25).
            let name = resource.as_str();
            if wishes.subscribed.iter().all(|known| known.name != name) {
                wishes.subscribed.push(Subscribed { name: name.to_owned(), filter: None });
            }
        });
        let sync =
            ServerMessage::new("presence:sync", &json!({"users": everyone})).on(resource.as_str());
        self.answer(sync, correlation);
        Ok(())
    }

    async fn leave(&mut self, resource: &ChannelName) -> Result<bool, Refusal> {
        let before = self.origin.wishes.present.len();
        self.wish(|wishes| wishes.present.retain(|at| at.resource != *resource));
        let here = self.node.presence.leave(&self.polling.connection, resource).await;
        // Other nodes that served these polls hold the user there, too.
        let elsewhere = Asked::PollerLeaves { user: self.user.clone(), resource: resource.clone() };
        let told = self.node.cluster.ask::<Value>(&Target::All, elsewhere).await;
        told.map_err(|error| self.node.broker_refusal(&error))?;
        Ok(here || self.origin.wishes.present.len() < before)
    }

    fn wish(&mut self, change: impl FnOnce(&mut Wishes)) {
        let before = self.origin.wishes.clone();
        change(&mut self.origin.wishes);
        if self.origin.wishes != before {
            self.origin.kept = false;
        }
    }
}

/// Puts the user where former polls joined: on this node too, and again after a silence.
pub(super) async fn be_present(node: &Node, user: &UserId, polling: &Polling, wishes: &Wishes) {
    for at in &wishes.present {
        if node.presence.is_held(&polling.connection, &at.resource).await {
            continue;
        }
        let Ok(member) = member(user.clone(), at.name.clone(), at.metadata.clone()) else {
            continue;
        };
        if let Err(error) = node.presence.join(&polling.connection, &at.resource, member).await {
            tracing::debug!(%error, "who polls is not shown until the next poll");
        }
    }
}
