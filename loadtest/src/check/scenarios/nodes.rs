//! Nodes that are killed, and nodes that are drained and started again.

use super::super::nemesis::{Fault, Kind};
use super::super::report::{Figure, Report};
use super::super::trial::Trial;
use super::{fault, reconnects, seconds};
use anyhow::Result;
use std::time::Duration;
use tokio::time::sleep;

pub(super) async fn kill_node(mut trial: Trial) -> Result<Report> {
    sleep(seconds(3)).await;
    trial.commit(&fault(Kind::KillNode, seconds(3))).await?;
    sleep(seconds(10)).await;
    trial.wait_live(seconds(60)).await?;
    reconnects(&mut trial, Some(5_000.0));
    trial.finish().await
}

pub(super) async fn rolling(mut trial: Trial) -> Result<Report> {
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
