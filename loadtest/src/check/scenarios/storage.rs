//! Redis that dies, forgets, hangs, and cuts or deafens its pub/sub connections.

use super::super::client::Transport;
use super::super::log::{Beginning, Heard};
use super::super::nemesis::{Fault, Kind};
use super::super::report::{Figure, Report};
use super::super::trial::Trial;
use super::{fault, reconnects, seconds, total_cuts};
use anyhow::Result;
use std::time::Duration;
use tokio::time::{Instant, sleep};

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

pub(super) async fn redis_killed(mut trial: Trial) -> Result<Report> {
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

pub(super) async fn redis_lost(mut trial: Trial) -> Result<Report> {
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

pub(super) async fn redis_paused(mut trial: Trial) -> Result<Report> {
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

pub(super) async fn pubsub_killed(mut trial: Trial) -> Result<Report> {
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

pub(super) async fn output_overflow(mut trial: Trial) -> Result<Report> {
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

pub(super) async fn deaf(mut trial: Trial) -> Result<Report> {
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
