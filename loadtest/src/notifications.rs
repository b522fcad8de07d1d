//! `loadtest notifications`: list, count and mark-read on an empty store and beside 100,000 notifications for 1,000
//! users, in one run over one Redis; and what Redis holds for each.

use crate::http::Http;
use crate::redis;
use crate::server::{Scratch, Server, configuration, free_address, secret, start_redis};
use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use hdrhistogram::Histogram;
use rand::Rng as _;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Connections that create at the same time.
const CREATORS: usize = 4;
/// Longest wait until the node has reached Redis.
const READY_MAX: Duration = Duration::from_secs(20);
/// Longest wait until everything stored was carried to the user channels.
const CARRIED_MAX: Duration = Duration::from_secs(600);

/// `loadtest notifications`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// The gateway's binary.
    #[arg(long)]
    pub(crate) carillon: PathBuf,
    #[arg(long, default_value_t = 1_000)]
    pub(crate) users: usize,
    /// Notifications stored, each for one user.
    #[arg(long, default_value_t = 100_000)]
    pub(crate) notifications: usize,
    /// Calls of each kind that are measured.
    #[arg(long, default_value_t = 5_000)]
    pub(crate) samples: usize,
    /// Core of the node and Redis.
    #[arg(long, default_value_t = 0)]
    pub(crate) server_core: usize,
}

/// Latencies of one kind of call, microseconds.
struct Latencies(Histogram<u64>);

impl Latencies {
    fn new() -> Result<Self> {
        Ok(Self(Histogram::new(3)?))
    }

    fn time<T>(&mut self, call: impl FnOnce() -> Result<T>) -> Result<T> {
        let begun = Instant::now();
        let answer = call()?;
        self.0.record(begun.elapsed().as_micros() as u64)?;
        Ok(answer)
    }

    fn cells(&self) -> String {
        let ms = |quantile| self.0.value_at_quantile(quantile) as f64 / 1_000.0;
        format!("{:.2} | {:.2}", ms(0.5), ms(0.99))
    }
}

/// The three calls on a store.
struct Phase {
    list: Latencies,
    count: Latencies,
    mark: Latencies,
}

/// Runs it and prints the table.
pub(crate) fn bench(options: &Options) -> Result<()> {
    let scratch = Scratch::new()?;
    let (address, redis_address) = (free_address()?, free_address()?);
    let (jwt_secret, api_key) = (secret(48), secret(40));
    let _redis = start_redis(options.server_core, redis_address, &scratch)?;
    let toml = configuration(address, Some(redis_address), &jwt_secret, &api_key)?;
    let path = scratch.0.join("carillon.toml");
    std::fs::write(&path, toml)?;
    let args = vec!["serve".to_owned(), "--config".to_owned(), path.display().to_string()];
    let log = scratch.0.join("server.log");
    let mut node = Server::start(options.server_core, &options.carillon, &args, &log)?;
    if let Err(error) = node.wait(address, Some("/api/realtime/openapi.json")) {
        bail!("{error}: {}", std::fs::read_to_string(&log).unwrap_or_default());
    }
    let mut http = Http::connect(address, &api_key)?;
    await_redis(&mut http)?;

    let empty = measure(&mut http, options, "empty")?;
    eprintln!("the empty store is measured");
    let before = redis::used_bytes(redis_address)?;
    let begun = Instant::now();
    fill(address, &api_key, options)?;
    let created = options.notifications as f64 / begun.elapsed().as_secs_f64();
    // The node ends connections that say nothing for long.
    http = Http::connect(address, &api_key)?;
    await_carried(&mut http, options)?;
    eprintln!("{} notifications are stored and carried", options.notifications);
    let after = redis::used_bytes(redis_address)?;
    let full = measure(&mut http, options, "user")?;
    for user in 0..options.users {
        http.ask("DELETE", &format!("/channels/user:user-{user}/history"), None)?;
    }
    let stored = redis::used_bytes(redis_address)?;
    let each = |bytes: u64| bytes as f64 / options.notifications as f64;

    let creates = measure_creates(&mut http)?;
    println!("| call | store | p50 ms | p99 ms |\n|---|---|---|---|");
    for (name, of) in [("list, 20 newest", 0), ("unread count", 1), ("mark read", 2)] {
        for (store, phase) in [("empty", &empty), ("full", &full)] {
            let latencies = [&phase.list, &phase.count, &phase.mark][of];
            println!("| {name} | {store} | {} |", latencies.cells());
        }
    }
    for (recipients, latencies) in &creates {
        println!("| create for {recipients} recipients | full | {} |", latencies.cells());
    }
    println!(
        "\n{} notifications for {} users, {:.0} creates a second over {CREATORS} connections. Redis holds {:.0} bytes \
         for each: {:.0} in the store (record and inbox entry), the rest in the user's history.",
        options.notifications,
        options.users,
        created,
        each(after.saturating_sub(before)),
        each(stored.saturating_sub(before)),
    );
    Ok(())
}

/// The node answers before it has reached Redis.
fn await_redis(http: &mut Http) -> Result<()> {
    let end = Instant::now() + READY_MAX;
    while let Err(error) = http.ask("GET", "/notifications/unread-count/nobody", None) {
        ensure!(Instant::now() < end, "not ready within {READY_MAX:?}: {error}");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// The three calls, on users of their own where the store is empty, on those who have many where it is full.
fn measure(http: &mut Http, options: &Options, kind: &str) -> Result<Phase> {
    let mut phase =
        Phase { list: Latencies::new()?, count: Latencies::new()?, mark: Latencies::new()? };
    let mut random = rand::rng();
    for sample in 0..options.samples {
        let user = match kind {
            "user" => format!("user-{}", random.random_range(0..options.users)),
            _ => format!("{kind}-{sample}"),
        };
        let listed =
            phase.list.time(|| http.ask("GET", &format!("/notifications?user_id={user}"), None))?;
        phase
            .count
            .time(|| http.ask("GET", &format!("/notifications/unread-count/{user}"), None))?;
        // What is marked was created a moment ago on an empty store, long ago on a full one.
        let listed = listed.as_array().map_or(&[][..], Vec::as_slice);
        let any =
            (!listed.is_empty()).then(|| listed[random.random_range(0..listed.len())].clone());
        let marked = match any {
            Some(one) => one,
            None => http.ask("POST", "/notifications", Some(&notification(&user)))?,
        };
        let id = marked["id"].as_str().context("an id")?.to_owned();
        let path = format!("/notifications/{id}/mark-read?user_id={user}");
        phase.mark.time(|| http.ask("POST", &path, None))?;
    }
    Ok(phase)
}

/// One create for many: the answer comes when all of them have it in their lists.
fn measure_creates(http: &mut Http) -> Result<Vec<(usize, Latencies)>> {
    let mut rows = Vec::new();
    for (recipients, samples) in [(1, 1_000), (100, 200), (1_000, 50), (10_000, 10)] {
        let mut latencies = Latencies::new()?;
        for sample in 0..samples {
            let mut body = notification("nobody");
            let names = (0..recipients).map(|n| format!("many-{sample}-{n}"));
            body["recipients"] = names.collect::<Vec<_>>().into();
            latencies.time(|| http.ask("POST", "/notifications", Some(&body)))?;
        }
        rows.push((recipients, latencies));
    }
    Ok(rows)
}

fn notification(user: &str) -> Value {
    json!({
        "title": "New message", "message": "You have a new message from Jane", "recipients": [user], "type": "message",
        "priority": "normal", "sender_id": "user-123", "resource_type": "message", "resource_id": "message-789",
        "actions": [{"label": "View", "action": "view", "data": {"id": "message-789"}}],
        "metadata": {"thread_id": "thread-123"},
    })
}

fn fill(address: SocketAddr, key: &str, options: &Options) -> Result<()> {
    std::thread::scope(|scope| {
        let creators: Vec<_> = (0..CREATORS)
            .map(|creator| {
                scope.spawn(move || -> Result<()> {
                    let mut http = Http::connect(address, key)?;
                    for n in (creator..options.notifications).step_by(CREATORS) {
                        let user = format!("user-{}", n % options.users);
                        http.ask("POST", "/notifications", Some(&notification(&user)))?;
                    }
                    Ok(())
                })
            })
            .collect();
        for creator in creators {
            creator.join().map_err(|_| anyhow::anyhow!("a creator panicked"))??;
        }
        Ok(())
    })
}

/// Until every user's channel has all of theirs.
fn await_carried(http: &mut Http, options: &Options) -> Result<()> {
    let end = Instant::now() + CARRIED_MAX;
    for user in 0..options.users {
        let wanted = (options.notifications / options.users) as u64;
        loop {
            let state = http.ask("GET", &format!("/channels/user:user-{user}"), None)?;
            if state["offset"].as_u64().unwrap_or(0) >= wanted {
                break;
            }
            ensure!(Instant::now() < end, "not carried within {CARRIED_MAX:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    Ok(())
}
