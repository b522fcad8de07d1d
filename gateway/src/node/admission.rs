//! Whether a client may connect, and where it is counted. `protocol.md` 5, rulings R41 and R42.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use carillon_broker_client::{Admission, Arrival, ConnectionRecord};
use carillon_protocol::envelope::Refusal;
use carillon_protocol::{ChannelName, ConnectionId, ErrorCode, UserId};

use super::Node;

/// A place in the node's and the cluster's counts; given back when dropped.
pub struct Admitted {
    place: Place,
    /// The connection's id.
    pub id: ConnectionId,
    /// Whose connections count it.
    user: Option<UserId>,
}

/// One of `limits.connections`.
struct Place(Arc<Node>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.places_taken.fetch_sub(1, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for Admitted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admitted").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Node {
    /// Counts a new connection of `user`.
    ///
    /// # Errors
    /// `UNAVAILABLE` when the node is full or draining, `MAX_CONNECTIONS` when the user is.
    pub async fn admit(self: &Arc<Self>, user: Option<&UserId>) -> Result<Admitted, Refusal> {
        let place = self.take_place()?;
        let id = crate::ids::connection_id(&self.id);
        let Some(user) = user else {
            return Ok(Admitted { place, id, user: None });
        };
        let record = ConnectionRecord { id: id.clone(), user: user.clone() };
        let limit = u64::from(self.config.load().limits.connections_per_user);
        let arrival = match self.broker.arrive(&record, limit).await {
            Ok(arrival) => arrival,
            // Without Redis the node counts what it sees itself (R42).
            Err(_) => {
                let admission = self.admit_locally(user, limit);
                if admission == Admission::Admitted {
                    self.broker.register_later(&record);
                }
                Arrival { admission, seen: false }
            }
        };
        match arrival.admission {
            Admission::Admitted => {
                if !arrival.seen {
                    self.presence.arrived(user);
                }
                Ok(Admitted { place, id, user: Some(record.user) })
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
        let place = self.take_place()?;
        Ok(Admitted { place, id: crate::ids::connection_id(&self.id), user: None })
    }

    /// Counts before anything is asked of the broker: of a storm no more get in than there are places.
    fn take_place(self: &Arc<Self>) -> Result<Place, Refusal> {
        if self.is_closing() {
            return Err(Refusal::new(ErrorCode::Unavailable, "This node is draining")
                .with("retry_after_ms", 1_000));
        }
        let limit = self.config.load().limits.connections as u64;
        let taken = self.places_taken.fetch_add(1, Ordering::Relaxed);
        let place = Place(Arc::clone(self));
        if limit > 0 && taken >= limit {
            self.metrics.refused("capacity");
            return Err(Refusal::new(ErrorCode::Unavailable, "This node is full")
                .with("retry_after_ms", 5_000));
        }
        Ok(place)
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
        let Some(user) = self.user.take() else { return };
        let record = ConnectionRecord { id: self.id.clone(), user };
        let node = Arc::clone(&self.place.0);
        if node.stop.is_cancelled() {
            // The node retires its whole lease at once.
            return;
        }
        let tasks = node.tasks.clone();
        tasks.spawn(async move {
            node.presence.departed(&record).await;
        });
    }
}
