//! Ending politely: not ready, accept a little longer, send clients away evenly, then stop.
//! Source: `cluster.md` 2 (drain), `operations.md` 2 (`drain.period`, `drain.grace`).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use carillon_protocol::CloseCode;
use tokio_util::sync::CancellationToken;

use crate::node::Node;

/// How often some clients are sent away, at most.
const STEP: Duration = Duration::from_millis(100);
/// How long tasks may take to end after everything was told to stop.
const LAST_WAIT: Duration = Duration::from_secs(3);

/// Turns ready off, keeps accepting for `drain.grace` (balancers need to notice), then stops the listener
/// and spreads `disconnect` over `drain.period`.
pub(super) async fn drain(node: &Arc<Node>, accepting: &CancellationToken) {
    node.draining.store(true, Ordering::Relaxed);
    tracing::info!(connections = node.metrics.connections_live(), "draining");
    let config = node.config.load_full();
    if config.redis.settings().is_some() {
        tokio::time::sleep(config.drain.grace).await;
    }
    node.closing.store(true, Ordering::Relaxed);
    accepting.cancel();
    let mut connections = node.hub.connections();
    let period = config.drain.period;
    // A few clients are spread over the whole of it, too.
    let steps = ((period.as_millis() / STEP.as_millis()) as usize).min(connections.len()).max(1);
    let mut tick = tokio::time::interval((period / steps as u32).max(Duration::from_millis(1)));
    for step in 0..steps {
        tick.tick().await;
        if node.metrics.connections_live() == 0 {
            break;
        }
        let share = connections.len().div_ceil(steps - step);
        for connection in connections.drain(..share) {
            connection.outbox.close(CloseCode::Draining);
        }
    }
    // Handshakes that were under way when the listener stopped.
    for connection in node.hub.connections() {
        connection.outbox.close(CloseCode::Draining);
    }
    node.pollers.clear_seats();
}

/// Gives the lease back and ends every task of the node.
pub(super) async fn end(node: &Arc<Node>, hurry: &CancellationToken) {
    let ended = async {
        while node.metrics.connections_live() > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        _ = tokio::time::timeout(LAST_WAIT, ended) => {}
        () = hurry.cancelled() => {}
    }
    node.application.lifecycle.flushed().await;
    if let Err(error) = node.broker.retire().await {
        tracing::debug!(%error, "the lease ends by itself");
    }
    node.stop.cancel();
    node.tasks.close();
    tokio::select! {
        waited = tokio::time::timeout(LAST_WAIT, node.tasks.wait()) => {
            if waited.is_err() {
                tracing::warn!(tasks = node.tasks.len(), "some tasks did not end in time");
            }
        }
        () = hurry.cancelled() => {}
    }
}
