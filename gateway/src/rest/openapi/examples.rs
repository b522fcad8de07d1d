//! Examples of bodies and answers: the uno document's where it has them.

use serde_json::{Value, json};

use super::calls;

/// Adds the examples to every call.
pub(super) fn add(document: &mut Value) {
    for (path, method, call) in calls(document) {
        let Some((_, body, answer)) =
            all().into_iter().find(|(name, ..)| *name == format!("{method} {path}"))
        else {
            continue;
        };
        if let Some(content) = call.pointer_mut("/requestBody/content/application~1json") {
            content["example"] = body;
        }
        let Some(responses) = call["responses"].as_object_mut() else { continue };
        for (_, response) in responses.iter_mut().filter(|(status, _)| status.starts_with('2')) {
            if let Some(content) = response["content"].get_mut("application/json") {
                content["example"] = answer.clone();
            }
        }
    }
}

/// Every call that has examples here.
#[cfg(test)]
pub(super) fn named() -> Vec<String> {
    all().into_iter().map(|(name, ..)| name.to_owned()).collect()
}

fn new_notification() -> Value {
    json!({
        "title": "New message", "message": "You have a new message from Jane", "recipients": ["user-456", "user-789"],
        "type": "message", "priority": "normal", "sender_id": "user-123", "resource_type": "message", "resource_id": "message-789",
        "actions": [{"label": "View", "action": "view", "data": {"id": "message-789"}}, {"label": "Reply", "action": "reply", "data": {"id": "message-789"}}],
        "metadata": {"thread_id": "thread-123"}, "expires_at": "2125-05-16T10:30:00Z",
    })
}

fn notification(read_by: Value) -> Value {
    let mut notification = new_notification();
    if let Some(fields) = notification.as_object_mut() {
        fields.remove("expires_at");
        fields.extend([
            ("id".to_owned(), json!("0mqv8k2n1a7f3c9e5b2d")),
            ("status".to_owned(), json!("delivered")),
            ("created_at".to_owned(), json!("2025-04-16T10:30:00Z")),
            ("delivered_at".to_owned(), json!("2025-04-16T10:30:01Z")),
            ("read_by".to_owned(), read_by),
        ]);
    }
    notification
}

fn new_resource() -> Value {
    json!({"user_id": "user-456", "resource_id": "post-789", "resource_type": "post", "labels": ["important", "post-updates"],
        "metadata": {"notification_channel": "email"}, "expires_at": "2125-05-16T10:30:00Z"})
}

fn new_topic() -> Value {
    json!({"user_id": "user-456", "topic": "new-posts", "labels": ["news", "updates"], "metadata": {"notification_channel": "in-app"},
        "expires_at": "2125-05-16T10:30:00Z", "payload_filter": {"category": "tech"}})
}

fn new_query() -> Value {
    json!({"user_id": "user-456", "query": {"channels": ["topic:new-posts", "feed:tech"], "where": {"score": {"$gte": 10}}}, "labels": ["hot"]})
}

/// The answer to a new subscription, in one status.
fn subscription(new: Value, kind: &str, status: &str) -> Value {
    let mut subscription = json!({
        "id": "9z0mqv8k2n1a7f3c9e5b2d", "type": kind, "status": status, "created_at": "2025-04-16T10:30:00Z",
        "updated_at": "2025-04-16T10:30:00Z", "expires_at": null, "resource_id": null, "resource_type": null, "topic": null,
        "query": null, "labels": [], "metadata": {},
    });
    if let (Some(fields), Value::Object(mut new)) = (subscription.as_object_mut(), new) {
        new.remove("payload_filter");
        fields.extend(new);
    }
    subscription
}

/// Call, body, answer.
fn all() -> Vec<(&'static str, Value, Value)> {
    let none = Value::Null;
    let published = json!({"id": "0193cd6e-0d3c-7b3e-9e0a-5d2f6a1c7b44", "offset": 12, "epoch": "Xk29fQ7a", "tag": "h3Jx81Lm", "duplicate": false});
    let message = json!({"type": "message", "payload": "Hello, client!"});
    let mut new_event = json!({"event": "update", "data": "{\"resource_id\":\"post-789\",\"action\":\"update\"}", "priority": "normal",
        "retry": 3000, "comment": "Resource update event"});
    let broadcast = json!({"event": "update", "data": "{\"resource_id\":\"post-789\",\"action\":\"update\"}", "priority": "normal",
        "recipients": ["0a1b2c3d4e5f-0123456789abcdef"], "exclude": []});
    let body_of_event = new_event.clone();
    new_event["id"] = json!("0193cd6e-0d3c-7b3e-9e0a-5d2f6a1c7b44");
    let connection = json!({"id": "0a1b2c3d4e5f-0123456789abcdef", "user_id": "user-456", "transport": "websocket", "profile": "uno",
        "node": "node-1", "connected_at": "2025-04-16T10:30:00.000Z", "remote": "203.0.113.7", "channels": ["notifications", "room:42"]});
    let member = json!({"id": "user-456", "name": "Jane", "lastSeen": 1_744_799_400_000_i64, "metadata": {"cursor": 17}});
    let view = json!({"user_id": "user-456", "status": "online", "last_seen": "2025-04-16T10:30:00.000Z", "connections": 2});
    let envelope = json!({"id": "0193cd6e-0d3c-7b3e-9e0a-5d2f6a1c7b44", "type": "message", "channel": "room:42", "payload": "Hello!",
        "timestamp": "2025-04-16T10:30:00.000Z", "offset": 12, "epoch": "Xk29fQ7a", "tag": "h3Jx81Lm"});
    let event = json!({"id": 17, "message_id": "0193cd6e-0d3c-7b3e-9e0a-5d2f6a1c7b44", "type": "message", "channel": "room:42", "payload": "Hello!",
        "timestamp": "2025-04-16T10:30:00.000Z", "offset": 12, "epoch": "Xk29fQ7a", "tag": "h3Jx81Lm"});
    let polled = json!({"events": [event], "last_poll_id": 17, "has_more": false});
    let resource = subscription(new_resource(), "resource", "active");
    vec![
        ("get /poll", none.clone(), polled.clone()),
        (
            "post /poll",
            json!({"user_id": "user-456", "last_poll_id": 16, "channels": ["room:42"]}),
            polled,
        ),
        (
            "get /poll/missed",
            none.clone(),
            json!({"messages": [envelope.clone()], "epoch": "Xk29fQ7a", "recovered": true, "has_more": false}),
        ),
        (
            "post /publish",
            json!({"channel": "room:42", "type": "message", "payload": {"text": "Hello!"}, "idempotency_key": "order-17"}),
            published.clone(),
        ),
        (
            "post /publish/batch",
            json!({"messages": [{"channel": "room:42", "type": "message", "payload": 1}, {"channel": "nowhere:1", "type": "message"}]}),
            json!({"results": [published.clone(), {"error": "No such channel", "code": "CHANNEL_NOT_FOUND", "details": {"channel": "nowhere:1"}, "request_id": "r-1"}]}),
        ),
        ("post /users/{user_id}/messages", message.clone(), published),
        ("post /connections/{connection_id}/messages", message, json!({"delivered": true})),
        (
            "post /broadcast",
            json!({"type": "system", "payload": {"message": "Server maintenance in 5 minutes"}}),
            json!({"recipients": 1204}),
        ),
        (
            "post /entities/{entity}/{id}/events",
            json!({"action": "updated", "data": {"title": "T"}, "changes": ["title"]}),
            json!({"id": "0193cd6e-0d3c-7b3e-9e0a-5d2f6a1c7b44", "duplicate": false, "channels": [
                {"channel": "entity:Task:7", "offset": 3, "epoch": "Xk29fQ7a", "tag": "h3Jx81Lm"}, {"channel": "entity:Task", "offset": 40, "epoch": "b7Qw02Zt", "tag": "p0Lq55Ac"}]}),
        ),
        ("post /events", body_of_event, new_event),
        ("post /events/broadcast", broadcast, json!(1)),
        (
            "get /channels",
            none.clone(),
            json!({"channels": [{"channel": "room:42", "subscribers": 17}], "next": null}),
        ),
        (
            "get /channels/{channel}",
            none.clone(),
            json!({"channel": "room:42", "subscribers": 17, "offset": 12, "epoch": "Xk29fQ7a"}),
        ),
        (
            "get /channels/{channel}/history",
            none.clone(),
            json!({"messages": [envelope], "epoch": "Xk29fQ7a", "offset": 12, "next": null, "recovered": true}),
        ),
        ("get /connections", none.clone(), json!({"connections": [connection], "next": null})),
        ("get /connections/{connection_id}", none.clone(), connection),
        ("delete /users/{user_id}/connections", none.clone(), json!({"disconnected": 2})),
        (
            "get /presence/{resource}",
            none.clone(),
            json!({"resource": "document-7", "users": [member], "count": 1}),
        ),
        (
            "put /presence/{resource}/{user_id}",
            json!({"name": "Jane", "metadata": {"cursor": 17}, "ttl": 3600}),
            member,
        ),
        ("get /users/{user_id}/presence", none.clone(), view.clone()),
        ("post /users/presence", json!({"user_ids": ["user-456"]}), json!({"users": [view]})),
        (
            "get /stats",
            none.clone(),
            json!({
            "nodes": [{"id": "0a1b2c3d4e5f", "name": "node-1", "version": "0.1.0", "uptime_ms": 3_600_000, "connections": {"websocket": 900, "sse": 300, "poll": 4},
                "messages_in": 12_000, "messages_out": 900_000, "draining": false}],
            "totals": {"nodes": 1, "connections": 1204, "connections_by_transport": {"websocket": 900, "sse": 300, "poll": 4}, "messages_in": 12_000, "messages_out": 900_000},
            "redis": {"state": "up"}}),
        ),
        (
            "post /tokens/revoke",
            json!({"user_id": "user-456"}),
            json!({"until": "2125-05-16T10:30:00Z", "issued_before": "2125-04-16T10:30:00Z", "disconnected": 2}),
        ),
        ("post /notifications", new_notification(), notification(json!([]))),
        ("get /notifications", none.clone(), json!([notification(json!([]))])),
        ("get /notifications/{notification_id}", none.clone(), notification(json!([]))),
        (
            "post /notifications/{notification_id}/mark-read",
            none.clone(),
            notification(json!(["user-456"])),
        ),
        ("post /notifications/mark-all-read", none.clone(), json!({"marked": 5})),
        ("get /notifications/unread-count/{user_id}", none.clone(), json!(5)),
        ("post /subscriptions/resource", new_resource(), resource.clone()),
        ("post /subscriptions/topic", new_topic(), subscription(new_topic(), "topic", "active")),
        ("post /subscriptions/query", new_query(), subscription(new_query(), "query", "active")),
        (
            "get /subscriptions",
            none.clone(),
            json!([resource, subscription(new_topic(), "topic", "active")]),
        ),
        ("get /subscriptions/{subscription_id}", none, resource),
        (
            "patch /subscriptions/{subscription_id}",
            json!({"labels": ["important"], "expires_at": null}),
            subscription(new_resource(), "resource", "active"),
        ),
        (
            "patch /subscriptions/{subscription_id}/status",
            json!({"status": "paused"}),
            subscription(new_resource(), "resource", "paused"),
        ),
    ]
}
