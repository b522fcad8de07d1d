//! The node's counters, as Prometheus reads them: base units, bounded labels. `operations.md` 4.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use carillon_protocol::envelope::ServerMessage;
use carillon_protocol::{CloseCode, ErrorCode};
use prometheus::{
    Encoder, Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder,
};

use crate::clock;
use crate::connection::Transport;
use crate::socket::traffic;

/// See the module.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    connections: IntGaugeVec,
    opened: IntCounterVec,
    closed: IntCounterVec,
    refused: IntCounterVec,
    refusals: IntCounterVec,
    resumed: IntCounterVec,
    publish_errors: IntCounterVec,
    messages_dropped: IntCounterVec,
    received_bytes: IntCounter,
    sent_bytes: IntCounter,
    redis_round_trip: Histogram,
    redis_reconnects: IntCounter,
    messages_in: IntCounter,
    published: IntCounter,
    messages_out: IntCounter,
    fan_out: Histogram,
    publish_to_socket: Histogram,
    slow_consumers: IntCounter,
    gaps: IntCounter,
    refilled: IntCounter,
    audits: IntCounter,
    resyncs: IntCounter,
    recovered: IntCounterVec,
    broker_unavailable: IntCounter,
    webhook_calls: IntCounterVec,
    dead_letters: IntCounter,
    events_lost: IntCounter,
    broker_up: IntGauge,
    subscriptions: IntGauge,
    channels: IntGauge,
    queue_bytes: IntGauge,
    started: Gauge,
    named: IntGaugeVec,
    named_opened: IntCounterVec,
    live: [AtomicU64; 3],
}

/// A WebSocket counted under a name; no more when this is dropped.
#[derive(Debug)]
pub struct Named(IntGauge);

impl Drop for Named {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Metrics {
    /// A registry of its own for one node.
    ///
    /// # Panics
    /// Never: the names are fixed and distinct.
    #[must_use]
    pub fn new() -> Arc<Self> {
        let registry =
            Registry::new_custom(Some("carillon".into()), None).expect("the prefix is valid");
        let r = &registry;
        let counter = |name: &str, help: &str| register(r, IntCounter::new(name, help));
        let gauge = |name: &str, help: &str| register(r, IntGauge::new(name, help));
        let counters = |name: &str, help: &str, label: &[&str]| {
            register(r, IntCounterVec::new(Opts::new(name, help), label))
        };
        let histogram = |name: &str, help: &str, buckets: Vec<f64>| {
            register(r, Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets)))
        };
        let metrics = Self {
            connections: register(
                r,
                IntGaugeVec::new(Opts::new("connections", "Live connections"), &["transport"]),
            ),
            opened: counters("connections_opened_total", "Connections opened", &["transport"]),
            closed: counters(
                "connections_closed_total",
                "Connections closed, by reason",
                &["reason"],
            ),
            refused: counters(
                "connections_refused_total",
                "Connections refused, by reason",
                &["reason"],
            ),
            refusals: counters(
                "refusals_total",
                "Errors that clients and backends were answered, by code (rate limits, tokens, permission, ...)",
                &["code"],
            ),
            resumed: counters(
                "connections_resumed_total",
                "Connections that came back with a cursor",
                &["transport"],
            ),
            publish_errors: counters(
                "publish_errors_total",
                "Messages that were not published, by code",
                &["code"],
            ),
            messages_dropped: counters(
                "messages_dropped_total",
                "Messages that a full queue did not take, by what became of the reader: behind (history brings them later) or closed",
                &["reader"],
            ),
            received_bytes: counter("received_bytes_total", "Bytes read from clients' sockets"),
            sent_bytes: counter("sent_bytes_total", "Bytes written to clients' sockets"),
            redis_round_trip: histogram(
                "redis_round_trip_seconds",
                "The heartbeat's script, once a second: there and back",
                vec![
                    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25,
                    1.0,
                ],
            ),
            redis_reconnects: counter(
                "redis_reconnects_total",
                "Times that a command connection to Redis was made again",
            ),
            messages_in: counter("messages_in_total", "Messages from clients"),
            published: counter("publications_total", "Publications handed to the broker"),
            messages_out: counter(
                "deliveries_total",
                "Messages queued for connections by the fan-out",
            ),
            fan_out: histogram(
                "fan_out_connections",
                "Connections reached by a batch of publications",
                vec![0.0, 1.0, 10.0, 100.0, 1e3, 1e4, 1e5],
            ),
            publish_to_socket: histogram(
                "publish_to_socket_seconds",
                "From acceptance at any node to the write on this node's sockets",
                vec![
                    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
                ],
            ),
            slow_consumers: counter(
                "slow_consumers_total",
                "Times that a connection's queue was full",
            ),
            gaps: counter("gaps_total", "Publications that did not follow the one before"),
            refilled: counter("gap_fills_total", "Publications read from history to fill a gap"),
            audits: counter("audits_total", "Audits of all channels after an interruption"),
            resyncs: counter("resyncs_total", "Channels whose listeners were told to start over"),
            recovered: counters(
                "recoveries_total",
                "Subscriptions that asked to recover",
                &["outcome"],
            ),
            broker_unavailable: counter(
                "broker_unavailable_total",
                "Calls refused because Redis was out of reach",
            ),
            webhook_calls: counters(
                "webhook_calls_total",
                "Calls to the application, by webhook and outcome",
                &["webhook", "outcome"],
            ),
            dead_letters: counter(
                "dead_letters_total",
                "Entries of the inbound stream that were given up",
            ),
            events_lost: counter(
                "lifecycle_events_lost_total",
                "Lifecycle events that were not reported: the queue was full",
            ),
            broker_up: gauge("broker_up", "Whether Redis can be used"),
            subscriptions: gauge("subscriptions", "Live subscriptions"),
            channels: gauge("channels", "Channels that this node hears"),
            queue_bytes: gauge("queue_bytes", "Bytes waiting for sockets"),
            started: register(r, Gauge::new("start_time_seconds", "Unix time of the start")),
            named: register(
                r,
                IntGaugeVec::new(
                    Opts::new("websocket_connections", "Live WebSockets at /ws/{name}"),
                    &["name"],
                ),
            ),
            named_opened: counters(
                "websocket_connections_opened_total",
                "WebSockets opened at /ws/{name}",
                &["name"],
            ),
            live: Default::default(),
            registry: registry.clone(),
        };
        let build = register(
            r,
            IntGaugeVec::new(Opts::new("build_info", "Version of the program"), &["version"]),
        );
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        metrics.started.set(clock::unix_ms() as f64 / 1_000.0);
        metrics.show_all();
        Arc::new(metrics)
    }

    /// Every series of a closed set is there from the start: a rate over one that appears later misses its first event.
    fn show_all(&self) {
        for transport in Transport::ALL {
            self.connections.with_label_values(&[transport.name()]);
            self.opened.with_label_values(&[transport.name()]);
            self.resumed.with_label_values(&[transport.name()]);
        }
        let ends = CloseCode::ALL.iter().map(|code| code.reason());
        ends.chain(["client", "error"]).for_each(|reason| {
            self.closed.with_label_values(&[reason]);
        });
        for code in ErrorCode::ALL {
            self.refusals.with_label_values(&[code.name()]);
            self.publish_errors.with_label_values(&[code.name()]);
        }
        for reader in ["behind", "closed"] {
            self.messages_dropped.with_label_values(&[reader]);
        }
        for outcome in ["recovered", "lost"] {
            self.recovered.with_label_values(&[outcome]);
        }
    }

    /// The text that Prometheus scrapes.
    #[must_use]
    pub fn render(&self) -> String {
        // Counted where the bytes pass, for the whole process.
        let (received, sent) = traffic();
        for (counter, bytes) in [(&self.received_bytes, received), (&self.sent_bytes, sent)] {
            counter.inc_by(bytes.saturating_sub(counter.get()));
        }
        let mut text = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            tracing::error!(%error, "metrics cannot be encoded");
        }
        String::from_utf8(text).unwrap_or_default()
    }

    /// A connection is live.
    pub fn opened(&self, transport: Transport) {
        self.live[transport as usize].fetch_add(1, Ordering::Relaxed);
        self.connections.with_label_values(&[transport.name()]).inc();
        self.opened.with_label_values(&[transport.name()]).inc();
    }

    /// A connection ended. `reason` must come from a closed set.
    pub fn closed(&self, transport: Transport, reason: &str) {
        self.live[transport as usize].fetch_sub(1, Ordering::Relaxed);
        self.connections.with_label_values(&[transport.name()]).dec();
        self.closed.with_label_values(&[reason]).inc();
    }

    /// A WebSocket is live at `/ws/{name}`. `name` must come from a closed set (R19).
    #[must_use]
    pub fn named(&self, name: &str) -> Named {
        self.named_opened.with_label_values(&[name]).inc();
        let live = self.named.with_label_values(&[name]);
        live.inc();
        Named(live)
    }

    /// A client was not let in. `reason` must come from a closed set.
    pub fn refused(&self, reason: &str) {
        self.refused.with_label_values(&[reason]).inc();
    }

    /// A client or a backend was answered with an error.
    pub fn answered_error(&self, code: ErrorCode) {
        self.refusals.with_label_values(&[code.name()]).inc();
    }

    /// The same, where all that is left of it is the message.
    pub fn answered(&self, message: &ServerMessage) {
        #[derive(serde::Deserialize)]
        struct Payload<'a> {
            code: &'a str,
        }
        if message.kind != "error" {
            return;
        }
        let payload = serde_json::from_slice::<Payload<'_>>(message.payload.json());
        let known = |payload: Payload<'_>| {
            ErrorCode::ALL.iter().copied().find(|code| code.name() == payload.code)
        };
        if let Some(code) = payload.ok().and_then(known) {
            self.answered_error(code);
        }
    }

    /// A connection came back with a cursor.
    pub fn resumed(&self, transport: Transport) {
        self.resumed.with_label_values(&[transport.name()]).inc();
    }

    /// A message was not published.
    pub fn publish_failed(&self, code: ErrorCode) {
        self.publish_errors.with_label_values(&[code.name()]).inc();
    }

    /// The heartbeat went to Redis and back; a command connection was made so many times until now.
    pub fn redis_answered(&self, took: Duration, connects: u64) {
        self.redis_round_trip.observe(took.as_secs_f64());
        let reconnects = connects.saturating_sub(1);
        self.redis_reconnects.inc_by(reconnects.saturating_sub(self.redis_reconnects.get()));
    }

    /// Live connections of all transports.
    #[must_use]
    pub fn connections_live(&self) -> u64 {
        self.live.iter().map(|live| live.load(Ordering::Relaxed)).sum()
    }

    /// Live connections of one transport.
    #[must_use]
    pub fn connections_of(&self, transport: Transport) -> u64 {
        self.live[transport as usize].load(Ordering::Relaxed)
    }

    /// Messages from clients and publications since the start.
    #[must_use]
    pub fn totals(&self) -> (u64, u64) {
        (self.messages_in.get() + self.published.get(), self.messages_out.get())
    }

    /// A client said something.
    pub fn heard(&self, messages: u64) {
        self.messages_in.inc_by(messages);
    }

    /// Publications went to the broker.
    pub fn published(&self, publications: u64) {
        self.published.inc_by(publications);
    }

    /// A batch of publications was queued for its listeners.
    pub fn delivered(&self, deliveries: u64) {
        self.messages_out.inc_by(deliveries);
        self.fan_out.observe(deliveries as f64);
    }

    /// Publications made at these Unix milliseconds were written to the last of their listeners.
    pub fn reached_sockets(&self, made_at_ms: &[i64]) {
        let now = clock::unix_ms();
        for made_at in made_at_ms {
            self.publish_to_socket.observe((now - made_at).max(0) as f64 / 1_000.0);
        }
    }

    /// A queue was full, and its reader is `behind` now or else closed.
    pub fn slow_consumer(&self, behind: bool) {
        self.slow_consumers.inc();
        let reader = if behind { "behind" } else { "closed" };
        self.messages_dropped.with_label_values(&[reader]).inc();
    }

    /// A publication did not follow the one before.
    pub fn gap(&self) {
        self.gaps.inc();
    }

    /// Publications were read to fill a gap.
    pub fn refilled(&self, publications: u64) {
        self.refilled.inc_by(publications);
    }

    /// All channels were compared with history.
    pub fn audit(&self) {
        self.audits.inc();
    }

    /// Listeners of a channel were told to start over.
    pub fn resync(&self) {
        self.resyncs.inc();
    }

    /// A subscription asked to recover.
    pub fn recovered(&self, outcome: bool) {
        self.recovered.with_label_values(&[if outcome { "recovered" } else { "lost" }]).inc();
    }

    /// A call was refused because Redis was out of reach.
    pub fn broker_unavailable(&self) {
        self.broker_unavailable.inc();
    }

    /// The application was called. Both come from closed sets.
    pub fn webhook_called(&self, webhook: &str, outcome: &str) {
        self.webhook_calls.with_label_values(&[webhook, outcome]).inc();
    }

    /// An entry of the stream was given up.
    pub fn dead_letter(&self) {
        self.dead_letters.inc();
    }

    /// A lifecycle event was not reported.
    pub fn event_lost(&self) {
        self.events_lost.inc();
    }

    /// Values that are looked at rather than counted.
    pub fn observe(
        &self,
        broker_up: bool,
        channels: usize,
        subscriptions: usize,
        queue_bytes: usize,
    ) {
        self.broker_up.set(i64::from(broker_up));
        self.channels.set(channels as i64);
        self.subscriptions.set(subscriptions as i64);
        self.queue_bytes.set(queue_bytes as i64);
    }
}

fn register<C: prometheus::core::Collector + Clone + 'static>(
    registry: &Registry,
    collector: prometheus::Result<C>,
) -> C {
    let collector = collector.expect("the name is valid");
    registry.register(Box::new(collector.clone())).expect("the name is distinct");
    collector
}
