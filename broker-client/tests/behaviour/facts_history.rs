//! Facts about history: offsets, tags, epochs, retention, reads.

use std::time::Duration;

use carillon_broker_client::{Event, HistoryQuery, Publish, Retention, Start};
use carillon_protocol::Position;

use crate::fixture::{Fixture, HOUR, after, channel, fleeting, ids, kept, keyed, last};

fn sized(publish: Publish, size: u32) -> Publish {
    Publish { retention: Some(Retention { size, age: HOUR }), ..publish }
}

pub(crate) async fn offsets_grow_by_one_and_tags_chain(make: &impl Fixture) {
    let node = make.join().await;
    let name = channel("room:order");
    let mut before = node.broker.tops(std::slice::from_ref(&name)).await.unwrap()[0];
    assert_eq!((before.offset, before.tag), (0, Position::START_TAG));
    for index in 1..=20 {
        let receipt = node.broker.publish(kept(&name, &format!("m{index}"))).await.unwrap();
        let position = receipt.position.unwrap();
        assert_eq!(position.offset, index);
        assert_eq!(position.epoch, before.epoch);
        assert_ne!(position.tag, before.tag);
        assert!(!receipt.duplicate);
        assert_eq!(receipt.id.as_str(), format!("m{index}"));
        before = position;
    }
    let page = node.broker.history(&name, after(0, 100)).await.unwrap();
    assert_eq!(page.top, before);
    let mut previous = Position::START_TAG;
    for (index, publication) in page.publications.iter().enumerate() {
        let position = publication.position.unwrap();
        assert_eq!(position.offset, index as u64 + 1);
        assert_eq!(publication.previous_tag, Some(previous));
        previous = position.tag;
    }
    assert_eq!(previous, before.tag);
}

pub(crate) async fn an_acknowledged_publication_is_in_history_as_it_was_heard(make: &impl Fixture) {
    let mut node = make.join().await;
    let name = channel("room:same");
    node.subscribe(&name).await;
    let receipt = node.broker.publish(kept(&name, "m1")).await.unwrap();
    let heard = node.heard_publication().await;
    assert_eq!(heard.position, receipt.position);
    let page = node.broker.history(&name, last(10)).await.unwrap();
    assert_eq!(page.publications, [heard]);
}

pub(crate) async fn history_keeps_the_newest_by_size(make: &impl Fixture) {
    let node = make.join().await;
    let name = channel("room:size");
    for index in 1..=12 {
        node.broker.publish(sized(kept(&name, &format!("m{index}")), 5)).await.unwrap();
    }
    let page = node.broker.history(&name, after(0, 100)).await.unwrap();
    assert_eq!(ids(&page.publications), ["m8", "m9", "m10", "m11", "m12"]);
    assert_eq!(page.top.offset, 12);
}

pub(crate) async fn history_forgets_by_age(make: &impl Fixture) {
    let node = make.join().await;
    let name = channel("room:age");
    let age = Duration::from_millis(1_500);
    let short = |id| Publish { retention: Some(Retention { size: 100, age }), ..kept(&name, id) };
    let query = HistoryQuery { start: Start::After(0), limit: 100, age };
    let first = node.broker.publish(short("m1")).await.unwrap().position.unwrap();
    assert_eq!(ids(&node.broker.history(&name, query).await.unwrap().publications), ["m1"]);
    make.pass(age + Duration::from_millis(200)).await;

    let aged = node.broker.history(&name, query).await.unwrap();
    assert_eq!(ids(&aged.publications), [""; 0]);
    assert_eq!(aged.top, first, "the epoch outlives its history");

    let second = node.broker.publish(short("m2")).await.unwrap().position.unwrap();
    assert_eq!((second.epoch, second.offset), (first.epoch, 2));
    let page = node.broker.history(&name, query).await.unwrap();
    assert_eq!(ids(&page.publications), ["m2"]);
    assert_eq!(page.publications[0].previous_tag, Some(first.tag));
}

pub(crate) async fn tops_create_an_epoch_and_keep_it(make: &impl Fixture) {
    let node = make.join().await;
    let names = [channel("room:a"), channel("room:b"), channel("room:c")];
    let published = node.broker.publish(kept(&names[1], "m1")).await.unwrap().position.unwrap();
    let tops = node.broker.tops(&names).await.unwrap();
    assert_eq!(tops.len(), 3);
    assert_eq!((tops[0].offset, tops[0].tag), (0, Position::START_TAG));
    assert_eq!(tops[1], published);
    assert_ne!(tops[0].epoch, tops[2].epoch);
    assert_eq!(node.broker.tops(&names).await.unwrap(), tops);
    assert_eq!(make.join().await.broker.tops(&names).await.unwrap(), tops);
    let first = node.broker.publish(kept(&names[0], "m1")).await.unwrap().position.unwrap();
    assert_eq!((first.epoch, first.offset), (tops[0].epoch, 1));
    assert_eq!(node.broker.tops(&[]).await.unwrap(), []);
}

pub(crate) async fn history_after_an_offset_tells_the_tag_there(make: &impl Fixture) {
    let node = make.join().await;
    let name = channel("room:tags");
    let mut tags = vec![Position::START_TAG];
    for index in 1..=5 {
        let receipt = node.broker.publish(kept(&name, &format!("m{index}"))).await.unwrap();
        tags.push(receipt.position.unwrap().tag);
    }
    for (offset, tag) in tags.iter().enumerate() {
        for limit in [0, 1, 100] {
            let page = node.broker.history(&name, after(offset as u64, limit)).await.unwrap();
            assert_eq!(page.tag_at_start, Some(*tag), "offset {offset}, limit {limit}");
            assert_eq!(page.publications.len(), (5 - offset).min(limit as usize));
        }
    }
    let beyond = node.broker.history(&name, after(6, 100)).await.unwrap();
    assert_eq!((beyond.tag_at_start, beyond.publications.len()), (None, 0));
    let far = node.broker.history(&name, after(u64::from(u32::MAX) * 1_000, 100)).await.unwrap();
    assert_eq!((far.tag_at_start, far.top.offset), (None, 5));
}

pub(crate) async fn history_after_a_trimmed_offset_shows_the_hole(make: &impl Fixture) {
    let node = make.join().await;
    let name = channel("room:trimmed");
    let mut tags = vec![Position::START_TAG];
    for index in 1..=6 {
        let publish = sized(kept(&name, &format!("m{index}")), 3);
        tags.push(node.broker.publish(publish).await.unwrap().position.unwrap().tag);
    }
    // 4, 5 and 6 are left; 3 is known by its successor.
    let whole = node.broker.history(&name, after(3, 100)).await.unwrap();
    assert_eq!(whole.tag_at_start, Some(tags[3]));
    assert_eq!(ids(&whole.publications), ["m4", "m5", "m6"]);
    let holed = node.broker.history(&name, after(2, 100)).await.unwrap();
    assert_eq!(holed.tag_at_start, None);
    assert_eq!(ids(&holed.publications), ["m4", "m5", "m6"]);
    assert_eq!(holed.publications[0].position.unwrap().offset, 4);
}

pub(crate) async fn history_last_answers_the_newest(make: &impl Fixture) {
    let node = make.join().await;
    let name = channel("room:last");
    for index in 1..=5 {
        node.broker.publish(kept(&name, &format!("m{index}"))).await.unwrap();
    }
    let newest = node.broker.history(&name, last(2)).await.unwrap();
    assert_eq!(ids(&newest.publications), ["m4", "m5"]);
    assert_eq!(newest.top.offset, 5);
    let all = node.broker.history(&name, last(100)).await.unwrap();
    assert_eq!(ids(&all.publications), ["m1", "m2", "m3", "m4", "m5"]);
    let none = node.broker.history(&name, last(0)).await.unwrap();
    assert_eq!((none.publications.len(), none.top), (0, newest.top));
}

pub(crate) async fn history_of_nothing_is_the_top_alone(make: &impl Fixture) {
    let node = make.join().await;
    let name = channel("room:nothing");
    let page = node.broker.history(&name, after(0, 100)).await.unwrap();
    assert_eq!((page.top.offset, page.top.tag), (0, Position::START_TAG));
    assert_eq!(page.tag_at_start, Some(Position::START_TAG));
    assert!(page.publications.is_empty());
    assert_eq!(node.broker.tops(&[name]).await.unwrap(), [page.top]);
}

pub(crate) async fn history_is_paged(make: &impl Fixture) {
    let node = make.join().await;
    let name = channel("room:pages");
    for index in 1..=10 {
        node.broker.publish(kept(&name, &format!("m{index}"))).await.unwrap();
    }
    let mut seen = Vec::new();
    loop {
        let page = node.broker.history(&name, after(seen.len() as u64, 4)).await.unwrap();
        if page.publications.is_empty() {
            break;
        }
        assert!(page.publications.len() <= 4);
        seen.extend(page.publications);
    }
    let offsets: Vec<u64> = seen.iter().map(|p| p.position.unwrap().offset).collect();
    assert_eq!(offsets, (1..=10).collect::<Vec<u64>>());
}

pub(crate) async fn clearing_history_begins_a_new_epoch(make: &impl Fixture) {
    let mut node = make.join().await;
    let name = channel("room:cleared");
    node.subscribe(&name).await;
    let old = node.broker.publish(kept(&name, "m1")).await.unwrap().position.unwrap();
    let top = node.broker.clear_history(&name).await.unwrap();
    assert_eq!((top.offset, top.tag), (0, Position::START_TAG));
    assert_ne!(top.epoch, old.epoch);
    assert_eq!(node.broker.tops(std::slice::from_ref(&name)).await.unwrap(), [top]);
    assert!(node.broker.history(&name, after(0, 10)).await.unwrap().publications.is_empty());
    let new = node.broker.publish(kept(&name, "m2")).await.unwrap().position.unwrap();
    assert_eq!((new.epoch, new.offset), (top.epoch, 1));
    assert_eq!(node.heard_publication().await.id.as_str(), "m1");
    assert_eq!(node.heard().await, Event::Renewed(name));
    assert_eq!(node.heard_publication().await.position, Some(new));
}

pub(crate) async fn publishing_without_retention_keeps_nothing(make: &impl Fixture) {
    let mut node = make.join().await;
    let name = channel("room:fleeting");
    node.subscribe(&name).await;
    let receipt = node.broker.publish(fleeting(&name, "m1")).await.unwrap();
    assert_eq!((receipt.position, receipt.duplicate), (None, false));
    let heard = node.heard_publication().await;
    assert_eq!((heard.id.as_str(), heard.position, heard.previous_tag), ("m1", None, None));
    let page = node.broker.history(&name, after(0, 10)).await.unwrap();
    assert_eq!((page.top.offset, page.publications.len()), (0, 0));
}

/// Alone, with keys of idempotency, in batches, by whichever node: all hear the same growing stamps.
pub(crate) async fn what_no_history_holds_is_stamped_in_order(make: &impl Fixture) {
    let (mut one, mut other) = (make.join().await, make.join().await);
    let (name, beside) = (channel("room:fleeting"), channel("room:kept"));
    for node in [&one, &other] {
        node.subscribe(&name).await;
        node.subscribe(&beside).await;
    }
    let mut count = 0;
    for round in 0..10 {
        let id = |part: &str| format!("{round}{part}");
        one.broker.publish(fleeting(&name, &id("a"))).await.unwrap();
        let once = keyed(fleeting(&name, &id("b")), "sender", &id("b"));
        other.broker.publish(once).await.unwrap();
        let batch = (0..20).map(|index| fleeting(&name, &id(&index.to_string())));
        let batch = batch.chain([kept(&beside, &id("k"))]).collect();
        for receipt in other.broker.publish_batch(batch).await {
            receipt.unwrap();
        }
        count += 22;
    }
    let mut stamps: [Vec<u64>; 2] = Default::default();
    for (node, stamps) in [&mut one, &mut other].into_iter().zip(&mut stamps) {
        let mut kept = 0;
        while stamps.len() < count || kept < 10 {
            let heard = node.heard_publication().await;
            if heard.channel == name {
                stamps.push(heard.stamp);
            } else {
                assert_eq!(heard.stamp, 0, "history orders it");
                kept += 1;
            }
        }
    }
    assert!(stamps[0][0] > 0 && stamps[0].is_sorted_by(|one, next| one < next), "{stamps:?}");
    assert_eq!(stamps[0], stamps[1]);
}

pub(crate) async fn a_known_position_that_history_lost_begins_a_new_epoch(make: &impl Fixture) {
    let mut node = make.join().await;
    let name = channel("room:fenced");
    node.subscribe(&name).await;
    let mut held = Vec::new();
    for id in ["m1", "m2", "m3"] {
        let receipt = node.broker.publish(kept(&name, id)).await.unwrap();
        held.push(receipt.position.unwrap());
        node.heard_publication().await;
    }
    let fence = async |position| node.broker.fence(&[(name.clone(), position)]).await.unwrap();
    for position in &held {
        assert_eq!(fence(*position).await, [false], "{position:?} is there");
    }
    let start = Position { offset: 0, tag: Position::START_TAG, ..held[0] };
    assert_eq!(fence(start).await, [false], "the place before the first is there");
    let top = async || node.broker.tops(std::slice::from_ref(&name)).await.unwrap()[0];
    assert_eq!(top().await, held[2]);

    // Whoever has this heard another second message.
    let replaced = Position { tag: held[0].tag, ..held[1] };
    assert_eq!(fence(replaced).await, [true]);
    let renewed = top().await;
    assert_ne!(renewed.epoch, held[2].epoch);
    assert_eq!((renewed.offset, renewed.tag), (3, held[2].tag), "what is there stays");
    assert_eq!(fence(replaced).await, [false], "once");
    let beyond = Position { offset: 4, ..renewed };
    assert_eq!(fence(beyond).await, [true]);
    let other = Position { tag: held[1].tag, ..top().await };
    assert_eq!(fence(other).await, [true], "the top was replaced");

    let page = node.broker.history(&name, after(0, 100)).await.unwrap();
    assert_eq!(ids(&page.publications), ["m1", "m2", "m3"]);
    let epochs = page.publications.iter().map(|publication| publication.position.unwrap().epoch);
    assert!(epochs.into_iter().all(|epoch| epoch == page.top.epoch));
    for _ in 0..3 {
        assert_eq!(node.heard().await, Event::Renewed(name.clone()));
    }
    let next = node.broker.publish(kept(&name, "m4")).await.unwrap().position.unwrap();
    assert_eq!((next.epoch, next.offset), (page.top.epoch, 4));
    assert_eq!(node.heard_publication().await.previous_tag, Some(held[2].tag));
    let nowhere = [(channel("room:never"), held[0])];
    assert_eq!(node.broker.fence(&nowhere).await.unwrap(), [false]);
}

pub(crate) async fn what_was_trimmed_is_not_lost(make: &impl Fixture) {
    let node = make.join().await;
    let name = channel("room:trimmed-fence");
    let mut first = None;
    for index in 1..=300 {
        let receipt = node.broker.publish(sized(kept(&name, &format!("m{index}")), 5)).await;
        let position = receipt.unwrap().position.unwrap();
        first.get_or_insert(position);
    }
    let known = [(name.clone(), first.unwrap())];
    assert_eq!(node.broker.fence(&known).await.unwrap(), [false]);
}
