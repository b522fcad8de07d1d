//! One run from the first process to the verdict: starts everything, keeps clients and publishers going
//! while a scenario breaks things, brings all to rest, and asks what is left.

mod rest;
mod setup;

use super::client::{Client, Order, Transport};
use super::cluster::Cluster;
use super::http::{self, Answer};
use super::judge::judge;
use super::log::Log;
use super::nemesis::{Fault, Hands};
use super::proxy::Proxy;
use super::publisher::Publishers;
use super::report::{Figure, Report};
use super::shared::Shared;
use crate::process;
use crate::server::Scratch;
use anyhow::{Context as _, Result, bail};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

pub(crate) use setup::{Hot, Setup};

/// How long everything may take to come to rest.
const REST_PATIENCE: Duration = Duration::from_secs(90);
/// An answer to a question about the cluster.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);

/// See the module.
pub(crate) struct Trial {
    pub(crate) hands: Hands,
    pub(crate) clients: Vec<Rc<Client>>,
    pub(crate) shared: Rc<Shared>,
    pub(crate) report: Report,
    pub(crate) setup: Setup,
    pub(crate) random: StdRng,
    publishers: Option<Publishers>,
    // Last: processes end before their directory goes.
    scratch: Scratch,
}

impl Trial {
    /// Starts Redis, nodes and clients; returns when every client hears its channels and publishers are
    /// at work.
    pub(crate) async fn begin(
        scenario: &str,
        binary: &Path,
        seed: u64,
        setup: Setup,
    ) -> Result<Self> {
        let scratch = Scratch::new()?;
        let mut cluster = Cluster::start(&scratch.0).await?;
        let mut proxies = Vec::new();
        for _ in 0..setup.nodes {
            let redis = if setup.proxied {
                proxies.push(Proxy::start(cluster.redis.address)?);
                proxies[proxies.len() - 1].address
            } else {
                cluster.redis.address
            };
            cluster.add_node(binary, &scratch.0, redis, &setup.settings)?;
        }
        let addresses = cluster.nodes.iter().map(|node| (node.client, node.operator));
        let balancer = Rc::new(super::balancer::Balancer::new(addresses));
        let keys = cluster.keys.clone();
        let hot = setup.hot.as_ref().map(|hot| hot.channel);
        let shared = Rc::new(Shared::new(keys, balancer, setup.channels, setup.size, hot));
        tokio::task::spawn_local(Rc::clone(&shared.balancer).watch());
        let hands = Hands {
            cluster: Rc::new(cluster),
            proxies,
            shared: Rc::clone(&shared),
            losses_ms: RefCell::default(),
        };
        let report = Report {
            scenario: scenario.to_owned(),
            seed,
            clients: setup.clients,
            nodes: setup.nodes,
            ..Report::default()
        };
        let random = StdRng::seed_from_u64(seed);
        let mut trial = Self {
            hands,
            clients: Vec::new(),
            shared,
            report,
            setup,
            random,
            publishers: None,
            scratch,
        };
        trial.wait_ready().await?;
        trial.start_clients().await?;
        trial.start_publishers(seed);
        Ok(trial)
    }

    async fn wait_ready(&self) -> Result<()> {
        let end = Instant::now() + REST_PATIENCE;
        while !self.shared.balancer.all_ready() {
            if Instant::now() > end {
                let words = self.last_words();
                bail!("not all nodes are ready\n{words}");
            }
            sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// What nodes that are not ready wrote last.
    pub(crate) fn last_words(&self) -> String {
        let nodes = self.hands.cluster.nodes.iter().zip(&self.shared.balancer.nodes);
        nodes
            .filter(|(_, view)| !view.ready.get())
            .map(|(node, _)| node.process.last_words())
            .collect()
    }

    async fn start_clients(&mut self) -> Result<()> {
        let mut left_present = self.setup.present;
        for at in 0..self.setup.clients {
            let joined = self.add_client(left_present > 0);
            left_present -= usize::from(joined);
            if at % 50 == 49 {
                // Not a storm yet: that is a scenario of its own.
                sleep(Duration::from_millis(10)).await;
            }
        }
        self.wait_live(REST_PATIENCE).await
    }

    /// One more client; whether it joins presence, as some transports can.
    fn add_client(&mut self, joins: bool) -> bool {
        let Setup { channels, polls_percent, .. } = self.setup;
        let at = self.clients.len();
        let transport = match at % 100 {
            part if part < polls_percent => Transport::Poll,
            part if (part - polls_percent) % 3 == 2 => Transport::Stream,
            _ => Transport::WebSocket,
        };
        let first = (at as u32) % channels;
        let second = (first + 1 + (at as u32 / channels) % (channels - 1)) % channels;
        let joins = joins && transport == Transport::WebSocket;
        let (name, seed) = (format!("client-{at}"), self.random.random());
        self.clients.push(Client::start(
            &self.shared,
            name,
            transport,
            &[first, second],
            joins,
            seed,
        ));
        joins
    }

    /// Waits until every client that stays hears its channels.
    pub(crate) async fn wait_live(&self, patience: Duration) -> Result<()> {
        let end = Instant::now() + patience;
        loop {
            let waiting =
                || self.clients.iter().filter(|client| !client.live.get() && !client.gone.get());
            if waiting().next().is_none() {
                return Ok(());
            }
            if Instant::now() > end {
                let names: Vec<&str> = waiting().take(5).map(|client| &*client.name).collect();
                bail!(
                    "{} clients are not back, as {names:?}; {:?}\n{}",
                    waiting().count(),
                    self.shared.retried.borrow(),
                    self.last_words()
                );
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    fn start_publishers(&mut self, seed: u64) {
        let mut publishers = Publishers::new(&self.shared);
        let Setup { channels, per_second, talkers, .. } = self.setup;
        publishers.add_backends(8, channels, per_second, seed);
        let speakers = self.clients.iter().filter(|client| client.transport != Transport::Stream);
        for client in speakers.take(talkers) {
            publishers.add_talker(client, Duration::from_secs(2));
        }
        if let Some(hot) = &self.setup.hot {
            publishers.add_hot(hot.channel, hot.every, hot.size);
        }
        self.publishers = Some(publishers);
    }

    /// Adds a figure.
    pub(crate) fn figure(&mut self, figure: Figure) {
        self.report.figures.push(figure);
    }

    /// Breaks one thing, notes it, and heals it.
    pub(crate) async fn commit(&mut self, fault: &Fault) -> Result<()> {
        sleep(fault.after).await;
        let at = self.shared.now_ms() as f64 / 1e3;
        let words = format!(
            "{:.1} s: {:?} (node {}, {:.1} s)",
            at,
            fault.kind,
            fault.node + 1,
            fault.lasts.as_secs_f64()
        );
        self.report.faults.push(words);
        if fault.kind == super::nemesis::Kind::Leave {
            self.somebody_leaves().await;
            return Ok(());
        }
        self.hands.commit(fault).await
    }

    /// One client in fifty leaves for good, and a present one; as many come.
    async fn somebody_leaves(&mut self) {
        let here: Vec<_> = self.clients.iter().filter(|client| !client.gone.get()).collect();
        let share = (here.len() / 50).max(1);
        let present: Vec<_> = here.iter().filter(|client| client.present).copied().collect();
        let mut leaving: Vec<_> = here.choose_multiple(&mut self.random, share).copied().collect();
        leaving.extend(present.choose(&mut self.random).copied());
        let count = leaving.len();
        for client in leaving {
            let _full = client.orders.send(Order::Quit).await;
        }
        for _ in 0..count {
            self.add_client(true);
        }
    }

    /// Memory of all nodes together, bytes.
    pub(crate) fn memory(&self) -> u64 {
        let pids = self.hands.cluster.nodes.iter().filter_map(|node| node.process.pid());
        pids.filter_map(|pid| process::pss_bytes(pid).ok()).sum()
    }

    /// A question to any node that is ready.
    pub(crate) async fn ask(&self, method: &str, path: &str, body: &str) -> Result<Answer> {
        let node = self.shared.balancer.choose(&mut rand::rng()).context("no node")?;
        let headers = self.shared.keys.backend();
        let address = self.shared.address(node);
        http::once(address, method, path, &headers, body, ANSWER_PATIENCE).await
    }

    /// Brings everything to rest and judges.
    pub(crate) async fn finish(mut self) -> Result<Report> {
        if let Some(publishers) = self.publishers.take() {
            publishers.finish(REST_PATIENCE).await;
        }
        self.wait_ready().await?;
        if let Err(error) = self.wait_live(REST_PATIENCE).await {
            self.report.problems.push(error.to_string());
        }
        for node in &self.hands.cluster.nodes {
            if let Some(status) = node.process.ended()? {
                self.report.problems.push(format!(
                    "a node ended by itself: {status}\n{}",
                    node.process.last_words()
                ));
            }
        }
        let closing = self.publish_closing().await;
        self.wait_heard(&closing).await;
        let mut log = Log { losses_ms: self.hands.losses_ms.take(), ..Log::default() };
        for channel in 0..self.setup.channels {
            log.histories.push(self.history(channel).await?);
        }
        log.published.clone_from(&self.shared.published.borrow());
        log.lanes = self.clients.iter().flat_map(|client| client.log()).collect();
        self.look_at_rest(&mut log, "at rest").await?;
        self.shared.stop.send_replace(true);
        self.look_at_rest(&mut log, "after all left").await?;
        self.report.verdict = judge(&log);
        self.report.seconds = self.shared.began.elapsed().as_secs_f64();
        self.report.retried.clone_from(&self.shared.retried.borrow());
        self.report.refused.clone_from(&self.shared.refused.borrow());
        let report = std::mem::take(&mut self.report).close();
        if !report.passed {
            self.keep_logs();
        }
        Ok(report)
    }

    fn keep_logs(&self) {
        let target = std::env::temp_dir().join(format!("carillon-check-{}", std::process::id()));
        let _exists = std::fs::create_dir_all(&target);
        for entry in std::fs::read_dir(&self.scratch.0).into_iter().flatten().flatten() {
            if entry.path().extension().is_some_and(|extension| extension == "log") {
                let _copied = std::fs::copy(entry.path(), target.join(entry.file_name()));
            }
        }
        eprintln!("logs of the processes: {}", target.display());
    }
}
