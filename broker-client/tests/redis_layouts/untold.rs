//! Arrivals that a reconnect, or a node's death in the middle, must not swallow.

use std::time::Duration;

use carillon_broker_client::{
    Broker, ConnectionRecord, Event, Health, PresenceStore, RedisMode, UserStatus,
};
use carillon_protocol::{ChannelName, ConnectionId, UserId};

use crate::node::{Node, PATIENCE, channel, settings};
use crate::process::RedisProcess;
use crate::{until, urls};

async fn connected(node: &Node, user: &UserId) {
    let id = ConnectionId::new(&format!("c-{user}")).expect("an id");
    let record = ConnectionRecord { id, user: user.clone() };
    node.broker.register(&record, 10).await.expect("registered");
}

/// Announcements of who is online, up to the first of this user.
async fn announced(node: &mut Node, user: &UserId) {
    let status = channel("presence");
    loop {
        if let Event::Publication(publication) = node.heard().await
            && publication.channel == status
            && publication.user_id.as_ref() == Some(user)
        {
            assert!(publication.payload.json_str().contains("online"), "{publication:?}");
            return;
        }
    }
}

fn user(name: &str) -> UserId {
    UserId::new(name).expect("a user")
}

#[tokio::test(flavor = "multi_thread")]
async fn arrival_between_a_reconnect_and_the_restoring_after_it_is_announced() {
    let mut server = RedisProcess::start(&[]);
    let mut node = Node::up(settings(RedisMode::Standalone, vec![server.url()])).await;
    node.subscribe(&channel("presence")).await.expect("subscribed");
    let (known, new) = (user("known"), user("new"));
    connected(&node, &known).await;
    node.broker.user_seen(&known, None).await.expect("seen");
    announced(&mut node, &known).await;
    node.broker.tend().await.expect("tended");
    // Redis comes back without its data, and somebody is registered before the node has restored what it held.
    server.kill();
    node.hears(&Event::Interrupted).await;
    server.start_again();
    node.hears(&Event::Restored).await;
    node.until(|health| *health == Health::Up).await;
    connected(&node, &new).await;
    node.beat().await.expect("beaten");
    node.broker.tend().await.expect("tended");
    node.broker.user_seen(&new, None).await.expect("seen");
    announced(&mut node, &new).await;
    let both = node.broker.presence_of(&[known.clone(), new]).await.expect("known");
    assert!(both.iter().all(|seen| seen.status == UserStatus::Online), "{both:?}");
    // Who was announced before is not announced again.
    node.broker.user_seen(&known, None).await.expect("seen");
    let quiet = tokio::time::timeout(Duration::from_millis(300), node.events.recv()).await;
    assert!(quiet.is_err(), "{quiet:?}");
}

/// Where a user's status and the channel of all statuses are on different servers, a change is announced in a second
/// step; here the node dies between the two.
#[tokio::test(flavor = "multi_thread")]
async fn change_that_its_node_could_not_announce_is_announced_by_another() {
    let status: ChannelName = channel("presence");
    // The channel's server must not be the first, which has the nodes' own keys; ports decide.
    let (mut servers, of_channel, mut other) = loop {
        let servers: Vec<_> = (0..3).map(|_| RedisProcess::start(&[])).collect();
        let node = Node::up(settings(RedisMode::Shards, urls(&servers))).await;
        node.subscribe(&status).await.expect("subscribed");
        let hears = |server: &RedisProcess| {
            server.cli(&["PUBSUB", "NUMSUB", "t:{presence}"]).lines().nth(1) == Some("1")
        };
        if let Some(of_channel) = (1..3).find(|index| hears(&servers[*index])) {
            break (servers, of_channel, node);
        }
        node.broker.close().await;
    };
    let dying = Node::up(settings(RedisMode::Shards, urls(&servers))).await;
    let somewhere_else = |user: &UserId| {
        let key = format!("t:us:{{{user}}}");
        let at = (0..3).find(|index| servers[*index].cli(&["EXISTS", &key]) == "1");
        at.is_some_and(|at| at != of_channel)
    };
    let mut chosen = None;
    for number in 0..50 {
        let user = user(&format!("user-{number}"));
        connected(&dying, &user).await;
        dying.broker.user_seen(&user, None).await.expect("seen");
        announced(&mut other, &user).await;
        if somewhere_else(&user) {
            chosen = Some(user);
            break;
        }
    }
    let user = chosen.expect("one of fifty is elsewhere");
    // Changes of one user are announced once a second at most.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    // Others believe it for some time.
    dying.beat().await.expect("beaten");
    servers[of_channel].kill();
    other.hears(&Event::Interrupted).await;
    let told = dying.broker.user_seen(&user, Some(UserStatus::Busy)).await;
    assert!(told.is_err(), "the channel's server is gone");
    dying.broker.close().await;
    servers[of_channel].start_again();
    other.hears(&Event::Restored).await;
    let announced = async {
        loop {
            // As a node does once a second.
            let _ = other.broker.tend().await;
            let heard = tokio::time::timeout(Duration::from_millis(500), other.events.recv()).await;
            if let Ok(Some(Event::Publication(publication))) = heard
                && publication.channel == status
                && publication.user_id.as_ref() == Some(&user)
            {
                return publication.payload.json_str().to_owned();
            }
        }
    };
    let payload = tokio::time::timeout(PATIENCE, announced).await.expect("announced by the other");
    assert!(payload.contains("busy"), "{payload}");
    until("nothing is owed", || {
        let owed =
            servers.iter().map(|server| server.cli(&["HGET", &format!("t:us:{{{user}}}"), "o"]));
        owed.into_iter().all(|owed| owed.is_empty())
    })
    .await;
}
