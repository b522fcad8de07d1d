//! What the node and the application's backends say to each other: calls of clients to the application, questions
//! whether somebody may, lifecycle events, and the webhooks that carry them. `channels.md` 2 and 6.
//!
//! It must not know: frames, profiles, how the stream is kept.

pub(crate) mod authorize;
pub(crate) mod calls;
pub(crate) mod lifecycle;
mod occupancy;
mod sender;
mod sign;
#[cfg(test)]
mod tests;
mod webhook;

use std::sync::Arc;

use carillon_broker_client::{EventKind, EventKinds};
use tokio_util::sync::CancellationToken;

use crate::config::{Config, Events};
use crate::metrics::Metrics;
use crate::node::Node;
use authorize::Authorizer;
use calls::Calls;
use lifecycle::Lifecycle;
pub use occupancy::Occupancy;
pub use sign::{InvalidSecret, SigningKeys};
pub use webhook::InvalidWebhook;
use webhook::Webhook;

/// See the module.
pub struct Application {
    /// Clients' calls, where a webhook takes them; else they go to the `inbound` stream.
    pub(crate) calls: Option<Calls>,
    /// Asks whether somebody may; `None` where no webhook is configured.
    pub(crate) authorizer: Option<Authorizer>,
    /// What happens to connections and channels.
    pub(crate) lifecycle: Lifecycle,
    /// Takes lifecycle events from the stream.
    events: Option<Arc<Webhook>>,
    /// Takes messages from the stream.
    messages: Option<Arc<Webhook>>,
    attempts_max: u32,
    copied: Vec<String>,
}

impl Application {
    /// Takes `inbound.*`, `authorize.*` and `events.*`.
    ///
    /// # Errors
    /// An address or a secret that cannot be used; a checked configuration has none.
    pub(crate) fn new(config: &Config, metrics: &Arc<Metrics>) -> Result<Self, InvalidWebhook> {
        let hook = |name: &'static str, settings: &Option<crate::config::Webhook>| {
            let hook = settings.as_ref().map(|settings| Webhook::new(name, settings, metrics));
            Ok(hook.transpose()?.map(Arc::new))
        };
        let inbound = hook("inbound", &config.inbound.webhook)?;
        let events = hook("events", &config.events.webhook)?;
        Ok(Self {
            calls: inbound.clone().map(Calls::new),
            authorizer: hook("authorize", &config.authorize.webhook)?.map(Authorizer::new),
            lifecycle: Lifecycle::new(told(&config.events), metrics),
            messages: inbound.or_else(|| events.clone()),
            events,
            attempts_max: config.events.attempts.max(1),
            copied: config.inbound.types.clone(),
        })
    }

    /// Whether the application wants a copy of channel messages of this type.
    pub(crate) fn wants_copy(&self, kind: &str) -> bool {
        self.copied.iter().any(|copied| copied == kind)
    }
}

/// The events that are switched on.
pub(crate) fn told(events: &Events) -> EventKinds {
    let is_on = |kind: &EventKind| match kind {
        EventKind::ChannelOccupied => events.channel_occupied,
        EventKind::ChannelVacated => events.channel_vacated,
        EventKind::PresenceJoin => events.presence_join,
        EventKind::PresenceLeave => events.presence_leave,
        EventKind::UserOnline => events.user_online,
        EventKind::UserOffline => events.user_offline,
        EventKind::ConnectionOpened => events.connection_opened,
        EventKind::ConnectionClosed => events.connection_closed,
    };
    EventKind::ALL.iter().copied().filter(is_on).collect()
}

/// Reports what happens on this node and, while it is its turn, carries the stream to the webhooks; until `stop`.
pub(crate) async fn run(node: Arc<Node>, stop: CancellationToken) {
    tokio::join!(lifecycle::report(&node, &stop), sender::send(&node, &stop));
}
