//! `loadtest bench`: every row of the table on every server, in one run, servers on one core and the
//! driver on another, repeated, with medians and spread.
//!
//! Carillon runs as shipped, history on. Three limits differ and are printed with the table: publishes a channel, messages a
//! connection and polls a user are raised (not switched off), because a driver with few clients exceeds them.

mod table;

use crate::report::Report;
use crate::results::{self, About, Names, Outcome, Results};
use crate::server::lineup::{self, Entrant, LINEUP, Places};
use anyhow::{Context as _, Result, bail};
use clap::Args;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// `loadtest bench`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// The gateway's binary.
    #[arg(long)]
    pub(crate) carillon: PathBuf,
    #[arg(long, default_value_t = 3)]
    pub(crate) repetitions: usize,
    /// Measured seconds of each run.
    #[arg(long, default_value_t = 5.0)]
    pub(crate) duration: f64,
    /// One repetition of two seconds: to see that it works.
    #[arg(long)]
    pub(crate) quick: bool,
    /// Rows whose name contains one of these, `SSE,1,000 × 9`: a comma within a number divides nothing.
    #[arg(long, value_parser = results::names)]
    pub(crate) only: Option<Names>,
    /// Servers: floor, naive, carillon, carillon+redis, nchan, nchan+redis, socketio, socketio+redis, ws+redis, uws.
    #[arg(long, value_delimiter = ',', default_value = "floor,naive,carillon,carillon+redis")]
    pub(crate) servers: Vec<String>,
    /// All peers too; those that are not installed are said.
    #[arg(long)]
    pub(crate) with_peers: bool,
    /// Directory of the peers' scripts and their node_modules.
    #[arg(long, default_value = "loadtest/peers")]
    pub(crate) peers: PathBuf,
    /// Core of the servers (and Redis).
    #[arg(long, default_value_t = 0)]
    pub(crate) server_core: usize,
    /// Core of the driver.
    #[arg(long, default_value_t = 1)]
    pub(crate) driver_core: usize,
    /// Where to write all figures as JSON, for `loadtest report` and `loadtest compare`.
    #[arg(long)]
    pub(crate) json: Option<PathBuf>,
}

/// One row: a name, the arguments of `loadtest run`, and the figure that is compared.
struct Row {
    name: &'static str,
    args: &'static str,
    figure: Figure,
    only_carillon: bool,
    /// The row that this one is compared with.
    beside: Option<Beside>,
}

/// What a row's figure is divided by, where that is not the floor in the same row.
#[derive(Clone, Copy)]
enum Beside {
    /// The same server in this row.
    Same(&'static str),
    /// The floor in this row: the same work, asked for in another way.
    Floor(&'static str),
}

#[derive(Clone, Copy, PartialEq)]
enum Figure {
    Delivery,
    Memory,
    Connect,
    Publish,
    Rest,
}

const ROWS: &[Row] = &[
    row(
        "1 × 1,000 at 20,000/s",
        "--scenario fanout --connections 1000 --rate 20",
        Figure::Delivery,
    ),
    row("1 × 1,000 saturated", "--scenario fanout --connections 1000", Figure::Delivery),
    row("1 × 9,000 saturated", "--scenario fanout --connections 9000", Figure::Delivery),
    row(
        "1,000 × 9 saturated",
        "--scenario channels --channels 1000 --connections 9000 --window 64",
        Figure::Delivery,
    ),
    otherwise(
        "1,000 × 9 saturated",
        "1,000 × 9 saturated, by WebSocket",
        "--scenario channels --channels 1000 --connections 9000 --window 64 --publish-by websocket",
    ),
    otherwise(
        "1,000 × 9 saturated",
        "1,000 × 9 saturated, by WebSocket, unacknowledged",
        "--scenario channels --channels 1000 --connections 9000 --window 64 --publish-by websocket-unacknowledged",
    ),
    row("idle 9,000", "--scenario idle --connections 9000", Figure::Memory),
    row("connect 5,000", "--scenario connect --connections 5000", Figure::Connect),
    beside(
        "1 × 1,000 at 20,000/s",
        "SSE 1 × 1,000 at 20,000/s",
        "--scenario fanout --connections 1000 --rate 20 --transport sse",
    ),
    beside(
        "1 × 1,000 at 20,000/s",
        "poll 1 × 1,000 at 20,000/s",
        "--scenario fanout --connections 1000 --rate 20 --transport poll",
    ),
    ours(
        "1 kB 1 × 1,000 at 20,000/s",
        "--scenario fanout --connections 1000 --rate 20 --size 1024 --filling records",
        Figure::Delivery,
    ),
    beside(
        "1 kB 1 × 1,000 at 20,000/s",
        "1 kB deflated 1 × 1,000 at 20,000/s",
        "--scenario fanout --connections 1000 --rate 20 --size 1024 --filling records --deflate",
    ),
    ours(
        "presence, 10,000 in 100 rooms at rest",
        "--scenario presence --connections 10000 --channels 100",
        Figure::Rest,
    ),
    ours(
        "publish, single",
        "--scenario publish --channels 100 --batch 1 --window 32",
        Figure::Publish,
    ),
    ours(
        "publish, batches of 100",
        "--scenario publish --channels 100 --window 8",
        Figure::Publish,
    ),
];

const fn row(name: &'static str, args: &'static str, figure: Figure) -> Row {
    Row { name, args, figure, only_carillon: false, beside: None }
}

const fn ours(name: &'static str, args: &'static str, figure: Figure) -> Row {
    Row { name, args, figure, only_carillon: true, beside: None }
}

/// Ours alone, compared with the same server in the row `with`.
const fn beside(with: &'static str, name: &'static str, args: &'static str) -> Row {
    let beside = Some(Beside::Same(with));
    Row { name, args, figure: Figure::Delivery, only_carillon: true, beside }
}

/// Ours alone, the work of the row `with` asked for otherwise.
const fn otherwise(with: &'static str, name: &'static str, args: &'static str) -> Row {
    let beside = Some(Beside::Floor(with));
    Row { name, args, figure: Figure::Delivery, only_carillon: true, beside }
}

impl Row {
    /// Whether the row is one for this server: those of ours alone are also for peers that have what they measure.
    fn takes(&self, entrant: &Entrant) -> bool {
        let has = |part: &str| self.args.contains(part);
        !self.only_carillon
            || entrant.target == "carillon"
            || (has("--transport sse") && entrant.sse)
            || (has("--scenario publish") && has("--batch 1 ") && entrant.posts)
    }
}

/// Runs the table and prints it.
pub(crate) fn bench(options: &Options) -> Result<()> {
    let mut options = options.clone();
    if options.quick {
        options.repetitions = 1;
        options.duration = 2.0;
    }
    let places = Places {
        carillon: options.carillon.clone(),
        peers: options.peers.clone(),
        core: options.server_core,
    };
    let mut results = Results { about: About::here(table::method(&options)), ..Results::default() };
    let entrants = entrants(&options, &places, &mut results.about.servers)?;
    let wanted = |row: &&Row| options.only.as_ref().is_none_or(|only| only.in_part(row.name));
    let rows: Vec<&Row> = ROWS.iter().filter(wanted).collect();
    if rows.is_empty() {
        bail!("no row has such a name");
    }
    let each = |row: &&Row| entrants.iter().filter(|one| row.takes(one)).count();
    let all = rows.iter().map(each).sum::<usize>() * options.repetitions;
    let mut count = 0;
    for row in rows {
        let mut runs: BTreeMap<usize, Vec<Report>> = BTreeMap::new();
        // Repetitions outside, servers inside: what drifts on the machine drifts for all of them.
        for _repetition in 0..options.repetitions {
            for (at, entrant) in entrants.iter().enumerate().filter(|(_, one)| row.takes(one)) {
                count += 1;
                eprint!("[{count}/{all}] {}, {}: ", row.name, entrant.name);
                match measure(&options, &places, row, entrant) {
                    Ok(report) => {
                        eprintln!("{}", table::cell(row.figure, &report));
                        runs.entry(at).or_default().push(report);
                    }
                    Err(error) => eprintln!("failed: {error:#}"),
                }
            }
        }
        results.outcomes.extend(runs.into_iter().map(|(at, runs)| Outcome {
            row: row.name.to_owned(),
            server: entrants[at].name.to_owned(),
            runs,
        }));
        // What is known so far, in case of an interruption.
        if let Some(path) = &options.json {
            std::fs::write(path, serde_json::to_vec(&results)?)?;
        }
    }
    println!("{}", table::table(&results));
    Ok(())
}

/// Those that take part. Their versions, and why others do not, go to `lines`.
fn entrants(
    options: &Options,
    places: &Places,
    lines: &mut Vec<String>,
) -> Result<Vec<&'static Entrant>> {
    let mut wanted = Vec::new();
    for name in &options.servers {
        wanted.push(lineup::find(name)?);
    }
    if options.with_peers {
        let more =
            LINEUP.iter().filter(|one| one.peer && !options.servers.contains(&one.name.to_owned()));
        wanted.extend(more);
    }
    let mut entrants = Vec::new();
    for entrant in wanted {
        let name = entrant.name;
        match entrant.version(places) {
            Ok(version) => {
                lines.push(format!("{name}: {version}; {}", entrant.history));
                entrants.push(entrant);
            }
            Err(error) => {
                eprintln!("{name} is left out: {error:#}");
                lines.push(format!("{name} was left out: {error:#}"));
            }
        }
    }
    if entrants.is_empty() {
        bail!("no server is left");
    }
    Ok(entrants)
}

/// One server, fresh; one run of the driver against it.
fn measure(options: &Options, places: &Places, row: &Row, entrant: &Entrant) -> Result<Report> {
    let running = entrant.start(places)?;
    let mut driver = Command::new("taskset");
    driver
        .args(["-c", &options.driver_core.to_string()])
        .arg(std::env::current_exe()?)
        .args(["run", "--json", "--target", entrant.target, "--url", &running.address.to_string()])
        .args(["--duration", &options.duration.to_string()])
        .args(["--server-pid", &running.server.pid().to_string()])
        .args(row.args.split(' '))
        .env("LOADTEST_JWT_SECRET", &running.jwt_secret)
        .env("LOADTEST_API_KEY", &running.api_key)
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null());
    if let Some((redis, address)) = &running.redis {
        driver.args(["--redis-pid", &redis.pid().to_string()]);
        driver.args(["--redis", &address.to_string()]);
    }
    let output = driver.output()?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        bail!("{}", text.lines().next().unwrap_or("the driver failed without a word"));
    }
    let mut report: Report = serde_json::from_slice(&output.stdout).context("the driver's JSON")?;
    entrant.name.clone_into(&mut report.target);
    Ok(report)
}
