//! Facts about delivery: interest, order, repetitions, what crosses.

use bytes::Bytes;
use carillon_broker_client::{Event, Publish};
use carillon_protocol::publication::Exclude;
use carillon_protocol::{ConnectionId, Payload, Publication, UserId};

use crate::fixture::{Fixture, Node, channel, fleeting, kept, keyed, last};

pub(crate) async fn what_is_published_after_subscribe_is_heard(make: &impl Fixture) {
    let mut node = make.join().await;
    let other = make.join().await;
    for index in 0..20 {
        let name = channel(&format!("room:{index}"));
        node.subscribe(&name).await;
        let receipt = other.broker.publish(kept(&name, "m1")).await.unwrap();
        let heard = node.heard_publication().await;
        assert_eq!((heard.channel, heard.position), (name, receipt.position));
    }
}

pub(crate) async fn what_is_published_after_unsubscribe_is_not_heard(make: &impl Fixture) {
    let mut node = make.join().await;
    let other = make.join().await;
    let (left, stays) = (channel("room:left"), channel("room:stays"));
    node.broker.subscribe(&[left.clone(), stays.clone()]).await.unwrap();
    other.broker.publish(kept(&left, "m1")).await.unwrap();
    assert_eq!(node.heard_publication().await.channel, left);
    node.broker.unsubscribe(std::slice::from_ref(&left)).await.unwrap();
    node.broker.unsubscribe(std::slice::from_ref(&left)).await.unwrap();
    other.broker.publish(kept(&left, "m2")).await.unwrap();
    other.broker.publish(kept(&stays, "m3")).await.unwrap();
    assert_eq!(node.heard_publication().await.id.as_str(), "m3");
    assert!(node.events.try_recv().is_err());

    node.subscribe(&left).await;
    other.broker.publish(kept(&left, "m4")).await.unwrap();
    assert_eq!(node.heard_publication().await.id.as_str(), "m4");
}

pub(crate) async fn subscribing_twice_hears_once(make: &impl Fixture) {
    let mut node = make.join().await;
    let name = channel("room:twice");
    node.subscribe(&name).await;
    node.broker.subscribe(&[name.clone(), name.clone()]).await.unwrap();
    node.broker.publish(kept(&name, "m1")).await.unwrap();
    node.broker.publish(kept(&name, "m2")).await.unwrap();
    assert_eq!(node.heard_publication().await.id.as_str(), "m1");
    assert_eq!(node.heard_publication().await.id.as_str(), "m2");
}

pub(crate) async fn two_nodes_hear_the_same(make: &impl Fixture) {
    let (mut one, mut two) = (make.join().await, make.join().await);
    let name = channel("room:both");
    one.subscribe(&name).await;
    two.subscribe(&name).await;
    one.broker.publish(kept(&name, "m1")).await.unwrap();
    two.broker.publish(kept(&name, "m2")).await.unwrap();
    for id in ["m1", "m2"] {
        let heard = one.heard_publication().await;
        assert_eq!(heard.id.as_str(), id);
        assert_eq!(two.heard_publication().await, heard);
    }
}

pub(crate) async fn many_channels_are_heard_at_once(make: &impl Fixture) {
    let mut node = make.join().await;
    let names: Vec<_> = (0..2_500).map(|index| channel(&format!("room:{index}"))).collect();
    node.broker.subscribe(&names).await.unwrap();
    let requests = names.iter().map(|name| kept(name, "m1")).collect();
    for result in node.broker.publish_batch(requests).await {
        assert_eq!(result.unwrap().position.unwrap().offset, 1);
    }
    let mut heard = std::collections::HashSet::new();
    while heard.len() < names.len() {
        assert!(heard.insert(node.heard_publication().await.channel), "each once");
    }
}

pub(crate) async fn a_repeated_key_publishes_nothing(make: &impl Fixture) {
    let mut node = make.join().await;
    let other = make.join().await;
    let name = channel("room:repeated");
    node.subscribe(&name).await;
    let first = node.broker.publish(keyed(kept(&name, "m1"), "user:ada", "k")).await.unwrap();
    assert!(!first.duplicate);
    for broker in [&node.broker, &other.broker] {
        let again = broker.publish(keyed(kept(&name, "m2"), "user:ada", "k")).await.unwrap();
        assert!(again.duplicate);
        assert_eq!((&again.id, again.position), (&first.id, first.position));
    }
    let next = node.broker.publish(kept(&name, "m3")).await.unwrap();
    assert_eq!(next.position.unwrap().offset, 2);
    assert_eq!(node.heard_publication().await.id.as_str(), "m1");
    assert_eq!(node.heard_publication().await.id.as_str(), "m3");
}

pub(crate) async fn a_repeated_key_without_history_publishes_nothing(make: &impl Fixture) {
    let mut node = make.join().await;
    let name = channel("room:fleeting");
    node.subscribe(&name).await;
    let publish = |id| keyed(fleeting(&name, id), "key:backend", "k");
    assert!(!node.broker.publish(publish("m1")).await.unwrap().duplicate);
    let again = node.broker.publish(publish("m2")).await.unwrap();
    assert_eq!((again.id.as_str(), again.position, again.duplicate), ("m1", None, true));
    node.broker.publish(fleeting(&name, "m3")).await.unwrap();
    assert_eq!(node.heard_publication().await.id.as_str(), "m1");
    assert_eq!(node.heard_publication().await.id.as_str(), "m3");
}

pub(crate) async fn either_of_two_keys_makes_a_repetition(make: &impl Fixture) {
    let node = make.join().await;
    for (name, ready) in [("room:kept", kept as fn(&_, &_) -> _), ("room:fleeting", fleeting)] {
        let name = channel(name);
        let one = |id: &str, key: &str| keyed(ready(&name, id), "key:backend", key);
        let two = |id: &str, key: &str| {
            let mut request = one(id, key);
            request.idempotency.as_mut().unwrap().other_key = Some(id.to_owned());
            request
        };
        let first = node.broker.publish(two("m1", "k1")).await.unwrap();
        assert!(!first.duplicate);
        for repeated in [two("m1", "k2"), two("m3", "k1"), one("m4", "m1")] {
            let again = node.broker.publish(repeated).await.unwrap();
            assert_eq!((again.id.as_str(), again.duplicate), ("m1", true));
            assert_eq!(again.position, first.position);
        }
        let batch = vec![
            one("m7", "m7"),
            two("m8", "m7"),
            two("m9", "k9"),
            one("m10", "k9"),
            one("m11", "m11"),
        ];
        let batch = node.broker.publish_batch(batch).await.into_iter().map(Result::unwrap);
        let told: Vec<_> =
            batch.map(|receipt| (receipt.id.to_string(), receipt.duplicate)).collect();
        let expected = [("m7", false), ("m7", true), ("m9", false), ("m9", true), ("m11", false)];
        assert_eq!(told, expected.map(|(id, duplicate)| (id.to_owned(), duplicate)));
        // A repetition takes no key.
        for new in [one("m5", "k2"), one("m6", "m3")] {
            assert!(!node.broker.publish(new).await.unwrap().duplicate);
        }
    }
}

pub(crate) async fn the_same_key_of_another_sender_or_channel_publishes(make: &impl Fixture) {
    let node = make.join().await;
    let (name, other) = (channel("room:a"), channel("room:b"));
    node.broker.publish(keyed(kept(&name, "m1"), "user:ada", "k")).await.unwrap();
    let by_other = node.broker.publish(keyed(kept(&name, "m2"), "user:bob", "k")).await.unwrap();
    assert_eq!((by_other.duplicate, by_other.position.unwrap().offset), (false, 2));
    let elsewhere = node.broker.publish(keyed(kept(&other, "m3"), "user:ada", "k")).await.unwrap();
    assert_eq!((elsewhere.duplicate, elsewhere.position.unwrap().offset), (false, 1));
    let other_key = node.broker.publish(keyed(kept(&name, "m4"), "user:ada", "k2")).await.unwrap();
    assert_eq!((other_key.duplicate, other_key.position.unwrap().offset), (false, 3));
}

pub(crate) async fn a_batch_keeps_order_and_answers_in_order(make: &impl Fixture) {
    let mut node = make.join().await;
    let (a, b) = (channel("room:a"), channel("room:b"));
    node.subscribe(&a).await;
    let requests = vec![
        kept(&a, "a1"),
        kept(&b, "b1"),
        keyed(kept(&a, "a2"), "user:ada", "k"),
        keyed(kept(&a, "repeated"), "user:ada", "k"),
        fleeting(&b, "b2"),
        kept(&a, "a3"),
        kept(&b, "b3"),
    ];
    let receipts: Vec<_> =
        node.broker.publish_batch(requests).await.into_iter().map(Result::unwrap).collect();
    let told: Vec<_> = receipts
        .iter()
        .map(|r| (r.id.as_str(), r.position.map(|p| p.offset), r.duplicate))
        .collect();
    assert_eq!(
        told,
        [
            ("a1", Some(1), false),
            ("b1", Some(1), false),
            ("a2", Some(2), false),
            ("a2", Some(2), true),
            ("b2", None, false),
            ("a3", Some(3), false),
            ("b3", Some(2), false),
        ]
    );
    for id in ["a1", "a2", "a3"] {
        assert_eq!(node.heard_publication().await.id.as_str(), id);
    }
    assert!(node.broker.publish_batch(Vec::new()).await.is_empty());
}

pub(crate) async fn concurrent_publishers_leave_no_hole_and_all_nodes_hear_one_order(
    make: &impl Fixture,
) {
    const PUBLISHERS: usize = 8;
    const EACH: usize = 100;
    let mut nodes = [make.join().await, make.join().await];
    let name = channel("room:busy");
    for node in &nodes {
        node.subscribe(&name).await;
    }
    let mut publishers = tokio::task::JoinSet::new();
    for publisher in 0..PUBLISHERS {
        let broker = nodes[publisher % nodes.len()].broker.clone();
        let name = name.clone();
        publishers.spawn(async move {
            let mut offsets = Vec::new();
            for index in 0..EACH {
                let publish = kept(&name, &format!("{publisher}-{index}"));
                offsets.push(broker.publish(publish).await.unwrap().position.unwrap().offset);
            }
            assert!(offsets.is_sorted(), "one publisher's calls keep their order");
            offsets
        });
    }
    let mut offsets: Vec<u64> = publishers.join_all().await.concat();
    offsets.sort_unstable();
    let all = (PUBLISHERS * EACH) as u64;
    assert_eq!(offsets, (1..=all).collect::<Vec<u64>>());

    let mut sequences: [Vec<Publication>; 2] = Default::default();
    for (node, sequence) in nodes.iter_mut().zip(&mut sequences) {
        for offset in 1..=all {
            let heard = node.heard_publication().await;
            assert_eq!(heard.position.unwrap().offset, offset);
            let before = sequence.last().and_then(|p: &Publication| p.position);
            assert!(before.is_none_or(|before| heard.previous_tag == Some(before.tag)));
            sequence.push(heard);
        }
    }
    assert_eq!(sequences[0], sequences[1]);
}

async fn crosses(make: &impl Fixture, sent: Publication) {
    let (mut here, mut there): (Node, Node) = (make.join().await, make.join().await);
    here.subscribe(&sent.channel).await;
    there.subscribe(&sent.channel).await;
    let publish = Publish { publication: sent.clone(), ..kept(&sent.channel, "unused") };
    let receipt = here.broker.publish(publish).await.unwrap();
    let mut expected = sent.clone();
    expected.position = receipt.position;
    let heard = here.heard_publication().await;
    expected.previous_tag = heard.previous_tag;
    assert!(heard == expected, "the publisher's node hears it unchanged");
    assert!(there.heard_publication().await == expected, "another node hears it unchanged");
    let page = there.broker.history(&sent.channel, last(1)).await.unwrap();
    assert!(page.publications == [expected], "history holds it unchanged");
    assert!(!matches!(here.events.try_recv(), Ok(Event::Publication(_))));
}

pub(crate) async fn a_payload_of_one_mebibyte_crosses(make: &impl Fixture) {
    let mut json = vec![b'x'; 1024 * 1024];
    json[0] = b'"';
    *json.last_mut().unwrap() = b'"';
    let mut sent = kept(&channel("room:large"), "large").publication;
    sent.payload = Payload::from_json(json);
    crosses(make, sent).await;
}

pub(crate) async fn every_field_of_a_publication_crosses(make: &impl Fixture) {
    let mut sent =
        kept(&channel("room:Full;a%20b/@=+~!$"), "id with ünicode \u{1F514}").publication;
    sent.kind = "order.shipped".into();
    sent.user_id = Some(UserId::new("ada@example.org").unwrap());
    sent.meta = Some(Bytes::from_static(b"{\"conflate_key\":\"a\",\"n\":[1,null]}"));
    sent.exclude = Exclude {
        connections: vec![ConnectionId::new("node1-c1").unwrap(), ConnectionId::new("c2").unwrap()],
        users: vec![UserId::new("bob").unwrap()],
    };
    sent.traceparent = Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into());
    let binary: Vec<u8> = [0xc5, 0x01, 0x00].into_iter().chain(0..=255).collect();
    sent.payload = Payload::with_msgpack(r#""AAEC\r\n\u0000""#, binary);
    crosses(make, sent).await;
}
