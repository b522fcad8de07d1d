//! What a scenario asks for: nodes, clients, rates and sizes.

use super::super::cluster::Settings;
use super::super::log::Channel;
use std::time::Duration;

/// What a scenario needs.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    pub(crate) nodes: usize,
    pub(crate) clients: usize,
    pub(crate) channels: u32,
    /// Messages a second from backends, over all channels.
    pub(crate) per_second: f64,
    /// Clients that publish over their own connections, one message each two seconds.
    pub(crate) talkers: usize,
    /// Clients that join presence.
    pub(crate) present: usize,
    /// Bytes of a payload.
    pub(crate) size: usize,
    /// Long polls among a hundred clients; a third of the rest are streams.
    pub(crate) polls_percent: usize,
    /// A proxy stands before each node's Redis.
    pub(crate) proxied: bool,
    /// One channel with more traffic than the others; its deliveries are not in the latencies.
    pub(crate) hot: Option<Hot>,
    pub(crate) settings: Settings,
}

/// A channel with much traffic.
#[derive(Debug, Clone)]
pub(crate) struct Hot {
    pub(crate) channel: Channel,
    pub(crate) every: Duration,
    /// Bytes of a payload.
    pub(crate) size: usize,
}

impl Setup {
    /// Three nodes; the rest follows from the number of clients: sixty listeners a channel.
    pub(crate) fn of(clients: usize) -> Self {
        Self {
            nodes: 3,
            clients,
            channels: (clients / 30).max(2) as u32,
            per_second: 80.0,
            talkers: (clients / 50).clamp(2, 20),
            present: (clients / 10).clamp(2, 40),
            size: 128,
            polls_percent: 3,
            proxied: false,
            hot: None,
            settings: Settings {
                drain_period: Duration::from_secs(20),
                drain_grace: Duration::from_secs(5),
                history: 100_000,
                history_age: Duration::from_secs(3_600),
                heartbeat_timeout: Duration::from_secs(20),
            },
        }
    }
}
