//! One run from the first process to the verdict: starts everything, keeps clients and publishers going
//! while a scenario breaks things, brings all to rest, and asks what is left.

use super::client::{Client, Order, PRESENCE, Transport};
use super::cluster::{Cluster, Settings};
use super::http::{self, Answer, Http};
use super::judge::judge;
use super::lane::Envelope;
use super::log::{Channel, Count, History, Log, Number, Place, fingerprint};
use super::nemesis::{Fault, Hands};
use super::proxy::Proxy;
use super::publisher::{Publishers, publish};
use super::report::{Figure, Report};
use super::shared::Shared;
use crate::mark::Mark;
use crate::process;
use crate::server::Scratch;
use anyhow::{Context as _, Result, bail};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How long everything may take to come to rest.
const REST_PATIENCE: Duration = Duration::from_secs(90);
/// Presence and counts are right again by then (`cluster.md` 2).
const COUNT_PATIENCE: Duration = Duration::from_secs(45);
/// An answer to a question about the cluster.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);

/// What a scenario needs.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    pub(crate) nodes: usize,
    pub(crate) clients: usize,
    pub(crate) channels: u32,
    /// Messages a second from backends, over all channels.
    pub(crate) per_second: f64,
    /// Clients that publish over their own connections, one message each two seconds.
    pub(crate) talkers: usize,
    /// Clients that join presence.
    pub(crate) present: usize,
    /// Bytes of a payload.
    pub(crate) size: usize,
    /// Long polls among a hundred clients; a third of the rest are streams.
    pub(crate) polls_percent: usize,
    /// A proxy stands before each node's Redis.
    pub(crate) proxied: bool,
    /// One channel with more traffic than the others; its deliveries are not in the latencies.
    pub(crate) hot: Option<Hot>,
    pub(crate) settings: Settings,
}

/// A channel with much traffic.
#[derive(Debug, Clone)]
pub(crate) struct Hot {
    pub(crate) channel: Channel,
    pub(crate) every: Duration,
    /// Bytes of a payload.
    pub(crate) size: usize,
}

impl Setup {
    /// Three nodes; the rest follows from the number of clients: sixty listeners a channel.
    pub(crate) fn of(clients: usize) -> Self {
        Self {
            nodes: 3,
            clients,
            channels: (clients / 30).max(2) as u32,
            per_second: 80.0,
            talkers: (clients / 50).clamp(2, 20),
            present: (clients / 10).clamp(2, 40),
            size: 128,
            polls_percent: 3,
            proxied: false,
            hot: None,
            settings: Settings {
                drain_period: Duration::from_secs(20),
                drain_grace: Duration::from_secs(5),
                history: 100_000,
                history_age: Duration::from_secs(3_600),
                heartbeat_timeout: Duration::from_secs(20),
            },
        }
    }
}

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
            data_lost_ms: Cell::new(None),
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
        let Setup { clients, channels, present, polls_percent, .. } = self.setup;
        let mut left_present = present;
        for at in 0..clients {
            let transport = match at % 100 {
                part if part < polls_percent => Transport::Poll,
                part if (part - polls_percent) % 3 == 2 => Transport::Stream,
                _ => Transport::WebSocket,
            };
            let first = (at as u32) % channels;
            let second = (first + 1 + (at as u32 / channels) % (channels - 1)) % channels;
            let joins = transport == Transport::WebSocket && left_present > 0;
            left_present -= usize::from(joins);
            let seed = self.random.random();
            let name = format!("client-{at}");
            let client =
                Client::start(&self.shared, name, transport, &[first, second], joins, seed);
            self.clients.push(client);
            if at % 50 == 49 {
                // Not a storm yet: that is a scenario of its own.
                sleep(Duration::from_millis(10)).await;
            }
        }
        self.wait_live(REST_PATIENCE).await
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

    /// One client in fifty leaves for good, present ones first.
    async fn somebody_leaves(&mut self) {
        let share = (self.clients.len() / 50).max(1);
        let here: Vec<_> = self.clients.iter().filter(|client| !client.gone.get()).collect();
        let present: Vec<_> = here.iter().filter(|client| client.present).copied().collect();
        let mut leaving: Vec<_> = here.choose_multiple(&mut self.random, share).copied().collect();
        leaving.extend(present.choose(&mut self.random).copied());
        for client in leaving {
            let _full = client.orders.send(Order::Quit).await;
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
        let mut log = Log { data_lost_ms: self.hands.data_lost_ms.get(), ..Log::default() };
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

    /// One last message on each channel: who has it has everything before it.
    async fn publish_closing(&mut self) -> Vec<Number> {
        let mut line: Option<Http> = None;
        let mut numbers = Vec::new();
        for channel in 0..self.setup.channels {
            numbers.push(
                publish(&self.shared, &mut line, channel, self.setup.size, &mut self.random).await,
            );
        }
        numbers
    }

    /// Waits until everybody heard the last messages; who does not is the judge's to find.
    async fn wait_heard(&self, closing: &[Number]) {
        let end = Instant::now() + REST_PATIENCE;
        let heard = |client: &Rc<Client>| {
            client.gone.get()
                || client
                    .lanes
                    .borrow()
                    .0
                    .iter()
                    .all(|lane| lane.number >= closing[lane.index as usize])
        };
        while Instant::now() < end && !self.clients.iter().all(heard) {
            sleep(Duration::from_millis(20)).await;
        }
        // What is heard twice may come behind it.
        sleep(Duration::from_millis(500)).await;
    }

    async fn history(&self, channel: Channel) -> Result<History> {
        #[derive(Deserialize)]
        struct Page<'a> {
            #[serde(borrow)]
            messages: Vec<&'a RawValue>,
            epoch: String,
            offset: u64,
            next: Option<String>,
        }
        let name = Shared::channel(channel);
        let mut history = History { channel, epoch: 0, top: 0, messages: Vec::new() };
        let mut since = "0".to_owned();
        loop {
            let path = format!("/api/realtime/channels/{name}/history?since={since}&limit=1000");
            let answer = self.ask("GET", &path, "").await?;
            let page: Page<'_> = serde_json::from_slice(&answer.body)
                .with_context(|| format!("history: {}", String::from_utf8_lossy(&answer.body)))?;
            (history.epoch, history.top) = (fingerprint(&page.epoch), page.offset);
            for message in page.messages {
                let envelope: Envelope<'_> = serde_json::from_str(message.get())?;
                let mark =
                    envelope.payload.and_then(|raw| Mark::find(raw.get().as_bytes(), &mut 0));
                let (mark, _) = mark.context("history holds what nobody published")?;
                let (epoch, offset) =
                    (envelope.epoch.context("epoch")?, envelope.offset.context("offset")?);
                history
                    .messages
                    .push((Place::of(&epoch, offset, envelope.tag.as_deref()), mark.sequence));
            }
            match page.next {
                Some(next) => since = next,
                None => return Ok(history),
            }
        }
    }

    /// Compares counts and presence with who is there; asks again until they are right or time is up.
    async fn look_at_rest(&mut self, log: &mut Log, when: &str) -> Result<()> {
        let began = Instant::now();
        loop {
            let (counts, ghosts, missing) = self.look(when).await?;
            let right = counts.iter().all(|count| count.expected == count.found);
            if (right && ghosts.is_empty() && missing.is_empty())
                || began.elapsed() > COUNT_PATIENCE
            {
                log.counts.extend(counts);
                log.ghosts.extend(ghosts);
                log.missing.extend(missing);
                let name = format!("counts and presence right {when}, after");
                self.figure(Figure::told(name, began.elapsed().as_secs_f64(), "s"));
                return Ok(());
            }
            sleep(Duration::from_millis(250)).await;
        }
    }

    async fn look(&self, when: &str) -> Result<(Vec<Count>, Vec<String>, Vec<String>)> {
        let here = |client: &&Rc<Client>| !client.gone.get() && client.transport != Transport::Poll;
        let expected = self.clients.iter().filter(here).count() as u64;
        let stats = self.ask("GET", "/api/realtime/stats", "").await?.json()?;
        let by_transport = stats["totals"]["connections_by_transport"].as_object().cloned();
        let found = by_transport.iter().flatten().filter(|(name, _)| *name != "poll");
        let found = found.filter_map(|(_, count)| count.as_u64()).sum();
        let mut counts = vec![Count { what: format!("connections {when}"), expected, found }];
        for users in self.clients.chunks(500) {
            let users: Vec<_> =
                users.iter().filter(|client| client.transport != Transport::Poll).collect();
            let names: Vec<&str> = users.iter().map(|client| &*client.name).collect();
            let body = serde_json::json!({"user_ids": names}).to_string();
            let answer = self.ask("POST", "/api/realtime/users/presence", &body).await?.json()?;
            for (client, shown) in users.iter().zip(answer["users"].as_array().context("no users")?)
            {
                let expected = u64::from(!client.gone.get());
                let found = shown["connections"].as_u64().unwrap_or(u64::MAX);
                if found != expected {
                    let what = format!("connections of {} {when}", client.name);
                    counts.push(Count { what, expected, found });
                }
            }
        }
        let resource = PRESENCE.strip_prefix("presence:").unwrap_or(PRESENCE);
        let shown =
            self.ask("GET", &format!("/api/realtime/presence/{resource}"), "").await?.json()?;
        let shown: Vec<String> = shown["users"]
            .as_array()
            .context("no users")?
            .iter()
            .filter_map(|user| user["id"].as_str().map(str::to_owned))
            .collect();
        let present: Vec<&str> = self
            .clients
            .iter()
            .filter(|client| client.present && !client.gone.get())
            .map(|client| &*client.name)
            .collect();
        let ghosts = shown
            .iter()
            .filter(|name| !present.contains(&&***name))
            .map(|name| format!("{name} ({when})"))
            .collect();
        let missing = present
            .iter()
            .filter(|name| !shown.iter().any(|shown| shown == *name))
            .map(|name| format!("{name} ({when})"))
            .collect();
        Ok((counts, ghosts, missing))
    }
}
