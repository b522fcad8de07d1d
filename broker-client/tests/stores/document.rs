//! The examples of the uno document, field by field.

use carillon_broker_client::{
    Clock, MemoryNotifications, NewNotification, NotificationLimits, NotificationStore,
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
