//! Whether a client may connect, and where it is counted. `protocol.md` 5, rulings R41 and R42.

use std::sync::Arc;

use carillon_broker_client::{Admission, ConnectionRecord};
use carillon_protocol::envelope::Refusal;
use carillon_protocol::{ChannelName, ConnectionId, ErrorCode, UserId};
use foldhash::HashMap;
use parking_lot::Mutex;

use super::Node;

/// A place in the node's and the cluster's counts; given back when dropped.
pub struct Admitted {
    node: Arc<Node>,
    /// The connection's id.
    pub id: ConnectionId,
    record: Option<ConnectionRecord>,
}

impl std::fmt::Debug for Admitted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admitted").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Connections that were admitted while the broker was away: counted nowhere but here, until it is back.
#[derive(Debug, Default)]
pub struct Unregistered(Mutex<HashMap<ConnectionId, UserId>>);

impl Node {
    /// Registers those who came while the broker was away, whatever the limit: they are here.
    pub(crate) async fn register_late(&self) {
        let late: Vec<ConnectionRecord> = {
            let late = self.unregistered.0.lock();
            let record = |(id, user): (&ConnectionId, &UserId)| ConnectionRecord {
                id: id.clone(),
                user: user.clone(),
            };
            late.iter().map(record).collect()
        };
        for record in late {
            if let Err(error) = self.broker.register(&record, 0).await {
                tracing::debug!(%error, "a connection stays unregistered until the broker is back");
                return;
            }
            let ended = self.unregistered.0.lock().remove(&record.id).is_none();
            // What ended meanwhile was deregistered before this came true.
            if ended && let Err(error) = self.broker.deregister(&record).await {
                tracing::debug!(%error, "a connection stays registered until the broker is back");
            }
        }
    }

    /// Counts a new connection of `user`.
    ///
    /// # Errors
    /// `UNAVAILABLE` when the node is full or draining, `MAX_CONNECTIONS` when the user is.
    pub async fn admit(self: &Arc<Self>, user: Option<&UserId>) -> Result<Admitted, Refusal> {
        self.check_room()?;
        let id = crate::ids::connection_id(&self.id);
        let Some(user) = user else {
            return Ok(Admitted { node: Arc::clone(self), id, record: None });
        };
        let record = ConnectionRecord { id: id.clone(), user: user.clone() };
        let limit = u64::from(self.config.load().limits.connections_per_user);
        let admission = match self.broker.register(&record, limit).await {
            Ok(admission) => admission,
            // Without Redis the node counts what it sees itself (R42).
            Err(_) => {
                let admission = self.admit_locally(user, limit);
                if admission == Admission::Admitted {
                    self.unregistered.0.lock().insert(record.id.clone(), record.user.clone());
                }
                admission
            }
        };
        match admission {
            Admission::Admitted => {
                self.presence.arrived(user);
                Ok(Admitted { node: Arc::clone(self), id, record: Some(record) })
            }
            Admission::TooMany { connections } => {
                self.metrics.refused("max_connections");
                Err(Refusal::new(ErrorCode::MaxConnections, "Too many connections of this user")
                    .with("limit", limit)
                    .with("connections", connections))
            }
        }
    }

    /// Counts a long poll: a place on this node, but none of the user's connections (R31).
    ///
    /// # Errors
    /// `UNAVAILABLE` when the node is full or draining.
    pub fn admit_poll(self: &Arc<Self>) -> Result<Admitted, Refusal> {
        self.check_room()?;
        Ok(Admitted {
            node: Arc::clone(self),
            id: crate::ids::connection_id(&self.id),
            record: None,
        })
    }

    fn check_room(&self) -> Result<(), Refusal> {
        if self.is_closing() {
            return Err(Refusal::new(ErrorCode::Unavailable, "This node is draining")
                .with("retry_after_ms", 1_000));
        }
        let limit = self.config.load().limits.connections as u64;
        if limit > 0 && self.metrics.connections_live() >= limit {
            self.metrics.refused("capacity");
            return Err(Refusal::new(ErrorCode::Unavailable, "This node is full")
                .with("retry_after_ms", 5_000));
        }
        Ok(())
    }

    fn admit_locally(&self, user: &UserId, limit: u64) -> Admission {
        let stream = ChannelName::user_stream(user.as_str());
        let connections =
            stream.map_or(0, |stream| self.hub.listeners(stream.as_str()).len() as u64);
        if limit > 0 && connections >= limit {
            return Admission::TooMany { connections };
        }
        Admission::Admitted
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let Some(record) = self.record.take() else { return };
        self.node.unregistered.0.lock().remove(&record.id);
        let node = Arc::clone(&self.node);
        if node.stop.is_cancelled() {
            // The node retires its whole lease at once.
            return;
        }
        self.node.tasks.spawn(async move {
            node.presence.departed(&record.user).await;
            if let Err(error) = node.broker.deregister(&record).await {
                tracing::debug!(%error, "a connection stays registered until the broker is back");
            }
        });
    }
}
