//! A holder comes to a resource or goes from it: the step in Redis, and what is told of it.
//!
//! It must not know: who asks for it and why.

use carillon_protocol::{ChannelName, ConnectionId, Publication, UserId, time};
use redis::Cmd;

use super::telling::TOGETHER;
use super::{keys, node_index};
use crate::application::{self, INBOUND_MAX};
use crate::redis::scripts::{self, Source};
use crate::redis::{Inner, answer};
use crate::{BrokerError, EventKind, presence};

/// What became of a join.
pub(super) struct Joined {
    /// The user was not there before.
    pub(super) first: bool,
    /// Everybody's entries now.
    pub(super) entries: Vec<(String, String)>,
    /// As [`Left::told`].
    pub(super) told: bool,
}

/// What became of a leave.
pub(super) struct Left {
    /// The user is gone now.
    pub(super) gone: bool,
    /// Whether that was told, if it had to be; otherwise it stands on record.
    pub(super) told: bool,
}

impl Inner {
    /// A script of a change with its keys: the resource's, then where its event goes.
    fn change_script(&self, script: &Source, resource: &ChannelName) -> Cmd {
        let [entries, holders, counts, record] = keys(&self.shared.names, resource);
        let mut keys = vec![entries, holders, counts];
        match self.in_step() {
            Some(step) => keys.extend(step.keys),
            None => keys.push(record),
        }
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        script.call(&keys)
    }

    pub(super) async fn join(
        &self,
        resource: &ChannelName,
        holder: &str,
        entry: &str,
        announcement: Option<&Publication>,
        user: &UserId,
    ) -> Result<Joined, BrokerError> {
        let body = announcement.map(Publication::to_body).unwrap_or_default();
        let channel =
            announcement.map(|_| self.shared.names.publications(resource)).unwrap_or_default();
        let id = announcement.map_or("", |announcement| announcement.id.as_str());
        // What is not announced (R43) is not told either.
        let event = announcement.map_or("", |_| self.told(EventKind::PresenceJoin));
        let data = announcement.map_or_else(String::new, |announcement| {
            application::member_data(resource, announcement.payload.json_str())
        });
        let mut join = self.change_script(&scripts::PRESENCE_JOIN, resource);
        join.arg(holder).arg(user.as_str()).arg(entry);
        join.arg(&body[..]).arg(channel).arg(self.layout.publish_verb());
        join.arg(event).arg(time::rfc3339(presence::unix_ms())).arg(&data).arg(INBOUND_MAX);
        join.arg(id).arg(TOGETHER);
        let telling = self.telling(resource, event);
        let (first, entries, recorded): (u8, Vec<(String, String)>, Vec<String>) =
            answer::read(self.layout.run(&self.layout.place(resource.as_str()), &join).await?)?;
        let told = self.tell_change(telling, recorded, id).await;
        Ok(Joined { first: first == 1, entries, told })
    }

    pub(super) async fn leave(
        &self,
        resource: &ChannelName,
        holder: &str,
        user: &UserId,
        last_seen_ms: i64,
    ) -> Result<Left, BrokerError> {
        let mut head =
            presence::announcement("presence:leave", resource.clone(), user, String::new());
        // The others hear it; what a backend holds is nobody's connection.
        head.exclude.connections = ConnectionId::new(holder)
            .ok()
            .filter(|_| !holder.starts_with('!'))
            .into_iter()
            .collect();
        let event = self.told(EventKind::PresenceLeave);
        let channel = self.shared.names.publications(resource);
        let mut leave = self.change_script(&scripts::PRESENCE_LEAVE, resource);
        leave.arg(holder).arg(user.as_str()).arg(last_seen_ms.max(0));
        leave.arg(head.to_body()).arg(channel).arg(self.layout.publish_verb());
        let data = application::member_data(resource, "");
        let data = data.trim_end_matches('}');
        leave.arg(event).arg(time::rfc3339(presence::unix_ms())).arg(data).arg(INBOUND_MAX);
        leave.arg(head.id.as_str()).arg(TOGETHER);
        let telling = self.telling(resource, event);
        let (gone, recorded): (u8, Vec<String>) =
            answer::read(self.layout.run(&self.layout.place(resource.as_str()), &leave).await?)?;
        let told = self.tell_change(telling, recorded, head.id.as_str()).await;
        Ok(Left { gone: gone == 1, told })
    }

    pub(super) fn own_index(&self) -> String {
        node_index(&self.shared.names, self.shared.node.as_str())
    }

    /// Notes under this node that a connection holds a user at a resource, before it does.
    pub(super) async fn index(
        &self,
        resource: &ChannelName,
        connection: &ConnectionId,
        user: &UserId,
    ) -> Result<(), BrokerError> {
        let mut index = redis::cmd("HSET");
        index.arg(self.own_index()).arg(format!("{connection} {resource}")).arg(user.as_str());
        self.layout.run(&self.layout.common(self.shared.node.as_str()), &index).await.map(|_| ())
    }

    /// Takes a note of this node's index back.
    pub(super) async fn unindex(&self, note: &str) {
        let mut index = redis::cmd("HDEL");
        index.arg(self.own_index()).arg(note);
        if let Err(error) =
            self.layout.run(&self.layout.common(self.shared.node.as_str()), &index).await
        {
            // Sweeping it again does nothing.
            tracing::debug!(%error, "an index entry of presence stays");
        }
    }
}
