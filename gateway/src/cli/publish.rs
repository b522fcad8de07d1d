//! `carillon publish`: one message, or one a line. One request is in flight at a time, so that the order
//! stays; what waits meanwhile makes the next batch, so that throughput grows with the load.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use clap::Args;
use http_body_util::Full;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, BufReader};
use tokio::sync::mpsc;

use super::backoff::Backoff;
use crate::outbound::Outbound;

/// The most messages that the API takes in one call.
const BATCH_MAX: usize = 1_000;

/// Payload bytes that end a batch, well under the API's 16 MiB.
const BATCH_BYTES_MAX: usize = 4 << 20;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

#[derive(Clone, Debug, Args)]
pub(super) struct PublishArgs {
    /// The gateway.
    #[arg(long, default_value = "http://127.0.0.1:8082", env = "CARILLON_URL")]
    pub(super) url: String,
    /// A backend's key.
    #[arg(long, env = "CARILLON_API_KEY", hide_env_values = true, conflicts_with = "token")]
    pub(super) api_key: Option<String>,
    /// A user's token, or a backend's.
    #[arg(long, env = "CARILLON_TOKEN", hide_env_values = true)]
    pub(super) token: Option<String>,
    /// The channel.
    #[arg(long)]
    pub(super) channel: String,
    /// The message type.
    #[arg(long = "type", default_value = "message")]
    pub(super) kind: String,
    /// The payload: JSON, or any other text as a JSON string.
    #[arg(long, required_unless_present = "from", conflicts_with = "from")]
    pub(super) payload: Option<String>,
    /// Publish a message for each line of a file, or of standard input (`-`).
    #[arg(long, value_name = "FILE")]
    pub(super) from: Option<PathBuf>,
    /// The most messages that are under way at once.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=BATCH_MAX as i64))]
    pub(super) in_flight: u16,
    /// How long a batch is tried again while the gateway is out of reach.
    #[arg(long, default_value = "30s", value_parser = crate::config::parse_duration)]
    pub(super) retry_for: Duration,
}

/// A message that waits. The id makes repeating it safe.
struct Waiting {
    id: String,
    payload: Box<RawValue>,
}

/// How it went.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) published: u64,
    pub(super) duplicates: u64,
    pub(super) failed: u64,
}

/// Results of one call, in the order of its messages; or why another try might help, or none will.
enum Answer {
    Results(Vec<Value>),
    Later(String, Option<Duration>),
    Never(String),
}

pub(super) async fn run(args: PublishArgs) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let tally = match (&args.payload, &args.from) {
        (Some(payload), _) => publish(&args, BufReader::new(one_line(payload).as_bytes())).await?,
        (None, Some(path)) if path.as_os_str() == "-" => {
            publish(&args, BufReader::new(tokio::io::stdin())).await?
        }
        (None, Some(path)) => {
            let file = tokio::fs::File::open(path).await;
            publish(
                &args,
                BufReader::new(file.with_context(|| format!("cannot open {}", path.display()))?),
            )
            .await?
        }
        (None, None) => anyhow::bail!("give --payload or --from"),
    };
    let took = started.elapsed().as_secs_f64();
    let rate = tally.published as f64 / took.max(0.001);
    eprintln!(
        "published {} ({} already there), {} failed, {took:.2} s, {rate:.0}/s",
        tally.published, tally.duplicates, tally.failed
    );
    Ok(if tally.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A text with line breaks is one payload, not several.
fn one_line(payload: &str) -> String {
    payload_of(payload)
        .map_or_else(|| "\"\"".to_owned(), |json| json.get().replace(['\n', '\r'], " "))
}

/// JSON as it is, other text as a JSON string; `None` for an empty line.
fn payload_of(line: &str) -> Option<Box<RawValue>> {
    let text = line.trim();
    if text.is_empty() {
        return None;
    }
    serde_json::from_str(text).ok().or_else(|| serde_json::value::to_raw_value(text).ok())
}

/// Publishes every line. Ends with an error where no further message could succeed.
pub(super) async fn publish(
    args: &PublishArgs,
    mut lines: impl AsyncBufRead + Unpin,
) -> anyhow::Result<Tally> {
    let in_flight = usize::from(args.in_flight);
    let (sender, mut waiting) = mpsc::channel::<Waiting>(in_flight);
    let reading = async move {
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line).await.context("the input cannot be read")? > 0 {
            if let Some(payload) = payload_of(&String::from_utf8_lossy(&line)) {
                let message = Waiting { id: uuid::Uuid::now_v7().to_string(), payload };
                if sender.send(message).await.is_err() {
                    break;
                }
            }
            line.clear();
        }
        anyhow::Ok(())
    };
    let publisher = Publisher { args, outbound: Outbound::new() };
    let sending = async {
        // Owned here, so that the reader stops when this ends early.
        let mut tally = Tally::default();
        let mut batch = Vec::with_capacity(in_flight);
        while let Some(first) = waiting.recv().await {
            let mut bytes = first.payload.get().len();
            batch.push(first);
            while batch.len() < in_flight && bytes < BATCH_BYTES_MAX {
                let Ok(next) = waiting.try_recv() else { break };
                bytes += next.payload.get().len();
                batch.push(next);
            }
            let sent = publisher.send(std::mem::take(&mut batch), &mut tally).await;
            if let Err(error) = sent {
                waiting.close();
                return Err(error);
            }
        }
        Ok(tally)
    };
    tokio::pin!(reading);
    tokio::pin!(sending);
    tokio::select! {
        tally = &mut sending => tally,
        read = &mut reading => {
            let tally = sending.await?;
            read.map(|()| tally)
        }
    }
}

struct Publisher<'a> {
    args: &'a PublishArgs,
    outbound: Outbound,
}

impl Publisher<'_> {
    /// Sends a batch until each message has its result. Those that may succeed later go again, with the same ids.
    async fn send(&self, mut batch: Vec<Waiting>, tally: &mut Tally) -> anyhow::Result<()> {
        let give_up = Instant::now() + self.args.retry_for;
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        while !batch.is_empty() {
            let (reason, after) = match self.call(&batch).await {
                Answer::Never(reason) => anyhow::bail!(reason),
                Answer::Later(reason, after) => (reason, after),
                Answer::Results(results) => {
                    let (again, after, reason) = sort(batch, &results, tally);
                    batch = again;
                    (reason, after)
                }
            };
            if batch.is_empty() {
                return Ok(());
            }
            let wait = after.unwrap_or_default() + backoff.next();
            if Instant::now() + wait > give_up {
                tally.failed += batch.len() as u64;
                eprintln!("carillon: gave up on {} messages: {reason}", batch.len());
                return Ok(());
            }
            tokio::time::sleep(wait).await;
        }
        Ok(())
    }

    async fn call(&self, batch: &[Waiting]) -> Answer {
        #[derive(serde::Serialize)]
        struct Message<'m> {
            channel: &'m str,
            r#type: &'m str,
            id: &'m str,
            payload: &'m RawValue,
        }
        let message = |waiting: &Waiting| -> Option<Box<RawValue>> {
            let message = Message {
                channel: &self.args.channel,
                r#type: &self.args.kind,
                id: &waiting.id,
                payload: &waiting.payload,
            };
            serde_json::value::to_raw_value(&message).ok()
        };
        let messages: Vec<_> = batch.iter().filter_map(message).collect();
        let url = format!("{}/api/realtime/publish/batch", self.args.url.trim_end_matches('/'));
        let mut request = http::Request::post(url).header("content-type", "application/json");
        if let Some(key) = &self.args.api_key {
            request = request.header("x-api-key", key);
        }
        if let Some(token) = &self.args.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        #[derive(serde::Serialize)]
        struct Body<'b> {
            messages: &'b [Box<RawValue>],
        }
        let body = serde_json::to_vec(&Body { messages: &messages }).unwrap_or_default();
        let request = match request.body(Full::new(Bytes::from(body))) {
            Ok(request) => request,
            Err(error) => {
                return Answer::Never(format!(
                    "--url, --api-key or --token cannot be used: {error}"
                ));
            }
        };
        match self.outbound.send(request, REQUEST_TIMEOUT).await {
            Err(error) => Answer::Later(error.to_string(), None),
            Ok(answer) => read(answer.status(), answer.body(), batch.len()),
        }
    }
}

fn read(status: http::StatusCode, body: &[u8], expected: usize) -> Answer {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    if status.is_success() {
        return match body.get("results").and_then(Value::as_array) {
            Some(results) if results.len() == expected => Answer::Results(results.clone()),
            _ => Answer::Never(
                "the answer is not one result a message; is --url a Carillon gateway?".to_owned(),
            ),
        };
    }
    let error = body.get("error").and_then(Value::as_str).unwrap_or_default();
    let reason = format!("{status} {error}");
    let later = status.is_server_error() || status == http::StatusCode::TOO_MANY_REQUESTS;
    if later { Answer::Later(reason, retry_after(&body)) } else { Answer::Never(reason) }
}

fn retry_after(body: &Value) -> Option<Duration> {
    body.pointer("/details/retry_after_ms").and_then(Value::as_u64).map(Duration::from_millis)
}

/// Counts what is settled; gives back what may succeed later, after how long, and why it did not now.
fn sort(
    batch: Vec<Waiting>,
    results: &[Value],
    tally: &mut Tally,
) -> (Vec<Waiting>, Option<Duration>, String) {
    let (mut again, mut after, mut reason) = (Vec::new(), None, String::new());
    for (message, result) in batch.into_iter().zip(results) {
        let Some(code) = result.get("code").and_then(Value::as_str) else {
            tally.published += 1;
            tally.duplicates += u64::from(result.get("duplicate") == Some(&Value::Bool(true)));
            continue;
        };
        let error = result.get("error").and_then(Value::as_str).unwrap_or(code);
        if matches!(code, "UNAVAILABLE" | "RATE_LIMITED") {
            after = after.max(retry_after(result));
            reason = error.to_owned();
            again.push(message);
        } else {
            tally.failed += 1;
            let seen = json!({"id": message.id, "code": code, "error": error});
            eprintln!("carillon: not published: {seen}");
        }
    }
    (again, after, reason)
}
