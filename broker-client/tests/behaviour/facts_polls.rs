//! Facts about the pages that long polls leave.

use std::time::Duration;

use carillon_broker_client::{
    CountedPoll, NewPollPage, POLL_PAGES_BYTES_MAX, POLL_PAGES_MAX, PollLimit, PollState,
};
use carillon_protocol::UserId;

use crate::fixture::Fixture;

fn user(name: &str) -> UserId {
    UserId::new(name).expect("a user id")
}

fn page(question: &str, count: u64, body: &str) -> NewPollPage {
    NewPollPage { question: question.to_owned(), after: 0, count, body: body.to_owned() }
}

pub(crate) async fn poll_ids_grow_and_every_id_finds_its_page(fixture: &impl Fixture) {
    let (one, two) = (fixture.join().await, fixture.join().await);
    let (ann, bob) = (user("ann {1}"), user("bob"));
    let first = one.broker.keep_poll_page(&ann, page("", 3, "a b")).await.expect("kept");
    let second = two.broker.keep_poll_page(&ann, page("", 0, "c")).await.expect("kept");
    assert!(second.first_id >= first.first_id + 3 && second.count == 1, "{first:?} {second:?}");
    for id in first.first_id..first.first_id + 3 {
        let found = two.broker.find_poll_pages(&ann, id, "").await.expect("read");
        assert_eq!(found, PollState { origin: Some(first.clone()), answered: None });
    }
    for (who, id) in
        [(&ann, 0), (&ann, first.first_id - 1), (&ann, second.first_id + 1), (&bob, first.first_id)]
    {
        assert_eq!(
            one.broker.find_poll_pages(who, id, "").await.expect("read"),
            PollState::default()
        );
    }
}

/// Also where the store's own counter and clock are behind it: another life of the store.
pub(crate) async fn a_page_comes_after_the_id_that_was_asked_with(fixture: &impl Fixture) {
    let node = fixture.join().await;
    let ann = user("ann");
    let after = node.broker.keep_poll_page(&ann, page("", 1, "x")).await.expect("kept").first_id;
    let after = after + 1_000_000_000;
    let new = NewPollPage { after, ..page(&format!("{after}:x"), 2, "next") };
    let kept = node.broker.keep_poll_page(&ann, new).await.expect("kept");
    assert_eq!(kept.first_id, after + 1);
    let next = node.broker.keep_poll_page(&ann, page("", 1, "x")).await.expect("kept");
    assert_eq!(next.first_id, after + 3);
}

pub(crate) async fn a_poll_is_counted_and_finds_what_answered_its_question(fixture: &impl Fixture) {
    let (one, two) = (fixture.join().await, fixture.join().await);
    let (ann, bob, minute) = (user("ann"), user("bob"), Some(Duration::from_secs(60)));
    let asked = one.broker.keep_poll_page(&ann, page("", 1, "x")).await.expect("kept").first_id;
    let question = format!("{asked}:x");
    let counted = one.broker.count_poll(&ann, minute, Some((asked, &question))).await;
    let counted = counted.expect("counted");
    let rate = counted.rate.expect("a window");
    assert_eq!((rate.count, counted.answered), (1, None));
    assert!(rate.reset_in <= Duration::from_secs(60) && rate.reset_in > Duration::from_secs(30));
    let answer = NewPollPage { after: asked, ..page(&question, 2, "answer") };
    let answer = one.broker.keep_poll_page(&ann, answer).await.expect("kept");
    one.broker.keep_poll_page(&ann, page("", 1, "y")).await.expect("kept");
    let again = two.broker.count_poll(&ann, minute, Some((asked, &question))).await;
    let again = again.expect("counted");
    assert_eq!((again.rate.expect("a window").count, again.answered), (2, Some(answer)));
    let other = two.broker.count_poll(&ann, None, Some((asked, "other"))).await;
    assert_eq!(other.expect("read"), CountedPoll::default());
    let bobs = two.broker.count_poll(&bob, minute, None).await.expect("counted");
    assert_eq!((bobs.rate.expect("a window").count, bobs.answered), (1, None));
}

/// One too many keeps nothing; the page that a question has already is counted all the same.
pub(crate) async fn a_poll_is_counted_with_its_page(fixture: &impl Fixture) {
    let (one, two) = (fixture.join().await, fixture.join().await);
    let ann = user("ann");
    let limit = Some(PollLimit { window: Duration::from_secs(60), polls: 3 });
    let begun = one.broker.count_poll(&ann, Some(Duration::from_secs(60)), None).await;
    assert_eq!(begun.expect("counted").rate.expect("a window").count, 1);
    let first = one.broker.keep_counted_poll_page(&ann, limit, page("7:x", 2, "first")).await;
    let first = first.expect("kept");
    let rate = first.rate.expect("a window");
    assert_eq!(rate.count, 2);
    assert!(rate.reset_in <= Duration::from_secs(60) && rate.reset_in > Duration::from_secs(30));
    let kept = first.page.expect("there is room");
    assert_eq!((kept.count, &*kept.body), (2, "first"));
    let again = two.broker.keep_counted_poll_page(&ann, limit, page("7:x", 1, "other")).await;
    let again = again.expect("kept");
    assert_eq!((again.rate.expect("a window").count, again.page), (3, Some(kept)));
    let last = two.broker.keep_counted_poll_page(&ann, limit, page("9:x", 1, "last")).await;
    let last = last.expect("counted");
    assert_eq!((last.rate.expect("a window").count, last.page), (4, None));
    let free = one.broker.keep_counted_poll_page(&ann, None, page("9:x", 1, "free")).await;
    let free = free.expect("kept");
    assert_eq!((free.rate, &*free.page.expect("nothing is counted").body), (None, "free"));
}

pub(crate) async fn a_question_is_answered_once(fixture: &impl Fixture) {
    let (one, two) = (fixture.join().await, fixture.join().await);
    let ann = user("ann");
    let first = one.broker.keep_poll_page(&ann, page("7:x", 2, "first")).await.expect("kept");
    let again = two.broker.keep_poll_page(&ann, page("7:x", 9, "second")).await.expect("kept");
    assert_eq!(first, again);
    let other = two.broker.keep_poll_page(&ann, page("7:y", 1, "other")).await.expect("kept");
    let found = one.broker.find_poll_pages(&ann, first.first_id, "7:y").await.expect("read");
    assert_eq!(found, PollState { origin: Some(first), answered: Some(other) });
}

pub(crate) async fn old_poll_pages_make_room(fixture: &impl Fixture) {
    let node = fixture.join().await;
    let ann = user("ann");
    let first = node.broker.keep_poll_page(&ann, page("q", 1, "x")).await.expect("kept");
    for _ in 0..POLL_PAGES_MAX {
        node.broker.keep_poll_page(&ann, page("", 1, "x")).await.expect("kept");
    }
    let found = node.broker.find_poll_pages(&ann, first.first_id, "q").await.expect("read");
    assert_eq!(found, PollState::default());
    let large = "y".repeat(POLL_PAGES_BYTES_MAX + 1);
    let newest = node.broker.keep_poll_page(&ann, page("large", 1, &large)).await.expect("kept");
    let found = node.broker.find_poll_pages(&ann, newest.first_id, "large").await.expect("read");
    assert_eq!(found.origin, Some(newest.clone()));
    assert_eq!(
        node.broker.find_poll_pages(&ann, newest.first_id - 1, "").await.expect("read"),
        PollState::default()
    );
    let next = node.broker.keep_poll_page(&ann, page("q", 1, "z")).await.expect("kept");
    assert!(next.first_id > newest.first_id);
}
