//! Presence over Redis: each change is one script of `presence_*.lua` that announces it as well, so that the
//! order of announcements is the order of changes. Words: `crate::presence`.
//!
//! A node's holds are indexed under the node (`…:pn:{node}`) before they are made, so that a survivor finds them;
//! leaving twice is harmless, which makes sweeping repeatable.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::layout::Call;
use super::message::WITHOUT_HISTORY;
use super::names::{NODES, Names};
use super::status::{self, Happening};
use super::{Inner, RedisBroker, answer, registry, scripts};
use crate::application::{self, INBOUND_MAX};
use crate::presence;
use crate::{
    BrokerError, EventKind, Joined, Member, POLLER_PREFIX, PresenceStore, UserPresence, UserStatus,
};
use async_trait::async_trait;
use carillon_protocol::{ChannelName, ConnectionId, Publication, UserId, time};
use foldhash::HashMap;
use futures_util::stream::{self, TryStreamExt as _};
use parking_lot::Mutex;

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
    /// The generation of the servers' data when all holds were known to be there.
    written_at: AtomicU64,
}

#[derive(Default)]
struct Done {
    looks: Vec<(String, String)>,
    ends: Vec<(String, String)>,
}

type Tended = (u8, u8, Vec<String>, Vec<(String, String)>, Vec<(String, String)>);

fn entry(member: &Member) -> String {
    let json =
        serde_json::json!({"id": member.id, "name": member.name, "metadata": member.metadata});
    format!("{} {json}", member.last_seen_ms.max(0))
}

/// Reads an entry; one that a connection holds was seen now.
fn member(entry: &str) -> Option<Member> {
    let (at, json) = entry.split_once(' ')?;
    let mut member: Member = serde_json::from_str(json).ok()?;
    member.last_seen_ms = match at.strip_prefix('p') {
        Some(at) => at.parse().ok()?,
        None => presence::unix_ms(),
    };
    Some(member)
}

fn sorted(entries: &[(String, String)]) -> Vec<Member> {
    let mut members: Vec<Member> = entries.iter().filter_map(|(_, entry)| member(entry)).collect();
    members.sort_by(|one, other| one.id.cmp(&other.id));
    members
}

/// A message as it crosses pub/sub without history.
pub(super) fn message(publication: &Publication) -> Vec<u8> {
    [WITHOUT_HISTORY, &publication.to_body()].concat()
}

fn keys(names: &Names, resource: &ChannelName) -> [String; 3] {
    ["e", "h", "n"].map(|part| names.presence(&format!("{{{resource}}}:p{part}")))
}

fn node_index(names: &Names, node: &str) -> String {
    names.presence(&format!("pn:{{{node}}}"))
}

/// A key that the nodes share.
fn common(names: &Names, key: &str) -> String {
    names.presence(&format!("{{{NODES}}}:{key}"))
}

impl Inner {
    async fn join(
        &self,
        resource: &ChannelName,
        holder: &str,
        entry: &str,
        announcement: Option<&Publication>,
        user: &UserId,
    ) -> Result<(bool, Vec<(String, String)>), BrokerError> {
        let names = &self.shared.names;
        let [entries, holders, counts] = keys(names, resource);
        let body = announcement.map(message).unwrap_or_default();
        let channel = announcement.map(|_| names.publications(resource)).unwrap_or_default();
        // What is not announced (R43) is not told either.
        let event = announcement.map_or("", |_| self.told(EventKind::PresenceJoin));
        let data = announcement.map_or_else(String::new, |announcement| {
            application::member_data(resource, announcement.payload.json_str())
        });
        let in_step = self.in_step();
        let mut keys = vec![entries, holders, counts];
        keys.extend(in_step.iter().flat_map(|step| step.keys.iter().cloned()));
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let mut join = scripts::PRESENCE_JOIN.call(&keys);
        join.arg(holder).arg(user.as_str()).arg(entry);
        join.arg(&body[..]).arg(channel).arg(self.layout.publish_verb());
        join.arg(event).arg(time::rfc3339(presence::unix_ms())).arg(&data).arg(INBOUND_MAX);
        let (first, entries): (u8, Vec<(String, String)>) =
            answer::read(self.layout.run(&self.layout.place(resource.as_str()), &join).await?)?;
        if first == 1 && in_step.is_none() {
            self.tell_after(event, &data).await?;
        }
        Ok((first == 1, entries))
    }

    async fn leave(
        &self,
        resource: &ChannelName,
        holder: &str,
        user: &UserId,
        last_seen_ms: i64,
    ) -> Result<bool, BrokerError> {
        let names = &self.shared.names;
        let [entries, holders, counts] = keys(names, resource);
        let head = presence::announcement("presence:leave", resource.clone(), user, String::new());
        let event = self.told(EventKind::PresenceLeave);
        let in_step = self.in_step();
        let mut keys = vec![entries, holders, counts];
        keys.extend(in_step.iter().flat_map(|step| step.keys.iter().cloned()));
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let mut leave = scripts::PRESENCE_LEAVE.call(&keys);
        leave.arg(holder).arg(user.as_str()).arg(last_seen_ms.max(0));
        leave.arg(message(&head)).arg(names.publications(resource)).arg(self.layout.publish_verb());
        let data = application::member_data(resource, "");
        let data = data.trim_end_matches('}');
        leave.arg(event).arg(time::rfc3339(presence::unix_ms())).arg(data).arg(INBOUND_MAX);
        let gone: String =
            answer::read(self.layout.run(&self.layout.place(resource.as_str()), &leave).await?)?;
        if gone.is_empty() {
            return Ok(false);
        }
        if in_step.is_none() {
            self.tell_after(event, &application::member_data(resource, &gone)).await?;
        }
        Ok(true)
    }

    fn own_index(&self) -> String {
        node_index(&self.shared.names, self.shared.node.as_str())
    }

    async fn index(
        &self,
        resource: &ChannelName,
        connection: &ConnectionId,
        user: &UserId,
    ) -> Result<(), BrokerError> {
        let mut index = redis::cmd("HSET");
        index.arg(self.own_index()).arg(format!("{connection} {resource}")).arg(user.as_str());
        self.layout.run(&self.layout.common(self.shared.node.as_str()), &index).await.map(|_| ())
    }

    /// What a user chose to be ends with their last connection here.
    pub(super) fn forget_choice(&self, user: &UserId) {
        let chose = self.held.chosen.lock().contains_key(user);
        if chose && self.registry.connections_here(user) <= 1 {
            self.held.chosen.lock().remove(user);
        }
    }

    /// Takes back what a node held. May be repeated.
    async fn sweep_presence(&self, node: &str) -> Result<(), BrokerError> {
        let index = node_index(&self.shared.names, node);
        let place = self.layout.common(node);
        let mut command = redis::cmd("HGETALL");
        command.arg(&index);
        let holds: Vec<(String, String)> = answer::read(self.layout.run(&place, &command).await?)?;
        let now = presence::unix_ms();
        stream::iter(holds.iter().map(Ok::<_, BrokerError>))
            .try_for_each_concurrent(PARALLEL, |(field, user)| async move {
                if let Some((connection, resource)) = field.rsplit_once(' ')
                    && let (Ok(resource), Ok(user)) =
                        (ChannelName::new(resource), UserId::new(user))
                {
                    self.leave(&resource, connection, &user, now).await?;
                }
                Ok(())
            })
            .await?;
        for chunk in holds.chunks(1_000) {
            let mut command = redis::cmd("HDEL");
            command.arg(&index);
            for (field, _) in chunk {
                command.arg(field);
            }
            self.layout.run(&place, &command).await?;
        }
        Ok(())
    }

    /// Writes again what this node holds: in silence after Redis lost it, announced after survivors took it back.
    async fn restore_presence(&self, announced: bool) -> Result<(), BrokerError> {
        let holds: Vec<_> = self
            .held
            .holds
            .lock()
            .iter()
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        stream::iter(holds.into_iter().map(Ok::<_, BrokerError>))
            .try_for_each_concurrent(
                PARALLEL,
                |((connection, resource), (user, entry))| async move {
                    self.index(&resource, &connection, &user).await?;
                    let announcement = member(&entry).filter(|_| announced).map(|member| {
                        presence::member_announcement(
                            "presence:join",
                            &resource,
                            &member,
                            Some(&connection),
                        )
                    });
                    self.join(&resource, connection.as_str(), &entry, announcement.as_ref(), &user)
                        .await?;
                    // Left in the meantime: the leaving found nothing.
                    if !self.held.holds.lock().contains_key(&(connection.clone(), resource.clone()))
                    {
                        self.leave(&resource, connection.as_str(), &user, presence::unix_ms())
                            .await?;
                    }
                    Ok(())
                },
            )
            .await?;
        let users = self.registry.users_seen();
        let chosen = self.held.chosen.lock().clone();
        let restored = |user: UserId| {
            let status = chosen.get(&user).copied();
            let happening =
                if announced { Happening::Seen(status) } else { Happening::Restore(status) };
            (user, happening)
        };
        let users: Vec<_> = users.into_iter().map(restored).collect();
        self.settle(&users, &[]).await
    }

    async fn tend_once(&self) -> Result<bool, BrokerError> {
        let names = &self.shared.names;
        let [leases, claims, looks, ends] = ["pb", "pc", "pl", "pt"].map(|key| common(names, key));
        let connects = self.shared.counters.generation();
        let done = std::mem::take(&mut *self.held.done.lock());
        let mut tend = scripts::PRESENCE_TEND.call(&[&leases, &claims, &looks, &ends]);
        tend.arg(self.shared.node.as_str())
            .arg(LEASE.as_millis() as u64)
            .arg(CLAIM.as_millis() as u64);
        tend.arg(ITEMS).arg(SWEPT.as_millis() as u64);
        for done in [&done.looks, &done.ends] {
            tend.arg(done.len());
            for (item, due) in done {
                tend.arg(item).arg(due);
            }
        }
        let place = self.layout.common(NODES);
        let (known, swept, dead, looks, ends): Tended =
            answer::read(self.layout.run(&place, &tend).await?)?;
        // A new connection may lead to a server that was promoted without the last writes.
        if known == 0 || self.application_doubted(connects) {
            self.restore_application(swept == 1, connects).await?;
        }
        let written_at = self.held.written_at.load(Ordering::Relaxed);
        // A node that tends for the first time has lost nothing unless its data was seen to go: restoring in silence
        // would swallow the arrival of who came a moment ago.
        let is_lost = match written_at {
            0 => self.shared.counters.losses.load(Ordering::Acquire) > 0,
            _ => known == 0 || written_at != connects,
        };
        if is_lost {
            self.restore_presence(swept == 1).await?;
        }
        self.held.written_at.store(connects, Ordering::Relaxed);
        for node in dead {
            tracing::info!(%node, "taking back a dead node's presence");
            self.sweep_presence(&node).await?;
            self.sweep_application(&node).await?;
            let mut over = scripts::PRESENCE_SWEPT.call(&[&claims]);
            over.arg(&node);
            self.layout.run(&place, &over).await?;
        }
        let living = if looks.is_empty() {
            Vec::new()
        } else {
            self.registry.living(&self.layout, names).await?
        };
        let living = &living;
        let more = looks.len() >= ITEMS || ends.len() >= ITEMS;
        for some in looks.chunks(PARALLEL * self.users_together()) {
            let users: Vec<_> = some
                .iter()
                .filter_map(|(user, _)| Some((UserId::new(user).ok()?, Happening::Look)))
                .collect();
            self.settle(&users, living).await?;
            self.held.done.lock().looks.extend_from_slice(some);
        }
        for end in ends {
            if let Some((resource, user)) = end.0.split_once(' ')
                && let (Ok(resource), Ok(user)) = (ChannelName::new(resource), UserId::new(user))
            {
                self.leave(&resource, &format!("!{user}"), &user, presence::unix_ms()).await?;
            }
            self.held.done.lock().ends.push(end);
        }
        Ok(more)
    }

    /// Gives this node's holds back, announced.
    pub(super) async fn retire_presence(&self) -> Result<(), BrokerError> {
        self.held.holds.lock().clear();
        self.sweep_presence(self.shared.node.as_str()).await?;
        self.retire_application().await?;
        let mut command = redis::cmd("HDEL");
        command.arg(common(&self.shared.names, "pb")).arg(self.shared.node.as_str());
        self.layout.run(&self.layout.common(NODES), &command).await.map(|_| ())
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
        let (first, entries) = inner
            .join(resource, connection.as_str(), &entry, Some(&announcement), &member.id)
            .await?;
        inner
            .held
            .holds
            .lock()
            .insert((connection.clone(), resource.clone()), (member.id.clone(), entry));
        Ok(Joined { first, everyone: sorted(&entries) })
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
        let gone = inner.leave(resource, connection.as_str(), user, last_seen_ms).await?;
        let mut index = redis::cmd("HDEL");
        index.arg(inner.own_index()).arg(format!("{connection} {resource}"));
        if let Err(error) =
            inner.layout.run(&inner.layout.common(inner.shared.node.as_str()), &index).await
        {
            // Sweeping it again does nothing.
            tracing::debug!(%error, "an index entry of presence stays");
        }
        Ok(gone)
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
        let (first, _) = inner
            .join(resource, &format!("!{}", member.id), &entry, Some(&announcement), &member.id)
            .await?;
        Ok(first)
    }

    async fn remove_member(
        &self,
        resource: &ChannelName,
        user: &UserId,
    ) -> Result<bool, BrokerError> {
        let gone = self.inner.leave(resource, "", user, presence::unix_ms()).await?;
        let mut command = redis::cmd("ZREM");
        command.arg(common(&self.inner.shared.names, "pt")).arg(format!("{resource} {user}"));
        self.inner.layout.run(&self.inner.layout.common(NODES), &command).await?;
        Ok(gone)
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

/// What is known of a user, from the announced status and the live connections.
fn known<'a>(
    user: &UserId,
    status: Option<UserStatus>,
    seen_ms: Option<i64>,
    here: impl Iterator<Item = &'a str>,
) -> UserPresence {
    let (pollers, others): (Vec<&str>, Vec<&str>) =
        here.partition(|id| id.starts_with(POLLER_PREFIX));
    let connections = others.len() as u64;
    let is_here = connections > 0 || !pollers.is_empty();
    let unannounced = if is_here { UserStatus::Online } else { UserStatus::Offline };
    let last_seen_ms = if is_here { Some(presence::unix_ms()) } else { seen_ms };
    UserPresence {
        user: user.clone(),
        status: status.unwrap_or(unannounced),
        last_seen_ms,
        connections,
    }
}
