//! Facts about lifecycle events: each told once, in order, with a number.

use std::future::Future;
use std::time::Duration;

use carillon_broker_client::{
    ConnectionRecord, EventKind, EventKinds, Happening, InboundFrom, Member, UserStatus,
};
use carillon_protocol::{ChannelName, UserId};
use serde_json::{Value, json};

use crate::facts::{append, read};
use crate::fixture::{Fixture, Node, channel, connection};

async fn join(make: &impl Fixture, kinds: EventKinds) -> Node {
    let node = make.join().await;
    node.broker.tell_events(kinds);
    node.beat().await;
    node.broker.tend().await.expect("tended");
    node
}

fn all() -> EventKinds {
    EventKind::ALL.iter().copied().collect()
}

async fn beat_all(nodes: &[&Node]) {
    for node in nodes {
        node.beat().await;
        node.broker.tend().await.expect("tended");
    }
}

async fn outlive(make: &impl Fixture, living: &[&Node]) {
    for _ in 0..4 {
        make.pass(Duration::from_secs(4)).await;
        beat_all(living).await;
    }
}

fn opened(node: &Node, user: &str) -> Happening {
    let ConnectionRecord { id, .. } = connection(node, user, 0);
    Happening::Opened { connection: id, about: json!({"user_id": user}).to_string() }
}

fn closed(node: &Node, user: &str) -> Happening {
    let ConnectionRecord { id, .. } = connection(node, user, 0);
    let about = json!({"user_id": user, "reason": "client"}).to_string();
    Happening::Closed { connection: id, about }
}

async fn report(node: &Node, happenings: &[Happening]) {
    node.broker.report(happenings).await.expect("reported");
}

/// All events since this was asked last, as (type, data); their numbers follow each other from `next`.
async fn told(node: &Node, next: &mut u64) -> Vec<(String, Value)> {
    let mut events = Vec::new();
    loop {
        let page = read(node, "facts", "facts", 100, InboundFrom::New).await;
        if page.is_empty() {
            return events;
        }
        for message in page.into_iter().filter(|message| message.is_event) {
            let event: Value = message.read().expect("JSON");
            assert_eq!(message.sequence, Some(*next), "{event}");
            assert_eq!(
                (&event["kind"], &event["type"], &event["sequence"]),
                (&json!("event"), &json!(message.kind), &json!(*next))
            );
            assert!(event["timestamp"].as_str().is_some_and(|at| at.ends_with('Z')), "{event}");
            *next += 1;
            events.push((message.kind, event["data"].clone()));
        }
    }
}

/// The same as `type subject`.
async fn lines(node: &Node, next: &mut u64) -> Vec<String> {
    let subject = |data: &Value| {
        let user = data["user"]["id"].as_str().or(data["user_id"].as_str());
        user.or(data["channel"].as_str()).unwrap_or("?").to_owned()
    };
    told(node, next).await.iter().map(|(kind, data)| format!("{kind} {}", subject(data))).collect()
}

pub(crate) async fn only_what_is_switched_on_is_told(make: &impl Fixture) {
    let kinds = EventKinds::NONE.with(EventKind::ConnectionClosed).with(EventKind::PresenceLeave);
    let node = join(make, kinds).await;
    let mut next = 1;
    report(&node, &[opened(&node, "ada"), Happening::Occupied(channel("chat"))]).await;
    let room = channel("presence:room");
    let tab = connection(&node, "ada", 0).id;
    node.broker.join_resource(&room, &tab, &member("ada")).await.unwrap();
    append(&node, "message", 0..1).await;
    assert!(lines(&node, &mut next).await.is_empty());
    report(&node, &[closed(&node, "ada"), Happening::Vacated(channel("chat"))]).await;
    node.broker.leave_resource(&room, &tab, &user("ada"), 1_700_000_000_000).await.unwrap();
    assert_eq!(
        told(&node, &mut next).await,
        [
            ("connection_closed".to_owned(), json!({"user_id": "ada", "reason": "client"})),
            (
                "presence_leave".to_owned(),
                json!({"channel": "presence:room", "user":
                    {"id": "ada", "name": "ADA", "lastSeen": 1_700_000_000_000_i64, "metadata": null}})
            ),
        ]
    );
}

pub(crate) async fn a_channel_is_occupied_with_its_first_node_and_vacated_with_its_last(
    make: &impl Fixture,
) {
    let (one, two) = (join(make, all()).await, join(make, all()).await);
    let (chat, news) = (channel("chat"), channel("news"));
    let mut next = 1;
    let occupied = |name: &ChannelName| Happening::Occupied(name.clone());
    let vacated = |name: &ChannelName| Happening::Vacated(name.clone());
    report(&one, &[occupied(&chat), occupied(&news)]).await;
    report(&two, &[occupied(&chat)]).await;
    assert_eq!(lines(&one, &mut next).await, ["channel_occupied chat", "channel_occupied news"]);
    report(&one, &[vacated(&chat), vacated(&news)]).await;
    assert_eq!(lines(&one, &mut next).await, ["channel_vacated news"]);
    report(&two, &[vacated(&chat)]).await;
    report(&one, &[occupied(&chat)]).await;
    assert_eq!(lines(&one, &mut next).await, ["channel_vacated chat", "channel_occupied chat"]);
}

pub(crate) async fn a_repeated_report_tells_nothing_twice(make: &impl Fixture) {
    let node = join(make, all()).await;
    let mut next = 1;
    let first = [opened(&node, "ada"), opened(&node, "bob"), Happening::Occupied(channel("chat"))];
    report(&node, &first).await;
    report(&node, &first).await;
    let second = [closed(&node, "ada"), Happening::Vacated(channel("chat"))];
    report(&node, &second).await;
    report(&node, &second).await;
    report(&node, &[closed(&node, "never seen")]).await;
    assert_eq!(
        lines(&node, &mut next).await,
        [
            "connection_opened ada",
            "connection_opened bob",
            "channel_occupied chat",
            "connection_closed ada",
            "channel_vacated chat"
        ]
    );
}

pub(crate) async fn what_was_lost_leaves_a_hole_in_the_sequence(make: &impl Fixture) {
    let node = join(make, all()).await;
    report(&node, &[opened(&node, "ada"), Happening::Lost, closed(&node, "ada")]).await;
    let events = read(&node, "facts", "facts", 10, InboundFrom::New).await;
    let numbers: Vec<_> = events.iter().map(|event| event.sequence).collect();
    assert_eq!(numbers, [Some(1), Some(3)]);
}

fn user(name: &str) -> UserId {
    UserId::new(name).expect("a user id")
}

fn member(name: &str) -> Member {
    Member {
        id: user(name),
        name: Some(name.to_uppercase()),
        last_seen_ms: 1_700_000_000_000,
        metadata: None,
    }
}

pub(crate) async fn presence_and_status_are_told_with_their_changes(make: &impl Fixture) {
    let (one, two) = (join(make, all()).await, join(make, all()).await);
    let mut next = 1;
    let room = channel("presence:room/1");
    let (first, second) = (connection(&one, "ada", 0), connection(&two, "ada", 1));
    for (node, tab) in [(&one, &first), (&two, &second)] {
        node.broker.register(tab, 0).await.unwrap();
        node.broker.user_seen(&tab.user, None).await.unwrap();
        node.broker.join_resource(&room, &tab.id, &member("ada")).await.unwrap();
    }
    // A status that changes while the user is here is none of these events.
    make.pass(Duration::from_millis(1_100)).await;
    one.broker.user_seen(&user("ada"), Some(UserStatus::Busy)).await.unwrap();
    one.broker.put_member(&room, &member("bot"), None).await.unwrap();
    assert_eq!(
        lines(&two, &mut next).await,
        ["user_online ada", "presence_join ada", "presence_join bot"]
    );
    for (node, tab) in [(&one, &first), (&two, &second)] {
        node.broker.leave_resource(&room, &tab.id, &tab.user, 1).await.unwrap();
        node.broker.user_departed(&tab.user, Duration::from_secs(1)).await.unwrap();
        node.broker.deregister(tab).await.unwrap();
    }
    one.broker.remove_member(&room, &user("bot")).await.unwrap();
    for _ in 0..3 {
        make.pass(Duration::from_millis(1_200)).await;
        beat_all(&[&one, &two]).await;
    }
    assert_eq!(
        lines(&two, &mut next).await,
        ["presence_leave ada", "presence_leave bot", "user_offline ada"]
    );
}

pub(crate) async fn what_a_dead_node_held_open_is_closed_once(make: &impl Fixture) {
    let (dies, one, two) =
        (join(make, all()).await, join(make, all()).await, join(make, all()).await);
    let mut next = 1;
    let (chat, news, room) = (channel("chat"), channel("news"), channel("presence:room"));
    let of_dies = [
        opened(&dies, "ada"),
        opened(&dies, "bob"),
        Happening::Occupied(chat.clone()),
        Happening::Occupied(news.clone()),
    ];
    report(&dies, &of_dies).await;
    let tab = connection(&dies, "ada", 0);
    dies.broker.register(&tab, 0).await.unwrap();
    dies.broker.user_seen(&tab.user, None).await.unwrap();
    dies.broker.join_resource(&room, &tab.id, &member("ada")).await.unwrap();
    report(&one, &[opened(&one, "cyd"), Happening::Occupied(chat)]).await;
    assert_eq!(told(&one, &mut next).await.len(), 7);
    outlive(make, &[&one, &two]).await;
    beat_all(&[&one, &two]).await;
    beat_all(&[&one, &two]).await;
    let mut ends = told(&one, &mut next).await;
    ends.sort_by_key(|(kind, data)| format!("{kind} {data}"));
    let mut kinds: Vec<&str> = ends.iter().map(|(kind, _)| kind.as_str()).collect();
    kinds.dedup();
    assert_eq!(kinds, ["channel_vacated", "connection_closed", "presence_leave", "user_offline"]);
    assert_eq!(ends.len(), 5, "{ends:?}");
    assert_eq!(ends[0].1, json!({"channel": "news"}));
    assert_eq!(ends[1].1, json!({"user_id": "ada", "reason": "node lost"}));
    assert_eq!(ends[2].1, json!({"user_id": "bob", "reason": "node lost"}));
}

pub(crate) async fn a_node_that_comes_back_tells_again(make: &impl Fixture) {
    let (sleeps, one) = (join(make, all()).await, join(make, all()).await);
    let mut next = 1;
    report(&sleeps, &[opened(&sleeps, "ada"), Happening::Occupied(channel("chat"))]).await;
    outlive(make, &[&one]).await;
    beat_all(&[&sleeps, &one, &sleeps]).await;
    let heard = lines(&one, &mut next).await;
    assert_eq!(heard.len(), 6, "{heard:?}");
    let count = |line: &str| heard.iter().filter(|heard| *heard == line).count();
    assert_eq!((count("connection_opened ada"), count("connection_closed ada")), (2, 1));
    assert_eq!((count("channel_occupied chat"), count("channel_vacated chat")), (2, 1));
    report(&sleeps, &[closed(&sleeps, "ada")]).await;
    assert_eq!(lines(&one, &mut next).await, ["connection_closed ada"]);
}

pub(crate) async fn a_retiring_node_closes_what_it_held(make: &impl Fixture) {
    let (goes, one) = (join(make, all()).await, join(make, all()).await);
    let mut next = 1;
    report(&goes, &[opened(&goes, "ada"), Happening::Occupied(channel("chat"))]).await;
    assert_eq!(told(&one, &mut next).await.len(), 2);
    goes.broker.retire().await.unwrap();
    let heard = lines(&one, &mut next).await;
    assert_eq!(heard, ["connection_closed ada", "channel_vacated chat"]);
    outlive(make, &[&one]).await;
    assert!(lines(&one, &mut next).await.is_empty());
}

/// Called by each broker's file with its way to lose everything.
pub(crate) async fn lost_data_is_restored_in_silence<F: Future<Output = ()>>(
    make: &impl Fixture,
    lose: impl FnOnce() -> F,
) {
    let node = join(make, all()).await;
    let mut next = 1;
    report(&node, &[opened(&node, "ada"), Happening::Occupied(channel("chat"))]).await;
    assert_eq!(told(&node, &mut next).await.len(), 2);
    lose().await;
    beat_all(&[&node, &node]).await;
    // The numbers begin again: that is how a backend sees it.
    next = 1;
    assert!(lines(&node, &mut next).await.is_empty());
    report(
        &node,
        &[opened(&node, "ada"), closed(&node, "ada"), Happening::Vacated(channel("chat"))],
    )
    .await;
    assert_eq!(lines(&node, &mut next).await, ["connection_closed ada", "channel_vacated chat"]);
}
