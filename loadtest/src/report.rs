//! What a run found, as JSON and as a line of a table.

use crate::sample::Sample;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The figures of one run. Times and rates are of the measured part, after the warm-up.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Report {
    /// Scenario, target and transport, as given.
    pub(crate) scenario: String,
    /// See `scenario`.
    pub(crate) target: String,
    /// See `scenario`.
    pub(crate) transport: String,
    /// Listening connections.
    pub(crate) connections: usize,
    /// Channels.
    pub(crate) channels: u32,
    /// Nodes that connections went to.
    #[serde(default)]
    pub(crate) nodes: usize,
    /// Measured seconds.
    pub(crate) seconds: f64,
    /// Messages published in the whole run.
    pub(crate) published: u64,
    /// Deliveries in the measured part.
    pub(crate) delivered: u64,
    /// Deliveries a second (publishes a second in the scenario `publish`).
    pub(crate) per_second: f64,
    /// Server CPU, all its processes, for each delivery (or publish, or connect).
    pub(crate) server_cpu_us: f64,
    /// The share of Redis in it, where it is used.
    pub(crate) redis_cpu_us: f64,
    /// The driver's own CPU for each.
    pub(crate) client_cpu_us: f64,
    /// Messages that a connection never heard.
    pub(crate) lost: u64,
    /// Messages heard more than once.
    pub(crate) duplicated: u64,
    /// Messages heard after a later one.
    pub(crate) reordered: u64,
    /// Publishes answered with an error.
    pub(crate) refused: u64,
    /// Connections that the server ended.
    pub(crate) closed: u64,
    /// Connects that were refused and tried again.
    pub(crate) retried: u64,
    /// The same by reason.
    #[serde(default)]
    pub(crate) retries: BTreeMap<String, u64>,
    /// Longest time until the kernel's TCP connection was there and the driver had noticed, milliseconds.
    #[serde(default)]
    pub(crate) dial_max_ms: f64,
    /// Time of a handshake in milliseconds, welcome included.
    #[serde(default)]
    pub(crate) connect_p50_ms: f64,
    /// See `connect_p50_ms`.
    #[serde(default)]
    pub(crate) connect_p99_ms: f64,
    /// See `connect_p50_ms`.
    #[serde(default)]
    pub(crate) connect_max_ms: f64,
    /// Latency in milliseconds, from when a message was due.
    pub(crate) p50_ms: f64,
    /// See `p50_ms`.
    pub(crate) p99_ms: f64,
    /// See `p50_ms`.
    pub(crate) p999_ms: f64,
    /// See `p50_ms`.
    pub(crate) max_ms: f64,
    /// From when a publish was due until it was answered, milliseconds.
    #[serde(default)]
    pub(crate) answer_p50_ms: f64,
    /// See `answer_p50_ms`.
    #[serde(default)]
    pub(crate) answer_p99_ms: f64,
    /// What listening clients sent and had acknowledged.
    #[serde(default)]
    pub(crate) acked: u64,
    /// Compressed messages received.
    #[serde(default)]
    pub(crate) compressed: u64,
    /// Those of them that were inflated: the others were equal to one inflated before, byte for byte.
    #[serde(default)]
    pub(crate) inflated: u64,
    /// Bytes read for each measured delivery, framing and heads included.
    #[serde(default)]
    pub(crate) wire_bytes: f64,
    /// Polls answered.
    #[serde(default)]
    pub(crate) polls: u64,
    /// Clients that came back to where they were.
    #[serde(default)]
    pub(crate) recovered: u64,
    /// Clients that came back and were told that they begin anew.
    #[serde(default)]
    pub(crate) fresh: u64,
    /// Times that a client was told mid-connection that something is missing.
    #[serde(default)]
    pub(crate) resyncs: u64,
    /// From the cut of all connections until a client was subscribed again, milliseconds.
    #[serde(default)]
    pub(crate) back_p50_ms: f64,
    /// See `back_p50_ms`.
    #[serde(default)]
    pub(crate) back_p99_ms: f64,
    /// See `back_p50_ms`: the last one.
    #[serde(default)]
    pub(crate) back_max_ms: f64,
    /// Server CPU from the cut until all were back, for each, publishing beside it included.
    #[serde(default)]
    pub(crate) back_cpu_us: f64,
    /// At rest: percent of a core that the server side takes for connections alone.
    #[serde(default)]
    pub(crate) idle_core_percent: f64,
    /// At rest: the same with everybody present.
    #[serde(default)]
    pub(crate) rest_core_percent: f64,
    /// At rest: commands that Redis performs a second, `INFO` left out.
    #[serde(default)]
    pub(crate) redis_commands_per_second: f64,
    /// The same by command.
    #[serde(default)]
    pub(crate) redis_commands: BTreeMap<String, f64>,
    /// Users present, as REST says.
    #[serde(default)]
    pub(crate) present: u64,
    /// Memory (PSS) of all server processes at the end, bytes, Redis apart.
    #[serde(default)]
    pub(crate) server_bytes: f64,
    /// What Redis says it uses at the end, bytes.
    #[serde(default)]
    pub(crate) redis_bytes: f64,
    /// Connections opened a second, handshake and welcome included.
    pub(crate) connects_per_second: f64,
    /// Server CPU for each connect.
    pub(crate) connect_cpu_us: f64,
    /// Memory (PSS) that each idle connection added to the first server process, bytes.
    pub(crate) idle_bytes: f64,
    /// The same after each connection has received and sent 16 KB.
    pub(crate) exercised_bytes: f64,
    /// CPU of all server processes (with Redis) in the measured part, percent of a core; of the connecting where
    /// nothing else was measured.
    #[serde(default)]
    pub(crate) server_percent: f64,
    /// The driver's own.
    #[serde(default)]
    pub(crate) driver_percent: f64,
    /// What else ran on this machine meanwhile, percent of a core: with much of it no figure is worth keeping.
    #[serde(default)]
    pub(crate) others_percent: f64,
    /// When the measured part began, seconds since the run did.
    #[serde(default)]
    pub(crate) measured_from: f64,
    /// Latency in milliseconds by the number of nines: 2 is the 99th percentile.
    #[serde(default)]
    pub(crate) latency: Vec<(f64, f64)>,
    /// The whole run, second by second.
    #[serde(default)]
    pub(crate) samples: Vec<Sample>,
}

impl Report {
    /// Whether the driver was at its limit and the server was not: rates and latencies are then the driver's.
    pub(crate) fn driver_bound(&self) -> bool {
        const BUSY_PERCENT: f64 = 90.0;
        self.driver_percent > BUSY_PERCENT && self.server_percent < BUSY_PERCENT
    }

    /// For a reader at a terminal.
    pub(crate) fn human(&self) -> String {
        let Self { scenario, target, transport, connections, channels, seconds, .. } = self;
        let mut text = format!(
            "{target} {scenario} ({transport}): {channels} channels, {connections} connections, {seconds:.1} s\n"
        );
        let mut row = |name: &str, value: String| text.push_str(&format!("  {name:<44}{value}\n"));
        row(
            "connects",
            format!(
                "{:.0}/s, {:.1} µs CPU each, p50 {:.1}  p99 {:.1}  max {:.1} ms",
                self.connects_per_second,
                self.connect_cpu_us,
                self.connect_p50_ms,
                self.connect_p99_ms,
                self.connect_max_ms
            ),
        );
        if self.per_second > 0.0 {
            row("deliveries (or publishes)", format!("{:.0}/s", self.per_second));
            row(
                "CPU each, µs",
                format!(
                    "server {:.2} (Redis {:.2}), driver {:.2}",
                    self.server_cpu_us, self.redis_cpu_us, self.client_cpu_us
                ),
            );
            row(
                "latency ms",
                format!(
                    "p50 {:.2}  p99 {:.2}  p99.9 {:.2}  max {:.2}",
                    self.p50_ms, self.p99_ms, self.p999_ms, self.max_ms
                ),
            );
        }
        if scenario == "idle" {
            row(
                "bytes a connection",
                format!("{:.0} idle, {:.0} after 16 KB", self.idle_bytes, self.exercised_bytes),
            );
        }
        if self.answer_p99_ms > 0.0 {
            row(
                "publish answered, ms",
                format!("p50 {:.2}  p99 {:.2}", self.answer_p50_ms, self.answer_p99_ms),
            );
        }
        if self.wire_bytes > 0.0 {
            row("bytes read for a delivery", format!("{:.0}", self.wire_bytes));
        }
        if self.compressed > 0 {
            row("compressed, inflated anew", format!("{}, {}", self.compressed, self.inflated));
        }
        if self.polls > 0 {
            row("polls answered", format!("{}", self.polls));
        }
        if self.recovered + self.fresh > 0 {
            row(
                "back: recovered, anew, resyncs",
                format!("{}, {}, {}", self.recovered, self.fresh, self.resyncs),
            );
            row(
                "back after ms",
                format!(
                    "p50 {:.0}  p99 {:.0}  all {:.0}, {:.0} µs CPU each",
                    self.back_p50_ms, self.back_p99_ms, self.back_max_ms, self.back_cpu_us
                ),
            );
        }
        if self.rest_core_percent > 0.0 {
            row(
                "at rest",
                format!(
                    "{:.2} % of a core ({:.2} % before), Redis {:.1} commands/s, {} present",
                    self.rest_core_percent,
                    self.idle_core_percent,
                    self.redis_commands_per_second,
                    self.present
                ),
            );
        }
        if self.driver_percent > 0.0 {
            let mark = if self.driver_bound() { ": THE DRIVER WAS THE BOTTLENECK" } else { "" };
            row(
                "busy, % of a core",
                format!(
                    "server {:.0}, driver {:.0}{mark}",
                    self.server_percent, self.driver_percent
                ),
            );
        }
        row(
            "lost/doubled/out of order",
            format!("{}/{}/{}", self.lost, self.duplicated, self.reordered),
        );
        row(
            "publishes refused, closed, connects retried",
            format!("{}, {}, {}", self.refused, self.closed, self.retried),
        );
        for (reason, count) in &self.retries {
            row("connects retried", format!("{count}: {reason}"));
        }
        text
    }
}
