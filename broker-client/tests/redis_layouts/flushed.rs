//! A server that loses everything while every connection to it stays open.

use std::time::Duration;

use carillon_broker_client::{
    Broker, ConnectionRecord, Event, Member, PresenceStore, RedisMode, RedisSettings, UserStatus,
};
use carillon_protocol::{ChannelName, ConnectionId, UserId};

use crate::cluster::cluster;
use crate::node::{Node, channel, settings};
use crate::process::RedisProcess;
use crate::urls;

#[tokio::test(flavor = "multi_thread")]
async fn shard_that_is_flushed_is_noticed_and_gets_everything_again() {
    let servers: Vec<_> = (0..3).map(|_| RedisProcess::start(&[])).collect();
    let with = settings(RedisMode::Shards, urls(&servers));
    for flushed in [1, 2] {
        flushed_and_restored(&with, &servers[flushed]).await;
    }
}

/// The same on a master of a cluster that does not hold the nodes' leases.
#[tokio::test(flavor = "multi_thread")]
async fn master_that_is_flushed_is_noticed_and_gets_everything_again() {
    let servers = cluster().await;
    let with = settings(RedisMode::Cluster, urls(&servers[..1]));
    let leases = |server: &&RedisProcess| server.cli(&["HLEN", "t:{nodes}:beats"]) != "0";
    let is_master = |server: &&RedisProcess| server.cli(&["ROLE"]).starts_with("master");
    let other = servers.iter().filter(is_master).find(|server| {
        server.cli(&["HLEN", "t:{nodes}:beats"]).starts_with("MOVED") && leases(server)
    });
    flushed_and_restored(&with, other.expect("a master without leases")).await;
}

/// Who joined before the node first looked after presence is written again as well.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_lost_before_a_node_first_tends_is_written_again() {
    let server = RedisProcess::start(&[]);
    let with = settings(RedisMode::Standalone, urls(std::slice::from_ref(&server)));
    let node = Node::up(with).await;
    node.beat().await.expect("beaten");
    let (room, user) = (channel("presence:room"), UserId::new("ada").expect("a user"));
    let id = ConnectionId::new("c1").expect("an id");
    let member = Member { id: user.clone(), name: None, last_seen_ms: 1, metadata: None };
    node.broker.join_resource(&room, &id, &member).await.expect("joined");
    assert!(server.cli(&["FLUSHALL"]).starts_with("OK"));
    assert!(node.broker.members(&room).await.expect("listed").is_empty());
    node.beat().await.expect("beaten");
    node.broker.tend().await.expect("tended");
    assert_eq!(node.broker.members(&room).await.expect("listed").len(), 1);
    node.broker.retire().await.expect("retired");
    node.broker.close().await;
}

async fn flushed_and_restored(with: &RedisSettings, server: &RedisProcess) {
    let mut node = Node::up(with.clone()).await;
    node.beat().await.expect("beaten");
    let users: Vec<UserId> =
        (0..40).map(|index| UserId::new(&format!("user-{index}")).expect("a user")).collect();
    let rooms: Vec<ChannelName> =
        (0..40).map(|index| channel(&format!("presence:room:{index}"))).collect();
    for (index, (user, room)) in users.iter().zip(&rooms).enumerate() {
        let id = ConnectionId::new(&format!("c{index}")).expect("an id");
        let record = ConnectionRecord { id: id.clone(), user: user.clone() };
        node.broker.register(&record, 10).await.expect("registered");
        let member = Member { id: user.clone(), name: None, last_seen_ms: 1, metadata: None };
        node.broker.join_resource(room, &id, &member).await.expect("joined");
        node.broker.user_seen(user, None).await.expect("seen");
    }
    let names: Vec<ChannelName> = (0..40).map(|index| channel(&format!("room:f{index}"))).collect();
    node.broker.subscribe(&names).await.expect("subscribed");
    for name in &names {
        node.publish(name, "m1").await.expect("published");
        assert_eq!(node.hears_publication().await, "m1");
    }
    node.broker.tend().await.expect("tended");
    let before = node.broker.tops(&names).await.expect("tops");
    node.beat().await.expect("beaten");
    assert!(node.events.try_recv().is_err(), "nothing was lost so far");
    assert!(server.cli(&["FLUSHALL"]).starts_with("OK"));
    node.beat().await.expect("beaten");
    // The node audits: whose epoch is new there is told so.
    loop {
        match node.heard().await {
            Event::Restored => break,
            Event::Publication(_) => {}
            other => panic!("{other:?}"),
        }
    }
    let after = node.broker.tops(&names).await.expect("tops");
    let renewed = before.iter().zip(&after).filter(|(before, after)| before.epoch != after.epoch);
    assert!((1..40).contains(&renewed.count()), "a part of them was on that server");
    node.broker.tend().await.expect("tended");
    for (user, room) in users.iter().zip(&rooms) {
        assert_eq!(node.broker.connections_of(user).await.expect("listed").len(), 1, "{user}");
        let members = node.broker.members(room).await.expect("listed");
        assert_eq!(members.len(), 1, "{room}");
    }
    for seen in node.broker.presence_of(&users).await.expect("known") {
        assert_eq!(seen.status, UserStatus::Online, "{}", seen.user);
    }
    // Once is enough.
    node.beat().await.expect("beaten");
    let quiet = tokio::time::timeout(Duration::from_millis(300), node.events.recv()).await;
    assert!(quiet.is_err(), "{quiet:?}");
    node.broker.retire().await.expect("retired");
    node.broker.close().await;
}
