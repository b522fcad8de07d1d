//! Arrivals, and events of presence, that a reconnect or a node's death in the middle must not swallow.

use std::time::Duration;

use carillon_broker_client::{
    ApplicationStore, Broker, ConnectionRecord, Event, EventKind, Health, InboundFrom, InboundRead,
    Member, PresenceStore, RedisMode, UserStatus,
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

fn member(name: &str) -> Member {
    Member { id: user(name), name: None, last_seen_ms: 1, metadata: None }
}

async fn joins(node: &Node, room: &ChannelName, name: &str) {
    let connection = ConnectionId::new(&format!("c-{name}")).expect("an id");
    let joined = node.broker.join_resource(room, &connection, &member(name)).await;
    assert!(joined.expect("joined, told or not").first);
}

async fn leaves(node: &Node, room: &ChannelName, name: &str) {
    let connection = ConnectionId::new(&format!("c-{name}")).expect("an id");
    let left = node.broker.leave_resource(room, &connection, &user(name), 2).await;
    assert!(left.expect("left, told or not"));
}

/// What the application was told of presence since it looked last, as `kind user`.
async fn told(node: &Node) -> Vec<String> {
    let read = InboundRead {
        group: "g".to_owned(),
        consumer: "c".to_owned(),
        limit: 1_000,
        from: InboundFrom::New,
    };
    let events = node.broker.read_inbound(&read).await.expect("read");
    let told = events.iter().map(|event| {
        let event: serde_json::Value = event.read().expect("an event");
        let (kind, user) = (&event["type"], &event["data"]["user"]["id"]);
        format!("{} {}", kind.as_str().expect("a kind"), user.as_str().expect("a user"))
    });
    told.collect()
}

/// The stream lives on the first server and these resources on the other. While the stream's key is no stream nobody can
/// tell anything: a node that dies then has changed presence and has told nobody.
#[tokio::test(flavor = "multi_thread")]
async fn event_of_presence_that_its_node_could_not_tell_is_told_once_and_in_its_place() {
    let servers: Vec<_> = (0..2).map(|_| RedisProcess::start(&[])).collect();
    let up = || Node::up(settings(RedisMode::Shards, urls(&servers)));
    let (dying, other) = (up().await, up().await);
    for node in [&dying, &other] {
        let presence = [EventKind::PresenceJoin, EventKind::PresenceLeave];
        node.broker.tell_events(presence.into_iter().collect());
        node.beat().await.expect("beaten");
        node.broker.tend().await.expect("tended");
    }
    let mut rooms = Vec::new();
    for number in 0..100 {
        let room = channel(&format!("presence:room/{number}"));
        other.broker.put_member(&room, &member("probe"), None).await.expect("put");
        if servers[1].cli(&["EXISTS", &format!("t:{{{room}}}:pe")]) == "1" {
            rooms.push(room);
        }
    }
    let [seen, swept, kept, ..] = &rooms[..] else { panic!("half of a hundred are there") };
    joins(&dying, seen, "ada").await;
    joins(&dying, swept, "bob").await;
    told(&other).await;
    let fault = |begins: bool| {
        let renamed = if begins { ["t:inbound", "saved"] } else { ["saved", "t:inbound"] };
        servers[0].cli(&["RENAME", renamed[0], renamed[1]]);
        if begins {
            servers[0].cli(&["SET", "t:inbound", "no stream"]);
        }
    };
    fault(true);
    leaves(&dying, seen, "ada").await;
    joins(&dying, seen, "eve").await;
    leaves(&dying, swept, "bob").await;
    dying.broker.put_member(swept, &member("backend"), None).await.expect("put");
    joins(&other, kept, "kim").await;
    let record = servers[1].cli(&["LRANGE", &format!("t:{{{seen}}}:po"), "0", "-1"]);
    fault(false);
    let name = dying.broker.node().as_str().to_owned();
    dying.broker.close().await;
    assert!(told(&other).await.is_empty());
    // Whoever changes something there tells what stands there first.
    joins(&other, seen, "fay").await;
    let first = ["presence_leave ada", "presence_join eve", "presence_join fay"];
    assert_eq!(told(&other).await, first);
    // A node that lives tells what it owes when it tends.
    other.broker.tend().await.expect("tended");
    assert_eq!(told(&other).await, ["presence_join kim"]);
    // It told them and died before it took them away.
    for event in record.lines() {
        servers[1].cli(&["RPUSH", &format!("t:{{{seen}}}:po"), event]);
    }
    // Its lease is over.
    servers[0].cli(&["HSET", "t:{nodes}:pb", &name, "0"]);
    other.broker.tend().await.expect("tended");
    let mut rest = told(&other).await;
    let of_swept = |event: &String| event.ends_with("bob") || event.ends_with("backend");
    let in_order: Vec<_> = rest.extract_if(.., |event| of_swept(event)).collect();
    assert_eq!(in_order, ["presence_leave bob", "presence_join backend"]);
    assert_eq!(
        rest,
        ["presence_leave eve"],
        "she was held by the dead node; the rest was told before"
    );
    for server in &servers {
        assert_eq!(server.cli(&["KEYS", "t:*:po"]), "", "nothing is left to tell");
    }
}
