//! Facts of the embedded broker alone: overflow, faults, what expires. The rest is in the behaviour suite.

use std::time::Duration;

use bytes::Bytes;
use carillon_protocol::publication::Exclude;
use carillon_protocol::{
    ChannelName, ConnectionId, MessageId, Payload, Position, Publication, UserId,
};
use tokio::time::{Instant, advance};

use super::ear::EVENTS_MAX;
use super::*;
use crate::broker::{EPOCH_LIFETIME, IDEMPOTENCY_WINDOW};
use crate::{
    Broker, ConnectionRecord, Event, Health, HistoryPage, HistoryQuery, Idempotency, NodeRecord,
    Retention, Start, Target,
};

const HOUR: Duration = Duration::from_secs(3600);

fn channel() -> ChannelName {
    ChannelName::new("room:one").expect("a channel name")
}

fn publish(id: &str) -> Publish {
    let publication = Publication {
        channel: channel(),
        position: None,
        previous_tag: None,
        stamp: 0,
        id: MessageId::new(id).expect("an id"),
        kind: "message".into(),
        timestamp_ms: 0,
        user_id: None,
        meta: None,
        exclude: Exclude::default(),
        expires_at_ms: None,
        traceparent: None,
        payload: Payload::NULL,
    };
    let retention = Some(Retention { size: 100_000, age: HOUR });
    Publish { publication, retention, idempotency: None }
}

async fn listening(cluster: &MemoryCluster) -> (MemoryBroker, Events) {
    let (broker, events) = cluster.join(NodeId::random());
    broker.subscribe(&[channel()]).await.expect("subscribed");
    (broker, events)
}

async fn offset(broker: &MemoryBroker, id: &str) -> u64 {
    broker.publish(publish(id)).await.expect("published").position.expect("with history").offset
}

async fn page(broker: &MemoryBroker, start: Start) -> HistoryPage {
    let query = HistoryQuery { start, limit: 100_000, age: HOUR };
    broker.history(&channel(), query).await.expect("history")
}

fn drain(events: &mut Events) -> Vec<Event> {
    std::iter::from_fn(|| events.try_recv().ok()).collect()
}

fn is_pair(events: &[Event]) -> bool {
    events == [Event::Interrupted, Event::Restored]
}

fn record(id: &NodeId) -> NodeRecord {
    NodeRecord {
        id: id.clone(),
        name: "gateway".to_owned(),
        version: "0".to_owned(),
        started_at_ms: 0,
        connections: BTreeMap::new(),
        messages_in: 0,
        messages_out: 0,
        load_millicores: 0,
        draining: false,
    }
}

#[tokio::test(start_paused = true)]
async fn a_publisher_waits_for_a_full_queue_and_loses_nothing() {
    let (broker, mut events) = listening(&MemoryCluster::new()).await;
    let publisher = tokio::spawn(async move {
        for index in 0..3 * EVENTS_MAX {
            offset(&broker, &format!("m{index}")).await;
        }
    });
    for expected in 1..=3 * EVENTS_MAX as u64 {
        match events.recv().await {
            Some(Event::Publication(heard)) => {
                assert_eq!(heard.position.expect("with history").offset, expected);
            }
            other => panic!("expected a publication, heard {other:?}"),
        }
    }
    publisher.await.expect("published");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_does_not_drain_holds_publishers_for_the_timeout_once_and_audits() {
    let (broker, mut events) = listening(&MemoryCluster::new()).await;
    for index in 0..EVENTS_MAX {
        offset(&broker, &format!("m{index}")).await;
    }
    let before = Instant::now();
    assert_eq!(offset(&broker, "late").await, EVENTS_MAX as u64 + 1);
    assert_eq!(before.elapsed().as_secs(), COMMAND_TIMEOUT.as_secs());
    let before = Instant::now();
    assert_eq!(offset(&broker, "later").await, EVENTS_MAX as u64 + 2);
    assert!(before.elapsed().is_zero(), "a node that is behind is not waited for");

    // The audit is due where the drops began, without any further publish.
    let heard = drain(&mut events);
    assert_eq!(heard.len(), EVENTS_MAX + 2);
    assert!(is_pair(&heard[EVENTS_MAX..]));
    assert_eq!(page(&broker, Start::Last).await.publications.len(), EVENTS_MAX + 2);

    // What was dropped after that is told before the next event, or at a beat.
    broker.beat(&record(broker.node())).await.expect("beaten");
    assert!(is_pair(&drain(&mut events)));
    offset(&broker, "heard").await;
    assert!(matches!(&drain(&mut events)[..], [Event::Publication(_)]));
}

#[tokio::test(start_paused = true)]
async fn a_slow_node_does_not_take_another_nodes_events() {
    let cluster = MemoryCluster::new();
    let (broker, mut quick) = listening(&cluster).await;
    let (_slow_broker, slow) = listening(&cluster).await;
    for index in 1..=2 * EVENTS_MAX as u64 {
        assert_eq!(offset(&broker, &format!("m{index}")).await, index);
        match quick.try_recv() {
            Ok(Event::Publication(heard)) => {
                assert_eq!(heard.position.expect("kept").offset, index);
            }
            other => panic!("expected a publication, heard {other:?}"),
        }
    }
    assert_eq!(slow.len(), EVENTS_MAX + 2);
}

#[tokio::test(start_paused = true)]
async fn an_interrupted_node_hears_nothing_until_it_is_restored() {
    let cluster = MemoryCluster::new();
    let (broker, mut events) = listening(&cluster).await;
    for round in 0..5_u64 {
        cluster.interrupt(broker.node());
        offset(&broker, "missed").await;
        assert_eq!(broker.tell(&Target::All, Bytes::new()).await, Ok(0));
        assert!(drain(&mut events).is_empty());
        cluster.restore(broker.node());
        let resumed = offset(&broker, "heard").await;
        assert_eq!(resumed, 2 * round + 2);
        match &drain(&mut events)[..] {
            [Event::Interrupted, Event::Restored, Event::Publication(heard)] => {
                assert_eq!(heard.position.expect("with history").offset, resumed);
            }
            other => panic!("heard {other:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_gone_neither_hears_nor_delays() {
    let cluster = MemoryCluster::new();
    let (broker, mut events) = listening(&cluster).await;
    let (_gone, gone_events) = listening(&cluster).await;
    drop(gone_events);
    assert_eq!(offset(&broker, "m1").await, 1);
    assert_eq!(drain(&mut events).len(), 1);
    assert_eq!(broker.tell(&Target::All, Bytes::new()).await, Ok(1));
}

#[tokio::test(start_paused = true)]
async fn an_outage_refuses_every_command_and_turns_health_down() {
    let cluster = MemoryCluster::new();
    let (broker, mut events) = listening(&cluster).await;
    let health = broker.health();
    cluster.set_available(false);
    assert!(matches!(*health.borrow(), Health::Down(_)));
    let refused = |result: Result<(), BrokerError>| {
        assert!(matches!(result, Err(BrokerError::Unavailable(_))));
    };
    refused(broker.publish(publish("m1")).await.map(drop));
    refused(broker.publish_batch(vec![publish("m1")]).await.remove(0).map(drop));
    refused(broker.subscribe(&[channel()]).await);
    refused(broker.tops(&[channel()]).await.map(drop));
    refused(broker.beat(&record(broker.node())).await.map(drop));
    refused(broker.count("k", HOUR).await.map(drop));
    refused(broker.tell(&Target::All, Bytes::new()).await.map(drop));
    cluster.set_available(true);
    assert_eq!(*health.borrow(), Health::Up);
    assert_eq!(offset(&broker, "m1").await, 1);
    assert_eq!(drain(&mut events).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn lost_data_begins_new_epochs_keeps_interest_and_a_beat_restores_registrations() {
    let cluster = MemoryCluster::new();
    let (broker, mut events) = listening(&cluster).await;
    let old = broker.publish(publish("m1")).await.expect("published").position.expect("kept");
    let user = UserId::new("ada").expect("an id");
    let id = ConnectionId::new("c1").expect("an id");
    broker.beat(&record(broker.node())).await.expect("beaten");
    let connection = ConnectionRecord { id: id.clone(), user: user.clone() };
    broker.register(&connection, 0).await.expect("registered");

    cluster.lose_data();
    assert_eq!(broker.connections_of(&user).await, Ok(vec![]));
    let new = broker.publish(publish("m2")).await.expect("published").position.expect("kept");
    assert_eq!(new.offset, 1);
    assert_ne!(new.epoch, old.epoch);
    assert_eq!(drain(&mut events).len(), 2);

    // Who registers before the node has looked is not taken for all that was there.
    let late =
        ConnectionRecord { id: ConnectionId::new("late").expect("an id"), user: user.clone() };
    broker.register(&late, 0).await.expect("registered");
    broker.beat(&record(broker.node())).await.expect("beaten");
    let mut known = broker.connections_of(&user).await.expect("known");
    known.sort_unstable();
    assert_eq!(known, [id, late.id]);
}

#[tokio::test(start_paused = true)]
async fn a_fork_reuses_offsets_with_other_tags_in_the_same_epoch() {
    let cluster = MemoryCluster::new();
    let (broker, _events) = listening(&cluster).await;
    for id in ["m1", "m2", "m3", "m4"] {
        offset(&broker, id).await;
    }
    let before = page(&broker, Start::After(0)).await;
    cluster.fork(&channel(), 2);
    let kept = page(&broker, Start::After(0)).await;
    assert_eq!(kept.publications, before.publications[..2]);
    assert_eq!(Some(kept.top), before.publications[1].position);
    offset(&broker, "other").await;
    let after = page(&broker, Start::After(2)).await;
    let (old, new) = (&before.publications[2], &after.publications[0]);
    assert_eq!(new.previous_tag, old.previous_tag);
    let (old, new) = (old.position.expect("kept"), new.position.expect("kept"));
    assert_eq!((new.epoch, new.offset), (old.epoch, old.offset));
    assert_ne!(new.tag, old.tag);
    cluster.fork(&channel(), 0);
    let emptied = page(&broker, Start::After(0)).await;
    assert_eq!((emptied.top.offset, emptied.top.tag), (0, Position::START_TAG));
}

#[tokio::test(start_paused = true)]
async fn a_repeated_key_is_recognised_for_five_minutes() {
    let (broker, _events) = listening(&MemoryCluster::new()).await;
    let keyed = || {
        let idempotency = Idempotency::new("user:ada", "k");
        Publish { idempotency: Some(idempotency), ..publish("m") }
    };
    assert!(!broker.publish(keyed()).await.expect("published").duplicate);
    advance(IDEMPOTENCY_WINDOW - Duration::from_secs(1)).await;
    assert!(broker.publish(keyed()).await.expect("published").duplicate);
    advance(Duration::from_secs(2)).await;
    let again = broker.publish(keyed()).await.expect("published");
    assert_eq!((again.duplicate, again.position.map(|p| p.offset)), (false, Some(2)));
}

#[tokio::test(start_paused = true)]
async fn an_epoch_outlives_its_history_by_thirty_days() {
    let (broker, _events) = MemoryCluster::new().join(NodeId::random());
    let first = broker.publish(publish("m1")).await.expect("published").position.expect("kept");
    advance(EPOCH_LIFETIME).await;
    assert_eq!(broker.tops(&[channel()]).await, Ok(vec![first]));
    advance(HOUR + EPOCH_LIFETIME + Duration::from_secs(1)).await;
    let anew = broker.tops(&[channel()]).await.expect("tops")[0];
    assert_ne!(anew.epoch, first.epoch);
    assert_eq!((anew.offset, anew.tag), (0, Position::START_TAG));
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_publish_gives_its_places_back() {
    let (broker, mut events) = listening(&MemoryCluster::new()).await;
    for index in 0..EVENTS_MAX {
        offset(&broker, &format!("m{index}")).await;
    }
    let waiting = broker.publish(publish("given-up"));
    assert!(tokio::time::timeout(Duration::from_millis(10), waiting).await.is_err());
    assert_eq!(drain(&mut events).len(), EVENTS_MAX);
    assert_eq!(offset(&broker, "next").await, EVENTS_MAX as u64 + 1);
    for index in 1..EVENTS_MAX {
        offset(&broker, &format!("n{index}")).await;
    }
    assert_eq!(drain(&mut events).len(), EVENTS_MAX);
}

#[tokio::test(start_paused = true)]
async fn receipts_are_lost_with_what_they_are_for() {
    let cluster = MemoryCluster::new();
    let (broker, _events) = listening(&cluster).await;
    let keyed = |key: &str| {
        let idempotency = Idempotency::new("user:ada", key);
        Publish { idempotency: Some(idempotency), ..publish(key) }
    };
    broker.publish(keyed("kept")).await.expect("published");
    broker.publish(keyed("lost")).await.expect("published");
    cluster.fork(&channel(), 1);
    assert!(broker.publish(keyed("kept")).await.expect("repeated").duplicate);
    assert!(!broker.publish(keyed("lost")).await.expect("published again").duplicate);
    assert!(broker.publish(keyed("lost")).await.expect("repeated").duplicate);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_ended_during_an_outage_is_taken_back_by_the_next_beat() {
    let cluster = MemoryCluster::new();
    let (broker, _events) = cluster.join(NodeId::random());
    let id = ConnectionId::new("c1").expect("an id");
    let user = UserId::new("ada").expect("a user id");
    let registered = ConnectionRecord { id, user: user.clone() };
    broker.beat(&record(broker.node())).await.expect("beaten");
    broker.register(&registered, 0).await.expect("registered");
    cluster.set_available(false);
    assert!(broker.deregister(&registered).await.is_err());
    cluster.set_available(true);
    broker.beat(&record(broker.node())).await.expect("beaten");
    assert_eq!(broker.connections_of(&user).await, Ok(vec![]));
}

#[tokio::test(start_paused = true)]
async fn one_node_may_be_cut_off_and_counts_its_generations() {
    let cluster = MemoryCluster::new();
    let ((one, _), (two, _)) = (cluster.join(NodeId::random()), cluster.join(NodeId::random()));
    let before = one.generation();
    cluster.set_reachable(one.node(), false);
    assert!(matches!(*one.health().borrow(), Health::Down(_)));
    assert!(one.tops(&[channel()]).await.is_err());
    assert!(two.tops(&[channel()]).await.is_ok());
    cluster.set_available(false);
    cluster.set_reachable(one.node(), true);
    assert!(one.tops(&[channel()]).await.is_err(), "there is nothing at the other end");
    assert_eq!(one.generation(), before);
    cluster.set_available(true);
    assert!(one.tops(&[channel()]).await.is_ok());
    assert!(one.generation() > before);
}
