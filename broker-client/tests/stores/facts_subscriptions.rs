//! Facts about persistent subscriptions.

use std::time::Duration;

use carillon_broker_client::{
    NewSubscription, Page, StoreError, Subscription, SubscriptionId, SubscriptionPatch,
    SubscriptionQuery, SubscriptionStatus,
};
use carillon_protocol::{ChannelName, UserId};
use serde_json::json;

use crate::stage::{SUBSCRIPTION_LIMITS, Stage, user};

const MINUTE: Duration = Duration::from_secs(60);

async fn topics(stage: &Stage, owner: &UserId, topics: &[&str]) -> Vec<Subscription> {
    let mut created = Vec::new();
    for topic in topics {
        let new = NewSubscription::topic(owner.clone(), *topic);
        created.push(stage.subscriptions[0].create(new).await.expect("created"));
        stage.clock.pass(Duration::from_secs(1));
    }
    created
}

fn channel(name: &str) -> ChannelName {
    ChannelName::new(name).expect("a channel")
}

fn patch(body: serde_json::Value) -> SubscriptionPatch {
    serde_json::from_value(body).expect("a patch")
}

pub(crate) async fn a_created_subscription_is_found_by_any_node(stage: &Stage) {
    let owner = user("jö:e {x}");
    let query = SubscriptionQuery {
        channels: vec![channel("feed:a")],
        condition: Some(json!({"hot": true, "list": {"$in": []}})),
    };
    for new in [
        NewSubscription::resource(owner.clone(), "post", "post-789")
            .payload_filter(json!({"a": 1})),
        NewSubscription::topic(owner.clone(), "new-posts").label("news").label("news"),
        NewSubscription::query(owner.clone(), query).metadata("empty", json!([])),
    ] {
        let expires = stage.clock.now().after(MINUTE);
        let created =
            stage.subscriptions[0].create(new.expires_at(expires)).await.expect("created");
        assert_eq!(created.status, SubscriptionStatus::Active);
        assert_eq!(created.expires_at, Some(expires));
        let found = stage.subscriptions[1].find(&created.id).await.expect("an answer");
        assert_eq!(found.as_ref(), Some(&created));
        assert_eq!(found.map(|found| found.filter()), Some(created.filter()));
    }
    assert_eq!(stage.subscriptions[1].active_for(&owner).await.expect("active").len(), 3);
}

pub(crate) async fn subscriptions_are_listed_oldest_first_and_paged(stage: &Stage) {
    let ann = user("ann");
    let created = topics(stage, &ann, &["1", "2", "3"]).await;
    let store = &stage.subscriptions[1];
    let page = |number| Page::new(number, 2).expect("a page");
    let first = store.list(&ann, None, page(1)).await.expect("a page");
    assert_eq!((first.subscriptions, first.total), (created[..2].to_vec(), 3));
    let second = store.list(&ann, None, page(2)).await.expect("a page");
    assert_eq!((second.subscriptions, second.total), (created[2..].to_vec(), 3));
    assert!(store.list(&ann, None, page(u32::MAX)).await.expect("a page").subscriptions.is_empty());

    store.set_status(&created[1].id, SubscriptionStatus::Paused).await.expect("set");
    let paused = store.list(&ann, Some(SubscriptionStatus::Paused), page(1)).await.expect("a page");
    assert_eq!((paused.subscriptions[0].id.clone(), paused.total), (created[1].id.clone(), 1));
}

pub(crate) async fn a_users_subscriptions_are_the_users_alone(stage: &Stage) {
    let (ann, bob) = (user("ann"), user("bob"));
    let of_ann = topics(stage, &ann, &["1"]).await.remove(0);
    let of_bob = topics(stage, &bob, &["1"]).await.remove(0);
    assert_ne!(of_ann.id, of_bob.id);
    for (owner, own) in [(&ann, &of_ann), (&bob, &of_bob)] {
        let page = stage.subscriptions[1].list(owner, None, Page::default()).await.expect("a page");
        assert_eq!(page.subscriptions, std::slice::from_ref(own));
        assert_eq!(own.user_id, *owner);
    }
    for unknown in ["x", "ü", "zz0000000000000000000000", "subscription-123"] {
        let id = SubscriptionId::new(unknown).expect("an id");
        let store = &stage.subscriptions[1];
        assert_eq!(store.find(&id).await, Ok(None));
        assert_eq!(store.delete(&id).await, Ok(None));
        assert_eq!(store.set_status(&id, SubscriptionStatus::Paused).await, Ok(None));
        assert_eq!(store.update(&id, &SubscriptionPatch::default()).await, Ok(None));
    }
}

pub(crate) async fn status_changes_are_seen_everywhere(stage: &Stage) {
    let ann = user("ann");
    let created = topics(stage, &ann, &["1"]).await.remove(0);
    let [here, there] = &stage.subscriptions;
    let paused = here.set_status(&created.id, SubscriptionStatus::Paused).await;
    let paused = paused.expect("set").expect("found");
    assert_eq!((paused.status, paused.updated_at), (SubscriptionStatus::Paused, stage.clock.now()));
    assert_eq!(there.find(&created.id).await.expect("an answer"), Some(paused));
    assert!(there.active_for(&ann).await.expect("active").is_empty());
    here.set_status(&created.id, SubscriptionStatus::Active).await.expect("set");
    assert_eq!(there.active_for(&ann).await.expect("active").len(), 1);
    here.set_status(&created.id, SubscriptionStatus::Cancelled).await.expect("set");
    let found = there.find(&created.id).await.expect("an answer").expect("found");
    assert_eq!(found.status, SubscriptionStatus::Cancelled);
    stage.clock.pass(SUBSCRIPTION_LIMITS.ended_kept);
    assert_eq!(there.find(&created.id).await, Ok(None));
}

pub(crate) async fn an_expired_subscription_ends_and_is_revived_by_a_new_expiry(stage: &Stage) {
    let ann = user("ann");
    let [here, there] = &stage.subscriptions;
    let new = NewSubscription::topic(ann.clone(), "soon over");
    let created =
        here.create(new.expires_at(stage.clock.now().after(MINUTE))).await.expect("created");
    stage.clock.pass(MINUTE);
    let found = there.find(&created.id).await.expect("an answer").expect("found");
    assert_eq!(found.status, SubscriptionStatus::Expired);
    assert!(there.active_for(&ann).await.expect("active").is_empty());
    let still = here.set_status(&created.id, SubscriptionStatus::Active).await;
    assert_eq!(still.expect("set").expect("found").status, SubscriptionStatus::Expired);

    let revived = here.update(&created.id, &patch(json!({"expires_at": null}))).await;
    assert_eq!(revived.expect("changed").expect("found").status, SubscriptionStatus::Active);
    stage.clock.pass(SUBSCRIPTION_LIMITS.ended_kept * 100);
    assert_eq!(there.active_for(&ann).await.expect("active").len(), 1);

    let expires_at = stage.clock.now().after(MINUTE);
    here.update(&created.id, &patch(json!({"expires_at": expires_at}))).await.expect("changed");
    stage.clock.pass(MINUTE + SUBSCRIPTION_LIMITS.ended_kept);
    assert_eq!(there.find(&created.id).await, Ok(None));
    assert_eq!(there.list(&ann, None, Page::default()).await.expect("a page").total, 0);
}

pub(crate) async fn a_patch_changes_what_it_names(stage: &Stage) {
    let [here, there] = &stage.subscriptions;
    let expires = stage.clock.now().after(MINUTE);
    let new =
        NewSubscription::topic(user("ann"), "1").label("a").metadata("k", 1).expires_at(expires);
    let created = here.create(new.payload_filter(json!({"a": 1}))).await.expect("created");
    stage.clock.pass(Duration::from_secs(1));
    let labelled = here.update(&created.id, &patch(json!({"labels": ["b", "c", "b"]}))).await;
    let labelled = labelled.expect("changed").expect("found");
    let expected = Subscription {
        labels: vec!["b".to_owned(), "c".to_owned()],
        updated_at: stage.clock.now(),
        ..created.clone()
    };
    assert_eq!(labelled, expected);
    here.update(&created.id, &patch(json!({"metadata": {}}))).await.expect("changed");
    let found = there.find(&created.id).await.expect("an answer").expect("found");
    assert_eq!((found.labels.len(), found.metadata.len(), found.expires_at), (2, 0, Some(expires)));
    let too_much = patch(json!({"metadata": {"k": "x".repeat(SUBSCRIPTION_LIMITS.bytes_max)}}));
    let refused = here.update(&created.id, &too_much).await;
    assert!(matches!(refused, Err(StoreError::Invalid(_))), "{refused:?}");
    assert_eq!(there.find(&created.id).await.expect("an answer"), Some(found));
}

pub(crate) async fn concurrent_changes_do_not_overwrite_each_other(stage: &Stage) {
    let created = topics(stage, &user("ann"), &["1"]).await.remove(0);
    for round in 0..20 {
        let [here, there] = &stage.subscriptions;
        let labels = patch(json!({"labels": [round.to_string()]}));
        let metadata = patch(json!({"metadata": {"round": round}}));
        let (one, other) =
            tokio::join!(here.update(&created.id, &labels), there.update(&created.id, &metadata));
        one.expect("changed");
        other.expect("changed");
        let found = here.find(&created.id).await.expect("an answer").expect("found");
        assert_eq!(found.labels, [round.to_string()]);
        assert_eq!(found.metadata["round"], round);
    }
}

pub(crate) async fn what_is_deleted_is_unknown(stage: &Stage) {
    let ann = user("ann");
    let created = topics(stage, &ann, &["1", "2"]).await;
    let [here, there] = &stage.subscriptions;
    assert_eq!(here.delete(&created[0].id).await.expect("deleted").as_ref(), Some(&created[0]));
    assert_eq!(there.delete(&created[0].id).await, Ok(None));
    assert_eq!(there.find(&created[0].id).await, Ok(None));
    assert_eq!(there.set_status(&created[0].id, SubscriptionStatus::Active).await, Ok(None));
    assert_eq!(there.active_for(&ann).await.expect("active"), created[1..]);
}

pub(crate) async fn the_limit_counts_what_has_not_ended(stage: &Stage) {
    let ann = user("ann");
    let [here, there] = &stage.subscriptions;
    let limit = u64::from(SUBSCRIPTION_LIMITS.per_user);
    // Far more than the limit in all, but one after the other: what has ended gives way.
    for _ in 0..limit * 4 {
        let created = topics(stage, &ann, &["over"]).await.remove(0);
        there.set_status(&created.id, SubscriptionStatus::Cancelled).await.expect("set");
    }
    assert!(there.list(&ann, None, Page::default()).await.expect("a page").total <= limit * 2);
    let created = topics(stage, &ann, &["1", "2", "3", "4", "5"]).await;
    let refused = there.create(NewSubscription::topic(ann.clone(), "6")).await;
    assert_eq!(refused, Err(StoreError::LimitReached { limit }));
    there.create(NewSubscription::topic(user("bob"), "1")).await.expect("another user's");
    here.delete(&created[2].id).await.expect("deleted");
    there.create(NewSubscription::topic(ann.clone(), "6")).await.expect("created");
    assert_eq!(here.active_for(&ann).await.expect("active").len() as u64, limit);
}

pub(crate) async fn what_no_subscription_may_hold_is_refused(stage: &Stage) {
    let ann = || user("ann");
    let query = |channels: Vec<&str>, condition| SubscriptionQuery {
        channels: channels.into_iter().map(channel).collect(),
        condition,
    };
    let many: Vec<String> = (0..51).map(|n| format!("feed:{n}")).collect();
    let cases = [
        ("resource_id", NewSubscription::resource(ann(), "post", "")),
        ("resource_id", NewSubscription::resource(ann(), "post", "x".repeat(300))),
        (
            "resource_type",
            NewSubscription { resource_type: None, ..NewSubscription::resource(ann(), "", "1") },
        ),
        ("topic", NewSubscription::topic(ann(), "ü".repeat(100))),
        (
            "payload_filter",
            NewSubscription::topic(ann(), "t").payload_filter(json!({"a": {"$no": 1}})),
        ),
        ("query.channels", NewSubscription::query(ann(), query(vec![], None))),
        (
            "query.channels",
            NewSubscription::query(ann(), query(many.iter().map(String::as_str).collect(), None)),
        ),
        ("query.where", NewSubscription::query(ann(), query(vec!["a"], Some(json!(7))))),
        ("labels", NewSubscription::topic(ann(), "t").label("")),
        ("subscription", NewSubscription::topic(ann(), "t").metadata("k", "x".repeat(5_000))),
    ];
    for (field, new) in cases {
        match stage.subscriptions[0].create(new).await {
            Err(StoreError::Invalid(invalid)) => assert_eq!(invalid.field, field),
            other => panic!("{field}: {other:?}"),
        }
    }
    assert!(stage.subscriptions[1].active_for(&ann()).await.expect("active").is_empty());
}
