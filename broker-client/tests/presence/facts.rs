//! Facts about presence. Announcements are heard on a node that listens on the channels, in order; a last message of
//! the test's own tells that nothing else was said.

use std::future::Future;
use std::time::Duration;

use carillon_broker_client::{Admission, ConnectionRecord, Event, Member, UserStatus};
use carillon_protocol::{ChannelName, Publication, UserId};
use serde_json::{Value, json};

use crate::fixture::{Fixture, Node, channel, connection, fleeting};

fn user(name: &str) -> UserId {
    UserId::new(name).expect("a user id")
}

fn member(name: &str) -> Member {
    Member {
        id: user(name),
        name: Some(name.to_uppercase()),
        last_seen_ms: 1_700_000_000_000,
        metadata: Some(json!({"at": [1, 2.5], "who": name})),
    }
}

fn names(members: &[Member]) -> Vec<&str> {
    members.iter().map(|member| member.id.as_str()).collect()
}

async fn beat_all(nodes: &[&Node]) {
    for node in nodes {
        node.beat().await;
        node.broker.tend().await.expect("tended");
    }
}

async fn listener(make: &impl Fixture, channels: &[&ChannelName]) -> Node {
    let node = make.join().await;
    for channel in channels {
        node.subscribe(channel).await;
    }
    node
}

/// The next publication, whatever else is heard before.
async fn publication(node: &mut Node) -> Publication {
    loop {
        if let Event::Publication(publication) = node.heard().await {
            return publication;
        }
    }
}

/// Everything announced so far on a channel, as `type user` or `status user`.
async fn announced(node: &mut Node, on: &ChannelName) -> Vec<String> {
    node.broker.publish(fleeting(on, "end")).await.expect("published");
    let mut heard = Vec::new();
    loop {
        match node.heard().await {
            Event::Publication(publication) if publication.id.as_str() == "end" => return heard,
            Event::Publication(publication) => {
                let payload: Value = publication.payload.to_value();
                let who = payload["id"]
                    .as_str()
                    .or(payload["user_id"].as_str())
                    .unwrap_or("?")
                    .to_owned();
                assert_eq!(publication.user_id.as_ref().map(UserId::as_str), Some(who.as_str()));
                let what = payload["status"].as_str().unwrap_or(&publication.kind).to_owned();
                heard.push(format!("{what} {who}"));
            }
            _ => {}
        }
    }
}

pub(crate) async fn a_join_is_announced_once_and_shows_everyone(make: &impl Fixture) {
    let room = channel("presence:room/1");
    let (one, mut ear) = (make.join().await, listener(make, &[&room]).await);
    let (ada, bob) = (connection(&one, "ada", 0), connection(&one, "bob", 0));
    let joined = one.broker.join_resource(&room, &ada.id, &member("ada")).await.unwrap();
    assert!(joined.first);
    let shown = &joined.everyone[0];
    assert_eq!(
        (&shown.id, &shown.name, &shown.metadata),
        (&user("ada"), &member("ada").name, &member("ada").metadata)
    );
    assert!(shown.last_seen_ms > 1_700_000_000_000, "its node vouches for it now");
    let joined = one.broker.join_resource(&room, &bob.id, &member("bob")).await.unwrap();
    assert_eq!(names(&joined.everyone), ["ada", "bob"]);
    let heard = publication(&mut ear).await;
    assert_eq!(
        (&*heard.kind, heard.position, &heard.exclude.connections[..]),
        ("presence:join", None, &[ada.id][..])
    );
    assert_eq!(
        heard.payload.to_value(),
        json!({"id": "ada", "name": "ADA", "lastSeen": 1_700_000_000_000_i64, "metadata": {"at": [1, 2.5], "who": "ada"}})
    );
    assert_eq!(announced(&mut ear, &room).await, ["presence:join bob"]);
    assert_eq!(names(&ear.broker.members(&room).await.unwrap()), ["ada", "bob"]);
    assert!(ear.broker.members(&channel("presence:room/2")).await.unwrap().is_empty());
}

pub(crate) async fn two_tabs_are_one_entry(make: &impl Fixture) {
    let room = channel("presence:tabs");
    let (one, two, mut ear) =
        (make.join().await, make.join().await, listener(make, &[&room]).await);
    let (first, second) = (connection(&one, "ada", 0), connection(&two, "ada", 1));
    assert!(one.broker.join_resource(&room, &first.id, &member("ada")).await.unwrap().first);
    assert!(!one.broker.join_resource(&room, &first.id, &member("ada")).await.unwrap().first);
    let again = Member { metadata: None, ..member("ada") };
    let joined = two.broker.join_resource(&room, &second.id, &again).await.unwrap();
    assert_eq!(
        (joined.first, joined.everyone.len(), &joined.everyone[0].metadata),
        (false, 1, &None)
    );
    assert!(!one.broker.leave_resource(&room, &first.id, &first.user, 1).await.unwrap());
    assert!(!one.broker.leave_resource(&room, &first.id, &first.user, 1).await.unwrap());
    assert_eq!(names(&one.broker.members(&room).await.unwrap()), ["ada"]);
    assert!(two.broker.leave_resource(&room, &second.id, &second.user, 2).await.unwrap());
    assert!(!two.broker.leave_resource(&room, &second.id, &second.user, 2).await.unwrap());
    assert_eq!(announced(&mut ear, &room).await, ["presence:join ada", "presence:leave ada"]);
    assert!(one.broker.members(&room).await.unwrap().is_empty());
}

pub(crate) async fn leaving_tells_when_they_were_last_seen(make: &impl Fixture) {
    let room = channel("presence:seen");
    let (one, mut ear) = (make.join().await, listener(make, &[&room]).await);
    let ada = connection(&one, "ada", 0);
    one.broker.join_resource(&room, &ada.id, &member("ada")).await.unwrap();
    one.broker.leave_resource(&room, &ada.id, &ada.user, 1_700_000_000_777).await.unwrap();
    let joined = publication(&mut ear).await;
    let heard = publication(&mut ear).await;
    assert_eq!(&*heard.kind, "presence:leave");
    for announced in [&joined, &heard] {
        assert_eq!(announced.exclude.connections, std::slice::from_ref(&ada.id));
    }
    assert_eq!(
        heard.payload.to_value(),
        json!({"id": "ada", "name": "ADA", "lastSeen": 1_700_000_000_777_i64, "metadata": {"at": [1, 2.5], "who": "ada"}})
    );
}

pub(crate) async fn a_backends_entry_lasts_until_removed(make: &impl Fixture) {
    let room = channel("presence:put");
    let (one, mut ear) = (make.join().await, listener(make, &[&room]).await);
    assert!(one.broker.put_member(&room, &member("bot"), None).await.unwrap());
    assert!(!one.broker.put_member(&room, &member("bot"), None).await.unwrap());
    assert_eq!(one.broker.members(&room).await.unwrap(), [member("bot")], "seen when it was put");
    let tab = connection(&one, "bot", 0);
    assert!(!one.broker.join_resource(&room, &tab.id, &member("bot")).await.unwrap().first);
    assert!(
        !one.broker.leave_resource(&room, &tab.id, &tab.user, 1_700_000_000_005).await.unwrap()
    );
    assert_eq!(one.broker.members(&room).await.unwrap().len(), 1);
    assert!(ear.broker.remove_member(&room, &user("bot")).await.unwrap());
    assert!(!ear.broker.remove_member(&room, &user("bot")).await.unwrap());
    assert_eq!(announced(&mut ear, &room).await, ["presence:join bot", "presence:leave bot"]);
}

pub(crate) async fn a_backends_entry_ends_with_its_time(make: &impl Fixture) {
    let room = channel("presence:ttl");
    let (one, mut ear) = (make.join().await, listener(make, &[&room]).await);
    one.broker.put_member(&room, &member("bot"), Some(Duration::from_secs(1))).await.unwrap();
    one.broker.put_member(&room, &member("stays"), Some(Duration::from_secs(1))).await.unwrap();
    one.broker.put_member(&room, &member("stays"), None).await.unwrap();
    beat_all(&[&one, &ear]).await;
    assert_eq!(one.broker.members(&room).await.unwrap().len(), 2);
    make.pass(Duration::from_millis(1_100)).await;
    beat_all(&[&one, &ear]).await;
    beat_all(&[&one, &ear]).await;
    assert_eq!(names(&one.broker.members(&room).await.unwrap()), ["stays"]);
    assert_eq!(
        announced(&mut ear, &room).await,
        ["presence:join bot", "presence:join stays", "presence:leave bot"]
    );
}

/// Lets a lease end while the others beat.
async fn outlive(make: &impl Fixture, living: &[&Node]) {
    for _ in 0..4 {
        make.pass(Duration::from_secs(4)).await;
        beat_all(living).await;
    }
}

pub(crate) async fn what_a_dead_node_held_is_taken_back_once(make: &impl Fixture) {
    let room = channel("presence:dies");
    let (dies, one, mut two) =
        (make.join().await, make.join().await, listener(make, &[&room]).await);
    beat_all(&[&dies, &one, &two]).await;
    for name in ["ada", "bob", "cyd"] {
        dies.broker
            .join_resource(&room, &connection(&dies, name, 0).id, &member(name))
            .await
            .unwrap();
    }
    one.broker.join_resource(&room, &connection(&one, "bob", 1).id, &member("bob")).await.unwrap();
    assert_eq!(announced(&mut two, &room).await.len(), 3);
    outlive(make, &[&one, &two]).await;
    beat_all(&[&one, &two]).await;
    let mut left = announced(&mut two, &room).await;
    left.sort();
    assert_eq!(left, ["presence:leave ada", "presence:leave cyd"]);
    assert_eq!(names(&two.broker.members(&room).await.unwrap()), ["bob"]);
}

pub(crate) async fn a_node_that_comes_back_joins_again(make: &impl Fixture) {
    let room = channel("presence:back");
    let (sleeps, mut one) = (make.join().await, listener(make, &[&room]).await);
    beat_all(&[&sleeps, &one]).await;
    sleeps
        .broker
        .join_resource(&room, &connection(&sleeps, "ada", 0).id, &member("ada"))
        .await
        .unwrap();
    outlive(make, &[&one]).await;
    beat_all(&[&sleeps, &one]).await;
    assert_eq!(
        announced(&mut one, &room).await,
        ["presence:join ada", "presence:leave ada", "presence:join ada"]
    );
    assert_eq!(names(&one.broker.members(&room).await.unwrap()), ["ada"]);
}

pub(crate) async fn a_retiring_node_takes_its_holds_along(make: &impl Fixture) {
    let room = channel("presence:retires");
    let (goes, mut one) = (make.join().await, listener(make, &[&room]).await);
    beat_all(&[&goes, &one]).await;
    goes.broker
        .join_resource(&room, &connection(&goes, "ada", 0).id, &member("ada"))
        .await
        .unwrap();
    goes.broker.retire().await.unwrap();
    assert_eq!(announced(&mut one, &room).await, ["presence:join ada", "presence:leave ada"]);
    outlive(make, &[&one]).await;
    assert!(announced(&mut one, &room).await.is_empty());
}

async fn arrive(node: &Node, record: &ConnectionRecord) {
    let arrival = node.broker.arrive(record, 0).await.unwrap();
    assert_eq!(arrival.admission, Admission::Admitted);
    if !arrival.seen {
        node.broker.user_seen(&record.user, None).await.unwrap();
    }
}

async fn depart(node: &Node, record: &ConnectionRecord) {
    node.broker.depart(record, Duration::from_secs(2)).await.unwrap();
}

pub(crate) async fn a_user_is_online_with_the_first_connection_and_offline_after_the_last(
    make: &impl Fixture,
) {
    let (all, own) = (channel("presence"), channel("presence:ada"));
    let (one, two, mut ear) = (make.join().await, make.join().await, listener(make, &[&all]).await);
    let mut ear_of_ada = listener(make, &[&own]).await;
    beat_all(&[&one, &two, &ear]).await;
    let (first, second) = (connection(&one, "ada", 0), connection(&two, "ada", 1));
    arrive(&one, &first).await;
    arrive(&two, &second).await;
    let known = ear.broker.presence_of(&[user("ada")]).await.unwrap().remove(0);
    assert_eq!((known.status, known.connections), (UserStatus::Online, 2));
    depart(&one, &first).await;
    make.pass(Duration::from_millis(2_300)).await;
    beat_all(&[&one, &two, &ear]).await;
    assert_eq!(announced(&mut ear, &all).await, ["online ada"]);
    depart(&two, &second).await;
    beat_all(&[&one, &two, &ear]).await;
    assert!(announced(&mut ear, &all).await.is_empty(), "not before the grace is over");
    make.pass(Duration::from_millis(2_300)).await;
    beat_all(&[&one, &two, &ear]).await;
    beat_all(&[&one, &two, &ear]).await;
    assert_eq!(announced(&mut ear, &all).await, ["offline ada"]);
    assert_eq!(announced(&mut ear_of_ada, &own).await, ["online ada", "offline ada"]);
    let known = ear.broker.presence_of(&[user("ada")]).await.unwrap().remove(0);
    assert_eq!((known.status, known.connections), (UserStatus::Offline, 0));
    assert!(known.last_seen_ms.is_some_and(|at| at > 1_700_000_000_000));
}

/// Who looks after the grace finds the connection, for taking it back takes its time.
pub(crate) async fn a_registration_that_outlasts_the_farewell_ends_offline(make: &impl Fixture) {
    let all = channel("presence");
    let (one, mut ear) = (make.join().await, listener(make, &[&all]).await);
    beat_all(&[&one, &ear]).await;
    let late = connection(&one, "ada", 0);
    arrive(&one, &late).await;
    one.broker.user_departed(&late.user, Duration::from_millis(100)).await.unwrap();
    make.pass(Duration::from_millis(1_300)).await;
    beat_all(&[&one, &ear]).await;
    beat_all(&[&one, &ear]).await;
    assert_eq!(announced(&mut ear, &all).await, ["online ada"], "she is registered");
    one.broker.deregister(&late).await.unwrap();
    beat_all(&[&one, &ear]).await;
    assert_eq!(announced(&mut ear, &all).await, ["offline ada"]);
}

pub(crate) async fn a_quick_reconnect_is_no_flicker(make: &impl Fixture) {
    let all = channel("presence");
    let (one, two, mut ear) = (make.join().await, make.join().await, listener(make, &[&all]).await);
    beat_all(&[&one, &two, &ear]).await;
    let (first, second) = (connection(&one, "ada", 0), connection(&two, "ada", 1));
    arrive(&one, &first).await;
    depart(&one, &first).await;
    make.pass(Duration::from_millis(500)).await;
    beat_all(&[&one, &two]).await;
    arrive(&two, &second).await;
    make.pass(Duration::from_millis(2_500)).await;
    beat_all(&[&one, &two]).await;
    beat_all(&[&one, &two]).await;
    assert_eq!(announced(&mut ear, &all).await, ["online ada"]);
}

pub(crate) async fn users_of_a_dead_node_go_offline_once(make: &impl Fixture) {
    let all = channel("presence");
    let (dies, one, mut two) =
        (make.join().await, make.join().await, listener(make, &[&all]).await);
    beat_all(&[&dies, &one, &two]).await;
    for name in ["ada", "bob"] {
        arrive(&dies, &connection(&dies, name, 0)).await;
    }
    arrive(&one, &connection(&one, "bob", 1)).await;
    outlive(make, &[&one, &two]).await;
    beat_all(&[&one, &two]).await;
    beat_all(&[&one, &two]).await;
    assert_eq!(announced(&mut two, &all).await, ["online ada", "online bob", "offline ada"]);
}

pub(crate) async fn a_status_stays_as_chosen_and_changes_are_coalesced(make: &impl Fixture) {
    let all = channel("presence");
    let (one, mut ear) = (make.join().await, listener(make, &[&all]).await);
    beat_all(&[&one, &ear]).await;
    let tab = connection(&one, "ada", 0);
    arrive(&one, &tab).await;
    make.pass(Duration::from_millis(1_050)).await;
    for status in [UserStatus::Away, UserStatus::Online, UserStatus::Away, UserStatus::Busy] {
        one.broker.user_seen(&user("ada"), Some(status)).await.unwrap();
    }
    make.pass(Duration::from_millis(1_050)).await;
    beat_all(&[&one, &ear]).await;
    assert_eq!(announced(&mut ear, &all).await, ["online ada", "away ada", "busy ada"]);
    arrive(&one, &connection(&one, "ada", 1)).await;
    let known = ear.broker.presence_of(&[user("ada")]).await.unwrap().remove(0);
    assert_eq!((known.status, known.connections), (UserStatus::Busy, 2));
    assert!(announced(&mut ear, &all).await.is_empty());
}

pub(crate) async fn a_change_that_waits_for_its_turn_is_announced_though_the_node_is_new(
    make: &impl Fixture,
) {
    let all = channel("presence");
    let (one, mut ear) = (make.join().await, listener(make, &[&all]).await);
    arrive(&one, &connection(&one, "ada", 0)).await;
    // Within the gap: said later. The node's first beats write what it holds again, and must not swallow it.
    one.broker.user_seen(&user("ada"), Some(UserStatus::Away)).await.unwrap();
    beat_all(&[&one, &ear]).await;
    make.pass(Duration::from_millis(1_050)).await;
    beat_all(&[&one, &ear]).await;
    assert_eq!(announced(&mut ear, &all).await, ["online ada", "away ada"]);
}

pub(crate) async fn a_user_never_seen_is_offline(make: &impl Fixture) {
    let one = make.join().await;
    let known = one.broker.presence_of(&[user("nobody"), user("no one")]).await.unwrap();
    assert_eq!(known.len(), 2);
    assert_eq!(
        (known[1].status, known[1].last_seen_ms, known[1].connections),
        (UserStatus::Offline, None, 0)
    );
}

pub(crate) async fn many_users_leave_in_any_order(make: &impl Fixture) {
    let room = channel("presence:many");
    let (one, two, mut ear) =
        (make.join().await, make.join().await, listener(make, &[&room]).await);
    let nodes = [&one, &two];
    for index in 0..60 {
        let node = nodes[index % 2];
        let name = format!("u{}", index % 20);
        let tab = connection(node, &name, index as u32);
        node.broker.join_resource(&room, &tab.id, &member(&name)).await.unwrap();
    }
    for step in 0..60 {
        let index = step * 7 % 60;
        let node = nodes[index % 2];
        let tab = connection(node, &format!("u{}", index % 20), index as u32);
        node.broker.leave_resource(&room, &tab.id, &tab.user, 5).await.unwrap();
    }
    let heard = announced(&mut ear, &room).await;
    assert_eq!(heard.iter().filter(|what| what.starts_with("presence:join")).count(), 20);
    assert_eq!(heard.iter().filter(|what| what.starts_with("presence:leave")).count(), 20);
    assert!(ear.broker.members(&room).await.unwrap().is_empty());
}

/// Joins and leaves a hundred times from one node, in an order of its own; what it holds at the end.
async fn churn(node: &Node, room: &ChannelName, seed: u64) {
    let mut random = seed;
    for _ in 0..100 {
        random =
            random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let tab =
            connection(node, &format!("u{}", (random >> 33) % 12), ((random >> 50) % 2) as u32);
        if (random >> 60).is_multiple_of(2) {
            node.broker.join_resource(room, &tab.id, &member(tab.user.as_str())).await.unwrap();
        } else {
            node.broker.leave_resource(room, &tab.id, &tab.user, 5).await.unwrap();
        }
    }
}

pub(crate) async fn announcements_replay_to_the_list_under_churn(make: &impl Fixture) {
    let room = channel("presence:churn");
    let (one, two, dies) = (make.join().await, make.join().await, make.join().await);
    let mut ear = listener(make, &[&room]).await;
    beat_all(&[&one, &two, &dies, &ear]).await;
    tokio::join!(churn(&one, &room, 1), churn(&two, &room, 2), churn(&dies, &room, 3));
    let mut log = announced(&mut ear, &room).await;
    outlive(make, &[&one, &two, &ear]).await;
    beat_all(&[&one, &two, &ear]).await;
    log.extend(announced(&mut ear, &room).await);
    let mut replayed = std::collections::BTreeSet::new();
    for line in &log {
        let fresh = match line.split_once(' ').expect("a type and a user") {
            ("presence:join", user) => replayed.insert(user.to_owned()),
            (_, user) => replayed.remove(user),
        };
        assert!(fresh, "{line} changes nothing in {log:?}");
    }
    let members = one.broker.members(&room).await.unwrap();
    assert_eq!(names(&members), replayed.iter().map(String::as_str).collect::<Vec<_>>());
}

/// R43: nobody joins, leaves or goes offline when the data is lost.
pub(crate) async fn lost_data_is_restored_in_silence<F: Future<Output = ()>>(
    make: &impl Fixture,
    lose: impl FnOnce() -> F,
) {
    let (room, all) = (channel("presence:lost"), channel("presence"));
    let (one, mut two) = (make.join().await, listener(make, &[&room, &all]).await);
    beat_all(&[&one, &two]).await;
    let tab = connection(&one, "ada", 0);
    arrive(&one, &tab).await;
    make.pass(Duration::from_millis(1_050)).await;
    one.broker.user_seen(&user("ada"), Some(UserStatus::Busy)).await.unwrap();
    one.broker.join_resource(&room, &tab.id, &member("ada")).await.unwrap();
    assert_eq!(announced(&mut two, &room).await, ["online ada", "busy ada", "presence:join ada"]);
    lose().await;
    beat_all(&[&one, &two]).await;
    beat_all(&[&one, &two]).await;
    assert!(announced(&mut two, &room).await.is_empty());
    assert_eq!(names(&two.broker.members(&room).await.unwrap()), ["ada"]);
    let known = two.broker.presence_of(&[user("ada")]).await.unwrap().remove(0);
    assert_eq!((known.status, known.connections), (UserStatus::Busy, 1));
    assert!(one.broker.leave_resource(&room, &tab.id, &tab.user, 7).await.unwrap());
    assert_eq!(announced(&mut two, &room).await, ["presence:leave ada"]);
}
