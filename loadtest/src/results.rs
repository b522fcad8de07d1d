//! A file of results: what `bench --json` writes, what `run --json` prints, read for `report` and `compare`.
//!
//! Owns the arithmetic over repetitions: medians, spreads, and which figures of a run are compared at all.

use crate::report::Report;
use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::Path;
use std::process::Command;

/// All that one bench (or a few runs) found.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Results {
    /// Where and when.
    #[serde(default)]
    pub(crate) about: About,
    /// Each row on each server.
    pub(crate) outcomes: Vec<Outcome>,
}

/// Where and when something was measured.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct About {
    /// UTC.
    pub(crate) date: String,
    /// Processor, cores, memory, kernel.
    pub(crate) machine: String,
    /// Load average when it began: what else ran.
    pub(crate) load: String,
    /// What was asked for.
    pub(crate) method: String,
    /// One line for each server that is not ours: version, history, or why it was left out.
    #[serde(default)]
    pub(crate) servers: Vec<String>,
}

impl About {
    /// This machine, now.
    pub(crate) fn here(method: String) -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            line.split_once(':').map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
        };
        let processors = read("/proc/cpuinfo");
        let cores = processors.lines().filter(|line| line.starts_with("processor")).count();
        let date = Command::new("date").args(["-u", "+%Y-%m-%d %H:%M UTC"]).output();
        Self {
            date: date.map_or_else(
                |_| String::new(),
                |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
            ),
            machine: format!(
                "{} × {cores}, {} memory, Linux {}",
                field(&processors, "model name"),
                field(&read("/proc/meminfo"), "MemTotal"),
                read("/proc/sys/kernel/osrelease").trim()
            ),
            load: read("/proc/loadavg").split(' ').take(3).collect::<Vec<_>>().join(" "),
            method,
            servers: Vec::new(),
        }
    }
}

/// One row on one server, each repetition.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// The row's name.
    pub(crate) row: String,
    /// The server's.
    pub(crate) server: String,
    /// In the order in which they ran.
    pub(crate) runs: Vec<Report>,
}

impl Outcome {
    /// The run whose figure is the median: what plots show.
    pub(crate) fn typical(&self, figure: fn(&Report) -> f64) -> Option<&Report> {
        let mut runs: Vec<&Report> = self.runs.iter().collect();
        runs.sort_by(|one, other| figure(one).total_cmp(&figure(other)));
        runs.get(runs.len() / 2).copied()
    }

    /// Messages lost, doubled, out of order, and connections cut, over all repetitions.
    pub(crate) fn flaws(&self) -> u64 {
        self.runs.iter().map(|run| run.lost + run.duplicated + run.reordered + run.closed).sum()
    }
}

/// Reads a bench's file, a run's, or several runs one after the other.
pub(crate) fn read(path: &Path) -> Result<Results> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    parse(&text).with_context(|| path.display().to_string())
}

fn parse(text: &str) -> Result<Results> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Saved {
        Results(Results),
        Outcomes(Vec<Outcome>),
        Run(Box<Report>),
    }
    let mut results = Results::default();
    for saved in serde_json::Deserializer::from_str(text).into_iter::<Saved>() {
        match saved.context("neither results of a bench nor of runs")? {
            Saved::Results(one) => {
                results.about = one.about;
                results.outcomes.extend(one.outcomes);
            }
            Saved::Outcomes(some) => results.outcomes.extend(some),
            Saved::Run(run) => results.add(*run),
        }
    }
    if results.outcomes.is_empty() {
        bail!("no results");
    }
    Ok(results)
}

impl Results {
    /// Runs of the same work on the same kind of server are repetitions.
    fn add(&mut self, run: Report) {
        let row = format!(
            "{} ({}): {} channels, {} connections",
            run.scenario, run.transport, run.channels, run.connections
        );
        let same = |one: &&mut Outcome| one.row == row && one.server == run.target;
        match self.outcomes.iter_mut().find(same) {
            Some(outcome) => outcome.runs.push(run),
            None => {
                let server = run.target.clone();
                self.outcomes.push(Outcome { row, server, runs: vec![run] });
            }
        }
    }

    /// Names of the rows, or of the servers, in the order in which they first occur.
    pub(crate) fn names(&self, of: fn(&Outcome) -> &str) -> Vec<&str> {
        let mut names = Vec::new();
        for outcome in &self.outcomes {
            if !names.contains(&of(outcome)) {
                names.push(of(outcome));
            }
        }
        names
    }

    /// The most that others used of a core while something was measured, percent.
    pub(crate) fn others_percent(&self) -> f64 {
        self.outcomes
            .iter()
            .flat_map(|one| &one.runs)
            .map(|run| run.others_percent)
            .fold(0.0, f64::max)
    }

    /// A row on a server.
    pub(crate) fn find(&self, row: &str, server: &str) -> Option<&Outcome> {
        self.outcomes.iter().find(|one| one.row == row && one.server == server)
    }
}

/// Parts of names, as given to choose rows or figures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Names(Vec<String>);

impl Names {
    /// Whether one of them is in `name`.
    pub(crate) fn in_part(&self, name: &str) -> bool {
        self.0.iter().any(|part| name.contains(part.as_str()))
    }
}

/// Parts of names between commas; a comma between two digits is a number's.
pub(crate) fn names(text: &str) -> Result<Names> {
    let bytes = text.as_bytes();
    let digit = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_digit);
    let divides = |at: &usize| bytes[*at] == b',' && !(*at > 0 && digit(at - 1) && digit(at + 1));
    let mut parts = Vec::new();
    let mut from = 0;
    for at in (0..bytes.len()).filter(divides).chain([bytes.len()]) {
        parts.push(text[from..at].to_owned());
        from = at + 1;
    }
    parts.retain(|part| !part.is_empty());
    Ok(Names(parts))
}

/// A figure of a run that is worth comparing.
#[derive(Debug)]
pub(crate) struct Figure {
    /// Its name with its unit.
    pub(crate) name: &'static str,
    /// Where it stands.
    pub(crate) of: fn(&Report) -> f64,
    /// Digits after the point.
    pub(crate) digits: usize,
    /// Whether more is better.
    pub(crate) more: bool,
}

const fn less(name: &'static str, digits: usize, of: fn(&Report) -> f64) -> Figure {
    Figure { name, of, digits, more: false }
}

const fn more(name: &'static str, digits: usize, of: fn(&Report) -> f64) -> Figure {
    Figure { name, of, digits, more: true }
}

const CPU: Figure = less("CPU µs each", 2, |run| run.server_cpu_us);
const DELIVERIES: &[Figure] = &[
    CPU,
    more("each second", 0, |run| run.per_second),
    less("p50 ms", 2, |run| run.p50_ms),
    less("p99 ms", 2, |run| run.p99_ms),
];
const IDLE: &[Figure] = &[
    less("bytes a connection", 0, |run| run.idle_bytes),
    less("after 16 KB", 0, |run| run.exercised_bytes),
];
const CONNECTS: &[Figure] = &[
    less("CPU µs a connect", 0, |run| run.connect_cpu_us),
    more("connects a second", 0, |run| run.connects_per_second),
    less("p99 ms of a connect", 1, |run| run.connect_p99_ms),
];
const PUBLISHES: &[Figure] = &[
    CPU,
    less("of it Redis, µs", 2, |run| run.redis_cpu_us),
    more("each second", 0, |run| run.per_second),
];
const REST: &[Figure] = &[
    less("% of a core at rest", 2, |run| run.rest_core_percent),
    less("Redis commands a second", 1, |run| run.redis_commands_per_second),
];
const BACK: &[Figure] = &[
    less("CPU µs a reconnect", 1, |run| run.back_cpu_us),
    less("p99 ms until back", 0, |run| run.back_p99_ms),
    less("ms until all are back", 0, |run| run.back_max_ms),
];

/// What is compared of a scenario, the main figure first.
pub(crate) fn figures(scenario: &str) -> &'static [Figure] {
    match scenario {
        "idle" => IDLE,
        "connect" => CONNECTS,
        "publish" => PUBLISHES,
        "presence" => REST,
        "reconnect" => BACK,
        _ => DELIVERIES,
    }
}

/// The middle one of the figures; of an even number the upper one.
pub(crate) fn median(runs: &[Report], figure: impl Fn(&Report) -> f64) -> f64 {
    let mut values: Vec<f64> = runs.iter().map(figure).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// The least and the most of the figures.
pub(crate) fn range(runs: &[Report], figure: impl Fn(&Report) -> f64) -> (f64, f64) {
    runs.iter()
        .map(figure)
        .fold((f64::MAX, f64::MIN), |(least, most), one| (least.min(one), most.max(one)))
}

/// Half the distance between the extremes, in percent of the median.
pub(crate) fn spread(runs: &[Report], figure: impl Fn(&Report) -> f64) -> f64 {
    let (least, most) = range(runs, &figure);
    50.0 * (most - least) / median(runs, figure).max(f64::MIN_POSITIVE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(target: &str, cpu: f64) -> Report {
        Report {
            scenario: "fanout".to_owned(),
            target: target.to_owned(),
            server_cpu_us: cpu,
            ..Report::default()
        }
    }

    #[test]
    fn file_of_a_bench_and_lines_of_runs_are_both_read() {
        let line = |target, cpu| serde_json::to_string(&run(target, cpu)).expect("JSON");
        let text = format!("{}\n{}\n{}\n", line("a", 1.0), line("b", 2.0), line("a", 3.0));
        let results = parse(&text).expect("runs");
        assert_eq!(results.names(|one| &one.server), ["a", "b"]);
        assert_eq!(results.outcomes[0].runs.len(), 2, "repetitions are kept together");
        let whole = serde_json::to_string(&results).expect("JSON");
        assert_eq!(parse(&whole).expect("a bench").outcomes.len(), 2);
        let bare = serde_json::to_string(&results.outcomes).expect("JSON");
        assert_eq!(parse(&bare).expect("an older bench").outcomes.len(), 2);
        assert!(parse("[]").is_err() && parse("{\"a\":1}").is_err() && parse("").is_err());
    }

    #[test]
    fn comma_within_a_number_divides_no_names() {
        let all = |text: &str| names(text).expect("names").0;
        assert_eq!(all("SSE,1,000 × 9,idle"), ["SSE", "1,000 × 9", "idle"]);
        assert_eq!(all("20,000/s"), ["20,000/s"]);
        assert!(names("1,000 × 9").expect("names").in_part("1,000 × 9 saturated"));
        assert!(!names("1,000 × 9").expect("names").in_part("1 × 1,000 saturated"));
    }

    #[test]
    fn median_range_and_spread_of_three_runs() {
        let runs = [run("a", 4.0), run("a", 9.0), run("a", 3.0)];
        let cpu = |run: &Report| run.server_cpu_us;
        assert_eq!((median(&runs, cpu), range(&runs, cpu)), (4.0, (3.0, 9.0)));
        assert!((spread(&runs, cpu) - 75.0).abs() < 1e-9);
    }

    #[test]
    fn typical_run_is_the_one_with_the_median_figure() {
        let runs = vec![run("a", 4.0), run("b", 9.0), run("c", 3.0)];
        let outcome = Outcome { row: String::new(), server: String::new(), runs };
        assert_eq!(outcome.typical(|run| run.server_cpu_us).expect("one").target, "a");
    }
}
