//! The named scenarios: each breaks one thing on purpose and holds the figures that issue 3 asks for.

use super::Options;
use super::client::{Client, Order, Transport};
use super::log::{Beginning, Heard};
use super::nemesis::{Fault, Kind, plan};
use super::report::{Figure, Latency, Report};
use super::trial::{Hot, Setup, Trial};
use anyhow::Result;
use clap::ValueEnum;
use std::rc::Rc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

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

async fn kill_node(mut trial: Trial) -> Result<Report> {
    sleep(seconds(3)).await;
    trial.commit(&fault(Kind::KillNode, seconds(3))).await?;
    sleep(seconds(10)).await;
    trial.wait_live(seconds(60)).await?;
    reconnects(&mut trial, Some(5_000.0));
    trial.finish().await
}

async fn rolling(mut trial: Trial) -> Result<Report> {
    for node in 0..trial.setup.nodes {
        let before = trial.shared.cuts.borrow().clone();
        let restart = Fault { node, ..fault(Kind::DrainNode, Duration::ZERO) };
        trial.commit(&restart).await?;
        while !trial.shared.balancer.all_ready() {
            sleep(Duration::from_millis(50)).await;
        }
        trial.wait_live(seconds(60)).await?;
        let cuts: Vec<u64> = trial
            .shared
            .cuts
            .borrow()
            .iter()
            .map(|(second, count)| count - before.get(second).unwrap_or(&0))
            .filter(|count| *count > 0)
            .collect();
        let total: u64 = cuts.iter().sum();
        let mean = total as f64 / trial.setup.settings.drain_period.as_secs_f64();
        let most = cuts.iter().max().copied().unwrap_or(0) as f64;
        let name = format!("disconnects of node {}, worst second over the mean", node + 1);
        trial.figure(Figure::told(format!("disconnects of node {}", node + 1), total as f64, ""));
        trial.figure(Figure::at_most(name, most / mean.max(0.1), "times", 2.0));
    }
    let returned = trial.shared.returned_to_draining.get() as f64;
    trial.figure(Figure::at_most("clients that returned to a draining node", returned, "", 0.0));
    reconnects(&mut trial, Some(5_000.0));
    trial.finish().await
}

fn total_cuts(trial: &Trial) -> u64 {
    trial.shared.cuts.borrow().values().sum()
}

/// What publishers were answered while Redis was away.
fn answers(trial: &mut Trial, most_ms: f64) {
    let answer = trial.shared.answer.borrow_mut().take();
    trial.figure(Figure::told("publishes refused meanwhile", answer.count() as f64, ""));
    trial.figure(Figure::told("time until refused, p50", answer.ms(0.5), "ms"));
    trial.figure(Figure::at_most("time until refused, longest", answer.ms(1.0), "ms", most_ms));
}

/// From now until messages come again, milliseconds; what is heard now does not count.
async fn until_delivery(trial: &Trial) -> f64 {
    let began = Instant::now();
    let before = trial.shared.deliveries.get();
    while trial.shared.deliveries.get() <= before && began.elapsed() < seconds(30) {
        sleep(Duration::from_millis(5)).await;
    }
    began.elapsed().as_secs_f64() * 1e3
}

async fn redis_killed(mut trial: Trial) -> Result<Report> {
    let cuts = total_cuts(&trial);
    trial.commit(&fault(Kind::KillRedis, seconds(10))).await?;
    let back = until_delivery(&trial).await;
    trial.figure(Figure::at_most("first delivery after the return", back, "ms", 2_000.0));
    sleep(seconds(8)).await;
    answers(&mut trial, 2_000.0);
    let cut = total_cuts(&trial) - cuts;
    trial.figure(Figure::at_most("clients cut", cut as f64, "", 0.0));
    trial.finish().await
}

async fn redis_lost(mut trial: Trial) -> Result<Report> {
    let cuts = total_cuts(&trial);
    trial.commit(&fault(Kind::LoseRedis, seconds(10))).await?;
    let returned_ms = trial.shared.now_ms();
    sleep(seconds(8)).await;
    let mut last_told = 0;
    let mut untold = 0;
    for client in trial.clients.iter().filter(|client| client.transport != Transport::Poll) {
        for lane in &client.lanes.borrow().0 {
            let told = lane.heard.iter().filter_map(|heard| match heard {
                Heard::Resync { at_ms, .. }
                | Heard::Begun { at_ms, how: Beginning::Refused(_), .. } => Some(*at_ms),
                _ => None,
            });
            match told.max() {
                Some(at_ms) => last_told = last_told.max(at_ms.saturating_sub(returned_ms)),
                None => untold += 1,
            }
        }
    }
    trial.figure(Figure::at_most("subscriptions not told", f64::from(untold), "", 0.0));
    trial.figure(Figure::at_most(
        "last one told after the return",
        last_told as f64,
        "ms",
        5_000.0,
    ));
    answers(&mut trial, 2_000.0);
    let cut = total_cuts(&trial) - cuts;
    trial.figure(Figure::at_most("clients cut", cut as f64, "", 0.0));
    trial.finish().await
}

async fn redis_paused(mut trial: Trial) -> Result<Report> {
    let cuts = total_cuts(&trial);
    for pause in [3, 15] {
        sleep(seconds(4)).await;
        let memory = trial.memory() as f64;
        let watched = fault(Kind::PauseRedis, seconds(pause));
        let most = {
            let pids: Vec<u32> =
                trial.hands.cluster.nodes.iter().filter_map(|node| node.process.pid()).collect();
            let watch = tokio::task::spawn_local(async move {
                let mut most = 0_u64;
                for _ in 0..(pause + 4) * 2 {
                    let now =
                        pids.iter().filter_map(|pid| crate::process::pss_bytes(*pid).ok()).sum();
                    most = most.max(now);
                    sleep(Duration::from_millis(500)).await;
                }
                most
            });
            trial.commit(&watched).await?;
            watch.await? as f64
        };
        let name = format!("memory growth over a pause of {pause} s");
        trial.figure(Figure::told("memory of the nodes before", memory / 1e6, "MB"));
        trial.figure(Figure::at_most(name, (most / memory - 1.0) * 100.0, "%", 20.0));
        // The time-out is 1 s; what is measured holds the publisher's and the node's own work too.
        answers(&mut trial, 1_200.0);
    }
    let cut = total_cuts(&trial) - cuts;
    trial.figure(Figure::at_most("clients cut", cut as f64, "", 0.0));
    trial.finish().await
}

/// How long channels stood still: the longest stretch between two deliveries to anybody.
async fn longest_silence(trial: &Trial, during: impl Future<Output = Result<()>>) -> Result<f64> {
    let shared = trial.shared.clone();
    let watch = tokio::task::spawn_local(async move {
        let (mut before, mut since, mut longest) =
            (shared.deliveries.get(), Instant::now(), Duration::ZERO);
        loop {
            sleep(Duration::from_millis(5)).await;
            let now = shared.deliveries.get();
            if now != before {
                (before, since) = (now, Instant::now());
            }
            longest = longest.max(since.elapsed());
            if *shared.stop.borrow() {
                return longest;
            }
            SILENCE.set(longest);
        }
    });
    let done = during.await;
    watch.abort();
    done?;
    Ok(SILENCE.get().as_secs_f64() * 1e3)
}

thread_local! {
    static SILENCE: std::cell::Cell<Duration> = const { std::cell::Cell::new(Duration::ZERO) };
}

async fn pubsub_killed(mut trial: Trial) -> Result<Report> {
    let cuts = total_cuts(&trial);
    let kills = 100;
    let silence = longest_silence(&trial, async {
        for _ in 0..kills {
            trial.hands.kill_pubsub().await?;
            sleep(Duration::from_millis(300)).await;
        }
        Ok(())
    })
    .await?;
    trial.report.faults.push(format!("{kills} times CLIENT KILL TYPE pubsub, every 300 ms"));
    trial.figure(Figure::told("longest silence over all channels", silence, "ms"));
    let latency = trial.shared.latency.borrow_mut().take();
    trial.figure(Figure::told("delivery p99 meanwhile", latency.ms(0.99), "ms"));
    // Whatever was published while a node was cut off waits until it has resubscribed and audited.
    let longest = Figure::at_most("longest delay of a message", latency.ms(1.0), "ms", 500.0);
    trial.figure(longest);
    let cut = total_cuts(&trial) - cuts;
    trial.figure(Figure::at_most("clients cut", cut as f64, "", 0.0));
    trial.finish().await
}

async fn output_overflow(mut trial: Trial) -> Result<Report> {
    let redis = &trial.hands.cluster.redis;
    redis.ask(&["CONFIG", "SET", "client-output-buffer-limit", "pubsub 65536 0 0"]).await?;
    trial.report.faults.push(
        "output buffer of pub/sub connections 64 KB; node 1 paused for 8 s, three times".to_owned(),
    );
    for _ in 0..3 {
        let node = &trial.hands.cluster.nodes[0].process;
        node.pause()?;
        sleep(seconds(8)).await;
        node.go_on()?;
        sleep(seconds(3)).await;
    }
    // Redis 7.0 counts them nowhere else.
    let cut = trial.hands.cluster.redis.process.said("output buffer limits") as f64;
    trial.figure(Figure::told("pub/sub connections cut by Redis", cut, ""));
    if cut == 0.0 {
        trial.report.problems.push("no pub/sub connection was cut: nothing was tried".to_owned());
    }
    reconnects(&mut trial, None);
    trial.finish().await
}

async fn deaf(mut trial: Trial) -> Result<Report> {
    let cuts = total_cuts(&trial);
    let mut worst: f64 = 0.0;
    for node in 0..trial.setup.nodes {
        trial.shared.latency.borrow_mut().take();
        let deafened = Fault { node, ..fault(Kind::Deaf, seconds(12)) };
        trial.commit(&deafened).await?;
        worst = worst.max(trial.shared.latency.borrow_mut().take().ms(1.0));
    }
    trial.figure(Figure::at_most("longest delay of a message", worst, "ms", 10_000.0));
    if worst < 1_000.0 {
        trial.report.problems.push("nobody was deaf: nothing was tried".to_owned());
    }
    let cut = total_cuts(&trial) - cuts;
    trial.figure(Figure::at_most("clients cut", cut as f64, "", 0.0));
    trial.finish().await
}

/// Two rounds of all reading and some not: on a machine that others use, one round says little.
async fn slow_readers(mut trial: Trial) -> Result<Report> {
    let hears_hot =
        |client: &&Rc<Client>| client.lanes.borrow().0.iter().any(|lane| lane.index == 0);
    let slow: Vec<_> = trial.clients.iter().filter(hears_hot).cloned().collect();
    let clients = trial.clients.len();
    trial
        .report
        .faults
        .push(format!("twice {} of {clients} clients stop reading for 27 s", slow.len()));
    let (mut all_before, mut all_meanwhile) = (Latency::default(), Latency::default());
    let mut grown: f64 = 0.0;
    for round in 1..=2 {
        let before = latency_of(&trial, seconds(15)).await;
        let memory = trial.memory() as f64;
        for client in &slow {
            client.orders.send(Order::Stall).await?;
        }
        // Until the kernel's buffers and the queues are full.
        sleep(seconds(12)).await;
        let meanwhile = latency_of(&trial, seconds(15)).await;
        grown = grown.max(trial.memory() as f64 - memory);
        for client in &slow {
            client.orders.send(Order::Read).await?;
        }
        for (name, latency) in [("all read", &before), ("some do not", &meanwhile)] {
            trial.figure(Figure::told(
                format!("round {round}, {name}: p50"),
                latency.ms(0.5),
                "ms",
            ));
            trial.figure(Figure::told(
                format!("round {round}, {name}: p99"),
                latency.ms(0.99),
                "ms",
            ));
        }
        all_before.add(&before);
        all_meanwhile.add(&meanwhile);
        // They are refilled from history meanwhile.
        sleep(seconds(10)).await;
    }
    let ratio = all_meanwhile.ms(0.99) / all_before.ms(0.99).max(0.001);
    trial.figure(Figure::at_most(
        "others' p99, some do not read over all read",
        ratio,
        "times",
        1.2,
    ));
    let bound = slow.len() as f64 * 256.0 * 1_024.0 * 1.5 + 30e6;
    trial.figure(Figure::at_most("memory of the nodes grown", grown / 1e6, "MB", bound / 1e6));
    trial.figure(Figure::told("times a slow client was refilled", behind(&trial).await?, ""));
    trial.finish().await
}

/// Latencies of the next `time`.
async fn latency_of(trial: &Trial, time: Duration) -> Latency {
    trial.shared.latency.borrow_mut().take();
    sleep(time).await;
    trial.shared.latency.borrow_mut().take()
}

/// How often a connection's queue was full, as the nodes count it.
async fn behind(trial: &Trial) -> Result<f64> {
    let mut sum = 0.0;
    for view in &trial.shared.balancer.nodes {
        let answer =
            super::http::once(view.operator, "GET", "/metrics", "", "", seconds(5)).await?;
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        let line =
            text.lines().find_map(|line| line.strip_prefix("carillon_slow_consumers_total "));
        sum += line.and_then(|value| value.parse::<f64>().ok()).unwrap_or(0.0);
    }
    Ok(sum)
}

async fn offline(mut trial: Trial) -> Result<Report> {
    // A thousand messages missed on one channel: its listeners are away while they are published.
    let away = [1, 30, 119];
    let share = trial.clients.len() / 4;
    for (at, client) in trial.clients.iter().enumerate().filter(|(at, _)| at % 4 < 3) {
        client.orders.send(Order::Away(seconds(away[at % 4]))).await?;
    }
    trial.report.faults.push(format!("{share} clients each offline for 1, 30 and 119 s"));
    sleep(seconds(122)).await;
    trial.wait_live(seconds(60)).await?;
    let channel = 0;
    let listeners: Vec<_> = trial
        .clients
        .iter()
        .filter(|client| client.lanes.borrow().0.iter().any(|lane| lane.index == channel))
        .cloned()
        .collect();
    for client in &listeners {
        client.orders.send(Order::Away(seconds(20))).await?;
    }
    let numbers = super::publisher::burst(&trial.shared, channel, 1_000).await?;
    trial.report.faults.push(format!(
        "{} clients away while {numbers} messages were published on their channel",
        listeners.len()
    ));
    sleep(seconds(22)).await;
    trial.wait_live(seconds(60)).await?;
    reconnects(&mut trial, None);
    trial.finish().await
}
