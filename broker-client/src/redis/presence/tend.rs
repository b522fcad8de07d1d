//! What is done once a second: the lease, what dead nodes held, what is due, and what Redis lost.
//!
//! It must not know: who joins and leaves here.

use std::sync::atomic::Ordering;

use carillon_protocol::{ChannelName, UserId};
use foldhash::HashSet;
use futures_util::stream::{self, TryStreamExt as _};

use super::entry::member;
use super::telling::is_hold;
use super::{CLAIM, ITEMS, LEASE, NODES, PARALLEL, SWEPT, common, node_index};
use crate::redis::status::Happening;
use crate::redis::{Inner, answer, scripts};
use crate::{BrokerError, presence};

/// What a tending node is told: whether it was known, whether it was swept, dead nodes, looks with their due, ends likewise.
type Tended = (u8, u8, Vec<String>, Vec<(String, String)>, Vec<(String, String)>);

impl Inner {
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
                    && is_hold(connection)
                    && let (Ok(resource), Ok(user)) =
                        (ChannelName::new(resource), UserId::new(user))
                    && !self.leave(&resource, connection, &user, now).await?.told
                {
                    return Err(BrokerError::unavailable("an event of presence was not told"));
                }
                Ok(())
            })
            .await?;
        self.tell_for(&holds).await?;
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

    /// Tells what a node left on record where it held or changed something.
    async fn tell_for(&self, holds: &[(String, String)]) -> Result<(), BrokerError> {
        let resources = holds.iter().filter_map(|(field, _)| field.rsplit_once(' '));
        let resources: HashSet<&str> = resources.map(|(_, resource)| resource).collect();
        let resources = resources.into_iter().filter_map(|name| ChannelName::new(name).ok());
        stream::iter(resources.map(Ok::<_, BrokerError>))
            .try_for_each_concurrent(PARALLEL, |resource| async move {
                self.tell_left_behind(&resource).await
            })
            .await
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

    /// `true` when there is more to do at once.
    pub(super) async fn tend_once(&self) -> Result<bool, BrokerError> {
        let names = &self.shared.names;
        if let Err(error) = self.tell_owed().await {
            tracing::debug!(%error, "events of presence are told later");
        }
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
                let holder = format!("!{user}");
                let left = self.leave(&resource, &holder, &user, presence::unix_ms()).await?;
                if !left.told {
                    continue;
                }
                // Whoever was handed this end before may have died before telling it.
                self.tell_left_behind(&resource).await?;
            }
            self.held.done.lock().ends.push(end);
        }
        Ok(more)
    }

    /// Gives this node's holds back, announced.
    pub(in crate::redis) async fn retire_presence(&self) -> Result<(), BrokerError> {
        self.held.holds.lock().clear();
        self.sweep_presence(self.shared.node.as_str()).await?;
        self.retire_application().await?;
        let mut command = redis::cmd("HDEL");
        command.arg(common(&self.shared.names, "pb")).arg(self.shared.node.as_str());
        self.layout.run(&self.layout.common(NODES), &command).await.map(|_| ())
    }
}
