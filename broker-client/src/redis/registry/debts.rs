//! What this node's registrations owe: to be written again when Redis lost them (R43), to be taken back when nobody did.
//!
//! It must not know: leases of others.

use std::time::Duration;

use carillon_protocol::{ConnectionId, UserId};

use super::{CHUNK, Registry, all};
use crate::redis::layout::{Call, Layout};
use crate::redis::names::{NODES, Names};
use crate::redis::status::look_later;
use crate::{BrokerError, ConnectionRecord};

/// Removals that could not be made and are owed; beyond that the node's end cleans up.
const OWED_MAX: usize = 100_000;

impl Registry {
    /// It must not stay registered, and may be: the next beats take it back.
    pub(in crate::redis) fn owe(&self, record: &ConnectionRecord) {
        let mut owed = self.owed.lock();
        if owed.len() < OWED_MAX {
            owed.insert(record.id.clone(), record.user.clone());
        }
    }

    /// Writes this node's registrations again.
    pub(super) async fn restore(&self, layout: &Layout, names: &Names) -> Result<(), BrokerError> {
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

    pub(super) async fn settle_debts(
        &self,
        layout: &Layout,
        names: &Names,
    ) -> Result<(), BrokerError> {
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

    pub(super) async fn remove(
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
        all(layout, calls).await?;
        // Whoever looked before found them here, and nobody looks again.
        let users = connections.iter().map(|(_, user)| (user.as_str(), Duration::ZERO));
        layout.run(&layout.common(NODES), &look_later(names, users)).await.map(drop)
    }

    pub(in crate::redis) async fn retire(
        &self,
        layout: &Layout,
        names: &Names,
    ) -> Result<(), BrokerError> {
        self.own.lock().clear();
        self.sweep(layout, names, self.node.as_str()).await?;
        self.settle_debts(layout, names).await
    }
}

/// A registration that may have happened and that nobody will take back: its caller was told of a failure, or went
/// away in the middle of the handshake.
pub(super) struct Unanswered<'a> {
    pub(super) registry: &'a Registry,
    pub(super) record: Option<&'a ConnectionRecord>,
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        if let Some(record) = self.record {
            self.registry.owe(record);
        }
    }
}
