//! The first messages of a connection: the profile's welcome with the user stream's position, then
//! what the query asked for. `protocol.md` 1, rulings R7, R13, R22, R29.

use std::sync::Arc;

use carillon_broker_client::Start;
use carillon_protocol::envelope::{Correlation, Refusal, ServerMessage};
use carillon_protocol::session::Subscribe;
use carillon_protocol::{ChannelName, Cursor, ErrorCode, Position, Profile, Publication};

use super::Connection;
use super::catch_up::NOWHERE;
use super::driver::{Driver, RETRY};
use super::interests::Active;
use super::notifications::{PAGE, Pending};
use super::requests::Named;
use super::subscribing::{Beginning, subscribed};
use super::subscriptions::Own;
use crate::clock;
use crate::dispatch::{Medium, NOTIFICATIONS};
use crate::hub::{Behind, Labels, Subscription};
use crate::relay::ChannelTraits;

/// Entity events whose twins may still be on their way when a cursor is written.
const TWINS_LATE_MAX: u32 = 16;
/// Channels of a query that are looked at for them.
const CHANNELS_WITH_TWINS_MAX: usize = 50;

/// `since` of a query: a cursor, or something that is none.
pub type Resume = Option<Result<Cursor, ()>>;

impl Driver {
    /// An entity event comes on the narrower channel first: where a cursor is from between the two, its twin on the wider
    /// channel must not bring it once more (R14).
    async fn remember_twins(&self, channels: &[ChannelName], resume: &Resume) {
        let Some(Ok(cursor)) = resume else { return };
        let policy = self.node.policy.load_full();
        for channel in channels.iter().take(CHANNELS_WITH_TWINS_MAX) {
            let wider =
                channel.as_str().strip_prefix("entity:").and_then(|rest| rest.split_once(':'));
            let Some((entity, _)) = wider else { continue };
            let is_wider =
                |other: &ChannelName| other.as_str().strip_prefix("entity:") == Some(entity);
            let age = policy
                .find(channel)
                .and_then(|found| found.namespace.retention)
                .map(|kept| kept.age);
            let (Some(position), Some(age)) = (cursor.get(channel.as_str()), age) else { continue };
            if !channels.iter().any(is_wider) {
                continue;
            }
            let start = Start::After(position.offset.saturating_sub(TWINS_LATE_MAX.into()));
            let page = self.node.relay.history(channel, start, TWINS_LATE_MAX, age).await;
            let Ok(page) = page else { continue };
            self.connection.outbox.watch_twins();
            let known = |publication: &&Publication| {
                publication.position.is_some_and(|here| {
                    here.epoch == position.epoch && here.offset <= position.offset
                })
            };
            page.publications
                .iter()
                .filter(known)
                .for_each(|publication| self.connection.outbox.remember_twin(publication));
        }
    }

    /// Sends the welcome, subscribes to the user's own stream and to the query's channels.
    pub async fn welcome(&mut self, channels: &[String], resume: Resume) {
        self.hold_positions(channels, &resume);
        if matches!(resume, Some(Ok(_))) {
            self.node.metrics.resumed(self.connection.transport);
        }
        let stream =
            self.connection.user.as_ref().and_then(|user| ChannelName::user_stream(user.as_str()));
        match stream {
            Some(stream) => self.welcome_user(stream, &resume).await,
            None if self.connection.dress.profile == Profile::Dnr => {}
            None => self.connection.push(&welcome(&self.connection, None)),
        }
        let named: Vec<ChannelName> =
            channels.iter().filter_map(|name| ChannelName::new(name).ok()).collect();
        self.ask_ahead(&named).await;
        self.remember_twins(&named, &resume).await;
        // Asked now that the user's stream is heard: what is stored after this is told there. Both in one round trip.
        let waiting = self.look_for_waiting().await;
        for name in channels {
            self.subscribe_from_query(name, &resume).await;
        }
        if let Some((active, pending)) = waiting {
            self.join_active(active, &resume).await;
            self.send_pending_from(pending).await;
        }
        self.connection.outbox.flush();
    }

    /// What is stored for the user: active subscriptions, and the oldest pending notifications.
    async fn look_for_waiting(&self) -> Option<(Active, Pending)> {
        let user = self.connection.user.as_ref()?;
        let active = self.node.subscriptions.active_for(user);
        let pending = self.node.notifications.pending(user, PAGE);
        Some(tokio::join!(active, pending))
    }

    async fn welcome_user(&mut self, stream: ChannelName, resume: &Resume) {
        let policy = self.node.policy.load_full();
        let retention = policy.find(&stream).and_then(|found| found.namespace.retention);
        let traits = ChannelTraits { history_age: retention.map(|kept| kept.age) };
        if let Err(error) = self.node.relay.join(&stream, traits).await {
            // The stream opens when the broker is back, and the client is told `resync` then (R42).
            tracing::debug!(%error, "a connection begins without its stream's position");
            self.node.relay.expect_resync(&stream);
        }
        self.connection.outbox.expect_pending();
        let cursor = resume.as_ref().and_then(|resume| resume.as_ref().ok());
        let stopped = cursor.and_then(|cursor| cursor.get(stream.as_str()));
        let named = Named {
            channel: stream.clone(),
            label: NOTIFICATIONS.into(),
            labels: Labels { notifications: true, others: true },
        };
        let subscription = Subscription {
            connection: Arc::clone(&self.connection),
            // Nothing live before what was missed: it would come again with it.
            behind: stopped.map(|_| Behind::at(NOWHERE)),
            labels: Labels::ALL,
            filter: None,
            conflate: false,
            asked: true,
            interests: None,
            wakes: false,
        };
        let key = self.node.hub.subscribe(
            &stream,
            subscription,
            || self.node.relay.position(&stream),
            // What was missed follows: delivery begins where the client stopped.
            |position| self.greet(&stream, traits, stopped.or(position), resume),
        );
        let own = Own {
            key,
            labels: Labels::ALL,
            filter: None,
            traits,
            automatic: true,
            asked: true,
            interests: None,
        };
        self.subscriptions.insert(stream.clone(), own);
        match resume {
            None => {}
            Some(_) => match stopped {
                Some(position) => {
                    let beginning = Beginning::Since(position.into(), crate::relay::PAGE);
                    let again = self
                        .subscribe_again(&named, beginning, false, None, &Correlation::default())
                        .await;
                    if again.is_err() {
                        // It stays behind, and resumes when the broker is back (R42).
                        self.owe_subscription(NOTIFICATIONS, resume);
                    }
                }
                None => self.resync(&stream, key, "cursor"),
            },
        }
    }

    /// The cursor that comes back with every event holds from the first one on what the client gave: a stream that breaks
    /// again before a channel was resumed must not lose its place there.
    fn hold_positions(&self, channels: &[String], resume: &Resume) {
        let user = self.connection.user.as_ref();
        if let Some(stream) = user.and_then(|user| ChannelName::user_stream(user.as_str())) {
            self.hold_position(&stream, resume);
        }
        channels.iter().for_each(|name| self.hold_position_of(name, resume));
    }

    fn hold_position_of(&self, name: &str, resume: &Resume) {
        if let Some(channel) = self.channel_of(name) {
            self.hold_position(&channel, resume);
        }
    }

    fn hold_position(&self, channel: &ChannelName, resume: &Resume) {
        if let Some(Ok(cursor)) = resume
            && let Some(position) = cursor.get(channel.as_str())
        {
            self.connection.outbox.set_position(channel, position);
        }
    }

    fn greet(
        &self,
        stream: &ChannelName,
        traits: ChannelTraits,
        position: Option<Position>,
        resume: &Resume,
    ) {
        let resumes = matches!(resume, Some(Ok(cursor)) if cursor.get(stream.as_str()).is_some());
        if let Some(position) = position.filter(|_| !resumes) {
            self.connection.outbox.set_position(stream, position);
        }
        let profile = self.connection.dress.profile;
        if profile != Profile::Dnr {
            self.connection.push(&welcome(&self.connection, position));
        }
        // Where it resumes, the answer to that says where it stands.
        if matches!(profile, Profile::Uno | Profile::Dnr) && !resumes {
            self.connection.push(&subscribed(NOTIFICATIONS, traits, position, Err("fresh"), 0));
        }
    }

    /// Subscribes to a channel of the query, or says why not. While the broker is away the subscription is owed, and
    /// answered when it is back (R42): an event stream has no way to ask again.
    async fn subscribe_from_query(&mut self, name: &str, resume: &Resume) {
        let resumed = || self.rare.as_ref().is_some_and(|rare| rare.stream_resumed.is_some());
        if name == NOTIFICATIONS && matches!(resume, Some(Ok(_))) && resumed() {
            // The welcome resumed it, and said so.
            return;
        }
        let refusal = match self.try_subscribe_from_query(name, resume).await {
            Ok(()) => return,
            Err(refusal) => refusal,
        };
        if refusal.code == ErrorCode::Unavailable {
            return self.owe_subscription(name, resume);
        }
        let channel = self.channel_of(name);
        if let Some(channel) = channel.filter(|channel| !self.subscriptions.contains_key(channel)) {
            self.connection.outbox.forget_position(channel.as_str());
        }
        self.say(&ServerMessage::error(Correlation::default(), &refusal).on(name));
    }

    fn owe_subscription(&mut self, name: &str, resume: &Resume) {
        self.hold_position_of(name, resume);
        let rare = self.rare.get_or_insert_default();
        rare.subscriptions_owed.push((name.into(), resume.clone()));
        self.retry = Some(Box::pin(tokio::time::sleep(RETRY)));
    }

    /// The channel that a name means to this connection.
    pub(super) fn channel_of(&self, name: &str) -> Option<ChannelName> {
        let name = ChannelName::new(name).ok()?;
        Some(self.resolve(&name).ok()?.channel)
    }

    /// Tries again what is owed.
    pub(super) async fn subscribe_owed(&mut self) {
        let Some(rare) = &mut self.rare else { return };
        for (name, resume) in std::mem::take(&mut rare.subscriptions_owed) {
            self.subscribe_from_query(&name, &resume).await;
        }
    }

    async fn try_subscribe_from_query(
        &mut self,
        name: &str,
        resume: &Resume,
    ) -> Result<(), Refusal> {
        let channel = ChannelName::new(name).map_err(|invalid| {
            Refusal::new(ErrorCode::InvalidMessage, invalid.to_string()).with("channel", name)
        })?;
        let since = match resume {
            Some(Ok(cursor)) => {
                let named = self.resolve(&channel)?;
                cursor.get(named.channel.as_str()).map(Into::into)
            }
            _ => None,
        };
        let request = Subscribe { channel: channel.clone(), since, limit: None, filter: None };
        self.subscribe(request, &Correlation::default()).await?;
        if matches!(resume, Some(Err(()))) {
            let named = self.resolve(&channel)?;
            if let Some(own) = self.subscriptions.get(&named.channel) {
                self.resync(&named.channel, own.key, "cursor");
            }
        }
        Ok(())
    }
}

/// The profile's first message; DNR has none.
fn welcome(connection: &Connection, position: Option<Position>) -> ServerMessage {
    let channels: Vec<serde_json::Value> = connection
        .user
        .iter()
        .map(|_| {
            serde_json::json!({
                "channel": NOTIFICATIONS,
                "offset": position.map(|position| position.offset),
                "epoch": position.map(|position| position.epoch),
                "tag": position.map(|position| position.tag),
            })
        })
        .collect();
    match connection.dress.profile {
        Profile::Social | Profile::Dnr => ServerMessage::new(
            "connect",
            &serde_json::json!({
                "user_id": connection.user,
                "connection_id": connection.id,
                "timestamp": carillon_protocol::time::rfc3339(clock::unix_ms()),
                "channels": channels,
            }),
        ),
        Profile::Uno => {
            ServerMessage::new("connection", &serde_json::json!({"connection_id": connection.id}))
        }
        Profile::Excore => {
            let message = match connection.dress.medium {
                Medium::Sse => "Connected to event stream",
                Medium::WebSocket(_) | Medium::Poll => "Connected to WebSocket server",
            };
            ServerMessage::new(
                "connected",
                &serde_json::json!({"message": message, "connection_id": connection.id, "channels": channels}),
            )
        }
    }
}
