//! The first messages of a connection: the profile's welcome with the user stream's position, then
//! what the query asked for. `protocol.md` 1, rulings R7, R13, R22, R29.

use std::sync::Arc;

use carillon_protocol::envelope::{Correlation, Refusal, ServerMessage};
use carillon_protocol::session::Subscribe;
use carillon_protocol::{ChannelName, Cursor, ErrorCode, Position, Profile, Since};

use super::Connection;
use super::catch_up::{Beginning, subscribed};
use super::driver::{Driver, RETRY};
use super::requests::Named;
use super::subscriptions::Own;
use crate::clock;
use crate::dispatch::{Medium, NOTIFICATIONS};
use crate::hub::{Labels, Subscription};
use crate::relay::ChannelTraits;

/// `since` of a query: a cursor, or something that is none.
pub type Resume = Option<Result<Cursor, ()>>;

/// A channel of the query that waits for the broker: its recovery is pending (R42).
#[derive(Debug)]
pub(super) struct Owed {
    channel: ChannelName,
    since: Option<Since>,
    foreign_cursor: bool,
}

impl Driver {
    /// Sends the welcome, subscribes to the user's own stream and to the query's channels.
    pub async fn welcome(&mut self, channels: &[String], resume: Resume) {
        self.seed_cursor(channels, &resume);
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
        for name in channels {
            if let Err(refusal) = self.subscribe_from_query(name, &resume).await {
                self.connection
                    .push(&ServerMessage::error(Correlation::default(), &refusal).on(name));
            }
        }
        self.sync_interests(&resume).await;
        self.send_pending().await;
        self.connection.outbox.flush();
    }

    async fn welcome_user(&mut self, stream: ChannelName, resume: &Resume) {
        let policy = self.node.policy.load_full();
        let retention = policy.find(&stream).and_then(|found| found.namespace.retention);
        let traits = ChannelTraits { history_age: retention.map(|kept| kept.age) };
        if let Err(error) = self.node.relay.join(&stream, traits).await {
            // The stream opens when the broker is back, and the client is told `resync` then (R42).
            tracing::debug!(%error, "a connection begins without its stream's position");
        }
        self.connection.outbox.expect_pending();
        let named = Named {
            channel: stream.clone(),
            label: NOTIFICATIONS.into(),
            labels: Labels { notifications: true, others: true },
        };
        let subscription = Subscription {
            connection: Arc::clone(&self.connection),
            behind: None,
            labels: Labels::ALL,
            filter: None,
            conflate: false,
            asked: true,
            interests: None,
        };
        let key = self.node.hub.subscribe(
            &stream,
            subscription,
            || self.node.relay.position(&stream),
            |position| {
                let resumes =
                    matches!(resume, Some(Ok(cursor)) if cursor.get(stream.as_str()).is_some());
                if let Some(position) = position.filter(|_| !resumes) {
                    self.connection.outbox.set_position(&stream, position);
                }
                self.greet(traits, position);
            },
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
            Some(cursor) => match cursor
                .as_ref()
                .ok()
                .and_then(|cursor| cursor.get(stream.as_str()))
            {
                Some(position) => {
                    let beginning = Beginning::Since(position.into(), crate::relay::PAGE);
                    let again = self
                        .subscribe_again(&named, beginning, false, None, &Correlation::default())
                        .await;
                    if again.is_err() {
                        self.resync(&stream, key, "unavailable");
                    }
                }
                None => self.resync(&stream, key, "cursor"),
            },
        }
    }

    /// Puts what the client brought into the event stream's cursor before anything is sent: a stream that is cut while its
    /// channels catch up one by one must not leave the client with a cursor that forgot the others.
    fn seed_cursor(&self, channels: &[String], resume: &Resume) {
        let Some(Ok(cursor)) = resume else { return };
        let named = channels
            .iter()
            .filter_map(|name| Some(self.resolve(&ChannelName::new(name).ok()?).ok()?.channel));
        let own =
            self.connection.user.as_ref().and_then(|user| ChannelName::user_stream(user.as_str()));
        for channel in named.chain(own) {
            if let Some(position) = cursor.get(channel.as_str()) {
                self.connection.outbox.set_position(&channel, position);
            }
        }
    }

    fn greet(&self, traits: ChannelTraits, position: Option<Position>) {
        let profile = self.connection.dress.profile;
        if profile != Profile::Dnr {
            self.connection.push(&welcome(&self.connection, position));
        }
        if matches!(profile, Profile::Uno | Profile::Dnr) {
            self.connection.push(&subscribed(NOTIFICATIONS, traits, position, Err("fresh"), 0));
        }
    }

    async fn subscribe_from_query(&mut self, name: &str, resume: &Resume) -> Result<(), Refusal> {
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
        let foreign_cursor = matches!(resume, Some(Err(())));
        self.subscribe_or_owe(Owed { channel, since, foreign_cursor }).await
    }

    /// Subscribes to the query's channels that waited for the broker, if it is back.
    pub(super) async fn subscribe_owed(&mut self) {
        for owed in std::mem::take(&mut self.owed) {
            let name = owed.channel.clone();
            let asked_since = self.resolve(&name).is_ok_and(|named| {
                self.subscriptions.get(&named.channel).is_some_and(|own| own.asked)
            });
            if asked_since {
                continue;
            }
            if let Err(refusal) = self.subscribe_or_owe(owed).await {
                let error = ServerMessage::error(Correlation::default(), &refusal);
                self.connection.push(&error.on(name.as_str()));
            }
        }
    }

    /// The client does not want a channel any more that waits for the broker.
    pub(super) fn forget_owed(&mut self, name: &ChannelName) {
        self.owed.retain(|owed| owed.channel != *name);
    }

    /// Subscribes, or keeps the wish until the broker is back: an event stream cannot ask again by itself.
    async fn subscribe_or_owe(&mut self, owed: Owed) -> Result<(), Refusal> {
        let Owed { channel, since, foreign_cursor } = &owed;
        let request =
            Subscribe { channel: channel.clone(), since: *since, limit: None, filter: None };
        match self.subscribe(request, &Correlation::default()).await {
            Ok(()) => {}
            Err(refusal) if refusal.code == ErrorCode::Unavailable => {
                self.owed.push(owed);
                self.retry = Some(Box::pin(tokio::time::sleep(RETRY)));
                return Ok(());
            }
            Err(refusal) => return Err(refusal),
        }
        if *foreign_cursor {
            let named = self.resolve(channel)?;
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
