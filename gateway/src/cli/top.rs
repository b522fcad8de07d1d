//! `carillon top`: the cluster at a glance, again and again. Knows `GET /stats` (`http-api.md` 5) and nothing else of the gateway.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use clap::Args;
use http_body_util::Full;
use serde::Deserialize;

use crate::outbound::Outbound;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// To the beginning of the screen, and away with what stood there.
const CLEAR: &str = "\x1b[H\x1b[2J";

#[derive(Clone, Debug, Args)]
pub(super) struct TopArgs {
    /// The gateway; any node shows all.
    #[arg(long, default_value = "http://127.0.0.1:8082", env = "CARILLON_URL")]
    url: String,
    /// A backend's key with the scope realtime:admin.
    #[arg(long, env = "CARILLON_API_KEY", hide_env_values = true, conflicts_with = "token")]
    api_key: Option<String>,
    /// A token with that scope.
    #[arg(long, env = "CARILLON_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Time between two looks.
    #[arg(long, default_value = "2s", value_parser = crate::config::parse_duration)]
    interval: Duration,
    /// End after so many looks.
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Print each look as one line of JSON.
    #[arg(long)]
    json: bool,
}

/// What `GET /stats` answers, as far as it is shown.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Stats {
    nodes: Vec<NodeStats>,
    redis: RedisState,
}

#[derive(Clone, Debug, Deserialize)]
struct NodeStats {
    id: String,
    name: String,
    version: String,
    uptime_ms: u64,
    connections: BTreeMap<String, u64>,
    messages_in: u64,
    messages_out: u64,
    #[serde(default)]
    load: f64,
    draining: bool,
}

#[derive(Clone, Debug, Deserialize)]
struct RedisState {
    state: String,
}

/// How one look went: it will be tried again, or never.
enum Look {
    Seen(Bytes),
    Later(String),
}

pub(super) async fn run(args: TopArgs) -> anyhow::Result<ExitCode> {
    anyhow::ensure!(!args.interval.is_zero(), "--interval must be longer than 0");
    let outbound = Outbound::new();
    let live = std::io::stdout().is_terminal() && !args.json;
    let mut before: Option<(Instant, Stats)> = None;
    let mut left = args.count.unwrap_or(u64::MAX);
    while left > 0 {
        left -= 1;
        let look = look(&args, &outbound).await?;
        let now = Instant::now();
        let text = match look {
            Look::Later(reason) if live => format!("{CLEAR}{}: {reason}\n", args.url),
            Look::Later(reason) => {
                eprintln!("-- {reason}");
                String::new()
            }
            Look::Seen(body) => {
                let stats = stats(&body)?;
                let text = if args.json {
                    String::from_utf8_lossy(&body).into_owned() + "\n"
                } else {
                    let past = before.as_ref().map(|(at, stats)| (now - *at, stats));
                    let clear = if live { CLEAR } else { "" };
                    format!("{clear}{}", show(&stats, past))
                };
                before = Some((now, stats));
                text
            }
        };
        let mut out = std::io::stdout();
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => break,
            written => written?,
        }
        if left > 0 {
            tokio::time::sleep(args.interval).await;
        }
    }
    // Asked to end after so many looks, and none saw anything: that is a failure.
    Ok(if before.is_some() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One look; an error where another try cannot help.
async fn look(args: &TopArgs, outbound: &Outbound) -> anyhow::Result<Look> {
    let mut request =
        http::Request::get(format!("{}/api/realtime/stats", args.url.trim_end_matches('/')));
    if let Some(key) = &args.api_key {
        request = request.header("x-api-key", key);
    }
    if let Some(token) = &args.token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let request =
        request.body(Full::default()).context("--url, --api-key or --token cannot be used")?;
    match outbound.send(request, REQUEST_TIMEOUT).await {
        Err(error) => Ok(Look::Later(error.to_string())),
        Ok(answer) if answer.status().is_success() => Ok(Look::Seen(answer.into_body())),
        Ok(answer) => {
            let status = answer.status();
            let body: serde_json::Value = serde_json::from_slice(answer.body()).unwrap_or_default();
            let error = body.get("error").and_then(serde_json::Value::as_str).unwrap_or_default();
            let later = status.is_server_error() || status.as_u16() == 429;
            anyhow::ensure!(later, "{status}: {error}");
            Ok(Look::Later(format!("{status} {error}")))
        }
    }
}

fn stats(body: &[u8]) -> anyhow::Result<Stats> {
    serde_json::from_slice(body)
        .context("the answer is no statistics; is --url a Carillon gateway?")
}

/// The picture; rates where there was a look before.
pub(super) fn show(stats: &Stats, past: Option<(Duration, &Stats)>) -> String {
    let transports = ["websocket", "sse", "poll"];
    let mut text = format!("nodes {}   redis {}\n\n", stats.nodes.len(), stats.redis.state);
    let _ = writeln!(
        text,
        "{:<20} {:>9} {:>10} {:>9} {:>7} {:>9} {:>9} {:>6}  VERSION",
        "NODE", "UP", "WEBSOCKET", "SSE", "POLL", "IN/S", "OUT/S", "CORES"
    );
    let mut totals = [0_u64; 3];
    let mut rates = [None::<f64>; 2];
    for node in &stats.nodes {
        // Of another life of the node the counters say nothing.
        let before = past.and_then(|(took, past)| {
            Some((took, past.nodes.iter().find(|other| other.id == node.id)?))
        });
        let rate = |now: u64, then: fn(&NodeStats) -> u64| {
            before.map(|(took, node)| {
                now.saturating_sub(then(node)) as f64 / took.as_secs_f64().max(0.001)
            })
        };
        let own = [
            rate(node.messages_in, |node| node.messages_in),
            rate(node.messages_out, |node| node.messages_out),
        ];
        let live = transports.map(|name| node.connections.get(name).copied().unwrap_or(0));
        for (total, live) in totals.iter_mut().zip(live) {
            *total += live;
        }
        for (sum, own) in rates.iter_mut().zip(own) {
            if let Some(own) = own {
                *sum = Some(sum.unwrap_or(0.0) + own);
            }
        }
        let up = Duration::from_millis(node.uptime_ms);
        let state = if node.draining { " draining" } else { "" };
        line(&mut text, &node.name, &age(up), live, own, &format!("{:.2}", node.load));
        let _ = writeln!(text, "  {}{state}", node.version);
    }
    if stats.nodes.len() > 1 {
        let load: f64 = stats.nodes.iter().map(|node| node.load).sum();
        line(&mut text, "all", "", totals, rates, &format!("{load:.2}"));
        text.push('\n');
    }
    text
}

fn line(
    text: &mut String,
    name: &str,
    up: &str,
    live: [u64; 3],
    rates: [Option<f64>; 2],
    load: &str,
) {
    let [incoming, outgoing] =
        rates.map(|rate| rate.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.0}")));
    let _ = write!(
        text,
        "{name:<20} {up:>9} {:>10} {:>9} {:>7} {incoming:>9} {outgoing:>9} {load:>6}",
        live[0], live[1], live[2]
    );
}

/// The two largest units: `3d 4h`, `5m 6s`.
fn age(up: Duration) -> String {
    let seconds = up.as_secs();
    match (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0, s) => format!("{s}s"),
        (0, 0, m, s) => format!("{m}m {s}s"),
        (0, h, m, _) => format!("{h}h {m}m"),
        (d, h, ..) => format!("{d}d {h}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(id: &str, messages: u64) -> Stats {
        stats(
            serde_json::json!({
                "nodes": [
                    {"id": id, "name": "one", "version": "0.1.0", "uptime_ms": 93_784_000_u64, "load": 0.5,
                     "connections": {"websocket": 7, "sse": 2}, "messages_in": 5, "messages_out": messages, "draining": true},
                    {"id": "b", "name": "two", "version": "0.1.0", "uptime_ms": 61_000,
                     "connections": {"poll": 1}, "messages_in": 0, "messages_out": 10, "draining": false},
                ],
                "totals": {}, "redis": {"state": "up"},
            })
            .to_string()
            .as_bytes(),
        )
        .expect("statistics")
    }

    #[test]
    fn rates_are_the_difference_between_two_looks_at_the_same_life() {
        let first = show(&seen("a", 100), None);
        assert!(first.starts_with("nodes 2   redis up\n"), "{first}");
        assert!(first.contains("1d 2h") && first.contains("1m 1s"), "{first}");
        let unknown = first.lines().last().is_some_and(|all| all.contains(" - "));
        assert!(unknown && first.contains("0.1.0 draining"), "{first}");
        let past = seen("a", 100);
        let second = show(&seen("a", 200), Some((Duration::from_secs(2), &past)));
        let all = second.lines().last().expect("a last line");
        let words: Vec<&str> = all.split_whitespace().collect();
        assert_eq!(words, ["all", "7", "2", "1", "0", "50", "0.50"]);
        let restarted = show(&seen("c", 3), Some((Duration::from_secs(2), &past)));
        let one = restarted.lines().find(|line| line.starts_with("one")).expect("its line");
        assert!(one.contains(" - "), "{one}");
    }

    #[test]
    fn what_is_no_statistics_is_said_so() {
        let error = stats(b"<html>").expect_err("no statistics");
        assert!(error.to_string().contains("is --url a Carillon gateway?"), "{error}");
    }
}
