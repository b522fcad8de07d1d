//! Facts about notifications in their recipients' inboxes.

use std::time::{Duration, Instant};

use carillon_broker_client::{
    NewNotification, NotificationId, NotificationPriority, NotificationQuery, NotificationStatus,
    NotificationType, Page, StoreError,
};
use serde_json::json;

use crate::stage::{LIMITS, Stage, user};

fn page(number: u32, size: u32) -> NotificationQuery {
    NotificationQuery { page: Page::new(number, size).expect("a page"), ..Default::default() }
}

pub(crate) async fn a_created_notification_is_found_with_every_field(stage: &Stage) {
    let (jane, joe) = (user("user-456"), user("jö:e {x}"));
    let expires = stage.clock.now().after(Duration::from_secs(60));
    let new =
        NewNotification::new("New message", "from Jane", [jane.clone(), joe.clone(), jane.clone()])
            .kind(NotificationType::MESSAGE)
            .priority(NotificationPriority::Urgent)
            .sender(user("user-123"))
            .resource("message", "message-789")
            .action("View", "view", json!({"id": "message-789"}))
            .metadata("thread_id", "thread-123")
            .metadata("empty", json!([]))
            .expires_at(expires);
    let created = stage.here.create(new).await.expect("created");
    assert_eq!(created.recipients, [jane.clone(), joe.clone()]);
    assert_eq!(created.status, NotificationStatus::Pending);
    assert_eq!(created.created_at, stage.clock.now());
    assert_eq!(created.expires_at, Some(expires));
    for found in [
        stage.there.find(&created.id).await,
        stage.there.find_for(&jane, &created.id).await,
        stage.there.find_for(&joe, &created.id).await,
    ] {
        assert_eq!(found.expect("an answer").as_ref(), Some(&created));
    }
}

pub(crate) async fn each_recipient_has_it_and_nobody_else(stage: &Stage) {
    let (ann, bob, eve) = (user("ann"), user("bob"), user("eve"));
    let id = stage.create(&["secret"], &[ann.clone(), bob.clone()]).await.remove(0).id;
    for reader in [&ann, &bob] {
        assert_eq!(stage.titles(reader, &page(1, 20)).await, ["secret"]);
        assert_eq!(stage.there.unread_count(reader).await, Ok(1));
    }
    let unknown = NotificationId::new("unknown").expect("an id");
    for id in [&id, &unknown] {
        assert_eq!(stage.there.find_for(&eve, id).await, Ok(None));
        assert_eq!(stage.there.mark_read(&eve, id).await, Ok(None));
        assert_eq!(stage.there.dismiss(&eve, id).await, Ok(false));
        assert_eq!(stage.there.mark_delivered(&eve, std::slice::from_ref(id)).await, Ok(0));
    }
    assert_eq!(stage.there.mark_all_read(&eve).await, Ok(0));
    assert_eq!(stage.there.unread_count(&eve).await, Ok(0));
    assert_eq!(stage.there.pending(&eve, 10).await, Ok(Vec::new()));
    assert!(stage.titles(&eve, &page(1, 20)).await.is_empty());
    let untouched = stage.here.find(&id).await.expect("an answer").expect("found");
    assert_eq!((untouched.status, untouched.read_by.len()), (NotificationStatus::Pending, 0));
}

pub(crate) async fn what_the_contract_forbids_is_refused(stage: &Stage) {
    let ann = user("ann");
    let cases = [
        ("title", NewNotification::new(" ", "text", [ann.clone()])),
        ("recipients", NewNotification::new("title", "text", [])),
        ("recipients", NewNotification::new("title", "text", [user(&"ü".repeat(120))])),
        (
            "notification",
            NewNotification::new("title", "x".repeat(LIMITS.bytes_max), [ann.clone()]),
        ),
    ];
    for (field, new) in cases {
        match stage.here.create(new).await {
            Err(StoreError::Invalid(invalid)) => assert_eq!(invalid.field, field),
            other => panic!("{field}: {other:?}"),
        }
    }
    assert_eq!(stage.here.unread_count(&ann).await, Ok(0));
}

pub(crate) async fn lists_are_newest_first_and_paged_with_a_total(stage: &Stage) {
    let ann = user("ann");
    stage.create(&["1", "2", "3", "4", "5"], std::slice::from_ref(&ann)).await;
    let first = stage.there.list(&ann, &page(1, 2)).await.expect("a page");
    assert_eq!(first.total, 5);
    assert_eq!(stage.titles(&ann, &page(1, 2)).await, ["5", "4"]);
    assert_eq!(stage.titles(&ann, &page(3, 2)).await, ["1"]);
    let beyond = stage.there.list(&ann, &page(u32::MAX, 100)).await.expect("a page");
    assert_eq!((beyond.notifications.len(), beyond.total), (0, 5));
    assert_eq!(Page::new(1, 5_000).expect("a page").size(), 100);
    assert!(Page::new(0, 20).is_err() && Page::new(1, 0).is_err());
}

pub(crate) async fn pages_do_not_shift_while_new_ones_arrive(stage: &Stage) {
    let ann = user("ann");
    stage.create(&["1", "2", "3", "4"], std::slice::from_ref(&ann)).await;
    let first = stage.here.list(&ann, &page(1, 2)).await.expect("a page");
    stage.create(&["5", "6", "7"], std::slice::from_ref(&ann)).await;
    let second = NotificationQuery { as_of: Some(first.as_of), ..page(2, 2) };
    let second = stage.there.list(&ann, &second).await.expect("a page");
    let titles: Vec<_> = second.notifications.iter().map(|n| n.title.as_str()).collect();
    assert_eq!((titles, second.total), (vec!["2", "1"], 4));
    assert_eq!(stage.titles(&ann, &page(1, 2)).await, ["7", "6"]);

    // Arrivals within one millisecond are kept apart too.
    let bob = user("bob");
    let new = |title: &str| NewNotification::new(title, "text", [bob.clone()]);
    for title in ["a", "b"] {
        stage.here.create(new(title)).await.expect("created");
    }
    let first = stage.here.list(&bob, &page(1, 1)).await.expect("a page");
    stage.here.create(new("c")).await.expect("created");
    let second = NotificationQuery { as_of: Some(first.as_of), ..page(2, 1) };
    assert_eq!(first.notifications[0].title, "b");
    assert_eq!(stage.titles(&bob, &second).await, ["a"]);
}

pub(crate) async fn lists_are_filtered_by_what_holds_for_the_user(stage: &Stage) {
    let (ann, bob) = (user("ann"), user("bob"));
    let mut ids = Vec::new();
    for (title, kind, priority) in [
        ("pending", "info", NotificationPriority::Low),
        ("delivered", "deploy", NotificationPriority::High),
        ("read", "deploy", NotificationPriority::Low),
        ("expired", "info", NotificationPriority::High),
    ] {
        let mut new = NewNotification::new(title, "text", [ann.clone(), bob.clone()])
            .kind(NotificationType::new(kind).expect("a word"))
            .priority(priority);
        if title == "expired" {
            new = new.expires_at(stage.clock.now().after(Duration::from_secs(5)));
        }
        ids.push(stage.here.create(new).await.expect("created").id);
    }
    stage.here.mark_delivered(&ann, &ids[1..2]).await.expect("marked");
    stage.here.mark_read(&ann, &ids[2]).await.expect("marked").expect("found");
    stage.clock.pass(Duration::from_secs(6));

    for status in ["pending", "delivered", "read", "expired"] {
        let query = NotificationQuery {
            status: NotificationStatus::parse(status),
            ..NotificationQuery::default()
        };
        assert_eq!(stage.titles(&ann, &query).await, [status]);
        assert_eq!(stage.there.list(&ann, &query).await.expect("a page").total, 1);
    }
    let all = NotificationQuery::default;
    let kind = NotificationType::new("deploy").expect("a word");
    let query = NotificationQuery { kind: Some(kind.clone()), ..all() };
    assert_eq!(stage.titles(&ann, &query).await, ["read", "delivered"]);
    let query = NotificationQuery { priority: Some(NotificationPriority::Low), ..all() };
    assert_eq!(stage.titles(&ann, &query).await, ["read", "pending"]);
    let query = NotificationQuery { unread: true, ..all() };
    assert_eq!(stage.titles(&ann, &query).await, ["delivered", "pending"]);
    let query = NotificationQuery { unread: true, kind: Some(kind), ..all() };
    assert_eq!(stage.titles(&ann, &query).await, ["delivered"]);
    let query = NotificationQuery { status: Some(NotificationStatus::Pending), ..all() };
    assert_eq!(stage.titles(&bob, &query).await, ["read", "delivered", "pending"]);
}

pub(crate) async fn reading_is_each_recipients_own_and_the_status_the_aggregate(stage: &Stage) {
    let (ann, bob) = (user("ann"), user("bob"));
    let id = stage.create(&["one"], &[ann.clone(), bob.clone()]).await.remove(0).id;
    let by_ann = stage.there.mark_read(&ann, &id).await.expect("marked").expect("found");
    assert_eq!(
        (by_ann.status, &by_ann.read_by[..]),
        (NotificationStatus::Delivered, &[ann.clone()][..])
    );
    assert_eq!(by_ann.delivered_at, Some(stage.clock.now()));
    assert_eq!(stage.here.unread_count(&ann).await, Ok(0));
    assert_eq!(stage.here.unread_count(&bob).await, Ok(1));

    stage.clock.pass(Duration::from_secs(1));
    let again = stage.here.mark_read(&ann, &id).await.expect("marked").expect("found");
    assert_eq!(again, by_ann, "reading twice changes nothing");
    let by_both = stage.here.mark_read(&bob, &id).await.expect("marked").expect("found");
    assert_eq!((by_both.status, &by_both.read_by[..]), (NotificationStatus::Read, &[ann, bob][..]));
}

pub(crate) async fn mark_all_read_counts_what_it_marked(stage: &Stage) {
    let (ann, bob) = (user("ann"), user("bob"));
    let created = stage.create(&["1", "2", "3"], &[ann.clone(), bob.clone()]).await;
    stage.here.mark_read(&ann, &created[0].id).await.expect("marked");
    assert_eq!(stage.there.mark_all_read(&ann).await, Ok(2));
    assert_eq!(stage.here.mark_all_read(&ann).await, Ok(0));
    assert_eq!(stage.here.unread_count(&ann).await, Ok(0));
    assert_eq!(stage.here.unread_count(&bob).await, Ok(3));
    assert_eq!(stage.here.pending(&ann, 10).await, Ok(Vec::new()));
    let last = stage.here.find(&created[2].id).await.expect("an answer").expect("found");
    assert_eq!(last.read_by, [ann]);
}

pub(crate) async fn unread_counts_are_exact_under_concurrent_marks(stage: &Stage) {
    let ann = user("ann");
    let titles: Vec<String> = (0..60).map(|n| n.to_string()).collect();
    let titles: Vec<&str> = titles.iter().map(String::as_str).collect();
    let ids: Vec<_> = stage
        .create(&titles, std::slice::from_ref(&ann))
        .await
        .into_iter()
        .map(|created| created.id)
        .collect();
    let mut marks = tokio::task::JoinSet::new();
    for store in [stage.here.clone(), stage.there.clone()] {
        for id in &ids[..40] {
            let (store, ann, id) = (store.clone(), ann.clone(), id.clone());
            marks.spawn(async move {
                store.mark_read(&ann, &id).await.expect("marked").expect("found")
            });
        }
    }
    marks.join_all().await;
    assert_eq!(stage.here.unread_count(&ann).await, Ok(20));

    let (here, there) =
        tokio::join!(stage.here.mark_all_read(&ann), stage.there.mark_all_read(&ann));
    assert_eq!(here.expect("marked") + there.expect("marked"), 20, "each is marked by one call");
    assert_eq!(stage.here.unread_count(&ann).await, Ok(0));
}

pub(crate) async fn delivery_is_each_recipients_own_and_pending_is_oldest_first(stage: &Stage) {
    let (ann, bob) = (user("ann"), user("bob"));
    let created = stage.create(&["1", "2", "3"], &[ann.clone(), bob.clone()]).await;
    let pending = stage.there.pending(&ann, 2).await.expect("pending");
    assert_eq!(pending, created[..2]);
    let ids: Vec<_> = pending.into_iter().map(|notification| notification.id).collect();
    assert_eq!(stage.here.mark_delivered(&ann, &ids).await, Ok(2));
    assert_eq!(stage.there.mark_delivered(&ann, &ids).await, Ok(0));
    assert_eq!(stage.there.pending(&ann, 10).await.expect("pending"), created[2..]);
    assert_eq!(stage.there.pending(&bob, 10).await.expect("pending").len(), 3);
    let first = stage.here.find(&ids[0]).await.expect("an answer").expect("found");
    assert_eq!(first.status, NotificationStatus::Delivered);
    assert_eq!(stage.here.unread_count(&ann).await, Ok(3), "delivered is not read");
}

pub(crate) async fn deleting_takes_it_from_everybody_and_dismissing_from_one(stage: &Stage) {
    let (ann, bob) = (user("ann"), user("bob"));
    let created = stage.create(&["1", "2"], &[ann.clone(), bob.clone()]).await;
    assert_eq!(stage.here.delete(&created[0].id).await, Ok(true));
    assert_eq!(stage.there.delete(&created[0].id).await, Ok(false));
    assert_eq!(stage.there.find(&created[0].id).await, Ok(None));
    assert_eq!(stage.there.mark_read(&ann, &created[0].id).await, Ok(None));
    for reader in [&ann, &bob] {
        assert_eq!(stage.titles(reader, &page(1, 20)).await, ["2"]);
        assert_eq!(stage.there.unread_count(reader).await, Ok(1));
    }
    assert_eq!(stage.here.dismiss(&ann, &created[1].id).await, Ok(true));
    assert_eq!(stage.there.dismiss(&ann, &created[1].id).await, Ok(false));
    assert_eq!(stage.there.find_for(&ann, &created[1].id).await, Ok(None));
    assert_eq!(stage.there.list(&ann, &page(1, 20)).await.expect("a page").total, 0);
    assert_eq!(stage.there.pending(&ann, 10).await, Ok(Vec::new()));
    assert!(stage.there.find_for(&bob, &created[1].id).await.expect("an answer").is_some());
}

pub(crate) async fn ten_thousand_recipients_have_it_and_one_more_is_refused(stage: &Stage) {
    let mut users: Vec<_> = (0..10_000).map(|n| user(&format!("user-{n}"))).collect();
    let began = Instant::now();
    let new = NewNotification::new("to all", "text", users.iter().cloned());
    let created = stage.here.create(new).await.expect("created");
    println!("10,000 recipients took {:?}", began.elapsed());
    assert_eq!(created.recipients, users);
    for reader in [&users[0], &users[4_999], &users[9_999]] {
        assert_eq!(stage.there.unread_count(reader).await, Ok(1));
        assert_eq!(stage.there.pending(reader, 10).await.expect("pending").len(), 1);
    }
    assert_eq!(stage.here.delete(&created.id).await, Ok(true));
    assert_eq!(stage.there.unread_count(&users[9_999]).await, Ok(0));

    users.push(user("one more"));
    let refused = stage.here.create(NewNotification::new("to more", "text", users)).await;
    assert!(matches!(refused, Err(StoreError::Invalid(_))), "{refused:?}");
}

pub(crate) async fn an_inbox_keeps_its_newest_entries(stage: &Stage) {
    let ann = user("ann");
    let kept = u64::from(LIMITS.entries_max);
    let mut created = Vec::new();
    for n in 0..kept + 5 {
        let new = NewNotification::new(n.to_string(), "text", [ann.clone()]);
        created.push(stage.here.create(new).await.expect("created"));
    }
    assert_eq!(stage.there.list(&ann, &page(1, 1)).await.expect("a page").total, kept);
    assert_eq!(stage.there.unread_count(&ann).await, Ok(kept));
    assert_eq!(stage.there.find_for(&ann, &created[4].id).await, Ok(None));
    assert!(stage.there.find_for(&ann, &created[5].id).await.expect("an answer").is_some());
}
