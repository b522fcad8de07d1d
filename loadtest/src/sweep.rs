//! `loadtest sweep`: what a piece of work costs as one thing grows (nodes, channels, listeners, connections), and the
//! latency through two nodes beside the floor's. The points that `docs/capacity.md` is checked against.

use crate::report::Report;
use crate::server::{Scratch, Server, configuration, free_address, secret, start_redis};
use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use serde::Serialize;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// What grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Sweep {
    /// 1, 2 and 4 nodes over one Redis: saturated, and at a fixed rate.
    Nodes,
    /// The latency of 20,000 deliveries a second through Redis and two nodes, beside the floor's.
    Latency,
    /// 1 to 100,000 channels, one listener each, 2,000 publishes a second.
    Channels,
    /// 1 to 10,000 listeners on one channel.
    Subscribers,
    /// 10 to 10,000 connections, ten on a channel, 10,000 deliveries a second.
    Connections,
}

/// `loadtest sweep`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// What grows; all without it.
    #[arg(value_enum)]
    what: Vec<Sweep>,
    /// The gateway's binary.
    #[arg(long)]
    carillon: PathBuf,
    /// Measured seconds of each point.
    #[arg(long, default_value_t = 4.0)]
    duration: f64,
    /// Each point so many times, the median counts.
    #[arg(long, default_value_t = 1)]
    repetitions: usize,
    /// Core of the servers (and Redis).
    #[arg(long, default_value_t = 0)]
    server_core: usize,
    /// Core of the driver.
    #[arg(long, default_value_t = 1)]
    driver_core: usize,
    /// Where to write all figures as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// One point: where, and the work.
struct Point {
    sweep: Sweep,
    /// As the table shows it.
    name: String,
    /// 0 is the floor; else so many of ours, over Redis.
    nodes: usize,
    work: String,
    /// Publishes a second, where they are fixed.
    rate: Option<f64>,
}

#[derive(Serialize)]
struct Measured {
    sweep: String,
    point: String,
    work: String,
    runs: Vec<Report>,
}

/// Runs the sweeps and prints their tables.
pub(crate) fn sweep(options: &Options) -> Result<()> {
    let mut all = Vec::new();
    for sweep in Sweep::value_variants() {
        if !options.what.is_empty() && !options.what.contains(sweep) {
            continue;
        }
        let name = sweep.to_possible_value().context("no hidden sweeps")?.get_name().to_owned();
        let points = points(*sweep);
        let mut runs: Vec<Vec<Report>> = points.iter().map(|_| Vec::new()).collect();
        // Repetitions outside: what drifts on the machine drifts for all points.
        for _repetition in 0..options.repetitions.max(1) {
            for (point, runs) in points.iter().zip(&mut runs) {
                match measure(options, point) {
                    Ok(report) => {
                        eprintln!("{name}, {}: {}", point.name, cells(point, &report));
                        runs.push(report);
                    }
                    Err(error) => eprintln!("{name}, {}: failed: {error}", point.name),
                }
            }
        }
        println!(
            "\n## {name}\n\n| point | µs a delivery | of it Redis | Redis µs a publish | deliveries/s | p50 ms | p99 ms | nodes MB | Redis MB | flaws |\n|---|---|---|---|---|---|---|---|---|---|"
        );
        for (point, mut runs) in points.into_iter().zip(runs) {
            runs.sort_by(|one, other| one.server_cpu_us.total_cmp(&other.server_cpu_us));
            if let Some(report) = runs.get(runs.len() / 2) {
                println!("| {} | {} |", point.name, cells(&point, report));
            }
            let (work, point) = (point.work, point.name);
            all.push(Measured { sweep: name.clone(), point, work, runs });
        }
        if let Some(path) = &options.json {
            std::fs::write(path, serde_json::to_vec_pretty(&all)?)?;
        }
    }
    Ok(())
}

fn cells(point: &Point, report: &Report) -> String {
    // What one publish takes of Redis is known where the rate is; CPU is counted in hundredths of a second, so few
    // publishes say nothing.
    let publish = point.rate.filter(|rate| *rate >= 500.0).map_or(String::new(), |rate| {
        format!("{:.1}", report.redis_cpu_us * report.per_second / rate)
    });
    let flaws = report.lost
        + report.duplicated
        + report.reordered
        + report.refused
        + report.closed
        + report.retried;
    format!(
        "{:.2} | {:.2} | {publish} | {:.0} | {:.1} | {:.1} | {:.1} | {:.1} | {flaws}",
        report.server_cpu_us,
        report.redis_cpu_us,
        report.per_second,
        report.p50_ms,
        report.p99_ms,
        report.server_bytes / 1e6,
        report.redis_bytes / 1e6
    )
}

fn points(sweep: Sweep) -> Vec<Point> {
    let point = |name: String, nodes: usize, work: String, rate: Option<f64>| Point {
        sweep,
        name,
        nodes,
        work: rate.map_or(work.clone(), |rate| format!("{work} --rate {rate}")),
        rate,
    };
    match sweep {
        Sweep::Nodes => [1, 2, 4]
            .into_iter()
            .flat_map(|nodes| {
                let fanout = "--scenario fanout --connections 1000".to_owned();
                let many = "--scenario channels --channels 1000 --connections 9000".to_owned();
                [
                    point(format!("{nodes}: 1 × 1,000 saturated"), nodes, fanout.clone(), None),
                    point(format!("{nodes}: 1 × 1,000 at 20,000/s"), nodes, fanout, Some(20.0)),
                    point(
                        format!("{nodes}: 1,000 × 9 saturated"),
                        nodes,
                        format!("{many} --window 64"),
                        None,
                    ),
                    point(format!("{nodes}: 1,000 × 9 at 9,000/s"), nodes, many, Some(1_000.0)),
                ]
            })
            .collect(),
        Sweep::Latency => [("floor", 0), ("one node", 1), ("two nodes, published on one", 2)]
            .into_iter()
            .map(|(name, nodes)| {
                let work = "--scenario fanout --connections 1000".to_owned();
                point(name.to_owned(), nodes, work, Some(20.0))
            })
            .collect(),
        Sweep::Channels => [1_u32, 10, 100, 1_000, 10_000, 100_000]
            .into_iter()
            .map(|channels| {
                // No connection may have more than fifty; no process more than 20,000 files.
                let each = channels.div_ceil(2_000);
                let connections = channels / each;
                let work = format!(
                    "--scenario channels --channels {channels} --connections {connections} --channels-each {each}"
                );
                point(channels.to_string(), 1, work, Some(2_000.0))
            })
            .collect(),
        Sweep::Subscribers => [1_u32, 10, 100, 1_000, 10_000]
            .into_iter()
            .map(|listeners| {
                let rate = (20_000.0 / f64::from(listeners)).min(1_000.0);
                let work = format!("--scenario fanout --connections {listeners}");
                point(listeners.to_string(), 1, work, Some(rate))
            })
            .collect(),
        Sweep::Connections => [10_u32, 100, 1_000, 10_000]
            .into_iter()
            .map(|connections| {
                let channels = connections / 10;
                let work = format!(
                    "--scenario channels --channels {channels} --connections {connections}"
                );
                point(connections.to_string(), 1, work, Some(1_000.0))
            })
            .collect(),
    }
}

/// The servers of one point; end with their value.
struct Cluster {
    nodes: Vec<(Server, SocketAddr)>,
    redis: Option<(Server, SocketAddr)>,
    target: &'static str,
    jwt_secret: String,
    api_key: String,
    _scratch: Scratch,
}

impl Cluster {
    fn start(options: &Options, count: usize) -> Result<Self> {
        let scratch = Scratch::new()?;
        let core = options.server_core;
        let (jwt_secret, api_key) = (secret(48), secret(40));
        let mut nodes = Vec::new();
        if count == 0 {
            let address = free_address()?;
            let args = ["floor", "--listen", &address.to_string()].map(ToOwned::to_owned);
            let own = std::env::current_exe()?;
            let mut floor = Server::start(core, &own, &args, &scratch.0.join("floor.log"))?;
            floor.wait(address, None)?;
            nodes.push((floor, address));
            let target = "floor";
            return Ok(Self { nodes, redis: None, target, jwt_secret, api_key, _scratch: scratch });
        }
        let redis_address = free_address()?;
        let redis = start_redis(core, redis_address, &scratch)?;
        for number in 0..count {
            let address = free_address()?;
            let path = scratch.0.join(format!("node-{number}.toml"));
            let toml = configuration(address, Some(redis_address), &jwt_secret, &api_key)?;
            std::fs::write(&path, toml)?;
            let args = ["serve", "--config", &path.display().to_string()].map(ToOwned::to_owned);
            let log = scratch.0.join(format!("node-{number}.log"));
            let mut node = Server::start(core, &options.carillon, &args, &log)?;
            if let Err(error) = node.wait(address, Some("/api/realtime/openapi.json")) {
                bail!("{error}: {}", std::fs::read_to_string(&log).unwrap_or_default());
            }
            nodes.push((node, address));
        }
        let redis = Some((redis, redis_address));
        Ok(Self { nodes, redis, target: "carillon", jwt_secret, api_key, _scratch: scratch })
    }
}

fn measure(options: &Options, point: &Point) -> Result<Report> {
    let cluster = Cluster::start(options, point.nodes)?;
    let list = |of: &dyn Fn(&(Server, SocketAddr)) -> String| {
        cluster.nodes.iter().map(of).collect::<Vec<_>>().join(",")
    };
    let mut driver = Command::new("taskset");
    driver
        .args(["-c", &options.driver_core.to_string()])
        .arg(std::env::current_exe()?)
        .args(["run", "--json", "--target", cluster.target])
        .args(["--url", &list(&|(_, address)| address.to_string())])
        .args(["--server-pid", &list(&|(node, _)| node.pid().to_string())])
        .args(["--duration", &options.duration.to_string()])
        .args(point.work.split(' '))
        .env("LOADTEST_JWT_SECRET", &cluster.jwt_secret)
        .env("LOADTEST_API_KEY", &cluster.api_key)
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null());
    if point.sweep == Sweep::Latency {
        driver.args(["--publish-url", &cluster.nodes[0].1.to_string()]);
    }
    if let Some((redis, address)) = &cluster.redis {
        driver.args(["--redis-pid", &redis.pid().to_string(), "--redis", &address.to_string()]);
    }
    let output = driver.output()?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        bail!("{}", text.lines().next().unwrap_or("the driver failed without a word"));
    }
    serde_json::from_slice(&output.stdout).context("the driver's JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_point_stays_within_what_a_process_and_a_connection_may_have() {
        for point in Sweep::value_variants().iter().flat_map(|sweep| points(*sweep)) {
            let figure = |name: &str| {
                let mut words = point.work.split(' ').skip_while(|word| *word != name);
                words.nth(1).map_or(1, |word| word.parse::<u32>().expect("a number"))
            };
            assert!(figure("--connections") <= 10_000, "{}", point.work);
            assert!(figure("--channels-each") <= 50, "{}", point.work);
            if figure("--channels-each") > 1 {
                let sum = figure("--connections") * figure("--channels-each");
                assert_eq!(sum, figure("--channels"), "{}", point.work);
            }
        }
    }
}
