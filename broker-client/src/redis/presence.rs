//! Presence over Redis: each change is one script of `presence_*.lua` that announces it as well, so that the
//! order of announcements is the order of changes. Words: `crate::presence`.
//!
//! A node's holds are indexed under the node (`…:pn:{node}`) before they are made, so that a survivor finds them;
//! leaving twice is harmless, which makes sweeping repeatable.
//!
//! `change` is the step of a join or a leave, `telling` its lifecycle event, `tend` what is done once a second.

mod change;
mod entry;
mod telling;
mod tend;

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use async_trait::async_trait;
use carillon_protocol::{ChannelName, ConnectionId, UserId};
use foldhash::HashMap;
use parking_lot::Mutex;

use super::layout::Call;
use super::names::{NODES, Names};
use super::status::{self, Happening};
use super::{Inner, RedisBroker, answer, registry};
use crate::{
    BrokerError, EventKind, Joined, Member, PresenceStore, UserPresence, UserStatus, presence,
};
use entry::{entry, known, sorted};
use telling::Owed;

/// A node that has not tended for so long is dead.
const LEASE: Duration = Duration::from_secs(15);
/// How long one node has for what it was handed before another gets it.
const CLAIM: Duration = Duration::from_secs(10);
/// How long it is remembered that a node was swept: one that comes back later says its joins in silence.
const SWEPT: Duration = Duration::from_secs(24 * 3600);
/// Items handed out at once.
const ITEMS: usize = 500;
/// Calls on their way at once while sweeping or restoring.
pub(super) const PARALLEL: usize = 64;

/// What this node holds, to write it again when Redis lost it (R43), and what it has done but not reported.
#[derive(Default)]
pub(super) struct Held {
    holds: Mutex<HashMap<(ConnectionId, ChannelName), (UserId, String)>>,
    chosen: Mutex<HashMap<UserId, UserStatus>>,
    done: Mutex<Done>,
    owed: Owed,
    /// The generation of the servers' data when all holds were known to be there.
    written_at: AtomicU64,
}

#[derive(Default)]
struct Done {
    looks: Vec<(String, String)>,
    ends: Vec<(String, String)>,
}

/// Entries, holders, counts, and what must be told of a resource.
fn keys(names: &Names, resource: &ChannelName) -> [String; 4] {
    ["e", "h", "n", "o"].map(|part| names.presence(&format!("{{{resource}}}:p{part}")))
}

fn node_index(names: &Names, node: &str) -> String {
    names.presence(&format!("pn:{{{node}}}"))
}

/// A key that the nodes share.
fn common(names: &Names, key: &str) -> String {
    names.presence(&format!("{{{NODES}}}:{key}"))
}

impl Inner {
    /// What a user chose to be ends with their last connection here.
    pub(super) fn forget_choice(&self, user: &UserId) {
        let chose = self.held.chosen.lock().contains_key(user);
        if chose && self.registry.connections_here(user) <= 1 {
            self.held.chosen.lock().remove(user);
        }
    }
}

#[async_trait]
impl PresenceStore for RedisBroker {
    async fn join_resource(
        &self,
        resource: &ChannelName,
        connection: &ConnectionId,
        member: &Member,
    ) -> Result<Joined, BrokerError> {
        let inner = &self.inner;
        let entry = entry(member);
        let announcement =
            presence::member_announcement("presence:join", resource, member, Some(connection));
        inner.index(resource, connection, &member.id).await?;
        let joined = inner
            .join(resource, connection.as_str(), &entry, Some(&announcement), &member.id)
            .await?;
        inner
            .held
            .holds
            .lock()
            .insert((connection.clone(), resource.clone()), (member.id.clone(), entry));
        Ok(Joined { first: joined.first, everyone: sorted(&joined.entries) })
    }

    async fn leave_resource(
        &self,
        resource: &ChannelName,
        connection: &ConnectionId,
        user: &UserId,
        last_seen_ms: i64,
    ) -> Result<bool, BrokerError> {
        let inner = &self.inner;
        inner.held.holds.lock().remove(&(connection.clone(), resource.clone()));
        let left = inner.leave(resource, connection.as_str(), user, last_seen_ms).await?;
        // What is not told yet is found by the hold, should this node end.
        if left.told {
            inner.unindex(&format!("{connection} {resource}")).await;
        }
        Ok(left.gone)
    }

    async fn put_member(
        &self,
        resource: &ChannelName,
        member: &Member,
        ttl: Option<Duration>,
    ) -> Result<bool, BrokerError> {
        let inner = &self.inner;
        let ends = common(&inner.shared.names, "pt");
        let item = format!("{resource} {}", member.id);
        let mut command = match ttl {
            Some(_) => redis::cmd("ZADD"),
            None => redis::cmd("ZREM"),
        };
        command.arg(&ends);
        if let Some(ttl) = ttl {
            command.arg(presence::unix_ms().saturating_add(ttl.as_millis() as i64));
        }
        command.arg(&item);
        inner.layout.run(&inner.layout.common(NODES), &command).await?;
        let announcement = presence::member_announcement("presence:join", resource, member, None);
        let entry = format!("p{}", entry(member));
        let note = inner.note_telling(resource, inner.told(EventKind::PresenceJoin)).await?;
        let joined = inner
            .join(resource, &format!("!{}", member.id), &entry, Some(&announcement), &member.id)
            .await?;
        inner.forget_telling(note, joined.told).await;
        Ok(joined.first)
    }

    async fn remove_member(
        &self,
        resource: &ChannelName,
        user: &UserId,
    ) -> Result<bool, BrokerError> {
        let inner = &self.inner;
        let note = inner.note_telling(resource, inner.told(EventKind::PresenceLeave)).await?;
        let left = inner.leave(resource, "", user, presence::unix_ms()).await?;
        inner.forget_telling(note, left.told).await;
        let mut command = redis::cmd("ZREM");
        command.arg(common(&inner.shared.names, "pt")).arg(format!("{resource} {user}"));
        inner.layout.run(&inner.layout.common(NODES), &command).await?;
        Ok(left.gone)
    }

    async fn members(&self, resource: &ChannelName) -> Result<Vec<Member>, BrokerError> {
        let mut command = redis::cmd("HGETALL");
        command.arg(&keys(&self.inner.shared.names, resource)[0]);
        let layout = &self.inner.layout;
        let entries: Vec<(String, String)> =
            answer::read(layout.run(&layout.place(resource.as_str()), &command).await?)?;
        Ok(sorted(&entries))
    }

    async fn user_seen(
        &self,
        user: &UserId,
        status: Option<UserStatus>,
    ) -> Result<(), BrokerError> {
        if let Some(status) = status {
            self.inner.held.chosen.lock().insert(user.clone(), status);
        }
        self.inner.settle(&[(user.clone(), Happening::Seen(status))], &[]).await?;
        self.inner.registry.seen(user);
        Ok(())
    }

    async fn user_departed(&self, user: &UserId, delay: Duration) -> Result<(), BrokerError> {
        let inner = &self.inner;
        inner.forget_choice(user);
        let (agree, said) = inner.departed(&[(user, delay, "")]);
        inner.layout.run(&agree.place, &agree.command).await?;
        registry::all(&inner.layout, said).await
    }

    async fn presence_of(&self, users: &[UserId]) -> Result<Vec<UserPresence>, BrokerError> {
        let inner = &self.inner;
        let (layout, names) = (&inner.layout, &inner.shared.names);
        let living = inner.registry.living(layout, names).await?;
        let own = inner.shared.node.as_str();
        let mut found = Vec::with_capacity(users.len());
        for chunk in users.chunks(500) {
            let mut calls = Vec::with_capacity(2 * chunk.len());
            for user in chunk {
                let place = layout.place(&Names::user_tag(user));
                let status = status::look_up(names, user);
                calls.push(Call { place: place.clone(), command: status });
                let mut connections = redis::cmd("HGETALL");
                connections.arg(names.user_connections(user));
                calls.push(Call { place, command: connections });
            }
            let answers: Result<Vec<_>, _> = layout.run_all(calls).await.into_iter().collect();
            let mut answers = answers?.into_iter();
            for user in chunk {
                let (Some(status), Some(nodes)) = (answers.next(), answers.next()) else { break };
                let (status, seen): (Option<String>, Option<i64>) = answer::read(status)?;
                let nodes: Vec<(String, String)> = answer::read(nodes)?;
                let here = nodes.iter().filter(|(_, node)| node == own || living.contains(node));
                let status = status.as_deref().and_then(UserStatus::parse);
                found.push(known(user, status, seen, here.map(|(id, _)| id.as_str())));
            }
        }
        Ok(found)
    }

    async fn tend(&self) -> Result<(), BrokerError> {
        while self.inner.tend_once().await? {}
        Ok(())
    }
}
