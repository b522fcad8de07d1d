//! Nodes and connections: one lease a node; a dead node is swept by exactly one survivor at a time.
//! Source: `cluster.md` 1, rulings R41 and R43.
//!
//! A user's hash and a node's index may live on different servers. The index is written first and the hash
//! is what counts, so a crash between the two leaves an index entry that a sweep removes.
//!
//! Here is who comes; `lease` is who lives, and `debts` what must be written again or taken back.

mod debts;
mod lease;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use carillon_protocol::{ConnectionId, UserId};
use foldhash::{HashMap, HashSet};
use parking_lot::Mutex;

use super::layout::{Call, Layout};
use super::names::Names;
use super::{answer, scripts};
use crate::{Admission, BrokerError, ConnectionRecord, NodeId};
use debts::Unanswered;
use lease::is_younger;

/// A node that has not refreshed its lease for so long is dead.
const LEASE: Duration = Duration::from_secs(15);
/// Connections of a node whose lease is older do not count against a user (R41).
const FRESH: Duration = Duration::from_secs(5);
const CHUNK: usize = 500;

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

/// Runs all; the first failure is the result.
pub(super) async fn all(layout: &Layout, calls: Vec<Call>) -> Result<(), BrokerError> {
    layout.run_all(calls).await.into_iter().try_for_each(|result| result.map(drop))
}
