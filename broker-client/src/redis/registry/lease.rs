//! Who is alive: this node's beat, what it learns of the others, and the sweeping of those that died.
//!
//! It must not know: who may connect, what a connection is for.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use carillon_protocol::UserId;

use super::{CHUNK, LEASE, Leases, Registry, all};
use crate::redis::layout::{Call, Layout};
use crate::redis::names::{NODES, Names};
use crate::redis::status::look_later;
use crate::redis::{answer, scripts};
use crate::{BrokerError, NodeRecord};

/// What a beat is told: this node's last beat before, Redis' clock, everybody's beats and records.
type Beat = (Option<String>, u64, Vec<(String, String)>, Vec<(String, String)>);

impl Registry {
    /// Nodes that are alive.
    pub(in crate::redis) async fn living(
        &self,
        layout: &Layout,
        names: &Names,
    ) -> Result<Vec<String>, BrokerError> {
        self.younger(layout, names, LEASE).await
    }

    /// Nodes whose lease is not older than `age`.
    pub(super) async fn younger(
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

    pub(in crate::redis) async fn beat(
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
    pub(super) async fn sweep(
        &self,
        layout: &Layout,
        names: &Names,
        node: &str,
    ) -> Result<(), BrokerError> {
        let index = names.node_connections(node);
        let place = layout.common(node);
        let mut cursor = "0".to_owned();
        loop {
            let mut scan = redis::cmd("HSCAN");
            scan.arg(&index).arg(&cursor).arg("COUNT").arg(CHUNK);
            let (next, entries): (String, Vec<(String, String)>) =
                answer::read(layout.run(&place, &scan).await?)?;
            let mut calls = Vec::with_capacity(entries.len());
            for (id, user) in &entries {
                let Ok(user) = UserId::new(user) else { continue };
                let mut command = redis::cmd("HDEL");
                command.arg(names.user_connections(&user)).arg(id);
                calls.push(Call { place: layout.place(&Names::user_tag(&user)), command });
            }
            all(layout, calls).await?;
            // Afterwards, for who looked before may have found them: should this sweep end here, the next one finds the
            // same index.
            let users: Vec<&str> = entries.iter().map(|(_, user)| user.as_str()).collect();
            if !users.is_empty() {
                let look = look_later(names, users.iter().map(|user| (*user, Duration::ZERO)));
                layout.run(&layout.common(NODES), &look).await?;
            }
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
}

pub(super) fn is_younger(beat_ms: u64, now_ms: u64, age: Duration) -> bool {
    u128::from(now_ms.saturating_sub(beat_ms)) <= age.as_millis()
}
