//! The broker over several Redis servers: shards, sentinels, a cluster.

#[path = "redis_layouts/cluster.rs"]
mod cluster;
#[path = "redis_layouts/flushed.rs"]
mod flushed;
#[path = "redis/node.rs"]
#[allow(dead_code, reason = "each test binary uses its part")]
mod node;
#[path = "redis/process.rs"]
#[allow(dead_code, reason = "each test binary uses its part")]
mod process;
#[path = "redis_layouts/untold.rs"]
mod untold;

use std::time::Duration;

use bytes::Bytes;
use carillon_broker_client::{
    Admission, ApplicationStore, Arrival, Broker, ConnectionRecord, Event, EventKind, Happening,
    Health, InboundFrom, InboundRead, Member, PresenceStore, RedisMode, RedisSettings, Revocation,
    RevocationStore, RevokedTokens, Target, UserStatus,
};
use carillon_protocol::{ChannelName, ConnectionId, UserId};
use tokio::time::Instant;

use node::{Node, PATIENCE, channel, kept, settings};
use process::RedisProcess;

/// What a failover may take here, on however busy a machine; a quiet one needs less than six seconds.
const FAILOVER_MAX: Duration = Duration::from_secs(30);

fn urls(servers: &[RedisProcess]) -> Vec<String> {
    servers.iter().map(RedisProcess::url).collect()
}

fn rooms(count: usize) -> Vec<ChannelName> {
    (0..count).map(|index| channel(&format!("room:{index}"))).collect()
}

/// Everything that must work in any layout.
async fn everything_works(with: &RedisSettings) {
    let (mut one, mut two) = (Node::up(with.clone()).await, Node::up(with.clone()).await);
    let rooms = rooms(200);
    one.broker.subscribe(&rooms).await.expect("subscribed");
    let receipts =
        two.broker.publish_batch(rooms.iter().map(|room| kept(room, "m1")).collect()).await;
    assert!(
        receipts.iter().all(Result::is_ok),
        "{:?}",
        receipts.iter().find(|receipt| receipt.is_err())
    );
    for _ in &rooms {
        assert_eq!(one.hears_publication().await, "m1");
    }
    let tops = one.broker.tops(&rooms).await.expect("tops");
    for ((room, top), receipt) in rooms.iter().zip(tops).zip(receipts) {
        assert_eq!(Some(top), receipt.expect("published").position);
        assert_eq!(one.history(room).await, ["m1"]);
    }
    one.beat().await.expect("beaten");
    assert_eq!(two.beat().await.expect("beaten").len(), 2);
    let user = UserId::new("a{d}a").expect("a user");
    let record =
        |id| ConnectionRecord { id: ConnectionId::new(id).expect("an id"), user: user.clone() };
    for (node, id) in [(&one, "c1"), (&two, "c2"), (&two, "c3")] {
        let arrival = node.broker.arrive(&record(id), 10).await.expect("registered");
        assert_eq!(arrival, Arrival { admission: Admission::Admitted, seen: true });
    }
    two.broker.depart(&record("c3"), PATIENCE).await.expect("departed");
    assert_eq!(one.broker.connections_of(&user).await.expect("listed").len(), 2);
    let refused = one.broker.arrive(&record("c4"), 2).await.expect("counted").admission;
    assert_eq!(
        refused,
        Admission::TooMany { connections: 2 },
        "its last beat knew of itself alone"
    );
    let known = one.broker.presence_of(std::slice::from_ref(&user)).await.expect("known");
    assert_eq!((known[0].status, known[0].connections), (UserStatus::Online, 2));
    one.broker.retire().await.expect("retired");
    assert_eq!(two.broker.connections_of(&user).await.expect("listed").len(), 1);
    let target = Target::Node(two.broker.node().clone());
    assert_eq!(one.broker.tell(&target, Bytes::from_static(b"you")).await, Ok(1));
    assert_eq!(one.broker.tell(&Target::All, Bytes::from_static(b"all")).await, Ok(2));
    // In whatever order: the two letters go through channels of their own, in a cluster over servers of their own.
    let mut told = [two.told().await, two.told().await];
    told.sort();
    assert_eq!(told, ["all", "you"]);
    the_application_is_told(&two).await;
    two.broker.retire().await.expect("retired");
}

/// Events of changes on whichever server, the stream, leases and revocations.
async fn the_application_is_told(node: &Node) {
    let broker = &node.broker;
    broker.tell_events(EventKind::ALL.iter().copied().collect());
    let connection = ConnectionId::new("c3").expect("an id");
    let about = "{}".to_owned();
    let opened = Happening::Opened { connection: connection.clone(), about: about.clone() };
    let report = [opened, Happening::Occupied(channel("room:1"))];
    broker.report(&report).await.expect("reported");
    let (room, user) = (channel("presence:room:1"), UserId::new("b{o}b").expect("a user"));
    let member = Member { id: user.clone(), name: None, last_seen_ms: 1, metadata: None };
    broker.join_resource(&room, &connection, &member).await.expect("joined");
    let tab = ConnectionRecord { id: connection.clone(), user: user.clone() };
    assert!(broker.arrive(&tab, 1).await.expect("registered").seen);
    broker.leave_resource(&room, &connection, &user, 2).await.expect("left");
    let report = [Happening::Closed { connection, about }, Happening::Vacated(channel("room:1"))];
    broker.report(&report).await.expect("reported");
    let read = InboundRead {
        group: "g".to_owned(),
        consumer: "c".to_owned(),
        limit: 100,
        from: InboundFrom::New,
    };
    let events = broker.read_inbound(&read).await.expect("read");
    let told: Vec<_> = events.iter().map(|event| (event.sequence, event.kind.as_str())).collect();
    let expected = [
        "connection_opened",
        "channel_occupied",
        "presence_join",
        "user_online",
        "presence_leave",
        "connection_closed",
        "channel_vacated",
    ];
    let expected: Vec<_> = (1..).map(Some).zip(expected).collect();
    assert_eq!(told, expected);
    broker.bury_inbound("g", &events[0], "no").await.expect("buried");
    assert_eq!(broker.dead_letters(10).await.expect("read").len(), 1);
    let own = InboundRead { from: InboundFrom::Own("0".to_owned()), ..read };
    assert_eq!(broker.read_inbound(&own).await.expect("read").len(), events.len() - 1);
    assert_eq!(broker.hold_lease("l", PATIENCE).await, Ok(true));
    let tokens = RevokedTokens::Id("jti".to_owned());
    let revocation = Revocation { tokens, until_ms: i64::MAX / 1_000_000 };
    broker.revoke(&revocation).await.expect("revoked");
    assert_eq!(broker.revocations().await.expect("read").all, [revocation]);
}

/// Hears until this publication.
async fn hears_at_last(node: &mut Node, id: &str) {
    loop {
        match node.heard().await {
            Event::Publication(publication) if publication.id.as_str() == id => return,
            _ => {}
        }
    }
}

/// Waits for a fact that another process brings about.
async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < PATIENCE * 3, "{what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn shards_share_the_channels_and_one_may_fail() {
    let mut servers: Vec<_> = (0..3).map(|_| RedisProcess::start(&[])).collect();
    let with = settings(RedisMode::Shards, urls(&servers));
    everything_works(&with).await;
    for server in &servers {
        let keys: u64 = server.cli(&["DBSIZE"]).parse().expect("a number");
        assert!(keys > 2 * 200 / 6, "each serves about a third, not {keys}");
    }
    let mut node = Node::up(with).await;
    let rooms = rooms(30);
    node.broker.subscribe(&rooms).await.expect("subscribed");
    servers[2].kill();
    node.hears(&Event::Interrupted).await;
    node.until(|health| matches!(health, Health::Down(_))).await;
    let receipts =
        node.broker.publish_batch(rooms.iter().map(|room| kept(room, "m2")).collect()).await;
    let published = receipts.iter().filter(|receipt| receipt.is_ok()).count();
    assert!(published > 5 && published < 30, "{published}");
    for _ in 0..published {
        assert_eq!(node.hears_publication().await, "m2");
    }
    servers[2].start_again();
    node.hears(&Event::Restored).await;
    node.until(|health| *health == Health::Up).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sentinels_lead_to_the_promoted_master() {
    let mut master = RedisProcess::start(&["--repl-diskless-sync-delay", "0"]);
    let replica = RedisProcess::start(&["--replicaof", &format!("127.0.0.1 {}", master.port)]);
    until("the replica follows", || {
        replica.cli(&["INFO", "replication"]).contains("master_link_status:up")
    })
    .await;
    let mut sentinels = Vec::new();
    for _ in 0..3 {
        let mut sentinel = RedisProcess::absent(&[]);
        let file = sentinel.directory().join("sentinel.conf");
        let conf = format!(
            "port {}\nsentinel monitor carillon 127.0.0.1 {} 2\nsentinel down-after-milliseconds carillon 1000\n\
             sentinel failover-timeout carillon 5000\n",
            sentinel.port, master.port
        );
        std::fs::write(&file, conf).expect("written");
        sentinel.be(&[file.to_str().expect("UTF-8"), "--sentinel"]);
        sentinel.start_again();
        sentinels.push(sentinel);
    }
    for sentinel in &sentinels {
        until("sentinels know each other and the replica", || {
            let known = sentinel.cli(&["SENTINEL", "MASTER", "carillon"]);
            let lines: Vec<&str> = known.lines().collect();
            let field = |name| lines.iter().position(|line| *line == name).map(|at| lines[at + 1]);
            field("num-other-sentinels") == Some("2") && field("num-slaves") == Some("1")
        })
        .await;
    }
    let with = settings(RedisMode::Sentinel, urls(&sentinels));
    everything_works(&with).await;
    let mut node = Node::up(with).await;
    let name = channel("room:failover");
    node.subscribe(&name).await.expect("subscribed");
    node.publish(&name, "m1").await.expect("published");
    assert_eq!(node.hears_publication().await, "m1");
    master.kill();
    let took = node.publish_until_it_works(&name, "m2").await;
    println!("writes again {took:?} after the master's death");
    assert!(took < FAILOVER_MAX, "{took:?}");
    hears_at_last_or_restored(&mut node, "m2").await;
    node.until(|health| *health == Health::Up).await;
    // The old master comes back as nobody's master.
    master.start_again();
    until("the old master follows", || master.cli(&["ROLE"]).starts_with("slave")).await;
    node.publish_until_it_works(&name, "m3").await;
    hears_at_last(&mut node, "m3").await;
}

/// A publication between the promotion and the return of the hearing is found by the audit.
async fn hears_at_last_or_restored(node: &mut Node, id: &str) {
    loop {
        match node.heard().await {
            Event::Publication(publication) if publication.id.as_str() == id => return,
            Event::Restored => return,
            _ => {}
        }
    }
}
