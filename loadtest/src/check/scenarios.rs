//! The named scenarios: each breaks one thing on purpose and holds the figures that issue 3 asks for.

mod clients;
mod nodes;
mod storage;

use super::Options;
use super::nemesis::{Fault, Kind, plan};
use super::report::{Figure, Report};
use super::trial::{Hot, Setup, Trial};
use anyhow::Result;
use clap::ValueEnum;
use clients::{offline, slow_readers};
use nodes::{kill_node, rolling};
use std::time::Duration;
use storage::{deaf, output_overflow, pubsub_killed, redis_killed, redis_lost, redis_paused};
use tokio::time::sleep;

/// A named scenario.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scenario {
    /// Random faults for `--seconds`, by `--seed`.
    Random,
    /// kill -9 of one of three nodes under load.
    KillNode,
    /// Every node drained and started again under load.
    Rolling,
    /// Redis killed for 10 s, data kept.
    RedisKilled,
    /// Redis killed, data lost.
    RedisLost,
    /// SIGSTOP of Redis for 3 s, then for 15 s.
    RedisPaused,
    /// 100 times CLIENT KILL TYPE pubsub under load.
    PubsubKilled,
    /// A pub/sub connection cut at its output-buffer limit.
    OutputOverflow,
    /// A pub/sub connection that stays open and hears nothing.
    Deaf,
    /// Some clients stop reading.
    SlowReaders,
    /// Clients offline for 1, 30 and 119 s, and for 1,000 messages.
    Offline,
    /// Connections as fast as they come.
    Storm,
    /// Every scenario but the storm, one after the other.
    All,
}

impl Scenario {
    /// As on the command line.
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

/// Runs one.
pub(crate) async fn run(scenario: Scenario, options: &Options) -> Result<Report> {
    let clients = options.clients;
    let of = |most: usize| Setup::of(clients.unwrap_or(most));
    match scenario {
        Scenario::Random => random(options).await,
        Scenario::KillNode => kill_node(begin(scenario, options, of(3_000)).await?).await,
        Scenario::Rolling => rolling(begin(scenario, options, of(3_000)).await?).await,
        Scenario::RedisKilled => redis_killed(begin(scenario, options, of(1_000)).await?).await,
        Scenario::RedisLost => redis_lost(begin(scenario, options, of(1_000)).await?).await,
        Scenario::RedisPaused => redis_paused(begin(scenario, options, of(1_000)).await?).await,
        Scenario::PubsubKilled => pubsub_killed(begin(scenario, options, of(1_000)).await?).await,
        Scenario::OutputOverflow => {
            // Few listeners of large messages: more than the sockets between Redis and a paused node hold.
            let setup = Setup { size: 49_152, per_second: 150.0, channels: 30, ..of(60) };
            output_overflow(begin(scenario, options, setup).await?).await
        }
        Scenario::Deaf => {
            let setup = Setup { proxied: true, ..of(600) };
            deaf(begin(scenario, options, setup).await?).await
        }
        Scenario::SlowReaders => {
            let mut setup = of(3_000);
            // A thirtieth of the clients hear the hot channel: they will stop reading.
            setup.channels = 60;
            setup.per_second = 50.0;
            setup.polls_percent = 0;
            setup.hot = Some(Hot { channel: 0, every: Duration::from_millis(33), size: 8_192 });
            setup.settings.heartbeat_timeout = seconds(120);
            slow_readers(begin(scenario, options, setup).await?).await
        }
        Scenario::Offline => offline(begin(scenario, options, of(400)).await?).await,
        Scenario::Storm => super::storm::storm(options).await,
        Scenario::All => anyhow::bail!("asked for one at a time"),
    }
}

async fn begin(scenario: Scenario, options: &Options, setup: Setup) -> Result<Trial> {
    let setup = Setup { nodes: options.nodes.unwrap_or(setup.nodes), ..setup };
    let trial = Trial::begin(&scenario.name(), &options.carillon, options.seed, setup).await?;
    // Some seconds of peace first: a fault at the very beginning shows less.
    sleep(Duration::from_secs(2)).await;
    Ok(trial)
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn fault(kind: Kind, lasts: Duration) -> Fault {
    Fault { kind, after: Duration::ZERO, lasts, node: 0 }
}

async fn random(options: &Options) -> Result<Report> {
    let kinds: Vec<Kind> = if options.only.is_empty() {
        Kind::value_variants().to_vec()
    } else {
        options.only.clone()
    };
    let mut setup = Setup::of(options.clients.unwrap_or(300));
    setup.nodes = options.nodes.unwrap_or(setup.nodes);
    setup.per_second = options.rate.unwrap_or(setup.per_second);
    setup.polls_percent = options.polls_percent.unwrap_or(setup.polls_percent);
    setup.settings.history_age += seconds(options.seconds);
    setup.settings.drain_period = seconds(3);
    setup.settings.drain_grace = seconds(1);
    setup.proxied = kinds.contains(&Kind::Deaf);
    let faults = plan(options.seed, options.seconds, setup.nodes, &kinds);
    let mut trial =
        Trial::begin(&Scenario::Random.name(), &options.carillon, options.seed, setup).await?;
    for fault in &faults {
        trial.commit(fault).await?;
    }
    sleep(seconds(2)).await;
    reconnects(&mut trial, None);
    trial.finish().await
}

fn reconnects(trial: &mut Trial, most_ms: Option<f64>) {
    let reconnect = trial.shared.reconnect.borrow_mut().take();
    let deliveries =
        trial.shared.deliveries.get() as f64 / trial.shared.began.elapsed().as_secs_f64();
    trial.figure(Figure::told("deliveries a second, mean", deliveries, "/s"));
    trial.figure(Figure::told("reconnected clients", reconnect.count() as f64, ""));
    let p99 = Figure { most: most_ms, ..Figure::told("reconnected p99", reconnect.ms(0.99), "ms") };
    trial.figure(p99);
    let latency = trial.shared.latency.borrow_mut().take();
    trial.figure(Figure::told("delivery p50", latency.ms(0.5), "ms"));
    trial.figure(Figure::told("delivery p99", latency.ms(0.99), "ms"));
}

fn total_cuts(trial: &Trial) -> u64 {
    trial.shared.cuts.borrow().values().sum()
}
