//! Runs made by hand, each wrong in one way: the checker must name it.

use super::*;

fn place(offset: u64, tag: &str) -> Option<Place> {
    Some(Place { epoch: "E".to_owned(), offset, tag: tag.to_owned() })
}

fn appended(offset: u64, tag: &str, before: &str) -> Record {
    let (channel, id) = ("c".to_owned(), format!("id-{tag}"));
    Record::Appended { channel, id, place: place(offset, tag), before: Some(before.to_owned()) }
}

fn heard(offset: u64, tag: &str) -> Record {
    let (channel, id) = ("c".to_owned(), format!("id-{tag}"));
    Record::Delivered { client: 0, channel, id, place: place(offset, tag) }
}

fn fleeting(id: &str) -> Record {
    Record::Appended { channel: "f".to_owned(), id: id.to_owned(), place: None, before: None }
}

fn heard_fleeting(id: &str) -> Record {
    Record::Delivered { client: 0, channel: "f".to_owned(), id: id.to_owned(), place: None }
}

fn acknowledged(offset: u64, tag: &str) -> Record {
    let (channel, id) = ("c".to_owned(), format!("id-{tag}"));
    Record::Acknowledged { channel, id, place: place(offset, tag), node: 0 }
}

fn subscribed_to(channel: &str, place: Option<Place>) -> Record {
    Record::Subscribed {
        client: 0,
        channel: channel.to_owned(),
        since: None,
        place,
        recovered: false,
        reason: "fresh".to_owned(),
    }
}

fn subscribed(offset: u64, tag: &str) -> Record {
    subscribed_to("c", place(offset, tag))
}

fn resumed(offset: u64, tag: &str, recovered: bool) -> Record {
    let at = place(offset, tag);
    Record::Subscribed {
        client: 0,
        channel: "c".to_owned(),
        since: at.clone(),
        place: at,
        recovered,
        reason: String::new(),
    }
}

fn resynced(offset: u64, tag: &str) -> Record {
    let (channel, reason) = ("c".to_owned(), "fork".to_owned());
    Record::Resynced { client: 0, channel, place: place(offset, tag), reason }
}

fn forked() -> Record {
    Record::Forked { channel: "c".to_owned() }
}

/// Kinds of the faults found, resting at `top`.
fn kinds(records: &[Record], top: Option<Place>) -> Vec<Kind> {
    let wanted = [(0, ["c".to_owned()].into())].into();
    let tops = top.map(|top| ("c".to_owned(), top)).into_iter().collect();
    let rest = Rest { tops, wanted, ..Rest::default() };
    let rules = Rules { history_size: [("c".to_owned(), 10)].into() };
    judge(records, &rest, &rules).into_iter().map(|fault| fault.kind).collect()
}

/// Three messages, all of them in storage.
fn three() -> Vec<Record> {
    vec![subscribed(0, "-"), appended(1, "a", "-"), appended(2, "b", "a"), appended(3, "c", "b")]
}

fn after_three(heard: impl IntoIterator<Item = Record>) -> Vec<Record> {
    three().into_iter().chain(heard).collect()
}

#[test]
fn a_good_run_has_no_fault() {
    let gone = Record::Gone { client: 0 };
    let run =
        after_three([heard(1, "a"), gone, resumed(1, "a", true), heard(2, "b"), heard(3, "c")]);
    assert_eq!(kinds(&run, place(3, "c")), []);
}

#[test]
fn a_skipped_message_is_lost_in_the_middle_and_at_the_end() {
    let run = after_three([heard(1, "a"), heard(3, "c")]);
    assert_eq!(kinds(&run, place(3, "c")), [Kind::Lost]);
    let run = after_three([heard(1, "a"), heard(2, "b")]);
    assert_eq!(kinds(&run, place(3, "c")), [Kind::Lost]);
}

#[test]
fn a_message_that_comes_again_is_a_duplicate() {
    let run = after_three([heard(1, "a"), heard(2, "b"), heard(2, "b"), heard(3, "c")]);
    assert_eq!(kinds(&run, place(3, "c")), [Kind::Duplicated]);
    let gone = Record::Gone { client: 0 };
    let again =
        [heard(1, "a"), heard(2, "b"), gone, resumed(2, "b", true), heard(2, "b"), heard(3, "c")];
    assert_eq!(kinds(&after_three(again), place(3, "c")), [Kind::Duplicated]);
}

#[test]
fn a_message_before_its_predecessor_is_reordered() {
    let run = after_three([heard(2, "b"), heard(1, "a"), heard(2, "b"), heard(3, "c")]);
    assert!(kinds(&run, place(3, "c")).contains(&Kind::Reordered));
}

#[test]
fn another_history_under_the_next_offset_is_a_fork() {
    let mut run = after_three([heard(1, "a"), heard(2, "b"), heard(3, "c"), forked()]);
    run.extend([appended(3, "x", "b"), appended(4, "y", "x"), heard(4, "y")]);
    assert_eq!(kinds(&run, place(4, "y")), [Kind::Forked]);
    run.insert(8, resynced(3, "x"));
    assert_eq!(kinds(&run, place(4, "y")), []);
}

#[test]
fn a_recovery_at_another_position_is_a_fork() {
    let gone = Record::Gone { client: 0 };
    let run = after_three([heard(1, "a"), gone, resumed(2, "b", true), heard(3, "c")]);
    assert!(kinds(&run, place(3, "c")).contains(&Kind::Forked));
}

#[test]
fn what_was_acknowledged_and_lost_by_storage_must_be_told() {
    let lost =
        [acknowledged(3, "c"), heard(1, "a"), heard(2, "b"), forked(), appended(3, "x", "b")];
    let mut run = after_three(lost);
    run.push(heard(3, "x"));
    assert_eq!(kinds(&run, place(3, "x")), [Kind::Lost]);
    run.pop();
    run.push(resynced(3, "x"));
    assert_eq!(kinds(&run, place(3, "x")), []);
    run.pop();
    run.extend([Record::Killed { node: 0 }, heard(3, "x")]);
    assert_eq!(kinds(&run, place(3, "x")), [], "nobody was left who knew");
}

#[test]
fn starting_over_without_a_loss_is_needless() {
    let run = after_three([heard(1, "a"), resynced(3, "c")]);
    assert_eq!(kinds(&run, place(3, "c")), [Kind::Needless]);
    let gone = Record::Gone { client: 0 };
    let refused = Record::Subscribed {
        client: 0,
        channel: "c".to_owned(),
        since: place(1, "a"),
        place: place(3, "c"),
        recovered: false,
        reason: "epoch".to_owned(),
    };
    assert_eq!(
        kinds(&after_three([heard(1, "a"), gone, refused]), place(3, "c")),
        [Kind::Needless]
    );
}

#[test]
fn starting_over_after_trimming_is_not_needless() {
    let mut run = vec![subscribed(0, "-")];
    let tags: Vec<String> = (0..=12).map(|tag| format!("t{tag}")).collect();
    run.extend((1..=12).map(|offset| appended(offset as u64, &tags[offset], &tags[offset - 1])));
    run.push(resynced(12, "t12"));
    assert_eq!(kinds(&run, place(12, "t12")), []);
}

#[test]
fn what_storage_never_took_is_a_phantom() {
    let run = after_three([heard(1, "z")]);
    assert!(kinds(&run, None).contains(&Kind::Phantom));
    assert_eq!(kinds(&after_three([acknowledged(4, "z")]), place(0, "-")), [Kind::Phantom]);
}

#[test]
fn an_id_taken_twice_is_a_duplicate_unless_its_receipt_was_lost() {
    let mut run = vec![subscribed(2, "b"), appended(1, "a", "-")];
    let mut again = appended(2, "b", "a");
    if let Record::Appended { id, .. } = &mut again {
        *id = "id-a".to_owned();
    }
    run.push(again);
    assert_eq!(kinds(&run, place(2, "b")), [Kind::Duplicated]);
    run.insert(2, forked());
    assert_eq!(kinds(&run, place(2, "b")), []);
}

#[test]
fn messages_without_history_come_once_and_in_order() {
    let taken =
        [subscribed(0, "-"), subscribed_to("f", None), fleeting("1"), fleeting("2"), fleeting("3")];
    let run = |heard: &[&str]| {
        let heard = heard.iter().map(|id| heard_fleeting(id));
        kinds(&taken.iter().cloned().chain(heard).collect::<Vec<_>>(), None)
    };
    assert_eq!(run(&["1", "3"]), []);
    assert_eq!(run(&["1", "1"]), [Kind::Duplicated]);
    assert_eq!(run(&["2", "1"]), [Kind::Reordered]);
}

#[test]
fn nobody_hears_what_they_left_and_everybody_hears_what_they_want() {
    let left = Record::Unsubscribed { client: 0, channel: "c".to_owned() };
    let run = after_three([heard(1, "a"), left, heard(2, "b")]);
    assert_eq!(kinds(&run, place(3, "c")), [Kind::Uninvited, Kind::Unserved]);
}

#[test]
fn lists_and_counts_must_be_right_at_rest() {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let rest = Rest {
        connections: [("ada".to_owned(), (1, 2))].into(),
        connections_of_nodes: (1, 0),
        present: [("room".to_owned(), (names(&["ada"]), names(&["bob"])))].into(),
        online: (names(&["ada"]), names(&["ada", "bob"])),
        ..Rest::default()
    };
    let faults = judge(&[], &rest, &Rules::default());
    let kinds: Vec<Kind> = faults.into_iter().map(|fault| fault.kind).collect();
    let expected = [Kind::Miscounted, Kind::Miscounted, Kind::Ghost, Kind::Missing, Kind::Ghost];
    assert_eq!(kinds, expected);
}
