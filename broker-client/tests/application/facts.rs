//! Facts about the stream: groups, consumers, leases, dead letters; and about revoked tokens.

use std::time::Duration;

use carillon_broker_client::{
    Broker, InboundConsumer, InboundEntry, InboundFrom, InboundMessage, InboundRead, Revocation,
    RevokedTokens,
};
use carillon_protocol::UserId;

use crate::fixture::{Fixture, Node};

/// Appends messages `type 0`, `type 1`, …
pub(crate) async fn append(node: &Node, kind: &str, numbers: std::ops::Range<usize>) {
    for number in numbers {
        let json = format!(r#"{{"kind":"message","type":"{kind}","payload":{number}}}"#);
        let entry = InboundEntry { kind: kind.to_owned(), json };
        node.broker.append_inbound(&entry).await.expect("appended");
    }
}

pub(crate) async fn read(
    node: &Node,
    group: &str,
    consumer: &str,
    limit: usize,
    from: InboundFrom,
) -> Vec<InboundMessage> {
    let (group, consumer) = (group.to_owned(), consumer.to_owned());
    node.broker.read_inbound(&InboundRead { group, consumer, limit, from }).await.expect("read")
}

fn payloads(messages: &[InboundMessage]) -> Vec<u64> {
    let payload = |message: &InboundMessage| {
        let json: serde_json::Value = message.read().expect("JSON");
        json["payload"].as_u64().expect("a number")
    };
    messages.iter().map(payload).collect()
}

pub(crate) async fn an_entry_goes_to_one_consumer_of_each_group(make: &impl Fixture) {
    let (one, two) = (make.join().await, make.join().await);
    append(&one, "cart:add", 0..5).await;
    let first = read(&one, "shop", "a", 2, InboundFrom::New).await;
    assert_eq!(payloads(&first), [0, 1]);
    assert_eq!(
        (first[0].kind.as_str(), first[0].is_event, first[0].sequence, first[0].deliveries),
        ("cart:add", false, None, 1)
    );
    assert_eq!(payloads(&read(&two, "shop", "b", 10, InboundFrom::New).await), [2, 3, 4]);
    assert!(read(&one, "shop", "a", 10, InboundFrom::New).await.is_empty());
    // Another group begins with the oldest entry.
    assert_eq!(payloads(&read(&two, "audit", "a", 10, InboundFrom::New).await), [0, 1, 2, 3, 4]);
}

pub(crate) async fn what_a_consumer_left_is_its_own_when_it_comes_back(make: &impl Fixture) {
    let node = make.join().await;
    append(&node, "x", 0..4).await;
    let had = read(&node, "g", "a", 3, InboundFrom::New).await;
    node.broker.ack_inbound("g", &[had[1].id.clone()]).await.expect("acknowledged");
    node.broker.ack_inbound("g", &[had[1].id.clone()]).await.expect("idempotent");
    let own = read(&node, "g", "a", 10, InboundFrom::Own("0".to_owned())).await;
    assert_eq!(payloads(&own), [0, 2]);
    assert_eq!(own[0].deliveries, 2);
    let after = read(&node, "g", "a", 10, InboundFrom::Own(own[0].id.clone())).await;
    assert_eq!(payloads(&after), [2]);
    assert!(read(&node, "g", "b", 10, InboundFrom::Own("0".to_owned())).await.is_empty());
}

pub(crate) async fn what_a_dead_consumer_left_goes_to_another(make: &impl Fixture) {
    let node = make.join().await;
    append(&node, "x", 0..3).await;
    read(&node, "g", "dies", 2, InboundFrom::New).await;
    let idle = Duration::from_secs(2);
    assert!(read(&node, "g", "lives", 10, InboundFrom::Abandoned(idle)).await.is_empty());
    make.pass(idle + Duration::from_millis(100)).await;
    let taken = read(&node, "g", "lives", 1, InboundFrom::Abandoned(idle)).await;
    assert_eq!((payloads(&taken), taken[0].deliveries), (vec![0], 2));
    let rest = read(&node, "g", "lives", 10, InboundFrom::Abandoned(idle)).await;
    assert_eq!(payloads(&rest), [1], "what was just taken over is not idle");
    assert_eq!(payloads(&read(&node, "g", "lives", 10, InboundFrom::New).await), [2]);
}

pub(crate) async fn the_ready_consumer_reads_everything_once_and_bounds_what_waits(
    make: &impl Fixture,
) {
    let node = make.join().await;
    append(&node, "x", 0..10).await;
    let consumer = |name: &str| {
        InboundConsumer::new(node.broker.clone(), "g", name)
            .batch(4)
            .abandoned_after(Duration::from_secs(2))
    };
    let mut first = consumer("first");
    for number in 0..3 {
        let message = first.next().await.expect("a message");
        assert_eq!(payloads(std::slice::from_ref(&message)), [number]);
        if number < 2 {
            first.ack(&message.id).await.expect("acknowledged");
        }
    }
    // It dies with one handed out and one fetched; another name takes over after a while, the rest comes at once.
    drop(first);
    make.pass(Duration::from_millis(2_100)).await;
    let mut second = consumer("second");
    let mut heard = Vec::new();
    while heard.len() < 8 {
        let message = second.next().await.expect("a message");
        heard.extend(payloads(std::slice::from_ref(&message)));
        second.ack(&message.id).await.expect("acknowledged");
    }
    heard.sort_unstable();
    assert_eq!(heard, [2, 3, 4, 5, 6, 7, 8, 9]);
    let nothing = tokio::time::timeout(Duration::from_millis(900), second.next()).await;
    assert!(nothing.is_err(), "{nothing:?}");
    // The wait was given up; the next one loses nothing by it.
    append(&node, "x", 10..11).await;
    let message = second.next().await.expect("a message");
    assert_eq!(payloads(std::slice::from_ref(&message)), [10]);
    append(&node, "x", 11..1_011).await;
    for _ in 0..999 {
        second.next().await.expect("a message");
    }
    second.next().await.expect_err("1,000 wait for their acknowledgement");
    second.ack(&message.id).await.expect("acknowledged");
    second.next().await.expect("the last one");
}

pub(crate) async fn a_dead_letter_is_done_and_kept_with_its_reason(make: &impl Fixture) {
    let node = make.join().await;
    append(&node, "x", 0..2).await;
    let had = read(&node, "g", "a", 10, InboundFrom::New).await;
    for _ in 0..2 {
        node.broker.bury_inbound("g", &had[1], "status 500").await.expect("buried");
    }
    let own = read(&node, "g", "a", 10, InboundFrom::Own("0".to_owned())).await;
    assert_eq!(payloads(&own), [0]);
    let dead = node.broker.dead_letters(10).await.expect("dead letters");
    let [(letter, reason)] = dead.as_slice() else { panic!("{dead:?}") };
    assert_eq!((letter.json.as_str(), reason.as_str()), (had[1].json.as_str(), "status 500"));
}

pub(crate) async fn a_lease_is_one_nodes_at_a_time(make: &impl Fixture) {
    let (one, two) = (make.join().await, make.join().await);
    let lease = Duration::from_secs(1);
    assert!(one.broker.hold_lease("sender", lease).await.unwrap());
    assert!(one.broker.hold_lease("sender", lease).await.unwrap(), "kept");
    assert!(!two.broker.hold_lease("sender", lease).await.unwrap());
    assert!(two.broker.hold_lease("other", lease).await.unwrap());
    two.broker.release_lease("sender").await.unwrap();
    assert!(!two.broker.hold_lease("sender", lease).await.unwrap(), "not its own to give back");
    make.pass(lease + Duration::from_millis(200)).await;
    assert!(two.broker.hold_lease("sender", lease).await.unwrap());
    two.broker.release_lease("sender").await.unwrap();
    assert!(one.broker.hold_lease("sender", lease).await.unwrap());
}

fn now_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    i64::try_from(since.expect("after 1970").as_millis()).expect("fits")
}

fn revocation(tokens: RevokedTokens, in_ms: i64) -> Revocation {
    Revocation { tokens, until_ms: now_ms() + in_ms }
}

async fn revoked(broker: &dyn Broker) -> Vec<RevokedTokens> {
    let mut all: Vec<_> = broker.revocations().await.unwrap().all;
    all.sort_by_key(|revocation| format!("{:?}", revocation.tokens));
    all.into_iter().map(|revocation| revocation.tokens).collect()
}

pub(crate) async fn revocations_are_known_by_version_and_can_be_taken_back(make: &impl Fixture) {
    let (one, two) = (make.join().await, make.join().await);
    assert_eq!(two.broker.revocations_version().await.unwrap(), 0);
    let id = RevokedTokens::Id("jti 1".to_owned());
    let user = RevokedTokens::User {
        user: UserId::new("ada lovelace").expect("a user id"),
        issued_before: 1_700_000_000,
    };
    let first = one.broker.revoke(&revocation(id.clone(), 60_000)).await.unwrap();
    let second = two.broker.revoke(&revocation(user.clone(), 60_000)).await.unwrap();
    assert_eq!((first.before, first.after), (0, second.before));
    assert!(second.after > second.before);
    let known = one.broker.revocations().await.unwrap();
    assert_eq!(known.version, second.after);
    assert_eq!(revoked(&*one.broker).await, [id.clone(), user.clone()]);
    assert!(
        known.all.iter().all(|revocation| (revocation.until_ms - now_ms() - 60_000).abs() < 30_000)
    );
    let third = one.broker.revoke(&revocation(id, -1)).await.unwrap();
    assert!(third.after > third.before);
    assert_eq!(revoked(&*two.broker).await, [user]);
}

pub(crate) async fn lost_revocations_are_written_again(make: &impl Fixture) {
    let node = make.join().await;
    let id = |name: &str| RevokedTokens::Id(name.to_owned());
    let before = node.broker.revoke(&revocation(id("a"), 60_000)).await.unwrap().after;
    let all = [revocation(id("a"), 1_000), revocation(id("b"), 60_000)];
    let after = node.broker.restore_revocations(&all).await.unwrap();
    assert!(after > before);
    assert_eq!(node.broker.revocations_version().await.unwrap(), after);
    assert_eq!(revoked(&*node.broker).await, [id("a"), id("b")]);
    let kept = node.broker.revocations().await.unwrap().all;
    let a = kept.iter().find(|revocation| revocation.tokens == id("a")).expect("a");
    assert!(a.until_ms > now_ms() + 30_000, "what was there is not replaced");
}
