//! What a poll leaves on its node for the next one, and what makes that one ask for all again.

use carillon_broker_client::{NewSubscription, Revocation, RevokedTokens};
use carillon_protocol::{ConnectionId, UserId};

use super::*;
use crate::{interests, revocations};

impl Nodes {
    /// The connection behind a user's polls on a node.
    fn seat(&self, index: usize, user: &str) -> Option<ConnectionId> {
        let all = self.node(index).hub.connections();
        let own = all.iter().find(|one| one.user.as_ref().is_some_and(|own| own.as_str() == user));
        own.map(|connection| connection.id.clone())
    }

    /// Begins a chain on node 0 that leaves a seat; its number.
    async fn seated(&self, channels: &str) -> u64 {
        let first = last_id(&self.poll(0, &format!("timeout=0{channels}")).await);
        let query = format!("last_poll_id={first}&timeout=0.05{channels}");
        last_id(&self.poll(0, &query).await)
    }
}

#[tokio::test]
async fn polls_that_go_on_here_keep_their_seat() {
    let nodes = Nodes::start(1, FREE).await;
    let mut last = nodes.seated("&channels=chat").await;
    let seat = nodes.seat(0, "ann").expect("it is left");
    for n in 0..3 {
        nodes.publish(0, "chat", "message", &json!(n)).await;
        let answer = nodes.poll(0, &format!("last_poll_id={last}&channels=chat")).await;
        assert_eq!(payloads(&answer), [&json!(n)]);
        last = last_id(&answer);
        assert_eq!(nodes.seat(0, "ann"), Some(seat.clone()));
        assert_eq!(nodes.node(0).hub.queued_bytes(), 0, "what history holds only wakes");
    }
    // More than the hub holds is read from history.
    for n in 0..80 {
        nodes.publish(0, "chat", "message", &json!(n)).await;
    }
    let answer = nodes.poll(0, &format!("last_poll_id={last}&channels=chat")).await;
    assert_eq!(
        payloads(&answer),
        (0..80).map(|n| json!(n)).collect::<Vec<_>>().iter().collect::<Vec<_>>()
    );
    // Other channels, another dress: all is found out again.
    let other = nodes.poll(0, &format!("last_poll_id={}&timeout=0", last_id(&answer))).await;
    assert_eq!(events(&other).len(), 0);
    nodes.stop().await;
}

#[tokio::test]
async fn what_another_node_answered_is_repeated_at_the_seat() {
    let nodes = Nodes::start(2, FREE).await;
    let last = nodes.seated("").await;
    nodes.publish(0, "user:ann", "message", &json!("lost")).await;
    let query = format!("last_poll_id={last}");
    let lost = nodes.poll(1, &query).await;
    assert_eq!(payloads(&lost), [&json!("lost")]);
    nodes.publish(0, "user:ann", "message", &json!("later")).await;
    assert!(nodes.seat(0, "ann").is_some());
    let again = nodes.poll(0, &query).await;
    assert_eq!((&again["events"], last_id(&again)), (&lost["events"], last_id(&lost)));
    let next = nodes.poll(0, &format!("last_poll_id={}", last_id(&again))).await;
    assert_eq!(payloads(&next), [&json!("later")]);
    nodes.stop().await;
}

/// The first ones with their answers, those for which room might be wanting before them.
#[tokio::test]
async fn polls_whose_answer_is_at_hand_are_counted_each() {
    let nodes = Nodes::start(2, &[("limits.polls_per_minute", "15")]).await;
    let mut last = nodes.seated("").await;
    for left in (0..13).rev() {
        nodes.publish(0, "user:ann", "message", &json!(left)).await;
        let seat = nodes.node(0).hub.connections().pop().expect("it is left");
        while !seat.outbox.was_nudged() {
            tokio::task::yield_now().await;
        }
        let query = format!("?user_id=ann&last_poll_id={last}");
        let answer = nodes.call(0, Method::GET, &query, "ann", None).await;
        assert_eq!(answer.rate("remaining"), left);
        let body = answer.good();
        assert_eq!(payloads(&body), [&json!(left)]);
        last = last_id(&body);
    }
    nodes.publish(0, "user:ann", "message", &json!("next")).await;
    for index in [0, 1] {
        let query = format!("?user_id=ann&last_poll_id={last}");
        let refused = nodes.call(index, Method::GET, &query, "ann", None).await;
        assert_eq!((refused.refused(), refused.rate("remaining")), ((429, "RATE_LIMITED"), 0));
    }
    nodes.stop().await;
}

#[tokio::test]
async fn answers_that_are_waited_for_come_together_where_they_come_often() {
    let nodes = Nodes::start(1, FREE).await;
    let mut last = nodes.seated("").await;
    nodes.publish(0, "user:ann", "message", &json!(0)).await;
    last = last_id(&nodes.poll(0, &format!("last_poll_id={last}")).await);
    let answered = Instant::now();
    nodes.publish(0, "user:ann", "message", &json!(1)).await;
    let (query, second) = (format!("last_poll_id={last}"), json!(2));
    let publishes = nodes.publish(0, "user:ann", "message", &second);
    let (answer, ()) = tokio::join!(nodes.poll(0, &query), publishes);
    assert_eq!(payloads(&answer), [&json!(1), &json!(2)]);
    assert!(answered.elapsed() >= Duration::from_millis(100), "{:?}", answered.elapsed());
    // Whoever does not wait is answered at once.
    nodes.publish(0, "user:ann", "message", &json!(3)).await;
    let began = Instant::now();
    let at_once = nodes.poll(0, &format!("last_poll_id={}&timeout=0", last_id(&answer))).await;
    assert_eq!(payloads(&at_once), [&json!(3)]);
    assert!(began.elapsed() < Duration::from_secs(5));
    nodes.stop().await;
}

#[tokio::test]
async fn a_subscription_that_changed_is_heard_by_the_next_poll() {
    let nodes = Nodes::start(1, FREE).await;
    let last = nodes.seated("").await;
    let user = UserId::new("ann").expect("a user");
    let new = NewSubscription::resource(user.clone(), "Task", "7");
    nodes.node(0).subscriptions.create(new).await.expect("stored");
    let edition = nodes.node(0).interest_news.edition(&user);
    interests::announce(nodes.node(0), &user).await;
    nodes.until(|| nodes.node(0).interest_news.edition(&user) != edition).await;
    // It begins to hear the channel with this one.
    let first = nodes.poll(0, &format!("last_poll_id={last}&timeout=0.05")).await;
    nodes.publish(0, "entity:Task:7", "entity:updated", &json!({"n": 1})).await;
    let next = nodes.poll(0, &format!("last_poll_id={}", last_id(&first))).await;
    assert_eq!(payloads(&next), [&json!({"n": 1})]);
    nodes.stop().await;
}

#[tokio::test]
async fn a_token_that_was_revoked_has_no_seat() {
    let nodes = Nodes::start(1, FREE).await;
    let last = nodes.seated("").await;
    let user = UserId::new("ann").expect("a user");
    let tokens = RevokedTokens::User { user, issued_before: clock::unix_ms() / 1_000 + 60 };
    let revocation = Revocation { tokens, until_ms: clock::unix_ms() + 60_000 };
    revocations::revoke(nodes.node(0), revocation).await.expect("stored");
    let query = format!("?user_id=ann&last_poll_id={last}");
    let answer = nodes.call(0, Method::GET, &query, "ann", None).await;
    assert_eq!(answer.refused(), (401, "INVALID_TOKEN"));
    nodes.stop().await;
}

#[tokio::test]
async fn a_refused_poll_leaves_the_seat_to_the_next() {
    let nodes = Nodes::start(1, &[("limits.polls_per_minute", "3")]).await;
    let last = nodes.seated("").await;
    let seat = nodes.seat(0, "ann").expect("it is left");
    let query = format!("?user_id=ann&timeout=0&last_poll_id={last}");
    let third = nodes.call(0, Method::GET, &query, "ann", None).await;
    assert_eq!((third.status, third.rate("remaining")), (StatusCode::OK, 0));
    let fourth = nodes.call(0, Method::GET, &query, "ann", None).await;
    assert_eq!(fourth.refused(), (429, "RATE_LIMITED"));
    assert_eq!(nodes.seat(0, "ann"), Some(seat));
    nodes.stop().await;
}
