//! Nodes and connections: one lease a node; a dead node is swept by exactly one survivor at a time.
//! Source: `cluster.md` 1, rulings R41 and R43.
//!
//! A user's hash and a node's index may live on different servers. The index is written first and the hash
//! is what counts, so a crash between the two leaves an index entry that a sweep removes.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use carillon_protocol::{ConnectionId, UserId};
use foldhash::{HashMap, HashSet};
use parking_lot::Mutex;

use super::layout::{Call, Layout};
use super::names::{NODES, Names};
use super::status::look_later;
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
    /// The leases as the last beat found them.
    leases: Mutex<Option<Leases>>,
}

/// When nodes beat last, as it was known at a time.
struct Leases {
    known_at: Instant,
    /// The same by Redis' clock.
    known_at_ms: u64,
    beats: Vec<(String, u64)>,
}

/// Nodes whose connections count against a user's limit.
pub(super) struct Counting {
    pub(super) nodes: Vec<String>,
    /// These are all. Otherwise they count for sure, and what other nodes registered needs another look.
    pub(super) exact: bool,
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
            leases: Mutex::new(None),
        }
    }

    /// Keeps what `admitting` admits, and takes back what it may have registered if nobody hears its answer.
    pub(super) async fn admitted(
        &self,
        record: &ConnectionRecord,
        admitting: impl Future<Output = Result<Admission, BrokerError>>,
    ) -> Result<Admission, BrokerError> {
        let mut unanswered = Unanswered { registry: self, record: Some(record) };
        let admission = admitting.await?;
        unanswered.record = None;
        if admission == Admission::Admitted {
            self.keep(record);
        }
        Ok(admission)
    }

    pub(super) async fn register(
        &self,
        layout: &Layout,
        names: &Names,
        record: &ConnectionRecord,
        limit: u64,
    ) -> Result<Admission, BrokerError> {
        self.admitted(record, self.try_register(layout, names, record, limit)).await
    }

    async fn try_register(
        &self,
        layout: &Layout,
        names: &Names,
        record: &ConnectionRecord,
        limit: u64,
    ) -> Result<Admission, BrokerError> {
        let user = layout.place(&Names::user_tag(&record.user));
        let mut counting = self.counting(layout, names, limit > 0, false).await?;
        loop {
            let mut register = scripts::REGISTER.call(&[&names.user_connections(&record.user)]);
            register
                .arg(record.id.as_str())
                .arg(self.node.as_str())
                .arg(limit)
                .arg(u8::from(counting.exact))
                .arg(&counting.nodes);
            let index = self.indexed(layout, names, std::slice::from_ref(record));
            let (indexed, registered) = tokio::join!(
                layout.run(&index.place, &index.command),
                layout.run(&user, &register)
            );
            indexed?;
            match answer::read(registered?)? {
                (1, _) => return Ok(Admission::Admitted),
                (2, _) if !counting.exact => {
                    counting = self.counting(layout, names, true, true).await?;
                }
                (_, connections) => {
                    let forget = self.unindexed(layout, names, [&record.id]);
                    layout.run(&forget.place, &forget.command).await?;
                    return Ok(Admission::TooMany { connections });
                }
            }
        }
    }

    /// The nodes whose connections count. What the last beat found says which ones do for sure: who was seen a moment ago
    /// may have been seen since. `exactly` asks Redis instead. Without a limit to hold nobody counts.
    pub(super) async fn counting(
        &self,
        layout: &Layout,
        names: &Names,
        limited: bool,
        exactly: bool,
    ) -> Result<Counting, BrokerError> {
        if !limited {
            return Ok(Counting { nodes: Vec::new(), exact: true });
        }
        let own = || self.node.as_str().to_owned();
        let known = || {
            let leases = self.leases.lock();
            let leases = leases.as_ref()?;
            let elapsed_ms = u64::try_from(leases.known_at.elapsed().as_millis()).ok()?;
            let now = leases.known_at_ms + elapsed_ms;
            let young = leases.beats.iter().filter(|(_, beat)| is_younger(*beat, now, FRESH));
            Some(young.map(|(node, _)| node.clone()).chain([own()]).collect())
        };
        if let Some(nodes) = known().filter(|_| !exactly) {
            return Ok(Counting { nodes, exact: false });
        }
        let mut nodes = self.younger(layout, names, FRESH).await?;
        nodes.push(own());
        Ok(Counting { nodes, exact: true })
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
        self.forget(record);
        let removed =
            self.remove(layout, names, vec![(record.id.clone(), record.user.clone())]).await;
        if removed.is_err() {
            self.owe(record);
        }
        removed
    }

    /// It ends: a beat that writes registrations again leaves it out.
    pub(super) fn forget(&self, record: &ConnectionRecord) {
        self.own.lock().remove(&record.id);
    }

    /// It must not stay registered, and may be: the next beats take it back.
    pub(super) fn owe(&self, record: &ConnectionRecord) {
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
        // Before the answer's own time: what is known only ever seems older than it is.
        let asked_at = Instant::now();
        let mut command = scripts::BEAT.call(&[&names.beats(), &names.records()]);
        command.arg(self.node.as_str()).arg(json);
        let (before, now, beats, records): Beat =
            answer::read(layout.run(&place, &command).await?)?;
        let held = before.is_some_and(|before| !before.starts_with('!'));
        let alive =
            beats.iter().filter_map(|(node, beat)| Some((node.clone(), beat.parse().ok()?)));
        let leases = Leases { known_at: asked_at, known_at_ms: now, beats: alive.collect() };
        *self.leases.lock() = Some(leases);
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
            if !users.is_empty() {
                let look = look_later(names, users.iter().map(|user| (*user, Duration::ZERO)));
                layout.run(&layout.common(NODES), &look).await?;
            }
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
            let mut calls = Vec::with_capacity(1 + chunk.len());
            calls.push(self.indexed(layout, names, chunk));
            for record in chunk {
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
        if connections.is_empty() {
            return Ok(());
        }
        let mut calls = Vec::with_capacity(1 + connections.len());
        for (id, user) in &connections {
            let mut command = redis::cmd("HDEL");
            command.arg(names.user_connections(user)).arg(id.as_str());
            calls.push(Call { place: layout.place(&Names::user_tag(user)), command });
        }
        calls.push(self.unindexed(layout, names, connections.iter().map(|(id, _)| id)));
        all(layout, calls).await
    }

    pub(super) async fn retire(&self, layout: &Layout, names: &Names) -> Result<(), BrokerError> {
        self.own.lock().clear();
        self.sweep(layout, names, self.node.as_str()).await?;
        self.settle_debts(layout, names).await
    }

    pub(super) fn indexed<'r>(
        &self,
        layout: &Layout,
        names: &Names,
        records: impl IntoIterator<Item = &'r ConnectionRecord>,
    ) -> Call {
        let mut command = redis::cmd("HSET");
        command.arg(names.node_connections(self.node.as_str()));
        for record in records {
            command.arg(record.id.as_str()).arg(record.user.as_str());
        }
        Call { place: layout.common(self.node.as_str()), command }
    }

    pub(super) fn unindexed<'r>(
        &self,
        layout: &Layout,
        names: &Names,
        ids: impl IntoIterator<Item = &'r ConnectionId>,
    ) -> Call {
        let mut command = redis::cmd("HDEL");
        command.arg(names.node_connections(self.node.as_str()));
        ids.into_iter().for_each(|id| _ = command.arg(id.as_str()));
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
pub(super) async fn all(layout: &Layout, calls: Vec<Call>) -> Result<(), BrokerError> {
    layout.run_all(calls).await.into_iter().try_for_each(|result| result.map(drop))
}
