//! What all nodes of a run are told: channels, their histories, limits.

use std::time::Duration;

use carillon_gateway::config::{Config, History, NamespaceSettings, Rule};

use crate::records::Rules;

/// Keeps far more than a run publishes.
pub(crate) const DEEP: &str = "room:deep";
/// Keeps little.
pub(crate) const SHALLOW: &str = "tight:shallow";
/// Keeps nothing.
pub(crate) const FLEETING: &str = "fleeting:now";
/// Where presence is held.
pub(crate) const LOBBY: &str = "presence:lobby";

const SHALLOW_SIZE: u32 = 12;
/// Bytes that a node holds for one slow reader.
const QUEUE_BYTES: usize = 3 * 1024;

/// What the checker must know of the channels.
pub(crate) fn rules() -> Rules {
    let sizes = [(DEEP, 1_000), (SHALLOW, u64::from(SHALLOW_SIZE))];
    Rules { history_size: sizes.map(|(channel, size)| (channel.to_owned(), size)).into() }
}

pub(crate) fn config() -> Config {
    let mut config = Config::development(&[
        ("heartbeat.interval", "10s"),
        ("presence.timeout", "20s"),
        ("presence.offline_delay", "3s"),
    ])
    .expect("the settings are good");
    let namespace = |pattern: &str, history| NamespaceSettings {
        pattern: pattern.to_owned(),
        subscribe: vec![Rule::Authenticated],
        publish: vec![Rule::Authenticated],
        presence: vec![Rule::Authenticated],
        history,
        conflate: false,
        publishes_per_second: None,
    };
    let tight = History { size: SHALLOW_SIZE, age: Duration::from_secs(3_600) };
    config.namespaces.insert(0, namespace("tight:**", Some(tight)));
    config.namespaces.insert(1, namespace("fleeting:**", None));
    config.limits.queue_bytes = QUEUE_BYTES;
    config.limits.polls_per_minute = 0;
    config
}
