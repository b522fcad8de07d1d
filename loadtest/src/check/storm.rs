//! The storm: connections as fast as they come, from two processes (one may not open so many files).

use super::Options;
use super::cluster::Cluster;
use super::http;
use super::report::{Figure, Report};
use super::trial::Setup;
use crate::process;
use crate::server::Scratch;
use anyhow::{Context as _, Result, bail};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Processes that connect.
const DRIVERS: usize = 2;
/// Handshakes that each has in flight.
const IN_FLIGHT: usize = 2_000;
/// How long all may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long drivers hold what they have.
const HOLD_SECONDS: u64 = 15;

/// See the module. All of `--clients` (18,000) go to one node, so that it is the node that is tried.
pub(super) async fn storm(options: &Options) -> Result<Report> {
    let clients = options.clients.unwrap_or(18_000);
    let scratch = Scratch::new()?;
    let mut cluster = Cluster::start(&scratch.0).await?;
    let redis = cluster.redis.address;
    cluster.add_node(&options.carillon, &scratch.0, redis, &Setup::of(0).settings)?;
    let node = &cluster.nodes[0];
    wait_ready(node.operator).await.with_context(|| node.process.last_words())?;
    let pid = node.process.pid().context("the node is gone")?;
    let memory = process::pss_bytes(pid)? as f64;
    let began = Instant::now();
    let drivers: Vec<Child> = (0..DRIVERS)
        .map(|_| driver(node.client, clients / DRIVERS, &cluster.keys.jwt_secret))
        .collect::<Result<_>>()?;
    let (mut all, mut most_memory) = (None, memory);
    while began.elapsed() < PATIENCE && all.is_none() {
        sleep(Duration::from_millis(100)).await;
        most_memory = most_memory.max(process::pss_bytes(pid)? as f64);
        if live(node.operator)
            .await
            .is_some_and(|live| live >= (clients / DRIVERS * DRIVERS) as u64)
        {
            all = Some(began.elapsed());
        }
    }
    let mut report = Report {
        scenario: "storm".to_owned(),
        seed: options.seed,
        clients,
        nodes: 1,
        ..Report::default()
    };
    let mut told = |figure| report.figures.push(figure);
    told(Figure::told("memory of the node before", memory / 1e6, "MB"));
    told(Figure::told("memory of the node at most", most_memory / 1e6, "MB"));
    told(Figure::told("bytes a connection", (most_memory - memory) / clients as f64, "B"));
    if let Some(all) = all {
        told(Figure::told("all connected after", all.as_secs_f64(), "s"));
    } else {
        report.problems.push(format!("not all connected within {PATIENCE:?}"));
    }
    for (line, count) in refusals(node.operator).await {
        report.figures.push(Figure::told(line, count, ""));
    }
    for driver in drivers {
        let output = tokio::task::spawn_blocking(|| driver.wait_with_output()).await??;
        let run: crate::report::Report = match serde_json::from_slice(&output.stdout) {
            Ok(run) => run,
            Err(error) => {
                let words = String::from_utf8_lossy(&output.stderr).into_owned();
                report.problems.push(format!("a driver failed: {error}: {words}"));
                continue;
            }
        };
        report.figures.push(Figure::told(
            "connects a second of one driver",
            run.connects_per_second,
            "/s",
        ));
        report.figures.push(Figure::told(
            "TCP connect longest, as the driver saw it",
            run.dial_max_ms,
            "ms",
        ));
        report.figures.push(Figure::told("handshake p50", run.connect_p50_ms, "ms"));
        report.figures.push(Figure::told("handshake p99", run.connect_p99_ms, "ms"));
        report.figures.push(Figure::told("handshake longest", run.connect_max_ms, "ms"));
        report.figures.push(Figure::at_most("cut while held", run.closed as f64, "", 0.0));
        for (reason, count) in run.retries {
            // A refusal that says 503 is an answer; anything else is a fault.
            if !reason.starts_with("status 503") {
                report.problems.push(format!("{count} handshakes failed: {reason}"));
            }
            *report.retried.entry(reason).or_default() += count;
        }
    }
    report.seconds = began.elapsed().as_secs_f64();
    Ok(report.close())
}

/// What the node refused and closed, by reason, as it counts itself.
async fn refusals(operator: std::net::SocketAddr) -> Vec<(String, f64)> {
    let asked = http::once(operator, "GET", "/metrics", "", "", Duration::from_secs(5)).await;
    let text = asked.map(|answer| String::from_utf8_lossy(&answer.body).into_owned());
    let of_interest = |line: &&str| {
        ["carillon_connections_refused_total{", "carillon_connections_closed_total{"]
            .iter()
            .any(|name| line.starts_with(name))
    };
    text.unwrap_or_default()
        .lines()
        .filter(of_interest)
        .filter_map(|line| line.rsplit_once(' '))
        .filter_map(|(name, count)| Some((name.to_owned(), count.parse().ok()?)))
        .collect()
}

async fn wait_ready(operator: std::net::SocketAddr) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(30);
    while Instant::now() < end {
        let answer =
            http::once(operator, "GET", "/health/ready", "", "", Duration::from_secs(1)).await;
        if answer.is_ok_and(|answer| answer.status == 200) {
            return Ok(());
        }
        sleep(Duration::from_millis(50)).await;
    }
    bail!("the node is not ready")
}

async fn live(operator: std::net::SocketAddr) -> Option<u64> {
    let answer = http::once(operator, "GET", "/health/ready", "", "", Duration::from_secs(5)).await;
    answer.ok()?.json().ok()?["connections"].as_u64()
}

fn driver(node: std::net::SocketAddr, connections: usize, jwt_secret: &str) -> Result<Child> {
    let user = format!("storm-{}", crate::server::secret(6));
    Command::new(std::env::current_exe()?)
        .args(["run", "--scenario", "connect", "--json"])
        .args(["--url", &node.to_string()])
        .args(["--connections", &connections.to_string()])
        .args(["--handshakes", &IN_FLIGHT.to_string()])
        .args(["--hold", &HOLD_SECONDS.to_string()])
        .args(["--user", &user])
        .env("LOADTEST_JWT_SECRET", jwt_secret)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("a driver")
}
