//! Presence within one process: the words of `crate::presence` over plain maps. Changes and announcements are
//! made one at a time, so that their order is the same everywhere.
//!
//! It must not know: Redis, sockets.

mod table;

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use async_trait::async_trait;
use carillon_protocol::{ChannelName, ConnectionId, Publication, UserId};
use tokio::time::Instant;

use super::registry::LEASE;
use super::{MemoryBroker, Node};
use crate::application;
use crate::presence;
use crate::{
    BrokerError, EventKind, Joined, Member, NodeId, POLLER_PREFIX, PresenceStore, Publish,
    UserPresence, UserStatus,
};

pub(super) use table::Presence;

use table::Holder;

/// What a node holds, to restore it (R43).
#[derive(Default)]
pub(super) struct Held {
    holds: HashMap<(ConnectionId, ChannelName), Member>,
    chosen: HashMap<UserId, UserStatus>,
    /// The node has tended before.
    tended: bool,
}

impl Node {
    async fn announce(&self, publication: Publication) -> Result<(), BrokerError> {
        self.publish(Publish { publication, retention: None, idempotency: None }).await.map(|_| ())
    }

    async fn announce_member(
        &self,
        kind: &str,
        resource: &ChannelName,
        member: &Member,
        except: Option<&ConnectionId>,
    ) -> Result<(), BrokerError> {
        let event = if kind == "presence:join" {
            EventKind::PresenceJoin
        } else {
            EventKind::PresenceLeave
        };
        let json = serde_json::to_string(member).unwrap_or_else(|_| "null".to_owned());
        self.tell(event, &application::member_data(resource, &json));
        self.announce(presence::member_announcement(kind, resource, member, except)).await
    }

    fn is_connected(&self, user: &UserId, now: Instant) -> bool {
        !self.cluster.0.registry.lock().connections_of(user, now).is_empty()
    }

    async fn settle(&self, user: &UserId, seen: bool) -> Result<(), BrokerError> {
        let now = Instant::now();
        let here = seen || self.is_connected(user, now);
        let (before, change) = {
            let mut presence = self.cluster.0.presence.lock();
            let before = presence.users.get(user).and_then(|status| status.announced);
            (before.unwrap_or(UserStatus::Offline), presence.settle(user, here, now))
        };
        if let Some((status, last_seen_ms)) = change {
            let payload = presence::status_payload(user, status, last_seen_ms);
            if status == UserStatus::Offline {
                self.tell(EventKind::UserOffline, &payload);
            } else if before == UserStatus::Offline {
                self.tell(EventKind::UserOnline, &payload);
            }
            for channel in presence::status_channels(user) {
                self.announce(presence::announcement("presence", channel, user, payload.clone()))
                    .await?;
            }
        }
        Ok(())
    }

    /// Has somebody look soon whether a user is still there.
    pub(super) fn look_at(&self, user: &UserId) {
        self.cluster.0.presence.lock().look_at(user, Instant::now());
    }

    fn note_seen(&self, user: &UserId, chosen: Option<UserStatus>) {
        let mut presence = self.cluster.0.presence.lock();
        let status = presence.users.entry(user.clone()).or_default();
        status.chosen = chosen.or(status.chosen);
        (status.last_seen_ms, status.seen, status.grace) =
            (presence::unix_ms(), Some(Instant::now()), None);
    }

    /// Takes back what a node held.
    async fn sweep_presence(&self, node: &NodeId) -> Result<(), BrokerError> {
        let now = Instant::now();
        let gone = {
            let mut presence = self.cluster.0.presence.lock();
            // Those of its users who are somewhere else too are found to be there.
            let users: Vec<UserId> = presence.users.keys().cloned().collect();
            for user in &users {
                presence.look_at(user, now);
            }
            presence.release_everywhere(|holder| holder.is_of(node))
        };
        for (resource, mut member) in gone {
            member.last_seen_ms = presence::unix_ms();
            self.announce_member("presence:leave", &resource, &member, None).await?;
        }
        Ok(())
    }

    async fn restore_presence(&self, announced: bool) -> Result<(), BrokerError> {
        let (holds, chosen) = {
            let held = self.presence.lock();
            let holds: Vec<_> =
                held.holds.iter().map(|(key, member)| (key.clone(), member.clone())).collect();
            (holds, held.chosen.clone())
        };
        for ((connection, resource), member) in holds {
            let holder = Holder::Connection(connection.clone(), self.id.clone());
            let first = self.cluster.0.presence.lock().hold(&resource, &member, holder);
            if first && announced {
                self.announce_member("presence:join", &resource, &member, Some(&connection))
                    .await?;
            }
        }
        let users: HashSet<UserId> = self.registered.lock().values().cloned().collect();
        for user in users {
            self.note_seen(&user, chosen.get(&user).copied());
            if announced {
                self.settle(&user, true).await?;
            } else if let Some(status) = self.cluster.0.presence.lock().users.get_mut(&user) {
                status.announced =
                    status.announced.or(Some(status.chosen.unwrap_or(UserStatus::Online)));
            }
        }
        Ok(())
    }

    /// Gives this node's holds back, announced.
    pub(super) async fn retire_presence(&self) -> Result<(), BrokerError> {
        let _one_at_a_time = self.cluster.0.announcing.lock().await;
        *self.presence.lock() = Held::default();
        self.cluster.0.presence.lock().leases.remove(&self.id);
        self.sweep_presence(&self.id).await?;
        *self.reported.lock() = super::application::Reported::default();
        self.cluster.0.application.lock().sweep(&self.id);
        Ok(())
    }
}

#[async_trait]
impl PresenceStore for MemoryBroker {
    async fn join_resource(
        &self,
        resource: &ChannelName,
        connection: &ConnectionId,
        member: &Member,
    ) -> Result<Joined, BrokerError> {
        let node = &self.0;
        let shared = node.available()?;
        let _one_at_a_time = shared.announcing.lock().await;
        node.presence.lock().holds.insert((connection.clone(), resource.clone()), member.clone());
        let (first, everyone) = {
            let mut presence = shared.presence.lock();
            let first = presence.hold(
                resource,
                member,
                Holder::Connection(connection.clone(), node.id.clone()),
            );
            (first, presence.everyone(resource))
        };
        if first {
            node.announce_member("presence:join", resource, member, Some(connection)).await?;
        }
        Ok(Joined { first, everyone })
    }

    async fn leave_resource(
        &self,
        resource: &ChannelName,
        connection: &ConnectionId,
        user: &UserId,
        last_seen_ms: i64,
    ) -> Result<bool, BrokerError> {
        let node = &self.0;
        node.presence.lock().holds.remove(&(connection.clone(), resource.clone()));
        let shared = node.available()?;
        let _one_at_a_time = shared.announcing.lock().await;
        let is_it =
            |holder: &Holder| matches!(holder, Holder::Connection(id, _) if id == connection);
        let gone = shared.presence.lock().release(resource, user, is_it);
        let Some(mut member) = gone else { return Ok(false) };
        member.last_seen_ms = last_seen_ms;
        node.announce_member("presence:leave", resource, &member, Some(connection)).await?;
        Ok(true)
    }

    async fn put_member(
        &self,
        resource: &ChannelName,
        member: &Member,
        ttl: Option<Duration>,
    ) -> Result<bool, BrokerError> {
        let shared = self.0.available()?;
        let _one_at_a_time = shared.announcing.lock().await;
        let until = ttl.and_then(|ttl| Instant::now().checked_add(ttl));
        let first = shared.presence.lock().hold(resource, member, Holder::Backend(until));
        if first {
            self.0.announce_member("presence:join", resource, member, None).await?;
        }
        Ok(first)
    }

    async fn remove_member(
        &self,
        resource: &ChannelName,
        user: &UserId,
    ) -> Result<bool, BrokerError> {
        let shared = self.0.available()?;
        let _one_at_a_time = shared.announcing.lock().await;
        let gone = shared.presence.lock().release(resource, user, |_| true);
        let Some(mut member) = gone else { return Ok(false) };
        member.last_seen_ms = presence::unix_ms();
        self.0.announce_member("presence:leave", resource, &member, None).await?;
        Ok(true)
    }

    async fn members(&self, resource: &ChannelName) -> Result<Vec<Member>, BrokerError> {
        Ok(self.0.available()?.presence.lock().everyone(resource))
    }

    async fn user_seen(
        &self,
        user: &UserId,
        status: Option<UserStatus>,
    ) -> Result<(), BrokerError> {
        let shared = self.0.available()?;
        let _one_at_a_time = shared.announcing.lock().await;
        if let Some(status) = status {
            self.0.presence.lock().chosen.insert(user.clone(), status);
        }
        self.0.note_seen(user, status);
        self.0.settle(user, true).await
    }

    async fn user_departed(&self, user: &UserId, delay: Duration) -> Result<(), BrokerError> {
        let shared = self.0.available()?;
        let now = Instant::now();
        let chose = self.0.presence.lock().chosen.contains_key(user);
        if chose && self.0.registered.lock().values().filter(|own| *own == user).count() <= 1 {
            self.0.presence.lock().chosen.remove(user);
        }
        let mut presence = shared.presence.lock();
        if let Some(status) = presence.users.get_mut(user) {
            (status.last_seen_ms, status.seen, status.grace) =
                (presence::unix_ms(), Some(now), Some(now + delay));
        }
        presence.look_at(user, now + delay);
        Ok(())
    }

    async fn presence_of(&self, users: &[UserId]) -> Result<Vec<UserPresence>, BrokerError> {
        let shared = self.0.available()?;
        let now = Instant::now();
        let known = |user: &UserId| {
            let here = shared.registry.lock().connections_of(user, now);
            let is_poller = |id: &&ConnectionId| id.as_str().starts_with(POLLER_PREFIX);
            let connections = (here.len() - here.iter().filter(is_poller).count()) as u64;
            let presence = shared.presence.lock();
            let status = presence.users.get(user);
            let unannounced =
                if here.is_empty() { UserStatus::Offline } else { UserStatus::Online };
            let seen =
                status.filter(|status| status.seen.is_some()).map(|status| status.last_seen_ms);
            UserPresence {
                user: user.clone(),
                status: status.and_then(|status| status.announced).unwrap_or(unannounced),
                last_seen_ms: if here.is_empty() { seen } else { Some(presence::unix_ms()) },
                connections,
            }
        };
        Ok(users.iter().map(known).collect())
    }

    async fn tend(&self) -> Result<(), BrokerError> {
        let node = &self.0;
        let shared = node.available()?;
        let _one_at_a_time = shared.announcing.lock().await;
        let now = Instant::now();
        let (known, swept, dead) = {
            let mut presence = shared.presence.lock();
            let known = presence.leases.insert(node.id.clone(), now).is_some();
            let swept = presence.swept.remove(&node.id);
            let is_dead = |beaten: &Instant| now.saturating_duration_since(*beaten) > LEASE;
            let dead: Vec<NodeId> = presence
                .leases
                .iter()
                .filter(|(_, beaten)| is_dead(beaten))
                .map(|(id, _)| id.clone())
                .collect();
            for id in &dead {
                presence.leases.remove(id);
                presence.swept.insert(id.clone());
            }
            presence.forget_old(now);
            (known, swept, dead)
        };
        // A node that tends for the first time has lost nothing: restoring in silence would swallow the arrival of who came
        // a moment ago.
        let tended = std::mem::replace(&mut node.presence.lock().tended, true);
        if !known && tended {
            node.restore_application(swept);
            node.restore_presence(swept).await?;
        }
        for id in dead {
            node.sweep_presence(&id).await?;
            shared.application.lock().sweep(&id);
        }
        let due = shared.presence.lock().due(now);
        for user in due {
            node.settle(&user, false).await?;
        }
        let ended = shared.presence.lock().release_over(now);
        for (resource, mut member) in ended {
            member.last_seen_ms = presence::unix_ms();
            node.announce_member("presence:leave", &resource, &member, None).await?;
        }
        Ok(())
    }
}
