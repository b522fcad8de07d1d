//! The nemesis: what breaks, when, by a seed; and the hands that break it.
//!
//! The schedule is decided before anything runs, so that a seed replays it. Every fault heals by
//! itself within its own time.

use super::cluster::Cluster;
use super::proxy::Proxy;
use super::shared::Shared;
use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;
use tokio::time::sleep;

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// kill -9 of a node, started again.
    KillNode,
    /// SIGSTOP of a node.
    PauseNode,
    /// SIGTERM of a node, started again when it has drained.
    DrainNode,
    /// kill -9 of Redis, started again with its data.
    KillRedis,
    /// kill -9 of Redis, started again without its data.
    LoseRedis,
    /// kill -9 of Redis, started again with the data it had some seconds ago, as a replica that lagged.
    RollBackRedis,
    /// SIGSTOP of Redis.
    PauseRedis,
    /// CLIENT KILL TYPE pubsub.
    KillPubsub,
    /// A node's pub/sub connection stays open and hears nothing.
    Deaf,
    /// Some clients leave for good, others come.
    Leave,
}

/// One fault of a schedule.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Fault {
    pub(crate) kind: Kind,
    /// Pause before it, after the one before has healed.
    pub(crate) after: Duration,
    /// How long it lasts.
    pub(crate) lasts: Duration,
    /// Which node.
    pub(crate) node: usize,
}

/// Faults for about `seconds`, of these kinds, in an order and with times that the seed decides.
pub(crate) fn plan(seed: u64, seconds: u64, nodes: usize, kinds: &[Kind]) -> Vec<Fault> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut faults = Vec::new();
    let mut at = 0.0;
    // Every kind once before chance decides: a short run shows all that it can.
    let mut first: Vec<Kind> = kinds.to_vec();
    while at < seconds as f64 {
        let kind = if first.is_empty() {
            match kinds.choose(&mut random) {
                Some(kind) => *kind,
                None => break,
            }
        } else {
            first.swap_remove(random.random_range(0..first.len()))
        };
        let lasts: f64 = match kind {
            Kind::KillNode | Kind::KillRedis | Kind::LoseRedis | Kind::RollBackRedis => {
                random.random_range(0.2..5.0)
            }
            Kind::PauseNode => random.random_range(0.5..9.0),
            Kind::PauseRedis => random.random_range(0.5..6.0),
            Kind::Deaf => 8.0,
            Kind::DrainNode => 4.0,
            Kind::KillPubsub | Kind::Leave => 0.1,
        };
        let after: f64 = random.random_range(0.5..4.0);
        at += after + lasts;
        faults.push(Fault {
            kind,
            after: Duration::from_secs_f64(after),
            lasts: Duration::from_secs_f64(lasts),
            node: random.random_range(0..nodes),
        });
    }
    faults
}

/// What the nemesis may lay hands on.
pub(crate) struct Hands {
    pub(crate) cluster: Rc<Cluster>,
    /// One before each node, where the scenario asked for them.
    pub(crate) proxies: Vec<Proxy>,
    pub(crate) shared: Rc<Shared>,
    /// When data was lost, oldest first.
    pub(crate) losses_ms: RefCell<Vec<u64>>,
}

impl Hands {
    /// Breaks one thing and heals it again.
    pub(crate) async fn commit(&self, fault: &Fault) -> Result<()> {
        let (redis, lasts) = (&self.cluster.redis, fault.lasts);
        match fault.kind {
            Kind::KillNode => {
                let node = &self.cluster.nodes[fault.node].process;
                node.kill()?;
                sleep(lasts).await;
                node.start()
            }
            Kind::PauseNode => {
                let node = &self.cluster.nodes[fault.node].process;
                node.pause()?;
                sleep(lasts).await;
                node.go_on()
            }
            Kind::DrainNode => self.restart_politely(fault.node, Duration::from_secs(40)).await,
            Kind::PauseRedis => {
                redis.process.pause()?;
                sleep(lasts).await;
                redis.process.go_on()
            }
            Kind::KillPubsub => self.kill_pubsub().await,
            Kind::Deaf => {
                self.proxies.get(fault.node).context("no proxy")?.deafen();
                sleep(lasts).await;
                Ok(())
            }
            Kind::KillRedis => {
                redis.process.kill()?;
                sleep(lasts).await;
                redis.start().await
            }
            Kind::LoseRedis => {
                redis.process.kill()?;
                redis.lose_data()?;
                self.lost();
                sleep(lasts).await;
                redis.start().await
            }
            Kind::RollBackRedis => {
                redis.keep_copy()?;
                sleep(Duration::from_secs(2)).await;
                redis.process.kill()?;
                redis.roll_back()?;
                self.lost();
                sleep(lasts).await;
                redis.start().await
            }
            // The clients are the trial's.
            Kind::Leave => Ok(()),
        }
    }

    fn lost(&self) {
        self.losses_ms.borrow_mut().push(self.shared.now_ms());
    }

    /// SIGTERM, waits for the end, starts again. The clients' choice learns of it from readiness alone.
    pub(crate) async fn restart_politely(&self, node: usize, patience: Duration) -> Result<()> {
        let process = &self.cluster.nodes[node].process;
        let view = &self.shared.balancer.nodes[node];
        process.terminate()?;
        view.ending.set(true);
        let status = process.wait(patience).await?;
        view.ending.set(false);
        process.start()?;
        if !status.success() {
            bail!("a drained node ended with {status}\n{}", process.last_words());
        }
        Ok(())
    }

    /// Ends every pub/sub connection.
    pub(crate) async fn kill_pubsub(&self) -> Result<()> {
        let answer = self.cluster.redis.ask(&["CLIENT", "KILL", "TYPE", "pubsub"]).await?;
        if !answer.starts_with(':') {
            bail!("CLIENT KILL: {answer}");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seed_replays_a_schedule_and_every_kind_comes() {
        let kinds = Kind::value_variants();
        let one = plan(7, 120, 3, kinds);
        assert_eq!(one, plan(7, 120, 3, kinds));
        assert_ne!(one, plan(8, 120, 3, kinds));
        for kind in kinds {
            assert!(one.iter().any(|fault| fault.kind == *kind), "{kind:?}");
        }
        assert!(one.iter().all(|fault| fault.node < 3));
    }
}
