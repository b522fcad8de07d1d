//! Nodes and connections: one lease a node, each dead node swept by exactly one survivor.
//! Source: `cluster.md` 1, rulings R41 and R43.

use std::time::Duration;

use arc_swap::ArcSwap;
use carillon_protocol::{ConnectionId, UserId};
use foldhash::{HashMap, HashSet};
use parking_lot::Mutex;
use redis::Pipeline;

use super::commands::Commands;
use super::names::Names;
use super::scripts;
use crate::{Admission, BrokerError, ConnectionRecord, NodeId, NodeRecord};

/// A node that has not refreshed its lease for so long is dead.
const LEASE: Duration = Duration::from_secs(15);
/// Connections of a node whose lease is older do not count against a user (R41).
const FRESH: Duration = Duration::from_secs(5);
/// A user's entry without any change for so long is forgotten; each registration renews it.
const USER_LIFETIME: Duration = Duration::from_secs(30 * 24 * 3600);
const CHUNK: usize = 1_000;

pub(super) struct Registry {
    node: NodeId,
    /// What this node registered: written again when Redis lost it (R43).
    own: Mutex<HashMap<ConnectionId, UserId>>,
    fresh: ArcSwap<Vec<String>>,
    living: ArcSwap<HashSet<String>>,
}

type Beat = (u8, u64, Vec<(String, u64, String)>, Vec<String>);

impl Registry {
    pub(super) fn new(node: NodeId) -> Self {
        Self { node, own: Mutex::default(), fresh: ArcSwap::default(), living: ArcSwap::default() }
    }

    pub(super) async fn register(
        &self,
        commands: &Commands,
        names: &Names,
        record: &ConnectionRecord,
        limit: u64,
    ) -> Result<Admission, BrokerError> {
        // Kept even when Redis is away: the next beat writes it.
        self.own.lock().insert(record.id.clone(), record.user.clone());
        let key = names.user_connections(&record.user);
        let fresh = self.fresh.load_full();
        let register = commands.script::<(u8, u64)>(&scripts::REGISTER, |command| {
            command.arg(1).arg(&key).arg(record.id.as_str()).arg(self.node.as_str()).arg(limit);
            command.arg(USER_LIFETIME.as_millis() as u64).arg(self.node.as_str());
            for node in fresh.iter().filter(|node| node.as_str() != self.node.as_str()) {
                command.arg(node);
            }
            command
        });
        let mut index = redis::cmd("HSET");
        index.arg(names.node_connections(self.node.as_str())).arg(record.id.as_str()).arg(record.user.as_str());
        let (registered, indexed) = tokio::join!(register, commands.run::<u64>(&index));
        let (admitted, connections) = registered?;
        indexed?;
        if admitted == 1 {
            return Ok(Admission::Admitted);
        }
        self.own.lock().remove(&record.id);
        let mut forget = redis::cmd("HDEL");
        forget.arg(names.node_connections(self.node.as_str())).arg(record.id.as_str());
        commands.run::<u64>(&forget).await?;
        Ok(Admission::TooMany { connections })
    }

    pub(super) async fn deregister(
        &self,
        commands: &Commands,
        names: &Names,
        record: &ConnectionRecord,
    ) -> Result<(), BrokerError> {
        self.own.lock().remove(&record.id);
        let mut pipeline = Pipeline::new();
        pipeline.cmd("HDEL").arg(names.user_connections(&record.user)).arg(record.id.as_str());
        pipeline.cmd("HDEL").arg(names.node_connections(self.node.as_str())).arg(record.id.as_str());
        commands.pipeline(&pipeline).await.map(|_| ())
    }

    pub(super) async fn connections_of(
        &self,
        commands: &Commands,
        names: &Names,
        user: &UserId,
    ) -> Result<Vec<ConnectionId>, BrokerError> {
        let mut command = redis::cmd("HGETALL");
        command.arg(names.user_connections(user));
        let entries: HashMap<String, String> = commands.run::<Vec<(String, String)>>(&command).await?.into_iter().collect();
        let living = self.living.load();
        Ok(entries
            .into_iter()
            .filter(|(_, node)| node == self.node.as_str() || living.contains(node))
            .filter_map(|(id, _)| ConnectionId::new(&id).ok())
            .collect())
    }

    pub(super) async fn beat(
        &self,
        commands: &Commands,
        names: &Names,
        record: &NodeRecord,
    ) -> Result<Vec<NodeRecord>, BrokerError> {
        let json = serde_json::to_string(record).map_err(|error| BrokerError::Invalid(error.to_string()))?;
        let nodes = names.nodes();
        let (known, now, living, dead): Beat = commands
            .script(&scripts::BEAT, |command| {
                command.arg(1).arg(&nodes).arg(self.node.as_str()).arg(&json).arg(LEASE.as_millis() as u64)
            })
            .await?;
        let fresh_ms = FRESH.as_millis() as u64;
        let fresh = living.iter().filter(|(_, at, _)| now.saturating_sub(*at) <= fresh_ms);
        self.fresh.store(fresh.map(|(id, _, _)| id.clone()).collect::<Vec<_>>().into());
        self.living.store(living.iter().map(|(id, _, _)| id.clone()).collect::<HashSet<_>>().into());
        if known == 0 {
            self.restore(commands, names).await?;
        }
        for node in dead {
            tracing::info!(%node, "sweeping a dead node");
            sweep(commands, names, &node).await?;
        }
        Ok(living.into_iter().filter_map(|(_, _, json)| serde_json::from_str(&json).ok()).collect())
    }

    /// Writes this node's registrations again: Redis lost them, or the lease had run out.
    async fn restore(&self, commands: &Commands, names: &Names) -> Result<(), BrokerError> {
        let own: Vec<(ConnectionId, UserId)> =
            self.own.lock().iter().map(|(id, user)| (id.clone(), user.clone())).collect();
        for chunk in own.chunks(CHUNK) {
            let mut pipeline = Pipeline::new();
            for (id, user) in chunk {
                pipeline.cmd("HSET").arg(names.user_connections(user)).arg(id.as_str()).arg(self.node.as_str());
                pipeline.cmd("HSET").arg(names.node_connections(self.node.as_str())).arg(id.as_str()).arg(user.as_str());
            }
            commands.pipeline(&pipeline).await?;
        }
        Ok(())
    }

    /// Nodes alive at the last beat.
    pub(super) fn living(&self) -> std::sync::Arc<HashSet<String>> {
        self.living.load_full()
    }

    /// Users with a connection on this node.
    pub(super) fn users(&self) -> HashSet<UserId> {
        self.own.lock().values().cloned().collect()
    }

    /// Connections of a user on this node.
    pub(super) fn connections_here(&self, user: &UserId) -> usize {
        self.own.lock().values().filter(|own| *own == user).count()
    }

    pub(super) async fn retire(&self, commands: &Commands, names: &Names) -> Result<(), BrokerError> {
        let mut command = redis::cmd("HDEL");
        command.arg(names.nodes()).arg(self.node.as_str());
        commands.run::<u64>(&command).await?;
        self.own.lock().clear();
        sweep(commands, names, self.node.as_str()).await
    }
}

/// Removes what a node registered, in chunks. May be repeated.
pub(super) async fn sweep(commands: &Commands, names: &Names, node: &str) -> Result<(), BrokerError> {
    let index = names.node_connections(node);
    let mut command = redis::cmd("HGETALL");
    command.arg(&index);
    let entries: Vec<(String, String)> = commands.run(&command).await?;
    for chunk in entries.chunks(CHUNK) {
        let mut pipeline = Pipeline::new();
        for (id, user) in chunk {
            if let Ok(user) = UserId::new(user) {
                pipeline.cmd("HDEL").arg(names.user_connections(&user)).arg(id);
            }
        }
        commands.pipeline(&pipeline).await?;
        let users: Vec<&str> = chunk.iter().map(|(_, user)| user.as_str()).collect();
        super::presence::look_later(commands, names, &users, Duration::ZERO).await?;
    }
    let mut command = redis::cmd("DEL");
    command.arg(&index);
    commands.run::<u64>(&command).await.map(|_| ())
}
