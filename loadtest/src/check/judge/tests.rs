//! Bad logs made by hand: the judge must find each fault, and nothing in a good one.

use super::*;
use crate::check::log::{Count, Published};

const EPOCH: u64 = 7;

/// The message at an offset has the number of the offset and a tag of its own.
fn place(offset: u64) -> Place {
    Place { epoch: EPOCH, offset, tag: Some(offset * 1_000) }
}

fn message(offset: u64) -> Heard {
    Heard::Message { number: offset as Number, place: place(offset) }
}

fn begun(offset: u64, how: Beginning) -> Heard {
    Heard::Begun { at_ms: 150, place: Some(place(offset)), how }
}

fn resync(to: Place) -> Heard {
    Heard::Resync { at_ms: 150, place: Some(to), reason: "epoch".to_owned() }
}

/// Ten acknowledged messages, and one client that heard this.
fn log(heard: Vec<Heard>) -> Log {
    let published = (1..=10).map(|offset| Published {
        channel: 0,
        number: offset as Number,
        sent_ms: offset,
        sent_last_ms: offset,
        acknowledged: Some(place(offset)),
    });
    let messages = (1..=10).map(|offset| (place(offset), offset as Number)).collect();
    let lane = Lane { client: "ann".to_owned(), channel: 0, heard, stayed: true };
    Log {
        published: published.collect(),
        lanes: vec![lane],
        histories: vec![History { channel: 0, epoch: EPOCH, top: 10, messages }],
        ..Log::default()
    }
}

fn all(from: u64) -> impl Iterator<Item = Heard> {
    (from..=10).map(message)
}

fn judged(heard: Vec<Heard>) -> Verdict {
    judge(&log(heard))
}

fn first() -> Heard {
    begun(0, Beginning::First)
}

#[test]
fn good_log_is_clean() {
    let mut heard = vec![first(), message(1), message(2), begun(2, Beginning::Recovered)];
    heard.extend(all(3));
    let verdict = judged(heard);
    assert!(verdict.clean(), "{verdict:?}");
    assert_eq!((verdict.acknowledged, verdict.delivered, verdict.recovered), (10, 10, 1));
}

#[test]
fn message_missing_in_the_middle_is_lost() {
    let heard = std::iter::once(first()).chain(all(1).filter(|heard| !is(heard, 4))).collect();
    let verdict = judged(heard);
    assert_eq!((verdict.lost, verdict.clean()), (1, false), "{verdict:?}");
}

#[test]
fn tail_never_heard_is_lost_unless_the_client_left() {
    let mut bad = log(vec![first(), message(1), message(2)]);
    assert_eq!(judge(&bad).lost, 8);
    bad.lanes[0].stayed = false;
    assert!(judge(&bad).clean());
}

#[test]
fn gap_before_a_resync_is_lost_too() {
    let mut bad = log(vec![first(), message(1), message(3), resync(place(9)), message(10)]);
    bad.losses_ms = vec![100];
    let verdict = judge(&bad);
    assert_eq!((verdict.lost, verdict.forked), (1, 0), "{verdict:?}");
}

#[test]
fn recovery_that_begins_too_late_is_lost() {
    let mut heard = vec![first(), message(1), message(2), begun(5, Beginning::Recovered)];
    heard.extend(all(6));
    assert_eq!(judged(heard).lost, 3);
}

#[test]
fn message_heard_twice_is_duplicated() {
    let mut heard = vec![first(), message(1), message(2), begun(1, Beginning::Recovered)];
    heard.extend(all(2));
    let verdict = judged(heard);
    assert_eq!((verdict.duplicated, verdict.lost), (1, 0), "{verdict:?}");
}

#[test]
fn message_heard_again_after_a_resync_is_duplicated_where_no_data_was_lost() {
    let mut heard = vec![first(), message(1), message(2), resync(place(1))];
    heard.extend(all(2));
    assert_eq!(judge(&log(heard)).duplicated, 1);
}

#[test]
fn message_heard_late_is_reordered_and_not_lost() {
    let mut heard = vec![first(), message(1), message(3), message(2)];
    heard.extend(all(4));
    let verdict = judged(heard);
    assert_eq!((verdict.reordered, verdict.lost, verdict.duplicated), (1, 0, 0), "{verdict:?}");
}

#[test]
fn offset_reused_without_a_word_is_a_fork() {
    let foreign = Place { tag: Some(1), ..place(2) };
    let mut heard = vec![first(), message(1), Heard::Message { number: 99, place: foreign }];
    heard.extend(all(3));
    let verdict = judged(heard);
    assert!(verdict.forked >= 1, "{verdict:?}");
}

#[test]
fn fork_is_found_although_the_client_is_told_of_something_else_later() {
    let foreign = Place { tag: Some(1), ..place(2) };
    let heard = vec![
        first(),
        message(1),
        Heard::Message { number: 99, place: foreign },
        message(3),
        resync(place(9)),
        message(10),
    ];
    let mut bad = log(heard);
    bad.losses_ms = vec![100];
    assert_eq!(judge(&bad).forked, 1);
}

#[test]
fn epoch_changed_without_a_word_is_a_fork() {
    let other = Place { epoch: 8, ..place(2) };
    let heard = vec![first(), message(1), Heard::Message { number: 50, place: other }];
    assert!(judged(heard).forked >= 1);
}

#[test]
fn client_left_behind_in_a_lost_history_is_a_fork() {
    let mut bad = log(vec![first(), message(1), message(2)]);
    bad.histories[0].epoch = 8;
    bad.losses_ms = vec![100];
    assert_eq!(judge(&bad).forked, 1);
}

#[test]
fn told_of_lost_data_is_clean_and_told_for_nothing_is_needless() {
    let heard = || vec![first(), message(1), resync(place(9)), message(10)];
    let mut told = log(heard());
    told.losses_ms = vec![100];
    let verdict = judge(&told);
    assert!(verdict.clean(), "{verdict:?}");
    assert_eq!(verdict.told["epoch"], 1);
    assert_eq!(judged(heard()).needless, 1);
    // Data that is lost later, or was lost long ago, is no reason either.
    told.losses_ms = vec![200];
    assert_eq!(judge(&told).needless, 1);
    let long_ago =
        Heard::Resync { at_ms: 100_000, place: Some(place(9)), reason: "epoch".to_owned() };
    (told.losses_ms, told.lanes[0].heard[2]) = (vec![100], long_ago);
    assert_eq!(judge(&told).needless, 1);
}

#[test]
fn refused_recovery_begins_a_new_span() {
    let mut heard = vec![first(), message(1), begun(8, Beginning::Refused("trimmed".to_owned()))];
    heard.extend(all(9));
    let verdict = judged(heard);
    assert_eq!((verdict.told["trimmed"], verdict.lost, verdict.forked), (1, 0, 0), "{verdict:?}");
}

#[test]
fn acknowledged_message_that_history_does_not_hold_vanished() {
    let mut bad = log(std::iter::once(first()).chain(all(1)).collect());
    bad.published[4].acknowledged = Some(place(99));
    assert_eq!(judge(&bad).vanished, 1);
    // Sent before the data was lost, it may be gone; sent after, it may not.
    bad.losses_ms = vec![100];
    assert_eq!(judge(&bad).vanished, 0);
    bad.losses_ms = vec![2];
    assert_eq!(judge(&bad).vanished, 1);
}

#[test]
fn message_acknowledged_just_before_a_new_epoch_began_with_it_has_not_vanished() {
    let mut good = log(vec![first(), message(1), resync(Place { epoch: 8, ..place(10) })]);
    (good.histories[0].epoch, good.losses_ms) = (8, vec![0]);
    good.histories[0].messages.iter_mut().for_each(|(place, _)| place.epoch = 8);
    assert_eq!(judge(&good).vanished, 0);
    good.histories[0].messages[4].0.tag = Some(1);
    assert_eq!(judge(&good).vanished, 1);
}

#[test]
fn message_that_stands_twice_in_history_is_duplicated() {
    let mut bad = log(std::iter::once(first()).chain(all(1)).collect());
    bad.histories[0].messages[5].1 = 2;
    assert!(judge(&bad).duplicated >= 1);
}

#[test]
fn poll_that_was_not_told_where_it_begins_owes_what_was_sent_afterwards() {
    let begun = Heard::Begun { at_ms: 3, place: None, how: Beginning::First };
    let good = std::iter::once(begun.clone()).chain(all(4)).collect();
    assert!(judged(good).clean());
    let bad = std::iter::once(begun).chain(all(6)).collect();
    assert_eq!(judged(bad).lost, 2);
}

#[test]
fn ghosts_and_wrong_counts_are_faults() {
    let mut bad = log(std::iter::once(first()).chain(all(1)).collect());
    bad.ghosts.push("bob".to_owned());
    bad.missing.push("cat".to_owned());
    bad.counts.push(Count { what: "connections".to_owned(), expected: 3, found: 4 });
    let verdict = judge(&bad);
    assert_eq!((verdict.ghosts, verdict.miscounted, verdict.clean()), (2, 1, false));
}

fn is(heard: &Heard, wanted: u64) -> bool {
    matches!(heard, Heard::Message { place, .. } if place.offset == wanted)
}
