//! What a run looks like second by second: for the plots of a report, and for who watches the terminal.
//!
//! Reads the tally and `/proc`; changes nothing of the run. The memory here is resident memory, which is cheap
//! to ask for; figures of memory in tables are proportional sets.

use crate::process;
use crate::tally::Tally;
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::rc::Rc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval};

const EVERY: Duration = Duration::from_secs(1);
/// An hour. Longer runs keep every second sample, then every fourth …
const SAMPLES_MAX: usize = 3_600;

/// One second of a run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Sample {
    /// Its end, seconds since the run began.
    pub(crate) at: f64,
    /// Connections opened so far.
    pub(crate) opened: u64,
    /// Deliveries a second.
    pub(crate) delivered: f64,
    /// Answered publishes a second.
    pub(crate) answered: f64,
    /// Latency of this second's deliveries, milliseconds.
    pub(crate) p50_ms: f64,
    /// See `p50_ms`.
    pub(crate) p99_ms: f64,
    /// The driver's CPU in percent of a core.
    pub(crate) driver_percent: f64,
    /// The server's processes and its Redis.
    pub(crate) processes: Vec<Usage>,
}

impl Sample {
    /// CPU of all server processes, percent of a core.
    pub(crate) fn server_percent(&self) -> f64 {
        self.processes.iter().map(|one| one.percent).sum()
    }

    fn line(&self) -> String {
        let Self { at, opened, delivered, answered, p50_ms, p99_ms, driver_percent, .. } = self;
        let mut line = format!("{at:6.0} s  {opened} open");
        if *delivered > 0.0 {
            line += &format!("  {delivered:.0} deliveries/s  p50 {p50_ms:.2} p99 {p99_ms:.2} ms");
        }
        if *answered > 0.0 {
            line += &format!("  {answered:.0} answers/s");
        }
        line + &format!("  server {:.0} %  driver {driver_percent:.0} %", self.server_percent())
    }
}

/// One process in one second.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Usage {
    /// Its id.
    pub(crate) pid: u32,
    /// Its short name.
    pub(crate) name: String,
    /// Its CPU in percent of a core.
    pub(crate) percent: f64,
    /// Its resident memory, bytes.
    pub(crate) resident_bytes: u64,
}

/// Looks once a second until it is finished or dropped; prints a line each time where a terminal reads.
pub(crate) struct Sampler {
    samples: Rc<RefCell<Vec<Sample>>>,
    task: JoinHandle<()>,
}

impl Sampler {
    /// Begins to look at the run of `tally` and at the processes `pids` with their children.
    pub(crate) fn start(pids: Vec<u32>, tally: Rc<Tally>) -> Self {
        let samples = Rc::new(RefCell::new(Vec::new()));
        let task = tokio::task::spawn_local(look(pids, tally, samples.clone()));
        Self { samples, task }
    }

    /// What was seen.
    pub(crate) fn finish(self) -> Vec<Sample> {
        self.samples.take()
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn look(pids: Vec<u32>, tally: Rc<Tally>, samples: Rc<RefCell<Vec<Sample>>>) {
    let shown = std::io::stderr().is_terminal();
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    let mut last = Counters::read(&pids, &tally);
    let mut keep = 1;
    for count in 1_usize.. {
        ticks.tick().await;
        let now = Counters::read(&pids, &tally);
        let sample = now.since(&last, &tally);
        last = now;
        if shown {
            eprintln!("{}", sample.line());
        }
        let mut samples = samples.borrow_mut();
        if count % keep == 0 {
            samples.push(sample);
        }
        if samples.len() >= SAMPLES_MAX {
            let mut index = 0;
            samples.retain(|_| {
                index += 1;
                index % 2 == 0
            });
            keep *= 2;
        }
    }
}

/// Counters that only grow, at one moment.
struct Counters {
    at: Instant,
    delivered: u64,
    answered: u64,
    driver_us: u64,
    cpu_us: BTreeMap<u32, u64>,
    pids: Vec<u32>,
}

impl Counters {
    fn read(pids: &[u32], tally: &Tally) -> Self {
        let pids = process::families(pids);
        Self {
            at: Instant::now(),
            delivered: tally.delivered.get(),
            answered: tally.answered.get(),
            driver_us: process::cpu_us(std::process::id()).unwrap_or_default(),
            cpu_us: pids
                .iter()
                .filter_map(|pid| Some((*pid, process::cpu_us(*pid).ok()?)))
                .collect(),
            pids,
        }
    }

    fn since(&self, last: &Self, tally: &Tally) -> Sample {
        let seconds = self.at.duration_since(last.at).as_secs_f64();
        let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
        let (p50_ms, p99_ms) = tally.end_second();
        let usage = |pid: &u32| {
            let now = *self.cpu_us.get(pid)?;
            // A process that was not there began within this second.
            let before = last.cpu_us.get(pid).copied().unwrap_or_default();
            Some(Usage {
                pid: *pid,
                name: process::name(*pid),
                percent: round(rate(now, before) / 1e4, 1),
                resident_bytes: process::resident_bytes(*pid).unwrap_or_default(),
            })
        };
        Sample {
            at: round(tally.began.elapsed().as_secs_f64(), 2),
            opened: tally.opened(),
            delivered: round(rate(self.delivered, last.delivered), 0),
            answered: round(rate(self.answered, last.answered), 0),
            p50_ms: round(p50_ms, 3),
            p99_ms: round(p99_ms, 3),
            driver_percent: round(rate(self.driver_us, last.driver_us) / 1e4, 1),
            processes: self.pids.iter().filter_map(usage).collect(),
        }
    }
}

/// Digits that mean nothing would make most of a file of results.
pub(crate) fn round(value: f64, digits: i32) -> f64 {
    let by = 10_f64.powi(digits);
    (value * by).round() / by
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mark::Mark;

    #[tokio::test]
    async fn second_shows_its_own_deliveries_and_the_whole_keeps_them_all() {
        tokio::task::LocalSet::new().run_until(watch()).await;
    }

    async fn watch() {
        let tally = Rc::new(Tally::new());
        let sampler = Sampler::start(vec![std::process::id()], tally.clone());
        let mark = Mark { channel: 0, sequence: 1, due_ns: 0 };
        while sampler.samples.borrow().len() < 2 {
            tally.deliver(&mark, 2_000_000);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let samples = sampler.finish();
        let [first, second] = &samples[..] else { panic!("two samples") };
        assert!(first.at < second.at && first.delivered > 0.0, "{samples:?}");
        assert!((first.p99_ms - 2.0).abs() < 0.01, "{samples:?}");
        assert_eq!(first.processes[0].pid, std::process::id());
        assert!(first.processes[0].resident_bytes > 0);
        assert!(first.line().contains("deliveries/s"), "{}", first.line());
        assert!((tally.latency_ms(1.0) - 2.0).abs() < 0.01);
        assert!(tally.latency_curve().iter().all(|(_, ms)| (ms - 2.0).abs() < 0.01));
    }
}
