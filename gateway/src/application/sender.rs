//! Carries the `inbound` stream to the application over HTTP, for those who prefer it to reading the stream:
//! lifecycle events to `events.webhook`, messages to `inbound.webhook` or, without one, to `events.webhook`.
//!
//! One node sends at a time, under a lease, so that the order is kept; another takes over where it stopped. An entry is
//! sent until it is taken, with growing pauses, always under the same id; after the last attempt it is buried among the
//! dead letters, and the next one follows. What was sent and not acknowledged when a node died is sent again.

use std::sync::Arc;
use std::time::Duration;

use carillon_broker_client::{BrokerError, InboundFrom, InboundMessage, InboundRead};
use tokio_util::sync::CancellationToken;

use super::webhook::{CallError, Webhook};
use crate::node::Node;

/// The lease, and the group's name on the stream.
const GROUP: &str = "carillon-webhooks";
/// All nodes read as one consumer: what one left the next one has.
const CONSUMER: &str = "sender";
/// After so long without a sign of life another node sends.
const LEASE: Duration = Duration::from_secs(10);
/// How often the lease is kept, or asked for.
const KEEP: Duration = Duration::from_secs(2);
/// How often an empty stream is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// Entries read at once.
const BATCH: usize = 100;
/// The first pause after a failure; each is twice the one before.
const PAUSE: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// How long a node that ends waits for the answer to its last call.
const LAST_CALL: Duration = Duration::from_secs(1);

/// Sends while it is this node's turn, until `stop`.
pub(super) async fn send(node: &Arc<Node>, stop: &CancellationToken) {
    let application = &node.application;
    if application.events.is_none() && application.messages.is_none() {
        return;
    }
    let mut tick = tokio::time::interval(KEEP);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = stop.cancelled() => return,
        }
        match node.broker.hold_lease(GROUP, LEASE).await {
            Ok(true) => {}
            Ok(false) => continue,
            Err(error) => {
                tracing::debug!(%error, "the sender's lease cannot be asked for");
                continue;
            }
        }
        tracing::info!("this node sends webhooks now");
        let mut sending = std::pin::pin!(send_all(node, stop));
        tokio::select! {
            // Whatever is being sent is given up: another node may be sending it.
            () = lease_lost(node) => tracing::info!("another node sends webhooks now"),
            Err(error) = &mut sending => tracing::debug!(%error, "sending pauses"),
            () = stop.cancelled() => {
                // What is on its way arrives, so that it need not be sent again.
                let _ = tokio::time::timeout(LAST_CALL, sending).await;
                if let Err(error) = node.broker.release_lease(GROUP).await {
                    tracing::debug!(%error, "the sender's lease runs out by itself");
                }
                return;
            }
        }
    }
}

/// Keeps the lease; completes when it is lost.
async fn lease_lost(node: &Node) {
    let mut kept = tokio::time::Instant::now();
    loop {
        tokio::time::sleep(KEEP).await;
        match node.broker.hold_lease(GROUP, LEASE).await {
            Ok(true) => kept = tokio::time::Instant::now(),
            Ok(false) => return,
            // The next renewal might come too late.
            Err(_) if kept.elapsed() + 2 * KEEP > LEASE => return,
            Err(_) => {}
        }
    }
}

/// Sends until `stop`, or for as long as the broker answers.
async fn send_all(node: &Node, stop: &CancellationToken) -> Result<(), BrokerError> {
    // First what the sender before us had read, or we ourselves before an error.
    let mut own = Some("0".to_owned());
    loop {
        let from = own.clone().map_or(InboundFrom::New, InboundFrom::Own);
        let read = InboundRead {
            group: GROUP.to_owned(),
            consumer: CONSUMER.to_owned(),
            limit: BATCH,
            from,
        };
        let messages = node.broker.read_inbound(&read).await?;
        if messages.is_empty() && own.take().is_none() {
            tokio::time::sleep(LOOK).await;
        }
        for message in &messages {
            carry(node, message).await?;
            if stop.is_cancelled() {
                return Ok(());
            }
        }
        own = own.and(messages.last().map(|message| message.id.clone()));
    }
}

/// Sends one entry until it is taken or buried.
async fn carry(node: &Node, message: &InboundMessage) -> Result<(), BrokerError> {
    let application = &node.application;
    let webhook = if message.is_event { &application.events } else { &application.messages };
    if let Some(webhook) = webhook
        && let Err(reason) = deliver(webhook, message, application.attempts_max).await
    {
        node.metrics.dead_letter();
        tracing::warn!(entry = %message.id, kind = %message.kind, %reason, "given up: a dead letter");
        return node.broker.bury_inbound(GROUP, message, &reason).await;
    }
    node.broker.ack_inbound(GROUP, std::slice::from_ref(&message.id)).await
}

async fn deliver(
    webhook: &Webhook,
    message: &InboundMessage,
    attempts_max: u32,
) -> Result<(), String> {
    let id = format!("evt_{}", message.id);
    let mut pause = PAUSE;
    for attempt in 1.. {
        let body = message.json.clone().into();
        let error = match webhook.post(&id, body, webhook.timeout).await {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        if attempt >= attempts_max {
            return Err(format!("{attempt} attempts; the last: {error}"));
        }
        // Half to whole: nodes and installations that failed together do not come back together.
        let jittered = pause.mul_f64(0.5 + rand::random::<f64>() / 2.0);
        let asked = match error {
            CallError::Status { retry_after, .. } => retry_after.unwrap_or_default(),
            CallError::Failed(_) => Duration::ZERO,
        };
        tokio::time::sleep(jittered.max(asked)).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
    Ok(())
}
