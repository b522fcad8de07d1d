//! What the scenarios share: connecting, seeing that everybody listens, measuring, counting what was lost.

use super::{Options, Scenario};
use crate::process;
use crate::publisher::{Pace, Publishers, Work};
use crate::redis;
use crate::report::Report;
use crate::sample::{Sampler, round};
use crate::subscriber::{Ears, Opening, Subscriber};
use crate::tally::Tally;
use crate::target::{Caller, PublishBy, Target, Transport, locate};
use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, sleep_until};

/// Publishers where every channel can have its own.
const PUBLISHERS: usize = 8;

/// A client to be connected.
pub(super) struct Client {
    pub(super) channels: Range<u32>,
    pub(super) ears: Ears,
    pub(super) opening: Opening,
}

impl Client {
    /// One that hears what is published on `channels`.
    pub(super) fn on(channels: Range<u32>, opening: Opening) -> Self {
        Self { ears: Ears::new(channels.clone()), channels, opening }
    }
}

/// One run: whom it speaks to and what it counted.
pub(super) struct Run<'a> {
    pub(super) options: &'a Options,
    /// A target for each node.
    pub(super) targets: Vec<Rc<Target>>,
    pub(super) channels: u32,
    pids: Vec<u32>,
    pub(super) tally: Rc<Tally>,
    pub(super) report: Report,
}

impl<'a> Run<'a> {
    /// Nothing is connected yet.
    pub(super) fn new(options: &'a Options) -> Result<Self> {
        let recipients = options.recipients.max(1);
        let (connections, channels) = match options.scenario {
            Scenario::Publish => (0, options.channels.max(1)),
            Scenario::Fanout => (options.connections, 1),
            // Whole groups: everybody is some notification's recipient.
            Scenario::Notifications => {
                let groups = (options.connections / recipients).max(1);
                (groups * recipients, groups as u32)
            }
            _ => (options.connections, options.channels.max(1)),
        };
        let name = |value: Option<clap::builder::PossibleValue>| {
            value.map(|value| value.get_name().to_owned()).unwrap_or_default()
        };
        let report = Report {
            scenario: name(options.scenario.to_possible_value()),
            target: name(options.target.to_possible_value()),
            transport: name(options.transport.to_possible_value()),
            connections,
            channels,
            nodes: options.url.len(),
            ..Report::default()
        };
        let pids = options.server_pid.iter().copied().chain(options.redis_pid).collect();
        let targets = targets(options, &options.url, options.publish_by)?;
        // A way of listening that the target has not is an error of the command, not of each connection.
        let caller = Caller { target: &targets[0], index: 0, channel: Some("") };
        match options.transport {
            Transport::Poll => targets[0].poll(caller).map(|_| ())?,
            other => targets[0].open(other, caller).map(|_| ())?,
        }
        Ok(Self { options, targets, channels, pids, tally: Rc::new(Tally::new()), report })
    }

    /// Begins to look at the run second by second.
    pub(super) fn sampler(&self) -> Sampler {
        Sampler::start(self.pids.clone(), self.tally.clone())
    }

    /// The figures.
    pub(super) fn finish(mut self) -> Result<Report> {
        self.report.server_bytes = self.memory()?;
        let (report, tally) = (&mut self.report, &self.tally);
        if let Some(redis) = self.options.redis {
            report.redis_bytes = redis::used_bytes(redis)? as f64;
        }
        report.closed = tally.closed.get();
        report.refused = tally.refused.get();
        report.retries.clone_from(&tally.retries.borrow());
        report.retried = report.retries.values().sum();
        report.dial_max_ms = tally.dial_max.get().as_secs_f64() * 1e3;
        report.connect_p50_ms = tally.connect_ms(0.5);
        report.connect_p99_ms = tally.connect_ms(0.99);
        report.connect_max_ms = tally.connect_ms(1.0);
        report.acked = tally.acked.get();
        report.compressed = tally.compressed.get();
        report.inflated = tally.inflated.get();
        report.polls = tally.polls.get();
        report.resyncs = tally.resyncs.get();
        Ok(self.report)
    }

    /// Memory of all server processes.
    pub(super) fn memory(&self) -> Result<f64> {
        self.options.server_pid.iter().map(|pid| Ok(process::pss_bytes(*pid)? as f64)).sum()
    }

    /// Opens all connections, on the channels in turn.
    pub(super) async fn connect(&mut self) -> Result<Vec<Rc<Subscriber>>> {
        let opening = self.opening(self.options.scenario == Scenario::Notifications);
        let channels = self.channels;
        let each = self.options.channels_each.clamp(1, channels);
        let client = |index: usize| {
            // The users of a notification are neighbours, and so are the channels of one connection; the members of a
            // channel are spread.
            let index = index as u32;
            let first = if opening.bare {
                index / self.options.recipients.max(1) as u32
            } else if each > 1 {
                (index * each).min(channels - each)
            } else {
                index % channels
            };
            Client::on(first..first + each, opening)
        };
        let clients = (0..self.report.connections).map(client).collect();
        self.open(clients).await
    }

    /// How this run's connections are opened, with a channel or without.
    pub(super) fn opening(&self, bare: bool) -> Opening {
        Opening { transport: self.options.transport, deflate: self.options.deflate, bare }
    }

    /// The node that connection `index` goes to: the members of a channel go to all nodes.
    pub(super) fn target(&self, index: usize) -> &Rc<Target> {
        &self.targets[index / self.channels as usize % self.targets.len()]
    }

    /// Opens a connection for each, at `--arrivals` or as fast as they come.
    pub(super) async fn open(&mut self, clients: Vec<Client>) -> Result<Vec<Rc<Subscriber>>> {
        let (before, own) = (self.cpu_us()?, process::cpu_us(std::process::id())?);
        let began = Instant::now();
        let count = clients.len();
        // A task each, not one future over all: what such a future may do in one turn is bounded, and thousands under it
        // wake each other for nothing while nodes wait for their requests.
        let places = Arc::new(Semaphore::new(self.options.handshakes));
        let mut connecting = Vec::with_capacity(count);
        for (index, client) in clients.into_iter().enumerate() {
            let due = self.options.arrivals.map(|rate| index as f64 / rate);
            let due = due.map(|after| began + Duration::from_secs_f64(after));
            if let Some(due) = due {
                sleep_until(due).await;
            }
            let place = Arc::clone(&places).acquire_owned().await;
            let due = due.unwrap_or_else(Instant::now).into_std();
            let subscriber = Subscriber::new(index, client.channels, client.ears, &self.tally);
            let target = Rc::clone(self.target(index));
            connecting.push(tokio::task::spawn_local(async move {
                let _place = place;
                subscriber.connect(&target, client.opening, due).await?;
                Ok(subscriber)
            }));
        }
        let opened: Vec<Result<Rc<Subscriber>>> = futures_util::future::join_all(connecting)
            .await
            .into_iter()
            .map(|joined| joined.context("a connecting task")?)
            .collect();
        let seconds = began.elapsed().as_secs_f64();
        self.report.connects_per_second = count as f64 / seconds;
        let cpu = self.cpu_us()? - before;
        self.report.connect_cpu_us = cpu as f64 / count.max(1) as f64;
        self.report.server_percent = percent(cpu, seconds);
        self.report.driver_percent = percent(process::cpu_us(std::process::id())? - own, seconds);
        opened.into_iter().collect()
    }

    /// CPU of all server processes so far, Redis included, microseconds.
    pub(super) fn cpu_us(&self) -> Result<u64> {
        process::cpu_us_of_all(&self.pids)
    }

    /// Those who publish, connected.
    pub(super) async fn publishers(&self) -> Result<Publishers> {
        let options = self.options;
        let urls = match options.publish_url.as_slice() {
            [] => &options.url,
            _ => &options.publish_url,
        };
        let count = options.publishers.unwrap_or(PUBLISHERS);
        let ways: &[PublishBy] = match options.scenario {
            Scenario::Notifications => &[PublishBy::Notifications],
            Scenario::Mixed => &[PublishBy::Rest, PublishBy::Websocket],
            _ => &[options.publish_by],
        };
        let mut all = Vec::new();
        for way in ways {
            all.extend(targets(options, urls, *way)?);
        }
        Publishers::connect(&all, count, self.channels, &self.tally).await
    }

    /// What they publish, for channels of `members` each.
    pub(super) fn work(&self, members: u64) -> Work {
        let options = self.options;
        let pace = match options.rate {
            Some(rate) => Pace::Rate(rate),
            None if options.scenario == Scenario::Publish => Pace::Unanswered(options.window),
            None => Pace::Window(options.window),
        };
        let (size, filling, batch) = (options.size, options.filling, options.batch);
        Work { members, size, filling, batch, pace }
    }

    /// When a run that begins now is over: a second for the beginning, then what is measured.
    pub(super) fn end(&self) -> Instant {
        Instant::now() + Duration::from_secs_f64(self.options.duration + 1.0)
    }

    /// Warm-up messages until each connection has heard one: then all are subscribed.
    pub(super) async fn wait_until_all_listen(
        &self,
        publishers: &Publishers,
        work: &Work,
        count: usize,
    ) -> Result<()> {
        for _attempt in 0..100 {
            publishers.warm_up(work).await?;
            let until = Instant::now() + Duration::from_millis(500);
            // With many channels a round takes longer; the next one must not pile up behind it.
            while Instant::now() < until || publishers.owed() > 0 {
                if self.tally.ready.get() >= count as u64 && self.tally.refused.get() == 0 {
                    return self.wait_until_quiet().await;
                }
                sleep(Duration::from_millis(20)).await;
            }
            if self.tally.refused.get() > 0 {
                bail!("{} warm-up publishes were refused", self.tally.refused.get());
            }
        }
        bail!("only {} of {count} connections hear their channel", self.tally.ready.get())
    }

    /// What connecting and the warm-up left to do would count as the measured work's.
    async fn wait_until_quiet(&self) -> Result<()> {
        const LOOK_EVERY: Duration = Duration::from_millis(300);
        const LOOKS_MAX: usize = 50;
        let mut before = self.cpu_us()?;
        for _look in 0..LOOKS_MAX {
            sleep(LOOK_EVERY).await;
            let now = self.cpu_us()?;
            // A tenth of a core.
            if u128::from(now - before) < LOOK_EVERY.as_micros() / 10 {
                break;
            }
            before = now;
        }
        Ok(())
    }

    /// Skips the first second, then measures until `end`.
    pub(super) async fn measure(
        &mut self,
        end: Instant,
        published: impl Fn() -> u64,
    ) -> Result<()> {
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
        let measured_from = round(self.tally.began.elapsed().as_secs_f64(), 2);
        let (from, count, bytes) = (Instant::now(), done(), self.tally.bytes.get());
        let (cpu, own, all) = (self.cpu_us()?, process::cpu_us(me)?, process::machine_us()?);
        let last = self.options.redis_pid.map_or(Ok(0), process::cpu_us)?;
        sleep_until(end).await;
        let seconds = from.elapsed().as_secs_f64();
        let delivered = done() - count;
        let each = |us: u64| us as f64 / delivered.max(1) as f64;
        let (cpu, own) = (self.cpu_us()? - cpu, process::cpu_us(me)? - own);
        let others = (process::machine_us()? - all).saturating_sub(cpu + own);
        let report = Report {
            seconds,
            delivered,
            per_second: delivered as f64 / seconds,
            server_cpu_us: each(cpu),
            redis_cpu_us: each(self.options.redis_pid.map_or(Ok(0), process::cpu_us)? - last),
            client_cpu_us: each(own),
            server_percent: percent(cpu, seconds),
            driver_percent: percent(own, seconds),
            others_percent: percent(others, seconds),
            measured_from,
            wire_bytes: each(self.tally.bytes.get() - bytes),
            ..self.report.clone()
        };
        self.report = report;
        self.note_latency();
        Ok(())
    }

    /// Latencies so far, into the report.
    pub(super) fn note_latency(&mut self) {
        let (report, tally) = (&mut self.report, &self.tally);
        report.p50_ms = tally.latency_ms(0.5);
        report.p99_ms = tally.latency_ms(0.99);
        report.p999_ms = tally.latency_ms(0.999);
        report.max_ms = tally.latency_ms(1.0);
        report.latency = tally.latency_curve();
        report.answer_p50_ms = tally.answer_ms(0.5);
        report.answer_p99_ms = tally.answer_ms(0.99);
    }

    /// Waits until nothing more comes, then counts.
    pub(super) async fn settle(&mut self, subscribers: &[Rc<Subscriber>], sequences: &[u32]) {
        let lost = || subscribers.iter().map(|at| at.ears.borrow().lost(sequences)).sum::<u64>();
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
            let (doubled, late) = at.ears.borrow().doubled_and_late();
            self.report.duplicated += doubled;
            self.report.reordered += late;
        }
    }

    /// Memory once allocators have given back what they will: two looks a second apart agree.
    pub(super) async fn settled_memory(&self) -> Result<f64> {
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
}

/// Of a core.
fn percent(us: u64, seconds: f64) -> f64 {
    round(us as f64 / seconds / 1e4, 1)
}

fn targets(options: &Options, urls: &[String], publish_by: PublishBy) -> Result<Vec<Rc<Target>>> {
    let target = |url: &String| {
        let (host, address) = locate(url)?;
        Ok(Rc::new(Target {
            kind: options.target,
            address,
            host,
            jwt_secret: options.jwt_secret.clone(),
            user: options.user.clone(),
            api_key: options.api_key.clone(),
            publish_by,
            recipients: options.recipients.max(1),
            plain: options.plain.clone(),
        }))
    };
    urls.iter().map(target).collect()
}
