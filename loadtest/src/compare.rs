//! `loadtest compare BEFORE AFTER`: what changed between two files of results, and whether that is more than noise.

use crate::results::{self, Figure, Names, Outcome, Results, figures, median, range};
use anyhow::{Context as _, Result, bail};
use clap::Args;
use std::io::Write as _;
use std::path::PathBuf;

/// `loadtest compare`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// Results of `bench --json` or of `run --json`
    before: PathBuf,
    /// The same of later
    after: PathBuf,
    /// Fail (exit code 1) where a figure got worse by more than this, beyond its spread; where a row lost its
    /// server; where messages are lost, doubled, out of order or connections cut that were not before
    #[arg(long, value_name = "PERCENT")]
    fail_above: Option<f64>,
    /// Rows whose name contains one of these
    #[arg(long, value_parser = results::names)]
    only: Option<Names>,
    /// Figures whose name contains one of these, such as `CPU,p99`
    #[arg(long, value_parser = results::names)]
    figures: Option<Names>,
}

/// Prints the comparison; returns whether nothing failed.
pub(crate) fn compare(options: &Options) -> Result<bool> {
    let (before, after) = (results::read(&options.before)?, results::read(&options.after)?);
    let wanted =
        |names: &Option<Names>, name: &str| names.as_ref().is_none_or(|names| names.in_part(name));
    let lines: Vec<Line> = changes(&before, &after)
        .into_iter()
        .filter(|line| wanted(&options.only, &line.row))
        .filter(|line| line.figure.is_none_or(|figure| wanted(&options.figures, figure.name)))
        .collect();
    if lines.is_empty() {
        bail!("the two have no row and server in common");
    }
    let mut text = String::from(
        "| work | server | figure | before | after | ratio | |\n|---|---|---|---|---|---|---|\n",
    );
    let mut failed = 0;
    for line in &lines {
        let fails = options.fail_above.is_some_and(|percent| line.change.fails(percent));
        failed += usize::from(fails);
        text += &line.markdown(fails);
        text.push('\n');
    }
    std::io::stdout().write_all(text.as_bytes()).context("standard output")?;
    if failed > 0 {
        eprintln!("{failed} of {} figures fail", lines.len());
    }
    Ok(failed == 0)
}

/// One figure of one row on one server.
struct Line {
    row: String,
    server: String,
    figure: Option<&'static Figure>,
    change: Change,
}

/// What became of a figure.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Change {
    /// Both have it.
    Figure { before: f64, after: f64, worse_percent: f64, noise: Noise },
    /// Lost, doubled or reordered messages and cut connections.
    Flaws { before: u64, after: u64 },
    /// The later file has no such row and server.
    Gone,
    /// The earlier one has not.
    New,
}

/// Whether a change is more than the repetitions differ among themselves.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Noise {
    /// The two ranges overlap.
    Within,
    /// Every run of one is beyond every run of the other.
    Beyond,
    /// One has but a single run.
    Unknown,
}

impl Change {
    fn of(figure: &Figure, before: &Outcome, after: &Outcome) -> Self {
        let (old, new) = (median(&before.runs, figure.of), median(&after.runs, figure.of));
        let noise = if before.runs.len().min(after.runs.len()) < 2 {
            Noise::Unknown
        } else {
            let (old, new) = (range(&before.runs, figure.of), range(&after.runs, figure.of));
            if new.0 > old.1 || new.1 < old.0 { Noise::Beyond } else { Noise::Within }
        };
        let (worse, better) = if figure.more { (old, new) } else { (new, old) };
        let worse_percent = if worse == better { 0.0 } else { 100.0 * (worse / better - 1.0) };
        Self::Figure { before: old, after: new, worse_percent, noise }
    }

    fn fails(self, percent: f64) -> bool {
        match self {
            Self::Figure { worse_percent, noise, .. } => {
                worse_percent > percent && noise != Noise::Within
            }
            Self::Flaws { before, after } => before == 0 && after > 0,
            Self::Gone => true,
            Self::New => false,
        }
    }

    fn verdict(self) -> &'static str {
        match self {
            Self::Figure { worse_percent: 0.0, .. } => "the same",
            Self::Figure { noise: Noise::Within, .. } => "within the spread",
            Self::Figure { worse_percent, noise: Noise::Beyond, .. } if worse_percent > 0.0 => {
                "**worse**"
            }
            Self::Figure { noise: Noise::Beyond, .. } => "**better**",
            Self::Figure { worse_percent, .. } if worse_percent > 0.0 => {
                "worse, spread unknown (one run)"
            }
            Self::Figure { .. } => "better, spread unknown (one run)",
            Self::Flaws { before: 0, .. } => "**flaws**",
            Self::Flaws { .. } => "flaws in both",
            Self::Gone => "**no longer there**",
            Self::New => "new",
        }
    }
}

impl Line {
    fn markdown(&self, fails: bool) -> String {
        let Self { row, server, figure, change } = self;
        let (name, before, after, ratio) = match *change {
            Change::Figure { before, after, .. } => {
                let digits = figure.map_or(0, |figure| figure.digits);
                (
                    figure.map_or("", |figure| figure.name),
                    format!("{before:.digits$}"),
                    format!("{after:.digits$}"),
                    if before == 0.0 { String::new() } else { format!("{:.2}", after / before) },
                )
            }
            Change::Flaws { before, after } => (
                "lost, doubled, out of order, cut",
                before.to_string(),
                after.to_string(),
                String::new(),
            ),
            Change::Gone | Change::New => ("", String::new(), String::new(), String::new()),
        };
        let mark = if fails { " ✗" } else { "" };
        let verdict = change.verdict();
        format!("| {row} | {server} | {name} | {before} | {after} | {ratio} | {verdict}{mark} |")
    }
}

fn changes(before: &Results, after: &Results) -> Vec<Line> {
    let mut lines = Vec::new();
    for old in &before.outcomes {
        let mut push = |figure, change| {
            let (row, server) = (old.row.clone(), old.server.clone());
            lines.push(Line { row, server, figure, change });
        };
        let Some(new) = after.find(&old.row, &old.server) else {
            push(None, Change::Gone);
            continue;
        };
        let scenario = old.runs.first().map_or("", |run| run.scenario.as_str());
        for figure in figures(scenario) {
            let change = Change::of(figure, old, new);
            // A figure that neither has is none of this scenario's.
            if !matches!(change, Change::Figure { before: 0.0, after: 0.0, .. }) {
                push(Some(figure), change);
            }
        }
        let (before, after) = (old.flaws(), new.flaws());
        if before + after > 0 {
            push(None, Change::Flaws { before, after });
        }
    }
    for new in &after.outcomes {
        if before.find(&new.row, &new.server).is_none() {
            let (row, server) = (new.row.clone(), new.server.clone());
            lines.push(Line { row, server, figure: None, change: Change::New });
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Report;

    fn outcome(server: &str, cpus: &[f64], rates: &[f64]) -> Outcome {
        let run = |(cpu, rate): (&f64, &f64)| Report {
            scenario: "fanout".to_owned(),
            server_cpu_us: *cpu,
            per_second: *rate,
            ..Report::default()
        };
        Outcome {
            row: "1 × 1,000".to_owned(),
            server: server.to_owned(),
            runs: cpus.iter().zip(rates).map(run).collect(),
        }
    }

    fn results(outcomes: &[Outcome]) -> Results {
        Results { outcomes: outcomes.to_vec(), ..Results::default() }
    }

    #[test]
    fn change_beyond_the_spread_fails_and_one_within_does_not() {
        let before = results(&[outcome("a", &[4.0, 5.0, 4.5], &[100.0, 110.0, 105.0])]);
        let after = results(&[outcome("a", &[6.0, 5.4, 7.0], &[90.0, 101.0, 95.0])]);
        let lines = changes(&before, &after);
        assert_eq!(lines.len(), 2, "figures that nobody has are left out");
        let Change::Figure { before, after, worse_percent, noise } = lines[0].change else {
            panic!("a figure")
        };
        assert_eq!((before, after, noise), (4.5, 6.0, Noise::Beyond));
        assert!((worse_percent - 100.0 / 3.0).abs() < 1e-9, "{worse_percent}");
        assert!(lines[0].change.fails(33.0) && !lines[0].change.fails(34.0));
        assert!(lines[0].markdown(true).contains("| 4.50 | 6.00 | 1.33 | **worse** ✗ |"));
        // Fewer a second is worse: 105 / 95, but 101 reaches into what was before.
        let Change::Figure { worse_percent, noise, .. } = lines[1].change else { panic!() };
        assert!((worse_percent - 100.0 * 10.0 / 95.0).abs() < 1e-9, "{worse_percent}");
        assert_eq!(noise, Noise::Within);
        assert!(!lines[1].change.fails(5.0));
    }

    #[test]
    fn better_never_fails_and_a_single_run_fails_by_its_ratio_alone() {
        let before = results(&[outcome("a", &[4.0], &[100.0])]);
        let after = results(&[outcome("a", &[5.0], &[200.0])]);
        let lines = changes(&before, &after);
        assert!(lines[0].change.fails(20.0) && !lines[0].change.fails(30.0));
        assert!(lines[0].change.verdict().contains("one run"));
        assert!(!lines[1].change.fails(0.0), "twice as many a second");
    }

    #[test]
    fn lost_row_and_lost_messages_fail_at_any_percentage() {
        let mut flawed = outcome("a", &[4.0], &[100.0]);
        flawed.runs[0].lost = 3;
        let before = results(&[outcome("a", &[4.0], &[100.0]), outcome("b", &[1.0], &[1.0])]);
        let after = results(&[flawed, outcome("c", &[1.0], &[1.0])]);
        let lines = changes(&before, &after);
        let of = |change: Change| lines.iter().find(|line| line.change == change).expect("a line");
        assert!(of(Change::Flaws { before: 0, after: 3 }).change.fails(1e9));
        assert_eq!(of(Change::Gone).server, "b");
        assert!(Change::Gone.fails(1e9) && !of(Change::New).change.fails(0.0));
        assert!(!Change::Flaws { before: 2, after: 3 }.fails(0.0), "known before");
    }
}
