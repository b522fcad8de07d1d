//! `loadtest bench`: every row of the table on every server, in one run, servers on one core and the
//! driver on another, repeated, with medians and spread.
//!
//! Carillon runs as shipped, history on. Three limits differ and are printed with the table: publishes a channel, messages a
//! connection and polls a user are raised (not switched off), because a driver with few clients exceeds them.

use crate::process;
use crate::report::Report;
use crate::server::{Scratch, Server, free_address, secret};
use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde::Serialize;
use std::collections::BTreeMap;
use std::net::SocketAddr;
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
    /// Rows whose name contains one of these.
    #[arg(long, value_delimiter = ',')]
    pub(crate) only: Vec<String>,
    /// Servers: floor, naive, carillon, carillon+redis, nchan (where nginx has it).
    #[arg(long, value_delimiter = ',', default_value = "floor,naive,carillon,carillon+redis")]
    pub(crate) servers: Vec<String>,
    /// Core of the servers (and Redis).
    #[arg(long, default_value_t = 0)]
    pub(crate) server_core: usize,
    /// Core of the driver.
    #[arg(long, default_value_t = 1)]
    pub(crate) driver_core: usize,
    /// Where to write all figures as JSON.
    #[arg(long)]
    pub(crate) json: Option<PathBuf>,
}

/// One row: a name, the arguments of `loadtest run`, and the figure that is compared.
struct Row {
    name: &'static str,
    args: &'static str,
    figure: Figure,
    only_carillon: bool,
    /// The row that this one is compared with instead of the floor.
    beside: Option<&'static str>,
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
        "presence, 9,000 in 100 rooms at rest",
        "--scenario presence --connections 9000 --channels 100",
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
    Row { name, args, figure: Figure::Delivery, only_carillon: true, beside: Some(with) }
}

#[derive(Serialize)]
struct Outcome {
    row: String,
    server: String,
    runs: Vec<Report>,
}

/// Runs the table and prints it.
pub(crate) fn bench(options: &Options) -> Result<()> {
    let mut options = options.clone();
    if options.quick {
        options.repetitions = 1;
        options.duration = 2.0;
    }
    let wanted = |row: &&Row| {
        options.only.is_empty() || options.only.iter().any(|part| row.name.contains(part.as_str()))
    };
    let mut outcomes = Vec::new();
    for row in ROWS.iter().filter(wanted) {
        let mut runs: BTreeMap<usize, Vec<Report>> = BTreeMap::new();
        // Repetitions outside, servers inside: what drifts on the machine drifts for all of them.
        for _repetition in 0..options.repetitions {
            for (at, server) in options.servers.iter().enumerate() {
                if row.only_carillon && !server.starts_with("carillon") {
                    continue;
                }
                eprint!("{}, {server}: ", row.name);
                match measure(&options, row, server) {
                    Ok(report) => {
                        eprintln!("{}", cell(row.figure, &report));
                        runs.entry(at).or_default().push(report);
                    }
                    Err(error) => eprintln!("failed: {error}"),
                }
            }
        }
        let servers = &options.servers;
        outcomes.extend(runs.into_iter().map(|(at, runs)| Outcome {
            row: row.name.to_owned(),
            server: servers[at].clone(),
            runs,
        }));
        // What is known so far, in case of an interruption.
        if let Some(path) = &options.json {
            std::fs::write(path, serde_json::to_vec_pretty(&outcomes)?)?;
        }
    }
    println!("{}", table(&options, &outcomes));
    Ok(())
}

/// One server, fresh; one run of the driver against it.
fn measure(options: &Options, row: &Row, server: &str) -> Result<Report> {
    let scratch = Scratch::new()?;
    let (address, redis_address) = (free_address()?, free_address()?);
    let (jwt_secret, api_key) = (secret(48), secret(40));
    let log = scratch.0.join("server.log");
    let core = options.server_core;
    let own = std::env::current_exe()?;
    let mut redis = None;
    let (kind, program, args, ready) = match server {
        "floor" | "naive" => {
            let args = vec![server.to_owned(), "--listen".to_owned(), address.to_string()];
            (server, own.clone(), args, None)
        }
        "carillon" | "carillon+redis" => {
            if server.ends_with("redis") {
                redis = Some(start_redis(core, redis_address, &scratch)?);
            }
            let toml = configuration(
                address,
                redis.is_some().then_some(redis_address),
                &jwt_secret,
                &api_key,
            )?;
            let path = scratch.0.join("carillon.toml");
            std::fs::write(&path, toml)?;
            let args = vec!["serve".to_owned(), "--config".to_owned(), path.display().to_string()];
            ("carillon", options.carillon.clone(), args, Some("/api/realtime/openapi.json"))
        }
        "nchan" => {
            let path = scratch.0.join("nginx.conf");
            std::fs::write(&path, nchan_configuration(address, &scratch))?;
            let args = vec!["-c".to_owned(), path.display().to_string()];
            ("nchan", PathBuf::from("nginx"), args, None)
        }
        other => bail!("{other} is no server that the bench knows"),
    };
    let mut running = Server::start(core, &program, &args, &log)?;
    if let Err(error) = running.wait(address, ready) {
        bail!("{error}: {}", std::fs::read_to_string(&log).unwrap_or_default());
    }
    let mut driver = Command::new("taskset");
    driver
        .args(["-c", &options.driver_core.to_string()])
        .arg(&own)
        .args(["run", "--json", "--target", kind, "--url", &address.to_string()])
        .args(["--duration", &options.duration.to_string()])
        .args(["--server-pid", &running.pid().to_string()])
        .args(row.args.split(' '))
        .env("LOADTEST_JWT_SECRET", &jwt_secret)
        .env("LOADTEST_API_KEY", &api_key)
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null());
    if let Some(redis) = &redis {
        driver.args(["--redis-pid", &redis.pid().to_string()]);
        driver.args(["--redis", &redis_address.to_string()]);
    }
    let output = driver.output()?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        bail!("{}", text.lines().next().unwrap_or("the driver failed without a word"));
    }
    serde_json::from_slice(&output.stdout).context("the driver's JSON")
}

/// A Redis without persistence, answering.
pub(crate) fn start_redis(core: usize, address: SocketAddr, scratch: &Scratch) -> Result<Server> {
    let port = address.port().to_string();
    let args = ["--port", &port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"];
    let args: Vec<String> = args.map(ToOwned::to_owned).into();
    let program = PathBuf::from("redis-server");
    let mut redis = Server::start(core, &program, &args, &scratch.0.join("redis.log"))?;
    redis.wait(address, None)?;
    Ok(redis)
}

/// A node's settings.
pub(crate) fn configuration(
    address: SocketAddr,
    redis: Option<SocketAddr>,
    jwt_secret: &str,
    api_key: &str,
) -> Result<String> {
    let operator = free_address()?;
    let redis = redis.map_or_else(
        || "mode = \"memory\"".to_owned(),
        |redis| format!("mode = \"standalone\"\nurl = \"redis://{redis}\""),
    );
    Ok(format!(
        "[server]\nlisten = \"{address}\"\n[operator]\nlisten = \"{operator}\"\n[redis]\n{redis}\n\
         [auth.jwt]\nsecret = \"{jwt_secret}\"\n\
         [auth.api_keys.bench]\nkey = \"{api_key}\"\nscopes = [\"realtime:admin\"]\n\
         [limits]\npublishes_per_second_per_channel = 1000000\nmessages_per_second = 1000000\n\
         polls_per_minute = 1000000\n[log]\nlevel = \"warn\"\n"
    ))
}

fn nchan_configuration(address: SocketAddr, scratch: &Scratch) -> String {
    let directory = scratch.0.display();
    format!(
        "load_module modules/ngx_nchan_module.so;\ndaemon off;\nmaster_process off;\n\
         pid {directory}/nginx.pid;\nerror_log {directory}/error.log;\n\
         worker_rlimit_nofile 20000;\nevents {{ worker_connections 19000; }}\n\
         http {{ access_log off; client_body_temp_path {directory}/body; keepalive_requests 100000000;\n\
         nchan_shared_memory_size 512m;\n\
         server {{ listen {address} backlog=4096;\n\
         location /sub {{ nchan_subscriber websocket; nchan_channel_id $arg_channel; }}\n\
         location /pub {{ nchan_publisher; nchan_channel_id $arg_channel;\n\
         nchan_message_buffer_length 1000; nchan_message_timeout 1h; }} }} }}\n"
    )
}

fn median(runs: &[Report], figure: impl Fn(&Report) -> f64) -> f64 {
    let mut values: Vec<f64> = runs.iter().map(figure).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// Half the distance between the extremes, in percent of the median.
fn spread(runs: &[Report], figure: impl Fn(&Report) -> f64) -> f64 {
    let (least, most) = runs
        .iter()
        .map(&figure)
        .fold((f64::MAX, f64::MIN), |(least, most), one| (least.min(one), most.max(one)));
    50.0 * (most - least) / median(runs, figure).max(f64::MIN_POSITIVE)
}

fn main_figure(figure: Figure) -> fn(&Report) -> f64 {
    match figure {
        Figure::Delivery | Figure::Publish => |report| report.server_cpu_us,
        Figure::Memory => |report| report.idle_bytes,
        Figure::Connect => |report| report.connect_cpu_us,
        Figure::Rest => |report| report.rest_core_percent,
    }
}

fn cell(figure: Figure, report: &Report) -> String {
    let flaw = if report.clean() && report.refused + report.retried == 0 {
        String::new()
    } else {
        format!(
            " (lost {}, doubled {}, out of order {}, refused {}, closed {}, connects retried {})",
            report.lost,
            report.duplicated,
            report.reordered,
            report.refused,
            report.closed,
            report.retried
        )
    };
    let text = match figure {
        Figure::Delivery => format!(
            "{:.2} µs · {:.0}k/s · p50 {:.1} p99 {:.1} ms",
            report.server_cpu_us,
            report.per_second / 1_000.0,
            report.p50_ms,
            report.p99_ms
        ),
        Figure::Publish => format!(
            "{:.2} µs (Redis {:.2}) · {:.1}k/s",
            report.server_cpu_us,
            report.redis_cpu_us,
            report.per_second / 1_000.0
        ),
        Figure::Memory => {
            format!("{:.0} B, {:.0} B after 16 KB", report.idle_bytes, report.exercised_bytes)
        }
        Figure::Rest => format!(
            "{:.2} % of a core ({:.2} % not present) · Redis {:.1} commands/s",
            report.rest_core_percent, report.idle_core_percent, report.redis_commands_per_second
        ),
        Figure::Connect => {
            format!("{:.0} µs · {:.0}/s", report.connect_cpu_us, report.connects_per_second)
        }
    };
    text + &flaw
}

/// Medians as a markdown table, with the ratio to the floor.
fn table(options: &Options, outcomes: &[Outcome]) -> String {
    let mut text = format!(
        "Server side on core {}, driver on core {}; {} repetitions of {} s, medians; ± is half the \
         spread of the first figure. 128-byte payloads; CPU is user + system of the server and its \
         Redis. Carillon as shipped; limits of publishes a channel, messages a connection and polls a user raised.\n\n| work | server | figures | ± | × floor | driver µs |\n|---|---|---|---|---|---|\n",
        options.server_core, options.driver_core, options.repetitions, options.duration
    );
    for outcome in outcomes {
        let Some(row) = ROWS.iter().find(|row| row.name == outcome.row) else { continue };
        let main = main_figure(row.figure);
        let merged = merge(&outcome.runs);
        let (other_row, other_server, note) = match row.beside {
            Some(with) => (with, outcome.server.as_str(), " of WebSocket, plain"),
            None => (row.name, "floor", ""),
        };
        let other = outcomes.iter().find(|one| one.row == other_row && one.server == other_server);
        let ratio = other.map_or(String::new(), |other| {
            format!("{:.2}{note}", median(&outcome.runs, main) / median(&other.runs, main))
        });
        text += &format!(
            "| {} | {} | {} | {:.0} % | {ratio} | {:.2} |\n",
            outcome.row,
            outcome.server,
            cell(row.figure, &merged),
            spread(&outcome.runs, main),
            merged.client_cpu_us,
        );
    }
    let busy = process::cpu_us(std::process::id()).map_or(0.0, |us| us as f64 / 1e6);
    text + &format!("\n(The bench itself took {busy:.1} s of CPU.)\n")
}

/// Medians of the figures, sums of the flaws: a flaw in any repetition shows.
fn merge(runs: &[Report]) -> Report {
    let sum = |figure: fn(&Report) -> u64| runs.iter().map(figure).sum();
    Report {
        per_second: median(runs, |run| run.per_second),
        server_cpu_us: median(runs, |run| run.server_cpu_us),
        redis_cpu_us: median(runs, |run| run.redis_cpu_us),
        client_cpu_us: median(runs, |run| run.client_cpu_us),
        p50_ms: median(runs, |run| run.p50_ms),
        p99_ms: median(runs, |run| run.p99_ms),
        connects_per_second: median(runs, |run| run.connects_per_second),
        connect_cpu_us: median(runs, |run| run.connect_cpu_us),
        idle_bytes: median(runs, |run| run.idle_bytes),
        exercised_bytes: median(runs, |run| run.exercised_bytes),
        idle_core_percent: median(runs, |run| run.idle_core_percent),
        rest_core_percent: median(runs, |run| run.rest_core_percent),
        redis_commands_per_second: median(runs, |run| run.redis_commands_per_second),
        lost: sum(|run| run.lost),
        duplicated: sum(|run| run.duplicated),
        reordered: sum(|run| run.reordered),
        refused: sum(|run| run.refused),
        retried: sum(|run| run.retried),
        closed: sum(|run| run.closed),
        ..Report::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_shows_the_median_and_its_ratio_to_the_floor() {
        let run = |cpu| Report { server_cpu_us: cpu, ..Report::default() };
        let outcome = |server: &str, figures: [f64; 3]| Outcome {
            row: ROWS[0].name.to_owned(),
            server: server.to_owned(),
            runs: figures.map(run).into(),
        };
        let options = Options {
            carillon: PathBuf::new(),
            repetitions: 3,
            duration: 5.0,
            quick: false,
            only: Vec::new(),
            servers: Vec::new(),
            server_core: 0,
            driver_core: 1,
            json: None,
        };
        let outcomes = [outcome("floor", [4.0, 9.0, 3.0]), outcome("carillon", [6.0, 1.0, 8.0])];
        let table = table(&options, &outcomes);
        assert!(table.contains("| carillon | 6.00 µs"), "{table}");
        assert!(table.contains("| 1.50 |"), "{table}");
    }
}
