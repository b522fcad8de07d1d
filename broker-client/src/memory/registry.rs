//! Who is alive and which connections they hold: leases, registrations, sweeps. Time is a
//! parameter; it knows nothing of channels.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use carillon_protocol::{ConnectionId, UserId};
use foldhash::fast::RandomState;
use smallvec::SmallVec;
use tokio::time::Instant;

use crate::{Admission, ConnectionRecord, NodeId, NodeRecord, POLLER_PREFIX};

/// A node whose lease is older is dead.
pub(super) const LEASE: Duration = Duration::from_secs(15);

/// Connections of a node whose lease is older do not count against their user's limit (R41).
pub(super) const LEASE_FRESH: Duration = Duration::from_secs(5);

/// Leases and registrations of all nodes.
#[derive(Default)]
pub(super) struct Registry {
    nodes: BTreeMap<NodeId, Lease>,
    users: HashMap<UserId, Held, RandomState>,
}

/// A user's connections; most have one.
type Held = SmallVec<[(ConnectionId, NodeId); 1]>;

struct Lease {
    refreshed: Instant,
    /// `None` until the first beat.
    record: Option<NodeRecord>,
}

impl Registry {
    /// Registers unless the user has `limit` other connections on nodes with a fresh lease. The
    /// caller's own node is alive: it calls.
    pub(super) fn register(
        &mut self,
        node: &NodeId,
        record: &ConnectionRecord,
        limit: u64,
        now: Instant,
    ) -> Admission {
        let held = self.users.get(&record.user).map_or(&[][..], Held::as_slice);
        let counted = held.iter().filter(|(id, holder)| {
            *id != record.id
                && !id.as_str().starts_with(POLLER_PREFIX)
                && (holder == node || self.is_younger(holder, LEASE_FRESH, now))
        });
        let connections = counted.count() as u64;
        if limit > 0 && connections >= limit {
            return Admission::TooMany { connections };
        }
        self.restore(node, record, now);
        Admission::Admitted
    }

    /// Registers without asking for a limit.
    pub(super) fn restore(&mut self, node: &NodeId, record: &ConnectionRecord, now: Instant) {
        self.nodes.entry(node.clone()).or_insert(Lease { refreshed: now, record: None });
        let held = self.users.entry(record.user.clone()).or_default();
        held.retain(|(id, _)| *id != record.id);
        held.push((record.id.clone(), node.clone()));
    }

    pub(super) fn deregister(&mut self, record: &ConnectionRecord) {
        if let Some(held) = self.users.get_mut(&record.user) {
            held.retain(|(id, _)| *id != record.id);
            if held.is_empty() {
                self.users.remove(&record.user);
            }
        }
    }

    pub(super) fn connections_of(&self, user: &UserId, now: Instant) -> Vec<ConnectionId> {
        let held = self.users.get(user).map_or(&[][..], Held::as_slice);
        held.iter()
            .filter(|(_, node)| self.is_younger(node, LEASE, now))
            .map(|(id, _)| id.clone())
            .collect()
    }

    /// Refreshes a lease, sweeps the dead and names the living. `true` when the lease was new: what
    /// the node had registered before is gone.
    pub(super) fn beat(&mut self, record: &NodeRecord, now: Instant) -> (Vec<NodeRecord>, bool) {
        let lease = Lease { refreshed: now, record: Some(record.clone()) };
        let known = self.nodes.insert(record.id.clone(), lease);
        let is_dead = |lease: &Lease| now.saturating_duration_since(lease.refreshed) > LEASE;
        let dead: Vec<NodeId> =
            self.nodes.iter().filter(|(_, l)| is_dead(l)).map(|(id, _)| id.clone()).collect();
        for node in &dead {
            self.retire(node);
        }
        let living = self.nodes.values().filter_map(|lease| lease.record.clone()).collect();
        // A lease without a beat was begun by a registration since the data was lost.
        (living, known.is_none_or(|lease| lease.record.is_none()))
    }

    /// Forgets a node and everything registered under it.
    pub(super) fn retire(&mut self, node: &NodeId) {
        if self.nodes.remove(node).is_some() {
            self.users.retain(|_, held| {
                held.retain(|(_, holder)| holder != node);
                !held.is_empty()
            });
        }
    }

    fn is_younger(&self, node: &NodeId, age: Duration, now: Instant) -> bool {
        self.nodes
            .get(node)
            .is_some_and(|lease| now.saturating_duration_since(lease.refreshed) <= age)
    }
}
