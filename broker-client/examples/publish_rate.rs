//! How fast one node publishes into history, and what Redis pays for it.
//!
//! `cargo run --release -p carillon-broker-client --example publish_rate -- redis://127.0.0.1:6379 [callers] [channels]`
//! Prints publishes a second, single and in batches, and microseconds of Redis' CPU a publish.

use std::time::{Duration, Instant};

use carillon_broker_client::{
    Broker, Health, NodeId, Publish, RedisBroker, RedisMode, RedisSettings, RedisTls, Retention,
};
use carillon_protocol::publication::Exclude;
use carillon_protocol::{ChannelName, MessageId, Payload, Publication};

const RUN: Duration = Duration::from_secs(3);
const BATCH: usize = 500;

fn publish(channel: &ChannelName, kept: bool) -> Publish {
    let publication = Publication {
        channel: channel.clone(),
        position: None,
        previous_tag: None,
        stamp: 0,
        id: MessageId::new("0190b1c4-0000-7000-8000-000000000000").expect("an id"),
        kind: "message".into(),
        timestamp_ms: 1_700_000_000_000,
        user_id: None,
        meta: None,
        exclude: Exclude::default(),
        expires_at_ms: None,
        traceparent: None,
        payload: Payload::from_json(format!("{{\"text\":\"{}\"}}", "x".repeat(128))),
    };
    let retention = kept.then_some(Retention { size: 100, age: Duration::from_secs(120) });
    Publish { publication, retention, idempotency: None }
}

/// Seconds of CPU of the Redis process so far.
async fn redis_cpu(connection: &mut redis::aio::MultiplexedConnection) -> f64 {
    let info: String = redis::cmd("INFO").arg("cpu").query_async(connection).await.expect("INFO");
    let field = |name: &str| -> f64 {
        let line = info.lines().find_map(|line| line.strip_prefix(name)).expect("a field");
        line.trim_start_matches(':').trim().parse().expect("a number")
    };
    field("used_cpu_sys") + field("used_cpu_user")
}

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let url = arguments.next().unwrap_or_else(|| "redis://127.0.0.1:6379".to_owned());
    let callers: usize = arguments.next().map_or(64, |text| text.parse().expect("callers"));
    let channels: usize = arguments.next().map_or(1_000, |text| text.parse().expect("channels"));
    let settings = RedisSettings {
        mode: RedisMode::Standalone,
        urls: vec![url.clone()],
        master_name: None,
        prefix: "rate".to_owned(),
        tls: RedisTls::default(),
        command_timeout: Duration::from_secs(1),
    };
    let (broker, _events) = RedisBroker::connect(settings, NodeId::random());
    broker.health().wait_for(|health| *health == Health::Up).await.expect("Redis");
    let client = redis::Client::open(url).expect("a URL");
    let mut observer = client.get_multiplexed_async_connection().await.expect("Redis");
    let names: Vec<ChannelName> = (0..channels)
        .map(|index| ChannelName::new(&format!("room:{index}")).expect("a name"))
        .collect();

    for (what, kept, batch) in [
        ("single, with history", true, 1),
        ("single, without history", false, 1),
        ("batches of 500, with history", true, BATCH),
    ] {
        let cpu = redis_cpu(&mut observer).await;
        let began = Instant::now();
        let mut tasks = tokio::task::JoinSet::new();
        let workers = if batch == 1 { callers } else { 4 };
        for worker in 0..workers {
            let (broker, names) = (broker.clone(), names.clone());
            tasks.spawn(async move {
                let mut done = 0_usize;
                while began.elapsed() < RUN {
                    let request = |index: usize| {
                        publish(&names[(done + index + worker * 31) % names.len()], kept)
                    };
                    if batch == 1 {
                        broker.publish(request(0)).await.expect("published");
                    } else {
                        let receipts =
                            broker.publish_batch((0..batch).map(request).collect()).await;
                        receipts.into_iter().for_each(|receipt| drop(receipt.expect("published")));
                    }
                    done += batch;
                }
                done
            });
        }
        let done: usize = tasks.join_all().await.into_iter().sum();
        let seconds = began.elapsed().as_secs_f64();
        let cpu = redis_cpu(&mut observer).await - cpu;
        println!(
            "{what}: {:.0}/s, Redis {:.1} µs of CPU each ({workers} callers)",
            done as f64 / seconds,
            cpu * 1e6 / done as f64
        );
    }
    println!("{:?}", broker.stats());
    broker.close().await;
}
