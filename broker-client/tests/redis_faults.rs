//! What the broker promises while one Redis server breaks in every way we can make it break.

#[path = "redis/deaf_proxy.rs"]
mod deaf_proxy;
#[path = "redis/node.rs"]
#[allow(dead_code, reason = "each test binary uses its part")]
mod node;
#[path = "redis/process.rs"]
#[allow(dead_code, reason = "each test binary uses its part")]
mod process;
#[path = "redis_faults/scripts.rs"]
mod scripts;

use std::time::Duration;

use carillon_broker_client::{
    Broker, BrokerError, ConnectionRecord, Event, Health, Publish, RedisMode, RedisSettings,
    RedisTls, Retention,
};
use carillon_protocol::{ConnectionId, UserId};
use tokio::time::Instant;

use deaf_proxy::DeafProxy;
use node::{COMMAND_TIMEOUT, Node, PATIENCE, channel, kept, settings};
use process::RedisProcess;

fn standalone(server: &RedisProcess) -> RedisSettings {
    settings(RedisMode::Standalone, vec![server.url()])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_pub_sub_connection_is_back_and_says_so() {
    let server = RedisProcess::start(&[]);
    let mut node = Node::up(standalone(&server)).await;
    let names: Vec<_> = (0..3_000).map(|index| channel(&format!("room:{index}"))).collect();
    node.broker.subscribe(&names).await.expect("subscribed");
    let mut slowest = Duration::ZERO;
    for round in 0..10 {
        let began = Instant::now();
        server.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        node.hears(&Event::Interrupted).await;
        node.hears(&Event::Restored).await;
        slowest = slowest.max(began.elapsed());
        let id = format!("m{round}");
        node.publish(&names[2_999], &id).await.expect("published");
        assert_eq!(node.hears_publication().await, id);
    }
    println!("3,000 channels are heard again {slowest:?} after the connection's death, at most");
    assert_eq!(node.broker.stats().hearing_reconnects, 10);
    assert_eq!(node.broker.stats().command_reconnects, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_kill_9_with_data_the_epoch_goes_on_and_interest_stands() {
    let mut server = RedisProcess::start(&["--appendonly", "yes", "--appendfsync", "always"]);
    let mut node = Node::up(standalone(&server)).await;
    let name = channel("room:a");
    node.subscribe(&name).await.expect("subscribed");
    let before = node.publish(&name, "m1").await.expect("published").position.expect("kept");
    assert_eq!(node.hears_publication().await, "m1");
    server.kill();
    node.hears(&Event::Interrupted).await;
    let began = Instant::now();
    assert!(matches!(node.publish(&name, "lost").await, Err(BrokerError::Unavailable(_))));
    assert!(began.elapsed() < COMMAND_TIMEOUT / 2, "a dead Redis is known: {:?}", began.elapsed());
    node.until(|health| matches!(health, Health::Down(_))).await;
    server.start_again();
    let back = Instant::now();
    node.hears(&Event::Restored).await;
    println!("heard again {:?} after Redis is back", back.elapsed());
    node.until(|health| *health == Health::Up).await;
    let after = node.publish(&name, "m2").await.expect("published").position.expect("kept");
    assert_eq!((after.epoch, after.offset), (before.epoch, 2));
    assert_eq!(node.hears_publication().await, "m2");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_lost_data_epochs_are_new_and_a_beat_restores_registrations() {
    let mut server = RedisProcess::start(&[]);
    let mut node = Node::up(standalone(&server)).await;
    let name = channel("room:a");
    let before = node.publish(&name, "m1").await.expect("published").position.expect("kept");
    node.beat().await.expect("beaten");
    let user = UserId::new("ada").expect("a user");
    let record =
        ConnectionRecord { id: ConnectionId::new("c1").expect("an id"), user: user.clone() };
    node.broker.register(&record, 10).await.expect("registered");
    server.kill();
    // What ends while Redis is away must not come back.
    let gone = ConnectionRecord { id: ConnectionId::new("c2").expect("an id"), user: user.clone() };
    assert!(node.broker.register(&gone, 10).await.is_err());
    assert!(node.broker.deregister(&gone).await.is_err());
    server.start_again();
    node.until(|health| *health == Health::Up).await;
    node.publish_until_it_works(&name, "m2").await;
    assert_ne!(node.broker.tops(&[name]).await.expect("tops")[0].epoch, before.epoch);
    node.beat().await.expect("beaten");
    assert_eq!(
        node.broker.connections_of(&user).await.expect("listed"),
        std::slice::from_ref(&record.id)
    );
    server.cli(&["FLUSHALL"]);
    node.beat().await.expect("beaten");
    assert_eq!(node.broker.connections_of(&user).await.expect("listed"), [record.id]);
    node.events.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn connection_admitted_while_redis_is_away_is_registered_when_it_is_back() {
    let mut server = RedisProcess::start(&[]);
    let mut node = Node::up(standalone(&server)).await;
    node.beat().await.expect("beaten");
    server.kill();
    let user = UserId::new("ada").expect("a user");
    let record = |id| ConnectionRecord {
        id: ConnectionId::new(id).expect("an id"),
        user: UserId::new("ada").expect("a user"),
    };
    for id in ["stays", "goes"] {
        assert!(node.broker.register(&record(id), 10).await.is_err());
        node.broker.register_later(&record(id));
    }
    assert!(node.broker.deregister(&record("goes")).await.is_err());
    server.start_again();
    node.until(|health| *health == Health::Up).await;
    node.beat().await.expect("beaten");
    assert_eq!(node.broker.connections_of(&user).await.expect("listed"), [record("stays").id]);
    // The same without a new connection to Redis and with the lease held, as after a pause.
    node.broker.register_later(&record("later"));
    node.beat().await.expect("beaten");
    assert_eq!(node.broker.connections_of(&user).await.expect("listed").len(), 2);
    node.events.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn handshake_given_up_in_the_middle_leaves_no_registration() {
    let server = RedisProcess::start(&[]);
    let node = Node::up(standalone(&server)).await;
    node.beat().await.expect("beaten");
    let user = UserId::new("ada").expect("a user");
    let mut left = 0;
    for index in 0..200 {
        let id = ConnectionId::new(&format!("c{index}")).expect("an id");
        let record = ConnectionRecord { id, user: user.clone() };
        let mut registering = std::pin::pin!(node.broker.register(&record, 10));
        // Polled a few times, dropped at whatever point that is.
        for _ in 0..index % 4 {
            if futures_util::poll!(&mut registering).is_ready() {
                node.broker.deregister(&record).await.expect("taken back");
                break;
            }
            tokio::task::yield_now().await;
            left += 1;
        }
    }
    assert!(left > 0, "none was given up in the middle");
    node.beat().await.expect("beaten");
    assert!(node.broker.connections_of(&user).await.expect("listed").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_redis_costs_callers_their_timeout_and_then_nothing() {
    const TIMEOUT: Duration = Duration::from_secs(1);
    let server = RedisProcess::start(&[]);
    let mut node =
        Node::up(RedisSettings { command_timeout: TIMEOUT, ..standalone(&server) }).await;
    let name = channel("room:a");
    node.subscribe(&name).await.expect("subscribed");
    server.signal("-STOP");
    let (mut slowest, mut at_once) = (Duration::ZERO, 0);
    // Late callers fail at once: fifty in a row that wait for nothing.
    let began = Instant::now();
    let batch = (0..1_000).map(|_| kept(&name, "m0")).collect();
    assert!(node.broker.publish_batch(batch).await.iter().all(Result::is_err));
    slowest = slowest.max(began.elapsed());
    while at_once < 50 {
        let call = Instant::now();
        assert!(matches!(node.publish(&name, "m0").await, Err(BrokerError::Unavailable(_))));
        slowest = slowest.max(call.elapsed());
        at_once = if call.elapsed() < TIMEOUT / 2 { at_once + 1 } else { 0 };
        assert!(began.elapsed() < PATIENCE, "callers still wait for a stopped Redis");
    }
    println!("the slowest caller waited {slowest:?} of {TIMEOUT:?}");
    assert!(slowest < 5 * TIMEOUT, "{slowest:?}");
    server.signal("-CONT");
    let took = node.publish_until_it_works(&name, "m1").await;
    println!("writes again {took:?} after Redis goes on");
    loop {
        match node.heard().await {
            Event::Publication(publication) if publication.id.as_str() == "m1" => break,
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_memory_nothing_is_published_that_history_does_not_hold() {
    let server = RedisProcess::start(&[]);
    let mut node = Node::up(standalone(&server)).await;
    let name = channel("room:a");
    node.subscribe(&name).await.expect("subscribed");
    node.publish(&name, "m1").await.expect("published");
    server.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    let refused = node.publish(&name, "refused").await;
    assert!(
        matches!(&refused, Err(BrokerError::Unavailable(why)) if why.contains("OOM")),
        "{refused:?}"
    );
    let batch =
        node.broker.publish_batch(vec![kept(&name, "refused"), kept(&name, "refused")]).await;
    assert!(batch.iter().all(Result::is_err));
    assert_eq!(node.history(&name).await, ["m1"], "reading goes on");
    server.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    node.publish(&name, "m2").await.expect("published");
    assert_eq!(node.hears_publication().await, "m1");
    assert_eq!(node.hears_publication().await, "m2");
    assert_eq!(node.history(&name).await, ["m1", "m2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_replicas_or_as_a_replica_nothing_is_published() {
    let server = RedisProcess::start(&[]);
    let mut node = Node::up(standalone(&server)).await;
    let name = channel("room:a");
    node.subscribe(&name).await.expect("subscribed");
    server.cli(&["CONFIG", "SET", "min-replicas-to-write", "1"]);
    let refused = node.publish(&name, "refused").await;
    assert!(
        matches!(&refused, Err(BrokerError::Unavailable(why)) if why.contains("NOREPLICAS")),
        "{refused:?}"
    );
    server.cli(&["CONFIG", "SET", "min-replicas-to-write", "0"]);
    server.cli(&["REPLICAOF", "127.0.0.1", "1"]);
    assert!(matches!(node.publish(&name, "refused").await, Err(BrokerError::Unavailable(_))));
    server.cli(&["REPLICAOF", "NO", "ONE"]);
    node.publish_until_it_works(&name, "m1").await;
    loop {
        if let Event::Publication(publication) = node.heard().await {
            assert_eq!(publication.id.as_str(), "m1");
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_that_appears_later_is_found_and_wishes_stand() {
    let mut server = RedisProcess::absent(&[]);
    let mut node = Node::connect(standalone(&server));
    let name = channel("room:a");
    let began = Instant::now();
    assert!(matches!(node.subscribe(&name).await, Err(BrokerError::Unavailable(_))));
    assert!(matches!(node.publish(&name, "m0").await, Err(BrokerError::Unavailable(_))));
    assert!(began.elapsed() < COMMAND_TIMEOUT / 2, "who was never there is not waited for");
    assert_eq!(*node.broker.health().borrow(), Health::Starting);
    server.start_again();
    node.until(|health| *health == Health::Up).await;
    node.hears(&Event::Restored).await;
    node.publish(&name, "m1").await.expect("published");
    assert_eq!(node.hears_publication().await, "m1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_said_clearly_and_a_right_one_works() {
    let server = RedisProcess::start(&["--requirepass", "right"]);
    let with = |login: &str| {
        settings(RedisMode::Standalone, vec![format!("redis://{login}127.0.0.1:{}", server.port)])
    };
    for login in [":wrong@", ""] {
        let node = Node::connect(with(login));
        let Health::Down(why) = node.until(|health| matches!(health, Health::Down(_))).await else {
            panic!()
        };
        assert!(why.contains("WRONGPASS") || why.contains("NOAUTH"), "{why}");
        let refused = node.publish(&channel("room:a"), "m").await;
        assert!(
            matches!(&refused, Err(BrokerError::Unavailable(said)) if *said == why),
            "{refused:?}"
        );
        assert!(!why.contains("wrong@"));
    }
    let node = Node::up(with(":right@")).await;
    node.publish(&channel("room:a"), "m").await.expect("published");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restricted_user_is_enough() {
    let server = RedisProcess::start(&[]);
    let rule = "on >pw resetkeys ~t:* resetchannels &t:* -@all +@read +@write +@stream +@pubsub +@connection \
                +@transaction +evalsha +script|load +time -@dangerous";
    let mut command = vec!["ACL", "SETUSER", "carillon"];
    command.extend(rule.split_whitespace());
    assert_eq!(server.cli(&command), "OK");
    let url = format!("redis://carillon:pw@127.0.0.1:{}", server.port);
    let mut node = Node::up(settings(RedisMode::Standalone, vec![url])).await;
    let name = channel("room:a");
    node.subscribe(&name).await.expect("subscribed");
    node.publish(&name, "m1").await.expect("published");
    assert_eq!(node.hears_publication().await, "m1");
    assert_eq!(node.history(&name).await, ["m1"]);
    node.broker.clear_history(&name).await.expect("cleared");
    assert_eq!(node.beat().await.expect("beaten").len(), 1);
    let user = UserId::new("ada").expect("a user");
    let record = ConnectionRecord { id: ConnectionId::new("c1").expect("an id"), user };
    node.broker.register(&record, 10).await.expect("registered");
    node.broker.count("poll", Duration::from_secs(60)).await.expect("counted");
    node.broker.retire().await.expect("retired");
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_of_what_is_too_old_is_given_back_while_publishing_goes_on() {
    let server = RedisProcess::start(&[]);
    let node = Node::up(standalone(&server)).await;
    let name = channel("room:a");
    let retention = Some(Retention { size: 1_000, age: Duration::from_secs(1) });
    let batch =
        |count| (0..count).map(|_| Publish { retention, ..kept(&name, "m") }).collect::<Vec<_>>();
    let receipts = node.broker.publish_batch(batch(100)).await;
    assert!(receipts.iter().all(Result::is_ok));
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let receipts = node.broker.publish_batch(batch(28)).await;
    assert!(receipts.iter().all(Result::is_ok));
    let left: u64 = server.cli(&["XLEN", "t:{room:a}:h"]).parse().expect("a number");
    // On a slow machine the first of the second batch are too old as well.
    assert!((1..=28).contains(&left), "the first hundred are gone from Redis, {left} are left");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deaf_connection_is_found_and_replaced() {
    let server = RedisProcess::start(&[]);
    let proxy = DeafProxy::start(server.port).await;
    let url = format!("redis://127.0.0.1:{}", proxy.port);
    let mut node = Node::up(settings(RedisMode::Standalone, vec![url])).await;
    let name = channel("room:a");
    node.subscribe(&name).await.expect("subscribed");
    node.publish(&name, "m0").await.expect("published");
    assert_eq!(node.hears_publication().await, "m0");
    let began = Instant::now();
    proxy.deafen();
    node.publish(&name, "unheard").await.expect("published");
    node.hears(&Event::Interrupted).await;
    node.hears(&Event::Restored).await;
    println!("found and replaced after {:?}", began.elapsed());
    node.publish(&name, "m1").await.expect("published");
    assert_eq!(node.hears_publication().await, "m1");
    while node.broker.canary_age().is_none_or(|age| age > Duration::from_secs(2)) {
        assert!(began.elapsed() < PATIENCE, "{:?}", node.broker.canary_age());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_ends_every_task_and_connection() {
    let server = RedisProcess::start(&[]);
    let node = Node::up(standalone(&server)).await;
    tokio::time::timeout(PATIENCE, node.broker.close()).await.expect("closed in time");
    assert!(matches!(
        node.publish(&channel("room:a"), "m").await,
        Err(BrokerError::Unavailable(_))
    ));
    let dropped = Node::up(standalone(&server)).await;
    drop(dropped);
    let deadline = Instant::now() + PATIENCE;
    while server.cli(&["CLIENT", "LIST"]).contains("carillon-") {
        assert!(Instant::now() < deadline, "connections outlive their broker");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_is_spoken_by_commands_and_hearing() {
    let made =
        rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
    let mut server = RedisProcess::absent(&[]);
    let file = |name: &str, text: &str| {
        let path = server.directory().join(name);
        std::fs::write(&path, text).expect("written");
        path.to_str().expect("UTF-8").to_owned()
    };
    let cert = file("cert.pem", &made.cert.pem());
    let key = file("key.pem", &made.signing_key.serialize_pem());
    let other = RedisProcess::absent(&[]);
    let tls_port = other.port;
    server.add_arguments(&[
        "--tls-port",
        &tls_port.to_string(),
        "--tls-cert-file",
        &cert,
        "--tls-key-file",
        &key,
    ]);
    server.add_arguments(&["--tls-ca-cert-file", &cert, "--tls-auth-clients", "no"]);
    server.start_again();
    let url = vec![format!("rediss://localhost:{tls_port}")];
    let with =
        |tls: RedisTls| RedisSettings { tls, ..settings(RedisMode::Standalone, url.clone()) };
    let untrusted = Node::connect(with(RedisTls::default()));
    untrusted
        .until(|health| matches!(health, Health::Down(why) if why.contains("localhost")))
        .await;
    for tls in [
        RedisTls { ca: Some(cert.clone()), ..RedisTls::default() },
        RedisTls { insecure: true, ..RedisTls::default() },
    ] {
        let mut node = Node::up(with(tls)).await;
        let name = channel("room:a");
        node.subscribe(&name).await.expect("subscribed");
        let names: Vec<_> = (0..5_000).map(|index| channel(&format!("room:{index}"))).collect();
        node.broker.subscribe(&names).await.expect("subscribed");
        node.publish(&name, "m1").await.expect("published");
        assert_eq!(node.hears_publication().await, "m1");
    }
}
