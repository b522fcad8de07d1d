//! Presence over Redis: each change is one script of `presence_*.lua` that announces it as well, so that the
//! order of announcements is the order of changes. Words: `crate::presence`.
//!
//! A node's holds are indexed under the node (`…:pn:{node}`) before they are made, so that a survivor finds them;
//! leaving twice is harmless, which makes sweeping repeatable.

use std::time::Duration;

use async_trait::async_trait;
use carillon_protocol::channel::escape_segment;
use carillon_protocol::{ChannelName, ConnectionId, Publication, UserId, time};
use foldhash::HashMap;
use futures_util::stream::{self, TryStreamExt as _};
use parking_lot::Mutex;
use redis::Pipeline;

use super::commands::Commands;
use super::names::Names;
use super::{Inner, RedisBroker, scripts};
use crate::presence::{self, LAST_SEEN_LIFETIME, STATUS_GAP};
use crate::{BrokerError, Joined, Member, PresenceStore, UserPresence, UserStatus};

/// A node that has not tended for so long is dead.
const LEASE: Duration = Duration::from_secs(15);
/// How long one node has for what it was handed before another gets it.
const CLAIM: Duration = Duration::from_secs(10);
/// How long it is remembered that a node was swept: one that comes back later says its joins in silence.
const SWEPT: Duration = Duration::from_secs(24 * 3600);
/// Items handed out at once.
const ITEMS: usize = 500;
/// Calls on their way at once while sweeping or restoring.
const PARALLEL: usize = 64;
const PUBLISH: &str = "PUBLISH";

/// What this node holds, to write it again when Redis lost it (R43), and what it has done but not reported.
#[derive(Default)]
pub(super) struct Held {
    holds: Mutex<HashMap<(ConnectionId, ChannelName), (UserId, String)>>,
    chosen: Mutex<HashMap<UserId, UserStatus>>,
    done: Mutex<Done>,
}

#[derive(Default)]
struct Done {
    looks: Vec<(String, String)>,
    ends: Vec<(String, String)>,
}

type Tended = (u8, u8, Vec<String>, Vec<(String, String)>, Vec<(String, String)>);

/// What a status script is told.
#[derive(Clone, Copy)]
enum Happening {
    Seen(Option<UserStatus>),
    Departed(Duration),
    Look,
    Restore(Option<UserStatus>),
}

fn entry(member: &Member) -> String {
    let json = serde_json::json!({"id": member.id, "name": member.name, "metadata": member.metadata});
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
fn message(publication: &Publication) -> Vec<u8> {
    let mut message = b"- - - - ".to_vec();
    message.extend_from_slice(&publication.to_body());
    message
}

fn keys(names: &Names, resource: &ChannelName) -> [String; 3] {
    ["e", "h", "n"].map(|part| names.presence(&format!("{{{resource}}}:p{part}")))
}

fn node_index(names: &Names, node: &str) -> String {
    names.presence(&format!("pn:{node}"))
}

fn status_key(names: &Names, user: &UserId) -> String {
    names.presence(&format!("us:{{{}}}", escape_segment(user.as_str())))
}

/// Remembers to look at users after a while.
pub(super) async fn look_later(
    commands: &Commands,
    names: &Names,
    users: &[&str],
    wait: Duration,
) -> Result<(), BrokerError> {
    if users.is_empty() {
        return Ok(());
    }
    let key = names.presence("pl");
    let wait = wait.as_millis() as u64;
    let looked = commands.script::<u8>(&scripts::PRESENCE_LOOK, |command| {
        command.arg(1).arg(&key).arg(wait);
        users.iter().fold(command, |command, user| command.arg(*user))
    });
    looked.await.map(|_| ())
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
        let keys = keys(&self.names, resource);
        let body = announcement.map(message).unwrap_or_default();
        let channel = announcement.map(|_| self.names.publications(resource)).unwrap_or_default();
        let (first, entries) = self
            .commands
            .script::<(u8, Vec<(String, String)>)>(&scripts::PRESENCE_JOIN, |command| {
                command.arg(3).arg(&keys[..]).arg(holder).arg(user.as_str()).arg(entry);
                command.arg(&body[..]).arg(&channel).arg(PUBLISH)
            })
            .await?;
        Ok((first == 1, entries))
    }

    async fn leave(
        &self,
        resource: &ChannelName,
        holder: &str,
        user: &UserId,
        last_seen_ms: i64,
    ) -> Result<bool, BrokerError> {
        let keys = keys(&self.names, resource);
        let head = presence::announcement("presence:leave", resource.clone(), user, String::new());
        let head = message(&head);
        let channel = self.names.publications(resource);
        let gone = self.commands.script::<u8>(&scripts::PRESENCE_LEAVE, |command| {
            command.arg(3).arg(&keys[..]).arg(holder).arg(user.as_str()).arg(last_seen_ms.max(0));
            command.arg(&head[..]).arg(&channel).arg(PUBLISH)
        });
        Ok(gone.await? == 1)
    }

    async fn index(&self, resource: &ChannelName, connection: &ConnectionId, user: &UserId) -> Result<(), BrokerError> {
        let mut index = redis::cmd("HSET");
        index.arg(node_index(&self.names, self.node.as_str())).arg(format!("{connection} {resource}")).arg(user.as_str());
        self.commands.run::<u64>(&index).await.map(|_| ())
    }

    async fn settle(&self, user: &UserId, happening: Happening) -> Result<(), BrokerError> {
        let status = status_key(&self.names, user);
        let connections = self.names.user_connections(user);
        let (what, chosen, delay) = match happening {
            Happening::Seen(status) => ("seen", status, Duration::ZERO),
            Happening::Departed(delay) => ("departed", None, delay),
            Happening::Look => ("look", None, Duration::ZERO),
            Happening::Restore(status) => ("restore", status, Duration::ZERO),
        };
        let now = presence::unix_ms();
        let text = time::rfc3339(now);
        let name = serde_json::Value::from(user.as_str()).to_string();
        let channels = presence::status_channels(user);
        let Some(first) = channels.first() else { return Ok(()) };
        let head = message(&presence::announcement("presence", first.clone(), user, String::new()));
        let heard = [0, 1].map(|at| channels.get(at).map(|channel| self.names.publications(channel)).unwrap_or_default());
        let living = self.registry.living();
        let wait = self.commands.script::<u64>(&scripts::PRESENCE_SETTLE, |command| {
            command.arg(2).arg(&status).arg(&connections);
            command.arg(what).arg(chosen.map_or("", UserStatus::name)).arg(delay.as_millis() as u64);
            command.arg(STATUS_GAP.as_millis() as u64).arg(LAST_SEEN_LIFETIME.as_millis() as u64);
            command.arg(now).arg(&text).arg(&name).arg(&head[..]).arg(PUBLISH).arg(&heard[..]);
            command.arg(self.node.as_str());
            living.iter().fold(command, |command, node| command.arg(node))
        });
        match wait.await? {
            0 => Ok(()),
            // A departure was noted before it happened.
            _ if what == "departed" => Ok(()),
            wait => look_later(&self.commands, &self.names, &[user.as_str()], Duration::from_millis(wait)).await,
        }
    }

    /// Takes back what a node held. May be repeated.
    async fn sweep_presence(&self, node: &str) -> Result<(), BrokerError> {
        super::registry::sweep(&self.commands, &self.names, node).await?;
        let index = node_index(&self.names, node);
        let mut command = redis::cmd("HGETALL");
        command.arg(&index);
        let holds: Vec<(String, String)> = self.commands.run(&command).await?;
        let now = presence::unix_ms();
        stream::iter(holds.iter().map(Ok::<_, BrokerError>))
            .try_for_each_concurrent(PARALLEL, |(field, user)| async move {
                if let Some((connection, resource)) = field.rsplit_once(' ')
                    && let (Ok(resource), Ok(user)) = (ChannelName::new(resource), UserId::new(user))
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
            self.commands.run::<u64>(&command).await?;
        }
        Ok(())
    }

    /// Writes again what this node holds: in silence after Redis lost it, announced after survivors took it back.
    async fn restore_presence(&self, announced: bool) -> Result<(), BrokerError> {
        let holds: Vec<_> = self.held.holds.lock().iter().map(|(key, value)| (key.clone(), value.clone())).collect();
        stream::iter(holds.into_iter().map(Ok::<_, BrokerError>))
            .try_for_each_concurrent(PARALLEL, |((connection, resource), (user, entry))| async move {
                self.index(&resource, &connection, &user).await?;
                let announcement = member(&entry).filter(|_| announced).map(|member| {
                    presence::member_announcement("presence:join", &resource, &member, Some(&connection))
                });
                self.join(&resource, connection.as_str(), &entry, announcement.as_ref(), &user).await?;
                // Left in the meantime: the leaving found nothing.
                if !self.held.holds.lock().contains_key(&(connection.clone(), resource.clone())) {
                    self.leave(&resource, connection.as_str(), &user, presence::unix_ms()).await?;
                }
                Ok(())
            })
            .await?;
        let users = self.registry.users();
        let chosen = self.held.chosen.lock().clone();
        let restored = |user: &UserId| {
            let status = chosen.get(user).copied();
            if announced { Happening::Seen(status) } else { Happening::Restore(status) }
        };
        stream::iter(users.iter().map(Ok::<_, BrokerError>))
            .try_for_each_concurrent(PARALLEL, |user| self.settle(user, restored(user)))
            .await
    }

    async fn tend_once(&self) -> Result<bool, BrokerError> {
        let keys = ["pb", "pc", "pl", "pt"].map(|name| self.names.presence(name));
        let done = std::mem::take(&mut *self.held.done.lock());
        let (known, swept, dead, looks, ends): Tended = self
            .commands
            .script(&scripts::PRESENCE_TEND, |command| {
                command.arg(4).arg(&keys[..]).arg(self.node.as_str()).arg(LEASE.as_millis() as u64);
                command.arg(CLAIM.as_millis() as u64).arg(ITEMS).arg(SWEPT.as_millis() as u64);
                for done in [&done.looks, &done.ends] {
                    command.arg(done.len());
                    for (item, due) in done {
                        command.arg(item).arg(due);
                    }
                }
                command
            })
            .await?;
        if known == 0 {
            self.restore_presence(swept == 1).await?;
        }
        for node in dead {
            tracing::info!(%node, "taking back a dead node's presence");
            self.sweep_presence(&node).await?;
            let key = &keys[1];
            self.commands.script::<u8>(&scripts::PRESENCE_SWEPT, |command| command.arg(1).arg(key).arg(&node)).await?;
        }
        let more = looks.len() >= ITEMS || ends.len() >= ITEMS;
        let settled = stream::iter(looks.iter().map(Ok::<_, BrokerError>))
            .try_for_each_concurrent(PARALLEL, |look| async move {
                if let Ok(user) = UserId::new(&look.0) {
                    self.settle(&user, Happening::Look).await?;
                }
                self.held.done.lock().looks.push(look.clone());
                Ok(())
            })
            .await;
        settled?;
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
        self.sweep_presence(self.node.as_str()).await?;
        let mut command = redis::cmd("HDEL");
        command.arg(self.names.presence("pb")).arg(self.node.as_str());
        self.commands.run::<u64>(&command).await.map(|_| ())
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
        inner.held.holds.lock().insert((connection.clone(), resource.clone()), (member.id.clone(), entry.clone()));
        inner.index(resource, connection, &member.id).await?;
        let announcement = presence::member_announcement("presence:join", resource, member, Some(connection));
        let (first, entries) =
            inner.join(resource, connection.as_str(), &entry, Some(&announcement), &member.id).await?;
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
        index.arg(node_index(&inner.names, inner.node.as_str())).arg(format!("{connection} {resource}"));
        if let Err(error) = inner.commands.run::<u64>(&index).await {
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
        let ends = inner.names.presence("pt");
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
        inner.commands.run::<u64>(&command).await?;
        let announcement = presence::member_announcement("presence:join", resource, member, None);
        let entry = format!("p{}", entry(member));
        let (first, _) =
            inner.join(resource, &format!("!{}", member.id), &entry, Some(&announcement), &member.id).await?;
        Ok(first)
    }

    async fn remove_member(&self, resource: &ChannelName, user: &UserId) -> Result<bool, BrokerError> {
        let gone = self.inner.leave(resource, "", user, presence::unix_ms()).await?;
        let mut command = redis::cmd("ZREM");
        command.arg(self.inner.names.presence("pt")).arg(format!("{resource} {user}"));
        self.inner.commands.run::<u64>(&command).await?;
        Ok(gone)
    }

    async fn members(&self, resource: &ChannelName) -> Result<Vec<Member>, BrokerError> {
        let mut command = redis::cmd("HGETALL");
        command.arg(&keys(&self.inner.names, resource)[0]);
        Ok(sorted(&self.inner.commands.run::<Vec<(String, String)>>(&command).await?))
    }

    async fn user_seen(&self, user: &UserId, status: Option<UserStatus>) -> Result<(), BrokerError> {
        if let Some(status) = status {
            self.inner.held.chosen.lock().insert(user.clone(), status);
        }
        self.inner.settle(user, Happening::Seen(status)).await
    }

    async fn user_departed(&self, user: &UserId, delay: Duration) -> Result<(), BrokerError> {
        let inner = &self.inner;
        let chose = inner.held.chosen.lock().contains_key(user);
        if chose && inner.registry.connections_here(user) <= 1 {
            inner.held.chosen.lock().remove(user);
        }
        // Agreed first: should this node end in between, others look.
        look_later(&inner.commands, &inner.names, &[user.as_str()], delay).await?;
        inner.settle(user, Happening::Departed(delay)).await
    }

    async fn presence_of(&self, users: &[UserId]) -> Result<Vec<UserPresence>, BrokerError> {
        let inner = &self.inner;
        let living = inner.registry.living();
        let mut found = Vec::with_capacity(users.len());
        for chunk in users.chunks(500) {
            let mut pipeline = Pipeline::new();
            for user in chunk {
                pipeline.cmd("HMGET").arg(status_key(&inner.names, user)).arg("v").arg("l");
                pipeline.cmd("HVALS").arg(inner.names.user_connections(user));
            }
            let mut answers = inner.commands.pipeline(&pipeline).await?.into_iter();
            for user in chunk {
                let status = answers.next().and_then(|answer| redis::from_redis_value(answer).ok());
                let (status, seen): (Option<String>, Option<i64>) = status.unwrap_or_default();
                let nodes = answers.next().and_then(|answer| redis::from_redis_value(answer).ok());
                let nodes: Vec<String> = nodes.unwrap_or_default();
                let here = |node: &&String| node.as_str() == inner.node.as_str() || living.contains(node.as_str());
                let connections = nodes.iter().filter(here).count() as u64;
                found.push(known(user, status.as_deref().and_then(UserStatus::parse), seen, connections));
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
fn known(user: &UserId, status: Option<UserStatus>, seen_ms: Option<i64>, connections: u64) -> UserPresence {
    let unannounced = if connections > 0 { UserStatus::Online } else { UserStatus::Offline };
    let last_seen_ms = if connections > 0 { Some(presence::unix_ms()) } else { seen_ms };
    UserPresence { user: user.clone(), status: status.unwrap_or(unannounced), last_seen_ms, connections }
}
