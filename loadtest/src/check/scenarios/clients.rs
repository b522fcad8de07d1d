//! Clients that do not read, and clients that are away.

use super::super::client::{Client, Order};
use super::super::report::{Figure, Latency, Report};
use super::super::trial::Trial;
use super::super::{http, publisher};
use super::{reconnects, seconds};
use anyhow::Result;
use std::rc::Rc;
use std::time::Duration;
use tokio::time::sleep;

/// Two rounds of all reading and some not: on a machine that others use, one round says little.
pub(super) async fn slow_readers(mut trial: Trial) -> Result<Report> {
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
        let answer = http::once(view.operator, "GET", "/metrics", "", "", seconds(5)).await?;
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        let line =
            text.lines().find_map(|line| line.strip_prefix("carillon_slow_consumers_total "));
        sum += line.and_then(|value| value.parse::<f64>().ok()).unwrap_or(0.0);
    }
    Ok(sum)
}

pub(super) async fn offline(mut trial: Trial) -> Result<Report> {
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
    let numbers = publisher::burst(&trial.shared, channel, 1_000).await?;
    trial.report.faults.push(format!(
        "{} clients away while {numbers} messages were published on their channel",
        listeners.len()
    ));
    sleep(seconds(22)).await;
    trial.wait_live(seconds(60)).await?;
    reconnects(&mut trial, None);
    trial.finish().await
}
