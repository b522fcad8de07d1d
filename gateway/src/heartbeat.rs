//! Pings, silence and token expiry for all connections of the node, in one task: a wheel of due
//! times instead of a timer a connection (`design/performance.md`).

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use carillon_protocol::CloseCode;
use carillon_protocol::envelope::ServerMessage;
use carillon_protocol::websocket::{Opcode, frame};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::connection::outbox::Outbox;
use crate::connection::{Connection, Transport};

/// Resolution of the wheel.
const TICK: Duration = Duration::from_millis(100);

#[derive(Debug)]
enum Due {
    Ping(Weak<Connection>),
    Expiry(Weak<Connection>, u32),
    Grant(Weak<Connection>),
}

/// See the module. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Heartbeat {
    wheel: Arc<Mutex<BTreeMap<u64, Vec<Due>>>>,
    interval_ms: u64,
    timeout_ms: u64,
}

impl Heartbeat {
    /// A wheel with the configured interval and silence; an interval of zero never pings.
    #[must_use]
    pub fn new(interval: Duration, timeout: Duration) -> Self {
        Self {
            wheel: Arc::default(),
            interval_ms: interval.as_millis() as u64,
            timeout_ms: timeout.as_millis() as u64,
        }
    }

    /// Begins to ping a connection.
    pub fn watch(&self, connection: &Arc<Connection>) {
        if self.interval_ms > 0 {
            // A random first phase spreads a reconnect storm's pings over the interval.
            let phase = rand::random::<u64>() % self.interval_ms / 2;
            self.arm(
                clock::monotonic_ms() + self.interval_ms - phase,
                Due::Ping(Arc::downgrade(connection)),
            );
        }
    }

    /// Closes the connection with 4401 at `expires_at_s` (Unix seconds), unless its token was replaced by then
    /// (`generation` counts the connection's tokens).
    pub fn expire(&self, connection: &Arc<Connection>, expires_at_s: i64, generation: u32) {
        let in_ms =
            (expires_at_s.saturating_mul(1_000)).saturating_sub(clock::unix_ms()).max(0) as u64;
        self.arm(
            clock::monotonic_ms().saturating_add(in_ms),
            Due::Expiry(Arc::downgrade(connection), generation),
        );
    }

    /// Has the connection ask again, after `wait`, whether it still may what the application allowed for a time.
    pub fn ask_again(&self, connection: &Arc<Connection>, wait: Duration) {
        let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        self.arm(
            clock::monotonic_ms().saturating_add(wait_ms),
            Due::Grant(Arc::downgrade(connection)),
        );
    }

    fn arm(&self, at_ms: u64, due: Due) {
        let tick = at_ms.div_ceil(TICK.as_millis() as u64);
        self.wheel.lock().entry(tick).or_default().push(due);
    }

    /// Turns the wheel until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let ping = frame(Opcode::Ping, b"");
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                () = stop.cancelled() => return,
            }
            let now = clock::monotonic_ms();
            let due = {
                let mut wheel = self.wheel.lock();
                let later = wheel.split_off(&(now / TICK.as_millis() as u64 + 1));
                std::mem::replace(&mut *wheel, later)
            };
            let mut pinged = Vec::new();
            for due in due.into_values().flatten() {
                match due {
                    Due::Ping(connection) => pinged.extend(self.ping(&connection, now, &ping)),
                    Due::Grant(connection) => {
                        if let Some(connection) = connection.upgrade() {
                            connection.doubt_grants();
                        }
                    }
                    Due::Expiry(connection, generation) => {
                        if let Some(connection) = connection.upgrade()
                            && connection.token_generation() == generation
                        {
                            connection.outbox.close(CloseCode::TokenExpired);
                        }
                    }
                }
            }
            let outboxes: Vec<&Outbox> =
                pinged.iter().map(|connection| &connection.outbox).collect();
            Outbox::flush_all(&outboxes);
        }
    }

    /// Queues a ping, unless the peer was silent for too long; whom, to be flushed.
    fn ping(&self, weak: &Weak<Connection>, now: u64, ping: &Bytes) -> Option<Arc<Connection>> {
        let connection = weak.upgrade()?;
        match connection.transport {
            Transport::WebSocket => {
                if self.timeout_ms > 0
                    && now.saturating_sub(connection.heard_at_ms()) >= self.timeout_ms
                {
                    connection.outbox.close(CloseCode::HeartbeatTimeout);
                    return None;
                }
                connection.outbox.push_raw(ping.clone());
            }
            Transport::Sse if connection.dress.profile.sse_ping_event() => {
                let payload = serde_json::json!({"timestamp": carillon_protocol::time::rfc3339(clock::unix_ms())});
                connection.push(&ServerMessage::new("ping", &payload));
            }
            Transport::Sse => connection.outbox.push_sse_text(b": ping\n\n"),
            Transport::Poll => {}
        }
        // Look again when silence would be over its bound, if that is before the next ping.
        let silent_at = connection.heard_at_ms() + self.timeout_ms;
        let judged =
            connection.transport == Transport::WebSocket && self.timeout_ms > 0 && silent_at > now;
        let next = now + self.interval_ms;
        self.arm(if judged { next.min(silent_at) } else { next }, Due::Ping(weak.clone()));
        Some(connection)
    }
}
