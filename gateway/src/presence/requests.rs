//! A connection's requests about presence, performed and answered. `protocol.md` 3, rulings R4, R20, R25.

use std::sync::Arc;

use carillon_broker_client::{Member, UserStatus};
use carillon_protocol::envelope::{Correlation, Refusal, ServerMessage};
use carillon_protocol::session::{Session, Status, Subscribe};
use carillon_protocol::{ChannelName, ErrorCode, UserId};
use serde_json::json;

use crate::clock;
use crate::connection::driver::Driver;
use crate::policy::Action;

/// How often a list is read again because something was announced in between.
const READINGS_MAX: usize = 5;
/// Longest display name, bytes.
const NAME_BYTES_MAX: usize = 256;
/// Largest metadata of a member, bytes of JSON: it is in every list.
const METADATA_BYTES_MAX: usize = 4 * 1024;

/// A member as a client or a backend describes them, checked.
///
/// # Errors
/// `INVALID_MESSAGE`, `PAYLOAD_TOO_LARGE`.
pub(crate) fn member(
    user: UserId,
    name: Option<String>,
    metadata: Option<serde_json::Value>,
) -> Result<Member, Refusal> {
    if name.as_ref().is_some_and(|name| name.len() > NAME_BYTES_MAX) {
        return Err(
            Refusal::new(ErrorCode::InvalidMessage, "the name is too long").with("field", "name")
        );
    }
    if metadata.as_ref().is_some_and(|metadata| metadata.to_string().len() > METADATA_BYTES_MAX) {
        let refusal = Refusal::new(ErrorCode::PayloadTooLarge, "the metadata is too large");
        return Err(refusal.with("field", "metadata").with("limit_bytes", METADATA_BYTES_MAX));
    }
    Ok(Member { id: user, name, last_seen_ms: clock::unix_ms(), metadata })
}

impl Driver {
    fn present_user(&self) -> Result<UserId, Refusal> {
        let user = self.connection.user.clone();
        user.ok_or_else(|| {
            Refusal::new(ErrorCode::Forbidden, "Presence is an authenticated user's")
        })
    }

    /// Joins: subscribed first, so that nothing after the list is missed; then the list; then the ack.
    pub(crate) async fn presence_join(
        &mut self,
        channel: ChannelName,
        name: Option<Box<str>>,
        metadata: Option<serde_json::Value>,
        correlation: &Correlation,
    ) -> Result<(), Refusal> {
        let user = self.present_user()?;
        self.allowed(Action::Presence, &channel).await?;
        let known = self.claims.as_ref().and_then(|claims| claims.name.clone());
        let member = member(user, known.or(name).map(Into::into), metadata)?;
        if !self.subscriptions.contains_key(&channel) {
            let subscribe =
                Subscribe { channel: channel.clone(), since: None, limit: None, filter: None };
            self.subscribe(subscribe, &Correlation::default()).await?;
        }
        let Some(key) = self.subscriptions.get(&channel).map(|own| own.key) else {
            return Err(Refusal::new(ErrorCode::Unavailable, "The channel is not heard"));
        };
        let node = Arc::clone(&self.node);
        let mut heard = node.hub.heard(&self.connection.id, &channel, key);
        let joined = node.presence.join(&self.connection, &channel, member).await;
        let mut everyone = joined.map_err(|error| node.broker_refusal(&error))?.everyone;
        for reading in 1.. {
            let sync = ServerMessage::new("presence:sync", &json!({"users": everyone}))
                .on(channel.as_str());
            let say = || {
                Session::own_reply(sync, correlation)
                    .iter()
                    .for_each(|reply| self.connection.push(reply));
            };
            // A change that was heard after the list was read must not be undone by the list.
            if reading == READINGS_MAX {
                say();
                break;
            }
            match node.hub.unless_heard(&self.connection.id, &channel, key, heard, say) {
                Ok(()) => break,
                Err(now) => heard = now,
            }
            let members = node.broker.members(&channel).await;
            everyone = members.map_err(|error| node.broker_refusal(&error))?;
        }
        Ok(())
    }

    /// Leaves; the subscription stays.
    pub(crate) async fn presence_leave(
        &mut self,
        channel: &ChannelName,
    ) -> Result<serde_json::Value, Refusal> {
        self.present_user()?;
        let left = self.node.presence.leave(&self.connection, channel).await;
        Ok(json!({"channel": channel, "left": left}))
    }

    /// Any message keeps a connection's presence; this one also brings back what silence took.
    pub(crate) async fn presence_heartbeat(
        &mut self,
        channel: &ChannelName,
    ) -> Result<serde_json::Value, Refusal> {
        self.present_user()?;
        let present = self.node.presence.refresh(&self.connection, channel).await;
        if present.map_err(|error| self.node.broker_refusal(&error))? {
            return Ok(json!({"channel": channel}));
        }
        Err(Refusal::new(ErrorCode::Conflict, "This connection has not joined there")
            .with("channel", channel.as_str()))
    }

    /// Sets the user's own status.
    pub(crate) async fn set_status(
        &mut self,
        status: Status,
    ) -> Result<serde_json::Value, Refusal> {
        let user = self.present_user()?;
        let status = match status {
            Status::Online => UserStatus::Online,
            Status::Away => UserStatus::Away,
            Status::Busy => UserStatus::Busy,
        };
        let set = self.node.presence.set_status(&user, status).await;
        set.map_err(|error| self.node.broker_refusal(&error))?;
        Ok(json!({"status": status.name()}))
    }
}
