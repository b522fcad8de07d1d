//! Nodes and connections: one lease a node; a dead node is swept by exactly one survivor at a time.
//! Source: `cluster.md` 1, rulings R41 and R43.
//!
//! A user's hash and a node's index may live on different servers. The index is written first and the hash
//! is what counts, so a crash between the two leaves an index entry that a sweep removes.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use carillon_protocol::{ConnectionId, UserId};
use foldhash::{HashMap, HashSet};
use parking_lot::Mutex;

use super::layout::{Call, Layout};
use super::names::{NODES, Names};
use super::{answer, scripts};
use crate::{Admission, BrokerError, ConnectionRecord, NodeId, NodeRecord};

/// A node that has not refreshed its lease for so long is dead.
const LEASE: Duration = Duration::from_secs(15);
/// Connections of a node whose lease is older do not count against a user (R41).
const FRESH: Duration = Duration::from_secs(5);
const CHUNK: usize = 500;
/// Removals that could not be made and are owed; beyond that the node's end cleans up.
const OWED_MAX: usize = 100_000;

pub(super) struct Registry {
    node: NodeId,
    /// What this node registered: written again when Redis lost it (R43).
    own: Mutex<HashMap<ConnectionId, UserId>>,
    /// Users of them whose arrival was not announced yet: to write them again in silence would swallow it.
    arriving: Mutex<HashSet<UserId>>,
    /// What must not stay registered, and may be.
    owed: Mutex<HashMap<ConnectionId, UserId>>,
    /// The generation of the servers' data when all registrations were known to be there.
    written_at: AtomicU64,
    /// Connections were admitted that Redis was not told of.
    unwritten: AtomicBool,
}

type Beat = (Option<String>, u64, Vec<(String, String)>, Vec<(String, String)>);

impl Registry {
    pub(super) fn new(node: NodeId) -> Self {
        Self {
            node,
            own: Mutex::default(),
            arriving: Mutex::default(),
            owed: Mutex::default(),
            written_at: AtomicU64::new(u64::MAX),
            unwritten: AtomicBool::new(false),
        }
    }

    pub(super) async fn register(
        &self,
        layout: &Layout,
        names: &Names,
        record: &ConnectionRecord,
        limit: u64,
    ) -> Result<Admission, BrokerError> {
        let mut unanswered = Unanswered { registry: self, record: Some(record) };
        let admission = self.try_register(layout, names, record, limit).await?;
        unanswered.record = None;
        if admission == Admission::Admitted {
            self.keep(record);
        }
        Ok(admission)
    }

    async fn try_register(
        &self,
        layout: &Layout,
        names: &Names,
        record: &ConnectionRecord,
        limit: u64,
    ) -> Result<Admission, BrokerError> {
        let fresh =
            if limit == 0 { Vec::new() } else { self.younger(layout, names, FRESH).await? };
        let mut register = scripts::REGISTER.call(&[&names.user_connections(&record.user)]);
        register
            .arg(record.id.as_str())
            .arg(self.node.as_str())
            .arg(limit)
            .arg(self.node.as_str())
            .arg(fresh);
        let user = layout.place(&Names::user_tag(&record.user));
        let index = self.indexed(layout, names, record);
        let (indexed, registered) =
            tokio::join!(layout.run(&index.place, &index.command), layout.run(&user, &register));
        indexed?;
        let (admitted, connections): (u8, u64) = answer::read(registered?)?;
        if admitted == 1 {
            return Ok(Admission::Admitted);
        }
        let forget = self.unindexed(layout, names, &record.id);
        layout.run(&forget.place, &forget.command).await?;
        Ok(Admission::TooMany { connections })
    }

    /// It lives although Redis was not told: the next beat writes it.
    pub(super) fn register_later(&self, record: &ConnectionRecord) {
        self.keep(record);
        self.unwritten.store(true, Ordering::Release);
    }

    fn keep(&self, record: &ConnectionRecord) {
        self.owed.lock().remove(&record.id);
        self.arriving.lock().insert(record.user.clone());
        self.own.lock().insert(record.id.clone(), record.user.clone());
    }

    /// A user's arrival was announced, or needed no announcement.
    pub(super) fn seen(&self, user: &UserId) {
        self.arriving.lock().remove(user);
    }

    pub(super) async fn deregister(
        &self,
        layout: &Layout,
        names: &Names,
        record: &ConnectionRecord,
    ) -> Result<(), BrokerError> {
        self.own.lock().remove(&record.id);
        let removed =
            self.remove(layout, names, vec![(record.id.clone(), record.user.clone())]).await;
        if removed.is_err() {
            self.owe(record);
        }
        removed
    }

    fn owe(&self, record: &ConnectionRecord) {
        let mut owed = self.owed.lock();
        if owed.len() < OWED_MAX {
            owed.insert(record.id.clone(), record.user.clone());
        }
    }

    pub(super) async fn connections_of(
        &self,
        layout: &Layout,
        names: &Names,
        user: &UserId,
    ) -> Result<Vec<ConnectionId>, BrokerError> {
        let mut command = redis::cmd("HGETALL");
        command.arg(names.user_connections(user));
        let place = layout.place(&Names::user_tag(user));
        let (entries, living) =
            tokio::join!(layout.run(&place, &command), self.younger(layout, names, LEASE));
        let (entries, living): (Vec<(String, String)>, _) = (answer::read(entries?)?, living?);
        let lives =
            |node: &str| node == self.node.as_str() || living.iter().any(|living| living == node);
        let entries = entries.into_iter().filter(|(_, node)| lives(node));
        Ok(entries.filter_map(|(id, _)| ConnectionId::new(&id).ok()).collect())
    }

    /// Users with a connection on this node whose arrival is not still to be announced.
    pub(super) fn users_seen(&self) -> HashSet<UserId> {
        let mut users: HashSet<UserId> = self.own.lock().values().cloned().collect();
        // Who left before the arrival could be announced will never be.
        self.arriving.lock().retain(|user| users.contains(user));
        for user in &*self.arriving.lock() {
            users.remove(user);
        }
        users
    }

    /// Connections of a user on this node.
    pub(super) fn connections_here(&self, user: &UserId) -> usize {
        self.own.lock().values().filter(|own| *own == user).count()
    }

    /// Nodes that are alive.
    pub(super) async fn living(
        &self,
        layout: &Layout,
        names: &Names,
    ) -> Result<Vec<String>, BrokerError> {
        self.younger(layout, names, LEASE).await
    }

    /// Nodes whose lease is not older than `age`.
    async fn younger(
        &self,
        layout: &Layout,
        names: &Names,
        age: Duration,
    ) -> Result<Vec<String>, BrokerError> {
        let place = layout.common(NODES);
        let mut time = redis::cmd("HGETALL");
        time.arg(names.beats());
        let calls = vec![
            Call { place: place.clone(), command: redis::cmd("TIME") },
            Call { place, command: time },
        ];
        let [time, beats]: [_; 2] = layout
            .run_all(calls)
            .await
            .try_into()
            .map_err(|_| BrokerError::unavailable("an answer is missing"))?;
        let (seconds, micros): (u64, u64) = answer::read(time?)?;
        let now = seconds * 1000 + micros / 1000;
        let beats: Vec<(String, String)> = answer::read(beats?)?;
        let young = beats
            .into_iter()
            .filter(|(_, beat)| beat.parse().is_ok_and(|beat| is_younger(beat, now, age)));
        Ok(young.map(|(node, _)| node).collect())
    }

    pub(super) async fn beat(
        &self,
        layout: &Layout,
        names: &Names,
        record: &NodeRecord,
        connects: u64,
    ) -> Result<Vec<NodeRecord>, BrokerError> {
        let json = serde_json::to_string(record)
            .map_err(|error| BrokerError::Invalid(error.to_string()))?;
        let place = layout.common(NODES);
        let mut command = scripts::BEAT.call(&[&names.beats(), &names.records()]);
        command.arg(self.node.as_str()).arg(json);
        let (before, now, beats, records): Beat =
            answer::read(layout.run(&place, &command).await?)?;
        let held = before.is_some_and(|before| !before.starts_with('!'));
        // A new connection may lead to a server that restarted or was promoted without the last writes.
        // Cleared before the connections are read: one that comes meanwhile is written by the next beat.
        let unwritten = self.unwritten.swap(false, Ordering::AcqRel);
        if !held || unwritten || self.written_at.load(Ordering::Relaxed) != connects {
            if let Err(error) = self.restore(layout, names).await {
                self.unwritten.store(true, Ordering::Release);
                return Err(error);
            }
            self.written_at.store(connects, Ordering::Relaxed);
        }
        self.settle_debts(layout, names).await?;
        let mut living = Vec::new();
        for (node, beat) in &beats {
            let at = beat.trim_start_matches('!').parse().unwrap_or(0);
            if is_younger(at, now, LEASE) {
                living.extend((!beat.starts_with('!')).then_some(node));
            } else {
                self.sweep_dead(layout, names, node, beat).await?;
            }
        }
        let alive = records.iter().filter(|(node, _)| living.contains(&node));
        let mut alive: Vec<NodeRecord> =
            alive.filter_map(|(_, record)| serde_json::from_str(record).ok()).collect();
        alive.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(alive)
    }

    async fn sweep_dead(
        &self,
        layout: &Layout,
        names: &Names,
        node: &str,
        beat: &str,
    ) -> Result<(), BrokerError> {
        let mut claim = scripts::CLAIM.call(&[&names.beats()]);
        claim.arg(node).arg(beat);
        let claimed: u8 = answer::read(layout.run(&layout.common(NODES), &claim).await?)?;
        if claimed == 1 {
            tracing::info!(%node, "sweeping a dead node");
            self.sweep(layout, names, node).await?;
        }
        Ok(())
    }

    /// Removes what a node registered, then the node. Should it live after all, it finds its lease
    /// gone at its next beat and writes everything again.
    async fn sweep(&self, layout: &Layout, names: &Names, node: &str) -> Result<(), BrokerError> {
        let index = names.node_connections(node);
        let place = layout.common(node);
        let mut cursor = "0".to_owned();
        loop {
            let mut scan = redis::cmd("HSCAN");
            scan.arg(&index).arg(&cursor).arg("COUNT").arg(CHUNK);
            let (next, entries): (String, Vec<(String, String)>) =
                answer::read(layout.run(&place, &scan).await?)?;
            let users: Vec<&str> = entries.iter().map(|(_, user)| user.as_str()).collect();
            super::presence::look_later(layout, names, &users, Duration::ZERO).await?;
            let mut calls = Vec::with_capacity(entries.len());
            for (id, user) in &entries {
                let Ok(user) = UserId::new(user) else { continue };
                let mut command = redis::cmd("HDEL");
                command.arg(names.user_connections(&user)).arg(id);
                calls.push(Call { place: layout.place(&Names::user_tag(&user)), command });
            }
            all(layout, calls).await?;
            if next == "0" {
                break;
            }
            cursor = next;
        }
        let mut unlink = redis::cmd("UNLINK");
        unlink.arg(&index);
        layout.run(&place, &unlink).await?;
        let forget = [names.records(), names.beats()].into_iter().map(|key| {
            let mut command = redis::cmd("HDEL");
            command.arg(key).arg(node);
            Call { place: layout.common(NODES), command }
        });
        all(layout, forget.collect()).await
    }

    /// Writes this node's registrations again.
    async fn restore(&self, layout: &Layout, names: &Names) -> Result<(), BrokerError> {
        let own: Vec<ConnectionRecord> = {
            let own = self.own.lock();
            own.iter()
                .map(|(id, user)| ConnectionRecord { id: id.clone(), user: user.clone() })
                .collect()
        };
        for chunk in own.chunks(CHUNK) {
            let mut calls = Vec::with_capacity(2 * chunk.len());
            for record in chunk {
                calls.push(self.indexed(layout, names, record));
                let mut command = redis::cmd("HSET");
                command
                    .arg(names.user_connections(&record.user))
                    .arg(record.id.as_str())
                    .arg(self.node.as_str());
                calls.push(Call { place: layout.place(&Names::user_tag(&record.user)), command });
            }
            all(layout, calls).await?;
            // A connection that ended meanwhile must not come back to stay.
            let ended = {
                let own = self.own.lock();
                let ended = chunk.iter().filter(|record| !own.contains_key(&record.id));
                ended.map(|record| (record.id.clone(), record.user.clone())).collect()
            };
            self.remove(layout, names, ended).await?;
        }
        Ok(())
    }

    async fn settle_debts(&self, layout: &Layout, names: &Names) -> Result<(), BrokerError> {
        let owed: Vec<(ConnectionId, UserId)> = {
            let owed = self.owed.lock();
            owed.iter().map(|(id, user)| (id.clone(), user.clone())).collect()
        };
        for chunk in owed.chunks(CHUNK) {
            self.remove(layout, names, chunk.to_vec()).await?;
            let mut owed = self.owed.lock();
            chunk.iter().for_each(|(id, _)| drop(owed.remove(id)));
        }
        Ok(())
    }

    async fn remove(
        &self,
        layout: &Layout,
        names: &Names,
        connections: Vec<(ConnectionId, UserId)>,
    ) -> Result<(), BrokerError> {
        let mut calls = Vec::with_capacity(2 * connections.len());
        for (id, user) in &connections {
            let mut command = redis::cmd("HDEL");
            command.arg(names.user_connections(user)).arg(id.as_str());
            calls.push(Call { place: layout.place(&Names::user_tag(user)), command });
            calls.push(self.unindexed(layout, names, id));
        }
        all(layout, calls).await
    }

    pub(super) async fn retire(&self, layout: &Layout, names: &Names) -> Result<(), BrokerError> {
        self.own.lock().clear();
        self.sweep(layout, names, self.node.as_str()).await?;
        self.settle_debts(layout, names).await
    }

    fn indexed(&self, layout: &Layout, names: &Names, record: &ConnectionRecord) -> Call {
        let mut command = redis::cmd("HSET");
        let key = names.node_connections(self.node.as_str());
        command.arg(key).arg(record.id.as_str()).arg(record.user.as_str());
        Call { place: layout.common(self.node.as_str()), command }
    }

    fn unindexed(&self, layout: &Layout, names: &Names, id: &ConnectionId) -> Call {
        let mut command = redis::cmd("HDEL");
        command.arg(names.node_connections(self.node.as_str())).arg(id.as_str());
        Call { place: layout.common(self.node.as_str()), command }
    }
}

/// A registration that may have happened and that nobody will take back: its caller was told of a failure, or went
/// away in the middle of the handshake.
struct Unanswered<'a> {
    registry: &'a Registry,
    record: Option<&'a ConnectionRecord>,
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        if let Some(record) = self.record {
            self.registry.owe(record);
        }
    }
}

fn is_younger(beat_ms: u64, now_ms: u64, age: Duration) -> bool {
    u128::from(now_ms.saturating_sub(beat_ms)) <= age.as_millis()
}

/// Runs all; the first failure is the result.
async fn all(layout: &Layout, calls: Vec<Call>) -> Result<(), BrokerError> {
    layout.run_all(calls).await.into_iter().try_for_each(|result| result.map(drop))
}
