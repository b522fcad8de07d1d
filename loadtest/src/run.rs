//! One run: connect, see that everybody listens, publish, measure, wait for stragglers, report.

use crate::process;
use crate::publisher::{Pace, Publisher, Work};
use crate::report::Report;
use crate::subscriber::{self, Subscriber};
use crate::tally::Tally;
use crate::target::{Kind, Target, Transport};
use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, sleep_until};

/// What is done to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scenario {
    /// One channel, everybody listens.
    Fanout,
    /// Connections spread over `--channels`.
    Channels,
    /// As `channels`, but the members publish over their own WebSockets.
    Rooms,
    /// Memory of connections that only wait.
    Idle,
    /// Connections as fast as they come.
    Connect,
    /// Publishing through REST without listeners.
    Publish,
}

/// `loadtest run`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    #[arg(long, value_enum)]
    pub(crate) scenario: Scenario,
    #[arg(long, value_enum, default_value = "carillon")]
    pub(crate) target: Kind,
    #[arg(long, value_enum, default_value = "ws")]
    pub(crate) transport: Transport,
    /// Address of the server, `127.0.0.1:8082` or `http://…`.
    #[arg(long, default_value = "127.0.0.1:8082")]
    pub(crate) url: String,
    /// Where messages are published, if on another node than `--url`.
    #[arg(long)]
    pub(crate) publish_url: Option<String>,
    /// Processes whose CPU counts; the first one's memory does too.
    #[arg(long, value_delimiter = ',')]
    pub(crate) server_pid: Vec<u32>,
    /// The server's Redis, whose CPU counts too.
    #[arg(long)]
    pub(crate) redis_pid: Option<u32>,
    #[arg(long, default_value_t = 1_000)]
    pub(crate) connections: usize,
    #[arg(long, default_value_t = 1)]
    pub(crate) channels: u32,
    /// Messages a second over all channels; without it the server is saturated.
    #[arg(long)]
    pub(crate) rate: Option<f64>,
    /// Saturate with `--window` messages in flight (the default without `--rate`).
    #[arg(long, conflicts_with = "rate")]
    pub(crate) saturate: bool,
    #[arg(long, default_value_t = 8)]
    pub(crate) window: u64,
    /// Most messages in one request.
    #[arg(long, default_value_t = 100)]
    pub(crate) batch: usize,
    /// Bytes of a payload.
    #[arg(long, default_value_t = 128)]
    pub(crate) size: usize,
    /// Measured seconds.
    #[arg(long, default_value_t = 5.0)]
    pub(crate) duration: f64,
    /// Handshakes in flight.
    #[arg(long, default_value_t = 128)]
    pub(crate) handshakes: usize,
    /// Seconds that the scenario `connect` holds its connections.
    #[arg(long, default_value_t = 0)]
    pub(crate) hold: u64,
    /// Beginning of the users' names: one user a connection.
    #[arg(long, default_value = "load")]
    pub(crate) user: String,
    #[arg(long, env = "LOADTEST_JWT_SECRET", default_value = "", hide_env_values = true)]
    pub(crate) jwt_secret: String,
    #[arg(long, env = "LOADTEST_API_KEY", default_value = "", hide_env_values = true)]
    pub(crate) api_key: String,
    /// Print JSON only.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Runs on a thread of its own and returns the figures.
pub(crate) fn run(options: &Options) -> Result<Report> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().event_interval(31).build()?;
    tokio::task::LocalSet::new().block_on(&runtime, drive(options))
}

struct Run<'a> {
    options: &'a Options,
    target: Target,
    channels: u32,
    pids: Vec<u32>,
    tally: Rc<Tally>,
    report: Report,
}

async fn drive(options: &Options) -> Result<Report> {
    let target = Target {
        kind: options.target,
        address: address(&options.url)?,
        jwt_secret: options.jwt_secret.clone(),
        user: options.user.clone(),
        api_key: options.api_key.clone(),
    };
    let channels = if options.scenario == Scenario::Fanout { 1 } else { options.channels.max(1) };
    let connections = if options.scenario == Scenario::Publish { 0 } else { options.connections };
    let name = |value: Option<clap::builder::PossibleValue>| {
        value.map(|value| value.get_name().to_owned()).unwrap_or_default()
    };
    let report = Report {
        scenario: name(options.scenario.to_possible_value()),
        target: name(options.target.to_possible_value()),
        transport: name(options.transport.to_possible_value()),
        connections,
        channels,
        ..Report::default()
    };
    let pids = options.server_pid.iter().copied().chain(options.redis_pid).collect();
    let mut run = Run { options, target, channels, pids, tally: Rc::new(Tally::new()), report };
    let memory = run.memory()?;
    let subscribers = run.connect(connections).await?;
    match options.scenario {
        Scenario::Connect => sleep(Duration::from_secs(options.hold)).await,
        Scenario::Idle => run.idle(&subscribers, memory).await?,
        Scenario::Rooms => run.rooms(&subscribers).await?,
        Scenario::Fanout | Scenario::Channels | Scenario::Publish => {
            run.publish(&subscribers).await?;
        }
    }
    run.report.closed = run.tally.closed.get();
    run.report.refused = run.tally.refused.get();
    run.report.retries.clone_from(&run.tally.retries.borrow());
    run.report.retried = run.report.retries.values().sum();
    run.report.dial_max_ms = run.tally.dial_max.get().as_secs_f64() * 1e3;
    run.report.connect_p50_ms = run.tally.connect_ms(0.5);
    run.report.connect_p99_ms = run.tally.connect_ms(0.99);
    run.report.connect_max_ms = run.tally.connect_ms(1.0);
    Ok(run.report)
}

fn address(url: &str) -> Result<SocketAddr> {
    let bare = url.split_once("://").map_or(url, |(_, rest)| rest).trim_end_matches('/');
    bare.parse().with_context(|| format!("{url}: an address like 127.0.0.1:8082 is needed"))
}

impl Run<'_> {
    fn memory(&self) -> Result<f64> {
        let first = self.options.server_pid.first();
        first.map_or(Ok(0.0), |pid| process::pss_bytes(*pid).map(|bytes| bytes as f64))
    }

    async fn connect(&mut self, count: usize) -> Result<Vec<Rc<Subscriber>>> {
        let before = process::cpu_us_of_all(&self.pids)?;
        let began = Instant::now();
        let greeted = self.target.kind == Kind::Carillon;
        let channels = self.channels;
        let transport = self.options.transport;
        // A task each, not one future over all: what such a future may do in one turn is bounded, and thousands under it
        // wake each other for nothing while nodes wait for their requests.
        let places = Arc::new(Semaphore::new(self.options.handshakes));
        let mut connecting = Vec::with_capacity(count);
        for index in 0..count {
            let place = Arc::clone(&places).acquire_owned().await;
            let channel = (index % channels as usize) as u32;
            let request = self.target.open(transport, index, &self.target.channel(channel));
            let (to, tally) = (self.target.address, Rc::clone(&self.tally));
            connecting.push(tokio::task::spawn_local(async move {
                let _place = place;
                subscriber::connect(index, to, &request, transport, greeted, channel, &tally).await
            }));
        }
        let opened: Vec<Result<Rc<Subscriber>>> = futures_util::future::join_all(connecting)
            .await
            .into_iter()
            .map(|joined| joined.context("a connecting task")?)
            .collect();
        let seconds = began.elapsed().as_secs_f64();
        let cpu = process::cpu_us_of_all(&self.pids)? - before;
        self.report.connects_per_second = count as f64 / seconds;
        self.report.connect_cpu_us = cpu as f64 / count.max(1) as f64;
        opened.into_iter().collect()
    }

    async fn publish(&mut self, subscribers: &[Rc<Subscriber>]) -> Result<()> {
        let options = self.options;
        let mut target = self.target.clone();
        if let Some(url) = &options.publish_url {
            target.address = address(url)?;
        }
        let publisher = Publisher::connect(target, self.channels, self.tally.clone()).await?;
        self.wait_until_all_listen(&publisher, subscribers.len()).await?;
        let members = (subscribers.len() / self.channels as usize) as u64;
        let pace = match options.rate {
            Some(rate) => Pace::Rate(rate),
            None if options.scenario == Scenario::Publish => Pace::Unanswered(options.window),
            None => Pace::Window(options.window),
        };
        let work = Work {
            channels: self.channels,
            members,
            size: options.size,
            batch: options.batch,
            pace,
        };
        let end = Instant::now() + Duration::from_secs_f64(options.duration + 1.0);
        let (published, measured) = tokio::join!(
            publisher.run(&work, end),
            self.measure(end, || publisher.published.get())
        );
        published?;
        measured?;
        let sequences = publisher.sequences.borrow().clone();
        self.report.published = sequences.iter().map(|last| u64::from(*last)).sum();
        self.settle(subscribers, &sequences).await;
        Ok(())
    }

    /// Warm-up messages until each connection has heard one: then all are subscribed.
    async fn wait_until_all_listen(&self, publisher: &Publisher, count: usize) -> Result<()> {
        for _attempt in 0..100 {
            publisher.warm_up(self.channels, self.options.size).await?;
            let until = Instant::now() + Duration::from_millis(500);
            while Instant::now() < until {
                if self.tally.ready.get() >= count as u64 && self.tally.refused.get() == 0 {
                    // What of the warm-up is still under way would count as CPU only.
                    sleep(Duration::from_millis(300)).await;
                    return Ok(());
                }
                sleep(Duration::from_millis(20)).await;
            }
            if self.tally.refused.get() > 0 {
                bail!("{} warm-up publishes were refused", self.tally.refused.get());
            }
        }
        bail!("only {} of {count} connections hear their channel", self.tally.ready.get())
    }

    /// Skips the first second, then measures until `end`.
    async fn measure(&mut self, end: Instant, published: impl Fn() -> u64) -> Result<()> {
        sleep(Duration::from_secs(1)).await;
        self.tally.forget_latency();
        let done = || {
            if self.options.scenario == Scenario::Publish {
                published()
            } else {
                self.tally.delivered.get()
            }
        };
        let me = std::process::id();
        let (from, count) = (Instant::now(), done());
        let (cpu, own) = (process::cpu_us_of_all(&self.pids)?, process::cpu_us(me)?);
        let last = self.options.redis_pid.map_or(Ok(0), process::cpu_us)?;
        sleep_until(end).await;
        let seconds = from.elapsed().as_secs_f64();
        let delivered = done() - count;
        let each = |us: u64| us as f64 / delivered.max(1) as f64;
        let report = Report {
            seconds,
            delivered,
            per_second: delivered as f64 / seconds,
            server_cpu_us: each(process::cpu_us_of_all(&self.pids)? - cpu),
            redis_cpu_us: each(self.options.redis_pid.map_or(Ok(0), process::cpu_us)? - last),
            client_cpu_us: each(process::cpu_us(me)? - own),
            p50_ms: self.tally.latency_ms(0.5),
            p99_ms: self.tally.latency_ms(0.99),
            p999_ms: self.tally.latency_ms(0.999),
            max_ms: self.tally.latency_ms(1.0),
            ..self.report.clone()
        };
        self.report = report;
        Ok(())
    }

    /// Waits until nothing more comes, then counts.
    async fn settle(&mut self, subscribers: &[Rc<Subscriber>], sequences: &[u32]) {
        let last_of = |at: &Subscriber| sequences.get(at.channel as usize).copied().unwrap_or(0);
        let lost = || subscribers.iter().map(|at| at.order.borrow().lost(last_of(at))).sum::<u64>();
        for _quiet in 0..6 {
            let mut before = u64::MAX;
            while lost() > 0 && before != self.tally.delivered.get() {
                before = self.tally.delivered.get();
                sleep(Duration::from_millis(250)).await;
            }
            if lost() == 0 {
                break;
            }
            sleep(Duration::from_millis(250)).await;
        }
        self.report.lost = lost();
        for at in subscribers {
            let order = at.order.borrow();
            self.report.duplicated += order.duplicated;
            self.report.reordered += order.reordered;
        }
    }

    async fn idle(&mut self, subscribers: &[Rc<Subscriber>], before: f64) -> Result<()> {
        const EXERCISE_BYTES: usize = 16 * 1_024;
        let count = subscribers.len().max(1) as f64;
        self.report.idle_bytes = (self.settled_memory().await? - before) / count;
        let publisher =
            Publisher::connect(self.target.clone(), self.channels, self.tally.clone()).await?;
        publisher.warm_up(self.channels, EXERCISE_BYTES).await?;
        if self.target.kind == Kind::Carillon && self.options.transport == Transport::Ws {
            let pad = "x".repeat(EXERCISE_BYTES);
            let ping = format!("{{\"type\":\"ping\",\"payload\":\"{pad}\"}}");
            for subscriber in subscribers {
                subscriber.try_send(ping.as_bytes());
                tokio::task::yield_now().await;
            }
        }
        self.report.exercised_bytes = (self.settled_memory().await? - before) / count;
        Ok(())
    }

    /// Memory once allocators have given back what they will: two looks a second apart agree.
    async fn settled_memory(&self) -> Result<f64> {
        sleep(Duration::from_secs(2)).await;
        let mut last = self.memory()?;
        for _look in 0..15 {
            sleep(Duration::from_secs(1)).await;
            let now = self.memory()?;
            if (now - last).abs() <= last * 0.002 {
                return Ok(now);
            }
            last = now;
        }
        Ok(last)
    }

    /// Members talk in turn; the schedule is open loop over all rooms.
    async fn rooms(&mut self, subscribers: &[Rc<Subscriber>]) -> Result<()> {
        if self.target.kind != Kind::Carillon {
            bail!("rooms are members' own publishes: only for --target carillon");
        }
        let rate = self.options.rate.context("rooms need --rate")?;
        let publisher =
            Publisher::connect(self.target.clone(), self.channels, self.tally.clone()).await?;
        self.wait_until_all_listen(&publisher, subscribers.len()).await?;
        let end = Instant::now() + Duration::from_secs_f64(self.options.duration + 1.0);
        let sequences = std::cell::RefCell::new(vec![0_u32; self.channels as usize]);
        let published = Cell::new(0_u64);
        let (target, tally, size) = (self.target.clone(), self.tally.clone(), self.options.size);
        // One member speaks for each room, so that the order of a room is that member's.
        let speakers = &subscribers[..self.channels as usize];
        let talk = async {
            let start = Instant::now();
            while Instant::now() < end {
                let k = published.get();
                let due = start + Duration::from_secs_f64(k as f64 / rate);
                sleep_until(due).await;
                let at = (k % speakers.len() as u64) as usize;
                let channel = speakers[at].channel;
                let sequence = {
                    let mut all = sequences.borrow_mut();
                    all[channel as usize] += 1;
                    all[channel as usize]
                };
                let began = Instant::from_std(tally.began);
                let due_ns = due.saturating_duration_since(began).as_nanos() as u64;
                let payload = crate::mark::Mark { channel, sequence, due_ns }.payload(size);
                let name = target.channel(channel);
                speakers[at].try_send(
                    format!(
                        "{{\"type\":\"message\",\"channel\":\"{name}\",\"payload\":{payload}}}"
                    )
                    .as_bytes(),
                );
                published.set(k + 1);
            }
        };
        let ((), measured) = tokio::join!(talk, self.measure(end, || published.get()));
        measured?;
        self.report.published = published.get();
        let sequences = sequences.take();
        self.settle(subscribers, &sequences).await;
        Ok(())
    }
}
