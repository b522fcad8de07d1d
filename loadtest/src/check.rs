//! `loadtest check`: a cluster of real processes, clients that come back, a nemesis, and a verdict.
//!
//! One command, one seed: `loadtest check --carillon target/release/carillon --seed 7`. What is
//! random is the seed's; how the machine schedules it is not.

mod balancer;
mod client;
mod cluster;
mod http;
mod judge;
mod lane;
mod log;
mod nemesis;
mod proxy;
mod publisher;
mod report;
mod scenarios;
mod shared;
mod storm;
mod trial;

use anyhow::Result;
use clap::{Args, ValueEnum as _};
use nemesis::Kind;
use report::Report;
use scenarios::Scenario;
use std::path::PathBuf;

/// `loadtest check`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// The gateway's binary.
    #[arg(long)]
    pub(crate) carillon: PathBuf,
    #[arg(long, value_enum, default_value = "random")]
    pub(crate) scenario: Scenario,
    /// Decides faults, times and clients; chosen and printed where not given.
    #[arg(long, default_value_t = rand::random::<u64>() % 1_000_000)]
    pub(crate) seed: u64,
    /// How long the random nemesis goes on, seconds.
    #[arg(long, default_value_t = 60)]
    pub(crate) seconds: u64,
    /// Clients; where not given, the scenario's own number.
    #[arg(long)]
    pub(crate) clients: Option<usize>,
    /// The random nemesis' messages a second from backends, over all channels; each channel has sixty listeners.
    #[arg(long)]
    pub(crate) rate: Option<f64>,
    /// The random nemesis' long polls among a hundred clients.
    #[arg(long)]
    pub(crate) polls_percent: Option<usize>,
    /// Nodes; three where not given.
    #[arg(long)]
    pub(crate) nodes: Option<usize>,
    /// The random nemesis' faults; where not given, all.
    #[arg(long, value_enum, value_delimiter = ',')]
    pub(crate) only: Vec<Kind>,
    /// Print JSON only.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Runs the check; whether everything held.
///
/// # Errors
/// What could not even be tried.
pub(crate) fn check(options: &Options) -> Result<bool> {
    let all = || {
        Scenario::value_variants()
            .iter()
            .filter(|one| !matches!(one, Scenario::All | Scenario::Storm))
    };
    let scenarios: Vec<Scenario> = match options.scenario {
        Scenario::All => all().copied().collect(),
        one => vec![one],
    };
    let (mut passed, mut failed) = (0, 0);
    for scenario in scenarios {
        if !options.json {
            eprintln!("{}: --seed {}", scenario.name(), options.seed);
        }
        let report = run(scenario, options)?;
        if options.json {
            println!("{}", serde_json::to_string(&report)?);
        } else {
            print!("{}", report.human());
        }
        if report.passed { passed += 1 } else { failed += 1 }
    }
    if !options.json {
        println!("{passed} passed, {failed} failed");
    }
    Ok(failed == 0)
}

fn run(scenario: Scenario, options: &Options) -> Result<Report> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().event_interval(31).build()?;
    tokio::task::LocalSet::new().block_on(&runtime, scenarios::run(scenario, options))
}
