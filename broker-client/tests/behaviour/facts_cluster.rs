//! Facts about nodes: registry, leases, node-to-node messages, inbound, windows, health.

use std::time::Duration;

use bytes::Bytes;
use carillon_broker_client::{Admission, Health, InboundEntry, NodeId, Target};

use crate::fixture::{Fixture, channel, connection, node_record};

pub(crate) async fn health_is_up(make: &impl Fixture) {
    let node = make.join().await;
    let mut health = node.broker.health();
    let up = health.wait_for(|health| *health == Health::Up);
    tokio::time::timeout(Duration::from_secs(20), up).await.expect("up in time").expect("a broker");
}

pub(crate) async fn the_limit_of_connections_holds_over_nodes(make: &impl Fixture) {
    let nodes = [make.join().await, make.join().await];
    for node in &nodes {
        node.beat().await;
    }
    for index in 0..4 {
        let node = &nodes[index as usize % 2];
        let admission = node.broker.register(&connection(node, "ada", index), 4).await.unwrap();
        assert_eq!(admission, Admission::Admitted);
    }
    let fifth = connection(&nodes[0], "ada", 4);
    let refused = nodes[0].broker.register(&fifth, 4).await.unwrap();
    assert_eq!(refused, Admission::TooMany { connections: 4 });
    assert_eq!(nodes[0].broker.connections_of(&fifth.user).await.unwrap().len(), 4);

    let other = connection(&nodes[0], "bob", 0);
    assert_eq!(nodes[0].broker.register(&other, 4).await.unwrap(), Admission::Admitted);

    nodes[1].broker.deregister(&connection(&nodes[1], "ada", 1)).await.unwrap();
    assert_eq!(nodes[0].broker.register(&fifth, 4).await.unwrap(), Admission::Admitted);
    let unlimited = connection(&nodes[1], "ada", 5);
    assert_eq!(nodes[1].broker.register(&unlimited, 0).await.unwrap(), Admission::Admitted);
}

pub(crate) async fn of_those_that_arrive_together_as_many_are_admitted_as_there_are_places(
    make: &impl Fixture,
) {
    let nodes = [make.join().await, make.join().await];
    for node in &nodes {
        node.beat().await;
    }
    let records: Vec<_> = (0..40)
        .map(|index| connection(&nodes[index as usize % 2], "ada", index))
        .chain([connection(&nodes[0], "bob", 0)])
        .collect();
    let arriving = records.iter().enumerate().map(|(index, record)| {
        let broker = &nodes[index % 2].broker;
        async move { (record, broker.arrive(record, 4).await.unwrap().admission) }
    });
    let arrived = futures_util::future::join_all(arriving).await;
    let admitted: Vec<_> =
        arrived.iter().filter(|(_, admission)| *admission == Admission::Admitted).collect();
    assert_eq!(admitted.len(), 5, "four of one user, and the other user's");
    let places: Vec<_> = admitted.iter().filter(|(one, _)| one.user.as_str() == "ada").collect();
    let refused = Admission::TooMany { connections: 4 };
    assert_eq!(arrived.iter().filter(|(_, admission)| *admission == refused).count(), 36);
    let mut registered = nodes[0].broker.connections_of(&records[0].user).await.unwrap();
    let mut expected: Vec<_> = places.iter().map(|(record, _)| record.id.clone()).collect();
    registered.sort();
    expected.sort();
    assert_eq!(registered, expected);

    for (record, _) in &places {
        nodes[1].broker.depart(record, Duration::ZERO).await.unwrap();
        nodes[1].broker.depart(record, Duration::ZERO).await.unwrap();
    }
    assert!(nodes[0].broker.connections_of(&records[0].user).await.unwrap().is_empty());
    let again = nodes[0].broker.arrive(&records[0], 1).await.unwrap().admission;
    assert_eq!(again, Admission::Admitted);
}

pub(crate) async fn connections_of_a_node_that_was_never_heard_of_count(make: &impl Fixture) {
    let (old, new) = (make.join().await, make.join().await);
    old.beat().await;
    new.beat().await;
    new.broker.register(&connection(&new, "ada", 0), 1).await.unwrap();
    new.broker.register(&connection(&new, "bob", 0), 1).await.unwrap();
    // Since its last beat, the old one knows nothing of the new one.
    let refused = Admission::TooMany { connections: 1 };
    assert_eq!(old.broker.register(&connection(&old, "ada", 1), 1).await.unwrap(), refused);
    let arrival = old.broker.arrive(&connection(&old, "bob", 1), 1).await.unwrap();
    assert_eq!(arrival.admission, refused);
    let admitted = old.broker.arrive(&connection(&old, "bob", 2), 2).await.unwrap();
    assert_eq!(admitted.admission, Admission::Admitted);
}

pub(crate) async fn registering_again_does_not_count_twice(make: &impl Fixture) {
    let node = make.join().await;
    node.beat().await;
    let record = connection(&node, "ada", 0);
    for _ in 0..3 {
        assert_eq!(node.broker.register(&record, 1).await.unwrap(), Admission::Admitted);
    }
    assert_eq!(node.broker.connections_of(&record.user).await.unwrap(), [record.id]);
}

pub(crate) async fn connections_of_a_stale_node_do_not_count(make: &impl Fixture) {
    let (stale, fresh) = (make.join().await, make.join().await);
    stale.beat().await;
    fresh.beat().await;
    stale.broker.register(&connection(&stale, "ada", 0), 1).await.unwrap();
    let second = connection(&fresh, "ada", 1);
    let refused = fresh.broker.register(&second, 1).await.unwrap();
    assert_eq!(refused, Admission::TooMany { connections: 1 });

    make.pass(Duration::from_secs(6)).await;
    fresh.beat().await;
    assert_eq!(fresh.broker.register(&second, 1).await.unwrap(), Admission::Admitted);

    stale.beat().await;
    let third = connection(&fresh, "ada", 2);
    let refused = fresh.broker.register(&third, 1).await.unwrap();
    assert_eq!(refused, Admission::TooMany { connections: 2 }, "back in time, they count again");
}

pub(crate) async fn connections_of_a_user_are_listed_until_deregistered(make: &impl Fixture) {
    let (one, two) = (make.join().await, make.join().await);
    one.beat().await;
    two.beat().await;
    let (first, second) = (connection(&one, "ada", 0), connection(&two, "ada", 1));
    assert!(one.broker.connections_of(&first.user).await.unwrap().is_empty());
    one.broker.register(&first, 0).await.unwrap();
    two.broker.register(&second, 0).await.unwrap();
    let mut listed = one.broker.connections_of(&first.user).await.unwrap();
    listed.sort();
    let mut expected = [first.id.clone(), second.id.clone()];
    expected.sort();
    assert_eq!(listed, expected);
    one.broker.deregister(&first).await.unwrap();
    one.broker.deregister(&first).await.unwrap();
    assert_eq!(one.broker.connections_of(&first.user).await.unwrap(), [second.id]);
}

pub(crate) async fn beats_name_the_living_until_they_retire(make: &impl Fixture) {
    let (one, two) = (make.join().await, make.join().await);
    assert_eq!(one.beat().await, [node_record(one.broker.node())]);
    let mut expected = [node_record(one.broker.node()), node_record(two.broker.node())];
    expected.sort_by(|a, b| a.id.cmp(&b.id));
    assert_eq!(two.beat().await, expected);
    assert_eq!(one.beat().await, expected);

    let mut busy = node_record(two.broker.node());
    (busy.messages_in, busy.draining) = (1_000, true);
    two.broker.beat(&busy).await.unwrap();
    assert!(one.beat().await.contains(&busy));

    two.broker.retire().await.unwrap();
    assert_eq!(one.beat().await, [node_record(one.broker.node())]);
}

pub(crate) async fn a_dead_node_is_swept(make: &impl Fixture) {
    let (dies, lives) = (make.join().await, make.join().await);
    dies.beat().await;
    lives.beat().await;
    let record = connection(&dies, "ada", 0);
    dies.broker.register(&record, 0).await.unwrap();
    for _ in 0..4 {
        make.pass(Duration::from_secs(4)).await;
        lives.beat().await;
    }
    assert_eq!(lives.beat().await, [node_record(lives.broker.node())]);
    assert!(lives.broker.connections_of(&record.user).await.unwrap().is_empty());
}

pub(crate) async fn retiring_takes_registrations_along(make: &impl Fixture) {
    let (one, two) = (make.join().await, make.join().await);
    one.beat().await;
    two.beat().await;
    let (gone, stays) = (connection(&one, "ada", 0), connection(&two, "ada", 1));
    one.broker.register(&gone, 0).await.unwrap();
    two.broker.register(&stays, 0).await.unwrap();
    one.broker.retire().await.unwrap();
    assert_eq!(two.broker.connections_of(&gone.user).await.unwrap(), [stays.id]);
}

pub(crate) async fn a_node_is_told_bytes(make: &impl Fixture) {
    let (mut one, mut two) = (make.join().await, make.join().await);
    let bytes = Bytes::from((0..=255).collect::<Vec<u8>>());
    let target = Target::Node(two.broker.node().clone());
    assert_eq!(one.broker.tell(&target, bytes.clone()).await.unwrap(), 1);
    assert_eq!(two.told().await, bytes);
    assert_eq!(two.broker.tell(&target, Bytes::from_static(b"to myself")).await.unwrap(), 1);
    assert_eq!(two.told().await, "to myself");
    assert!(one.events.try_recv().is_err());
}

pub(crate) async fn all_nodes_are_told_the_sender_too(make: &impl Fixture) {
    let mut nodes = [make.join().await, make.join().await, make.join().await];
    let message = Bytes::from_static(b"\0all\xff");
    assert_eq!(nodes[1].broker.tell(&Target::All, message.clone()).await.unwrap(), 3);
    for node in &mut nodes {
        assert_eq!(node.told().await, message);
    }
}

pub(crate) async fn nobody_listens_under_an_unknown_node(make: &impl Fixture) {
    let node = make.join().await;
    let target = Target::Node(NodeId::random());
    assert_eq!(node.broker.tell(&target, Bytes::from_static(b"?")).await.unwrap(), 0);
}

pub(crate) async fn inbound_ids_grow(make: &impl Fixture) {
    let node = make.join().await;
    let numbers = |id: &str| -> (u64, u64) {
        let (ms, number) = id.split_once('-').expect("milliseconds-number");
        (ms.parse().expect("a number"), number.parse().expect("a number"))
    };
    let mut before = (0, 0);
    for index in 0..50 {
        let json = format!(r#"{{"user_id":"ada","channel":"{}","n":{index}}}"#, channel("room:a"));
        let entry = InboundEntry { kind: "message".to_owned(), json };
        let id = numbers(&node.broker.append_inbound(&entry).await.unwrap());
        assert!(id > before, "{id:?} after {before:?}");
        before = id;
    }
}

pub(crate) async fn calls_are_counted_in_windows(make: &impl Fixture) {
    let (one, two) = (make.join().await, make.join().await);
    let window = Duration::from_secs(2);
    for expected in 1..=3 {
        let broker = if expected % 2 == 0 { &two.broker } else { &one.broker };
        let counted = broker.count("poll:ada", window).await.unwrap();
        assert_eq!(counted.count, expected);
        assert!(counted.reset_in <= window && counted.reset_in > Duration::ZERO);
    }
    assert_eq!(one.broker.count("poll:bob", window).await.unwrap().count, 1);
    make.pass(window + Duration::from_millis(200)).await;
    assert_eq!(one.broker.count("poll:ada", window).await.unwrap().count, 1);
}

pub(crate) async fn one_call_of_many_at_once_is_counted_once(make: &impl Fixture) {
    let node = make.join().await;
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let broker = node.broker.clone();
        calls.spawn(
            async move { broker.count("busy", Duration::from_secs(60)).await.unwrap().count },
        );
    }
    let mut counts = calls.join_all().await;
    counts.sort_unstable();
    assert_eq!(counts, (1..=50).collect::<Vec<u64>>());
}
