//! The examples of the uno document, field by field.

use carillon_broker_client::{
    Clock, MemoryNotifications, MemorySubscriptions, NewNotification, NewSubscription,
    NotificationLimits, NotificationStore, Subscription, SubscriptionLimits, SubscriptionStatus,
    SubscriptionStore, SubscriptionType,
};
use carillon_protocol::UserId;
use serde_json::{Value, json};

fn at(moment: &str) -> Clock {
    let moment = moment.parse().expect("a moment");
    Clock::from_fn(move || moment)
}

#[tokio::test]
async fn the_notification_example_is_answered_as_the_document_shows() {
    let actions = json!([
        {"label": "View", "action": "view", "data": {"id": "message-789"}},
        {"label": "Reply", "action": "reply", "data": {"id": "message-789"}}
    ]);
    let body: NewNotification = serde_json::from_value(json!({
        "title": "New message",
        "message": "You have a new message from Jane",
        "recipients": ["user-456", "user-789"],
        "type": "message",
        "priority": "normal",
        "sender_id": "user-123",
        "resource_type": "message",
        "resource_id": "message-789",
        "actions": actions,
        "metadata": {"thread_id": "thread-123"},
        "expires_at": "2025-05-16T10:30:00Z"
    }))
    .expect("the document's body");
    let store = MemoryNotifications::new(NotificationLimits::default(), at("2025-04-16T10:30:00Z"));
    let mut notification = store.create(body).await.expect("created");
    let reader = UserId::new("user-456").expect("an id");
    notification.mark_as_delivered("2025-04-16T10:30:01Z".parse().expect("a moment"));
    assert!(notification.mark_as_read(&reader, "2025-04-16T10:30:02Z".parse().expect("a moment")));
    assert!(notification.is_read_by(&reader));
    let id = notification.id.clone();
    let expected = json!({
        "id": id,
        "title": "New message",
        "message": "You have a new message from Jane",
        "type": "message",
        "priority": "normal",
        "status": "delivered",
        "recipients": ["user-456", "user-789"],
        "sender_id": "user-123",
        "created_at": "2025-04-16T10:30:00Z",
        "delivered_at": "2025-04-16T10:30:01Z",
        "read_by": ["user-456"],
        "actions": actions,
        "resource_type": "message",
        "resource_id": "message-789",
        "metadata": {"thread_id": "thread-123"}
    });
    assert_eq!(serde_json::to_value(&notification).expect("JSON"), expected);

    let mut pushed = expected;
    let fields = pushed.as_object_mut().expect("an object");
    fields.remove("recipients");
    fields.remove("read_by");
    fields.insert("read".to_owned(), Value::Bool(true));
    assert_eq!(notification.pushed_to(&reader), pushed);
}

async fn subscribed(kind: SubscriptionType, body: Value) -> Subscription {
    let body: NewSubscription = serde_json::from_value(body).expect("the document's body");
    let store = MemorySubscriptions::new(SubscriptionLimits::default(), at("2025-04-16T10:30:00Z"));
    store.create(body.of_kind(kind)).await.expect("created")
}

#[tokio::test]
async fn the_subscription_examples_are_answered_as_the_document_shows() {
    let mut resource = subscribed(
        SubscriptionType::Resource,
        json!({
            "user_id": "user-456",
            "resource_id": "post-789",
            "resource_type": "post",
            "labels": ["important", "post-updates"],
            "metadata": {"notification_channel": "email"},
            "expires_at": "2025-05-16T10:30:00Z"
        }),
    )
    .await;
    resource.update_status(
        SubscriptionStatus::Paused,
        "2025-04-16T10:31:00Z".parse().expect("a moment"),
    );
    let expected = json!({
        "id": resource.id,
        "user_id": "user-456",
        "type": "resource",
        "status": "paused",
        "created_at": "2025-04-16T10:30:00Z",
        "updated_at": "2025-04-16T10:31:00Z",
        "expires_at": "2025-05-16T10:30:00Z",
        "resource_id": "post-789",
        "resource_type": "post",
        "topic": null,
        "query": null,
        "labels": ["important", "post-updates"],
        "metadata": {"notification_channel": "email"}
    });
    assert_eq!(serde_json::to_value(&resource).expect("JSON"), expected);

    let topic = subscribed(
        SubscriptionType::Topic,
        json!({
            "user_id": "user-456",
            "topic": "new-posts",
            "labels": ["news", "updates"],
            "metadata": {"notification_channel": "in-app"},
            "expires_at": "2025-05-16T10:30:00Z",
            "payload_filter": {"category": "tech"}
        }),
    )
    .await;
    let expected = json!({
        "id": topic.id,
        "user_id": "user-456",
        "type": "topic",
        "status": "active",
        "created_at": "2025-04-16T10:30:00Z",
        "updated_at": "2025-04-16T10:30:00Z",
        "expires_at": "2025-05-16T10:30:00Z",
        "resource_id": null,
        "resource_type": null,
        "topic": "new-posts",
        "query": null,
        "labels": ["news", "updates"],
        "metadata": {"notification_channel": "in-app"}
    });
    assert_eq!(serde_json::to_value(&topic).expect("JSON"), expected);
}

#[tokio::test]
async fn a_subscription_matches_what_it_is_for() {
    let now = "2025-04-16T10:30:00Z".parse().expect("a moment");
    let mut resource = subscribed(
        SubscriptionType::Resource,
        json!({"user_id": "u", "resource_id": "post 7:8", "resource_type": "a:b"}),
    )
    .await;
    assert_eq!(resource.channels()[0].as_str(), "entity:a%3Ab:post%207:8");
    assert!(resource.matches_event(&json!({"resource_id": "post 7:8", "action": "update"}), now));
    assert!(!resource.matches_event(&json!({"resource_id": "other"}), now));
    assert!(
        !resource.matches_event(&json!({"resource_id": "post 7:8", "resource_type": "c"}), now)
    );
    resource.update_status(SubscriptionStatus::Paused, now);
    assert!(!resource.matches_event(&json!({"resource_id": "post 7:8"}), now));
    assert!(resource.add_label("new") && !resource.add_label("new"));

    let topic = subscribed(
        SubscriptionType::Topic,
        json!({"user_id": "u", "topic": "v1.2", "payload_filter": {"n": {"$gt": 1}}}),
    )
    .await;
    assert_eq!(topic.channels()[0].as_str(), "topic:v1.2");
    assert!(topic.matches_event(&json!({"topic": "v1.2", "payload": {"n": 2}}), now));
    assert!(!topic.matches_event(&json!({"topic": "v1.2", "payload": {"n": 1}}), now));

    let query = subscribed(
        SubscriptionType::Query,
        json!({"user_id": "u", "query": {"channels": ["feed:a", "feed:b", "feed:a"], "where": {"hot": true}}}),
    )
    .await;
    let channels: Vec<_> = query.channels().iter().map(ToString::to_string).collect();
    assert_eq!(channels, ["feed:a", "feed:b"]);
    assert!(query.filter().is_some_and(|filter| filter.matches(&json!({"hot": true}))));
    assert!(query.matches_event(&json!({"channel": "feed:b", "payload": {"hot": true}}), now));
    assert!(!query.matches_event(&json!({"channel": "feed:c", "payload": {"hot": true}}), now));
}

#[test]
fn null_is_read_like_an_absent_field() {
    let body: NewNotification = serde_json::from_value(json!({
        "title": "t", "message": "m", "recipients": ["u"], "type": null, "priority": null,
        "sender_id": null, "resource_type": null, "resource_id": null, "actions": null,
        "metadata": null, "expires_at": null, "unknown": 1
    }))
    .expect("a body");
    let short = json!({"title": "t", "message": "m", "recipients": ["u"]});
    assert_eq!(body, serde_json::from_value(short).expect("a body"));
    let body: NewSubscription = serde_json::from_value(json!({
        "user_id": "u", "topic": "t", "labels": null, "metadata": null, "expires_at": null,
        "payload_filter": null
    }))
    .expect("a body");
    let short = json!({"user_id": "u", "topic": "t"});
    assert_eq!(body, serde_json::from_value(short).expect("a body"));
}
