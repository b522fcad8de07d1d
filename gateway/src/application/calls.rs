//! Calls of clients to the application by webhook: the answer becomes the ack's `data`. `channels.md` 6.
//!
//! The calls of one connection are made one after the other, in the order they came, by a task of their own; the
//! connection goes on with everything else meanwhile. So a slow answer delays the connection's later calls and nothing else.
//! Each call has the configured time from its arrival, waiting included. At most [`WAITING_MAX`] calls of a connection
//! and [`IN_FLIGHT_MAX`] of the node are under way.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use carillon_protocol::envelope::{Correlation, Refusal};
use carillon_protocol::session::Session;
use carillon_protocol::{ChannelName, ConnectionId, ErrorCode, Payload, UserId};
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::webhook::Webhook;
use crate::clock;
use crate::connection::Connection;

/// Calls of one connection that are made or wait.
const WAITING_MAX: usize = 64;
/// Calls of the node that are made at once.
const IN_FLIGHT_MAX: usize = 256;

/// See the module. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Calls {
    webhook: Arc<Webhook>,
    places: Arc<Semaphore>,
}

/// What a client says to the application, as webhook and stream have it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message<'a> {
    pub(crate) kind: &'a str,
    /// The client's own id for it.
    pub(crate) id: Option<&'a str>,
    pub(crate) user: Option<&'a UserId>,
    pub(crate) connection: Option<&'a ConnectionId>,
    /// `None` for a call; where it was published, for a copy.
    pub(crate) channel: Option<&'a ChannelName>,
    pub(crate) payload: &'a Payload,
}

impl Message<'_> {
    /// One JSON object, in which the payload is what the client sent.
    pub(crate) fn to_json(self) -> String {
        let head = serde_json::json!({
            "kind": "message",
            "type": self.kind,
            "id": self.id,
            "user_id": self.user,
            "connection_id": self.connection,
            "channel": self.channel,
            "timestamp": carillon_protocol::time::rfc3339(clock::unix_ms()),
        });
        let head = head.to_string();
        let head = head.strip_suffix('}').unwrap_or(&head);
        format!("{head},\"payload\":{}}}", self.payload.json_str())
    }
}

/// A connection's calls. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Queue {
    inner: Arc<QueueInner>,
}

#[derive(Debug, Default)]
struct QueueInner {
    waiting: Mutex<VecDeque<Call>>,
    done: Notify,
}

#[derive(Debug)]
struct Call {
    body: Bytes,
    correlation: Correlation,
    deadline: Instant,
}

impl Queue {
    /// Waits until every call that was taken is answered: at most the webhook's time-out. Cancel safe.
    pub(crate) async fn answered(&self) {
        loop {
            let done = self.inner.done.notified();
            if self.inner.waiting.lock().is_empty() {
                return;
            }
            done.await;
        }
    }
}

impl Calls {
    pub(super) fn new(webhook: Arc<Webhook>) -> Self {
        Self { webhook, places: Arc::new(Semaphore::new(IN_FLIGHT_MAX)) }
    }

    /// Takes a call; it is answered later, on the connection.
    ///
    /// # Errors
    /// `RATE_LIMITED` when [`WAITING_MAX`] calls of the connection are under way.
    pub(crate) fn take(
        &self,
        tasks: &TaskTracker,
        connection: &Arc<Connection>,
        queue: &Queue,
        body: String,
        correlation: Correlation,
    ) -> Result<(), Refusal> {
        let call = Call {
            body: body.into(),
            correlation,
            deadline: Instant::now() + self.webhook.timeout,
        };
        let first = {
            let mut waiting = queue.inner.waiting.lock();
            if waiting.len() >= WAITING_MAX {
                return Err(Refusal::new(
                    ErrorCode::RateLimited,
                    "Too many calls to the application are under way",
                )
                .with("limit", WAITING_MAX)
                .with("retry_after_ms", 1_000));
            }
            waiting.push_back(call);
            waiting.len() == 1
        };
        // A task lives as long as there are calls: an idle connection has none.
        if first {
            let (calls, connection) = (self.clone(), Arc::clone(connection));
            let inner = Arc::clone(&queue.inner);
            tasks.spawn(async move { calls.make_all(&connection, &inner).await });
        }
        Ok(())
    }

    async fn make_all(&self, connection: &Connection, queue: &QueueInner) {
        loop {
            // It stays in the queue while it is made: whoever comes meanwhile needs no task.
            let Some((body, correlation, deadline)) = queue
                .waiting
                .lock()
                .front()
                .map(|call| (call.body.clone(), call.correlation.clone(), call.deadline))
            else {
                return;
            };
            let answer = match self.make(body, deadline).await {
                Ok(data) => Session::done(correlation, &data),
                Err(refusal) => Some(Session::refused(correlation, &refusal)),
            };
            if let Some(answer) = answer {
                connection.send(&answer);
            }
            let mut waiting = queue.waiting.lock();
            waiting.pop_front();
            queue.done.notify_waiters();
            if waiting.is_empty() {
                return;
            }
        }
    }

    async fn make(&self, body: Bytes, deadline: Instant) -> Result<serde_json::Value, Refusal> {
        let refused = |what: &'static str| Refusal::new(ErrorCode::Unavailable, what);
        let late = || refused("The application did not answer in time");
        let place = tokio::time::timeout_at(deadline, self.places.acquire()).await;
        let Ok(Ok(_place)) = place else { return Err(late()) };
        let left = deadline.saturating_duration_since(Instant::now());
        if left < Duration::from_millis(1) {
            return Err(late());
        }
        let id = format!("msg_{}", uuid::Uuid::now_v7().simple());
        match self.webhook.post(&id, body, left).await {
            // An answer that is no JSON says yes and nothing more.
            Ok(answer) => Ok(serde_json::from_slice(&answer)
                .ok()
                .filter(|answer: &serde_json::Value| !answer.is_null())
                .unwrap_or_else(|| serde_json::json!({}))),
            Err(super::webhook::CallError::Status { status, .. }) => {
                Err(refused("The application did not take the call")
                    .with("status", status.as_u16()))
            }
            Err(super::webhook::CallError::Failed(_)) => {
                Err(refused("The application did not answer"))
            }
        }
    }
}
