//! A cluster of six processes: its masters die, its slots move.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use carillon_broker_client::{
    Broker, Event, Health, HistoryQuery, Publish, RedisMode, Retention, Start,
};
use tokio::time::Instant;

use crate::node::{Node, channel, kept, settings};
use crate::process::RedisProcess;
use crate::{FAILOVER_MAX, everything_works, hears_at_last, rooms, until, urls};

/// Six processes: three masters, three replicas.
pub(crate) async fn cluster() -> Vec<RedisProcess> {
    let start = || {
        RedisProcess::start(&[
            "--cluster-enabled",
            "yes",
            "--cluster-node-timeout",
            "1500",
            "--repl-diskless-sync-delay",
            "0",
        ])
    };
    let servers: Vec<_> = (0..6).map(|_| start()).collect();
    let mut create = Command::new("redis-cli");
    create.args(["--cluster", "create"]);
    create.args(servers.iter().map(|server| format!("127.0.0.1:{}", server.port)));
    create.args(["--cluster-replicas", "1", "--cluster-yes"]);
    let created = create.output().expect("redis-cli");
    assert!(created.status.success(), "{}", String::from_utf8_lossy(&created.stdout));
    for server in &servers {
        until("the cluster stands", || {
            server.cli(&["CLUSTER", "INFO"]).contains("cluster_state:ok")
        })
        .await;
    }
    until("replicas follow", || {
        let follows = |server: &&RedisProcess| {
            server.cli(&["INFO", "replication"]).contains("master_link_status:up")
        };
        servers.iter().filter(follows).count() == 3
    })
    .await;
    servers
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_serves_all_and_writes_again_after_a_masters_death() {
    let mut servers = cluster().await;
    let with = settings(RedisMode::Cluster, urls(&servers[..2]));
    everything_works(&with).await;
    let mut node = Node::up(with).await;
    let rooms = rooms(60);
    node.broker.subscribe(&rooms).await.expect("subscribed");
    let victim = servers
        .iter()
        .position(|server| server.cli(&["ROLE"]).starts_with("master"))
        .expect("a master");
    servers[victim].kill();
    node.hears(&Event::Interrupted).await;
    let began = Instant::now();
    for room in &rooms {
        node.publish_until_it_works(room, "m1").await;
    }
    println!("all slots take writes again {:?} after the master's death", began.elapsed());
    assert!(began.elapsed() < FAILOVER_MAX, "{:?}", began.elapsed());
    loop {
        if node.heard().await == Event::Restored {
            break;
        }
    }
    node.until(|health| *health == Health::Up).await;
    for room in &rooms {
        node.publish(room, "m2").await.expect("published");
    }
    let mut left = rooms.len();
    while left > 0 {
        match node.heard().await {
            Event::Publication(publication) if publication.id.as_str() == "m2" => left -= 1,
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_moves_under_load_loses_nothing() {
    let servers = cluster().await;
    let mut node = Node::up(settings(RedisMode::Cluster, urls(&servers[..1]))).await;
    let name = channel("room:moves");
    node.subscribe(&name).await.expect("subscribed");
    let tag = format!("{{{name}}}");
    let slot = servers[0].cli(&["CLUSTER", "KEYSLOT", &tag]);
    let masters: Vec<&RedisProcess> =
        servers.iter().filter(|server| server.cli(&["ROLE"]).starts_with("master")).collect();
    let owns =
        |server: &RedisProcess| !server.cli(&["GET", &format!("t:{tag}:m")]).starts_with("MOVED");
    node.publish(&name, "m0").await.expect("published");
    let from = masters.iter().find(|server| owns(server)).expect("an owner");
    let to = masters.iter().find(|server| server.port != from.port).expect("another");
    let (from_id, to_id) = (from.cli(&["CLUSTER", "MYID"]), to.cli(&["CLUSTER", "MYID"]));

    let publisher = {
        let broker = node.broker.clone();
        let name = name.clone();
        tokio::spawn(async move {
            let mut acknowledged = vec!["m0".to_owned()];
            for index in 1..=400 {
                let id = format!("m{index}");
                if broker.publish(kept(&name, &id)).await.is_ok() {
                    acknowledged.push(id);
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            acknowledged
        })
    };
    to.cli(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from_id]);
    from.cli(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &to_id]);
    let keys = from.cli(&["CLUSTER", "GETKEYSINSLOT", &slot, "100"]);
    let port = to.port.to_string();
    let mut migrate = vec!["MIGRATE", "127.0.0.1", &port, "", "0", "20000", "KEYS"];
    migrate.extend(keys.lines());
    assert_eq!(from.cli(&migrate), "OK");
    for server in [to, from] {
        server.cli(&["CLUSTER", "SETSLOT", &slot, "NODE", &to_id]);
    }
    let acknowledged = publisher.await.expect("published");
    assert!(acknowledged.len() > 300, "{}", acknowledged.len());
    node.until(|health| *health == Health::Up).await;
    let mut kept_offsets = Vec::new();
    let query = carillon_broker_client::HistoryQuery {
        start: carillon_broker_client::Start::Last,
        limit: 100,
        age: Duration::from_secs(3600),
    };
    let page = node.broker.history(&name, query).await.expect("history");
    kept_offsets
        .extend(page.publications.iter().map(|publication| publication.id.as_str().to_owned()));
    let tail = &acknowledged[acknowledged.len() - 50..];
    assert!(tail.iter().all(|id| kept_offsets.contains(id)), "{tail:?} {kept_offsets:?}");
    assert!(page.top.offset >= acknowledged.len() as u64, "no offset was used twice");
    node.publish(&name, "last").await.expect("published");
    hears_at_last(&mut node, "last").await;
    assert!(owns(to));
}

/// A batch's messages to one channel keep their order and come once, whatever part of it a server sent elsewhere.
#[tokio::test(flavor = "multi_thread")]
async fn batches_keep_their_order_while_their_slot_is_on_its_way() {
    const BATCHES: usize = 12;
    // A server reads some 16 KiB at a time and serves others between two reads: a batch must be many of these to be torn.
    const EACH: usize = 500;
    let servers = cluster().await;
    let node = Node::up(settings(RedisMode::Cluster, urls(&servers[..1]))).await;
    let name = channel("room:wavers");
    let tag = format!("{{{name}}}");
    let slot = servers[0].cli(&["CLUSTER", "KEYSLOT", &tag]);
    let is_master = |server: &&RedisProcess| server.cli(&["ROLE"]).starts_with("master");
    let masters: Vec<&RedisProcess> = servers.iter().filter(is_master).collect();
    node.publish(&name, "first").await.expect("published");
    let owns = |server: &RedisProcess| server.cli(&["GET", &format!("t:{tag}:m")]).len() > 16;
    let from = masters.iter().find(|server| {
        let answer = server.cli(&["GET", &format!("t:{tag}:m")]);
        !answer.starts_with("MOVED") && owns(server)
    });
    let from = from.expect("an owner");
    let to = masters.iter().find(|server| server.port != from.port).expect("another");
    let to_id = to.cli(&["CLUSTER", "MYID"]);
    // The owner sends away what it does not have, and a moment later takes everything again.
    let over = Arc::new(AtomicBool::new(false));
    let wavering = {
        let (port, over) = (from.port.to_string(), Arc::clone(&over));
        std::thread::spawn(move || {
            let away = format!(
                "CLUSTER SETSLOT {slot} MIGRATING {to_id}\nCLUSTER SETSLOT {slot} STABLE\n"
            );
            while !over.load(Ordering::Relaxed) {
                let mut cli = Command::new("redis-cli");
                let cli = cli.args(["-p", &port]).stdin(Stdio::piped()).stdout(Stdio::null());
                let mut cli = cli.spawn().expect("redis-cli");
                let mut input = cli.stdin.take().expect("piped");
                input.write_all(away.repeat(200).as_bytes()).expect("written");
                drop(input);
                cli.wait().expect("redis-cli");
            }
        })
    };
    let mut acknowledged = Vec::new();
    for batch in 0..BATCHES {
        let ids: Vec<String> = (0..EACH).map(|at| format!("{:06}", batch * EACH + at)).collect();
        let requests = ids.iter().map(|id| Publish {
            retention: Some(Retention { size: 100_000, age: Duration::from_secs(3600) }),
            ..kept(&name, id)
        });
        let receipts = node.broker.publish_batch(requests.collect()).await;
        let good = ids.into_iter().zip(receipts).filter(|(_, receipt)| receipt.is_ok());
        acknowledged.extend(good.map(|(id, _)| id));
    }
    over.store(true, Ordering::Relaxed);
    wavering.join().expect("no panic");
    let mut ids = Vec::new();
    loop {
        let query = HistoryQuery {
            start: Start::After(ids.len() as u64),
            limit: 1_000,
            age: Duration::from_secs(3600),
        };
        let page = node.broker.history(&name, query).await.expect("history");
        let Some(top) = page.publications.last().and_then(|last| last.position) else { break };
        ids.extend(page.publications.iter().map(|publication| publication.id.as_str().to_owned()));
        assert_eq!(top.offset, ids.len() as u64);
    }
    let ids = &ids[1..];
    assert!(acknowledged.len() > BATCHES * EACH / 2, "{} were acknowledged", acknowledged.len());
    let reordered = ids.windows(2).filter(|pair| pair[0] >= pair[1]).count();
    assert_eq!(reordered, 0, "of {}", ids.len());
    assert!(acknowledged.iter().all(|id| ids.binary_search(id).is_ok()), "all that was promised");
}
