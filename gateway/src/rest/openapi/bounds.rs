//! Bounds of parameters and fields, as the handlers check them: patterns, enumerations, least and most. Where a
//! bound is in bytes or in what a channel name can hold, it stands in the description instead.

use serde_json::{Value, json};

use super::calls;

/// Ids hold no control characters.
const ID: &str = r"^[^\x00-\x1f\x7f-\x9f]+$";
/// The alphabet of channel names.
const CHANNEL: &str = r"^[A-Za-z0-9_\-.:/@=+~!$;%]+$";
/// Names of event streams stand on lines of their own.
const LINE: &str = r"^[^\x00-\x1f\x7f-\x9f]+$";
/// Types of notifications.
const WORD: &str = r"^[a-z][a-z0-9_-]{0,63}$";

/// Adds all bounds.
pub(super) fn add(document: &mut Value) {
    for (path, _, call) in calls(document) {
        let Some(parameters) = call.get_mut("parameters").and_then(Value::as_array_mut) else {
            continue;
        };
        for parameter in parameters {
            let name = parameter["name"].as_str().unwrap_or_default().to_owned();
            if let Some(bounds) = of_parameter(&path, &name) {
                parameter["schema"] = bounds;
            }
        }
    }
    for (schema, property, bounds) in of_fields() {
        let field = &mut document["components"]["schemas"][schema]["properties"][property];
        if let (Some(field), Value::Object(bounds)) = (field.as_object_mut(), bounds) {
            for (name, bound) in bounds {
                let inner = name == "items" || name == "properties";
                match (field.get_mut(&name), bound) {
                    (Some(Value::Object(known)), Value::Object(more)) if inner => {
                        known.extend(more);
                    }
                    (_, bound) => drop(field.insert(name, bound)),
                }
            }
        }
    }
    let schemas = &mut document["components"]["schemas"];
    // `deleted` alone may do without data.
    schemas["EntityEvent"]["anyOf"] = json!([
        {"properties": {"action": {"enum": ["created", "updated"]}, "data": {"not": {"type": "null"}}}, "required": ["data"]},
        {"properties": {"action": {"enum": ["deleted"]}}},
    ]);
    schemas["RevokeTokens"]["oneOf"] = json!([
        {"required": ["jti"], "properties": {"jti": {"type": "string"}, "user_id": {"type": "null"}, "issued_before": {"type": "null"}}},
        {"required": ["user_id"], "properties": {"user_id": {"type": "string"}, "jti": {"type": "null"}}},
    ]);
    // One token, or a user's.
    schemas["RevokeTokens"]["oneOf"] = json!([
        {"required": ["jti"], "properties":
            {"jti": {"type": "string"}, "user_id": {"type": "null"}, "issued_before": {"type": "null"}}},
        {"required": ["user_id"], "properties": {"user_id": {"type": "string"}, "jti": {"type": "null"}}},
    ]);
    let both = |one: &str, other: &str| json!({"not": {"required": [one, other], "properties": {one: {"type": "string"}, other: {"type": "string"}}}});
    schemas["NewEvent"]["allOf"] = json!([
        both("channel", "user_id"),
        both("channel", "connection_id"),
        both("user_id", "connection_id")
    ]);
}

/// Every field that is bounded here.
#[cfg(test)]
pub(super) fn named() -> Vec<(&'static str, &'static str)> {
    of_fields().into_iter().map(|(schema, property, _)| (schema, property)).collect()
}

fn of_parameter(path: &str, name: &str) -> Option<Value> {
    Some(match name {
        "user_id" if path == "/connections" => return None,
        "user_id" => json!({"type": "string", "pattern": ID, "example": "user-456"}),
        "channel" if path.starts_with("/channels/") => {
            json!({"type": "string", "pattern": CHANNEL, "maxLength": 255, "example": "room:42"})
        }
        // What is left of a channel name behind `presence:`.
        "resource" => {
            json!({"type": "string", "pattern": CHANNEL, "maxLength": 246, "example": "document-7"})
        }
        "entity" => json!({"type": "string", "minLength": 1, "example": "Task"}),
        "id" => json!({"type": "string", "minLength": 1, "example": "7"}),
        "connection_id" => {
            json!({"type": "string", "minLength": 1, "example": "0a1b2c3d4e5f-0123456789abcdef"})
        }
        "notification_id" | "subscription_id" => json!({"type": "string", "minLength": 1}),
        "page" | "limit" => json!({"type": "integer", "minimum": 1}),
        "page_size" => json!({"type": "integer"}),
        "as_of" => json!({"type": "integer", "minimum": i64::MIN, "maximum": i64::MAX}),
        "since" if path.starts_with("/channels/") => {
            json!({"type": "string", "pattern": "^([A-Za-z0-9]+:)?[0-9]{1,18}$", "example": "1204"})
        }
        "transport" => json!({"type": "string", "enum": ["websocket", "sse", "poll"]}),
        "profile" => json!({"type": "string", "enum": ["social", "uno", "dnr", "excore"]}),
        "status" if path == "/notifications" => {
            json!({"type": "string", "enum": ["pending", "delivered", "read", "expired"]})
        }
        "status" => json!({"type": "string", "enum": ["active", "paused", "expired", "cancelled"]}),
        "type" => json!({"type": "string", "pattern": WORD}),
        "priority" => json!({"type": "string", "enum": ["low", "normal", "high", "urgent"]}),
        "unread" => json!({"type": "boolean"}),
        _ => return None,
    })
}

fn of_fields() -> Vec<(&'static str, &'static str, Value)> {
    let id = json!({"pattern": ID});
    let ids = json!({"items": {"pattern": ID}});
    let channel = json!({"pattern": CHANNEL, "maxLength": 255});
    let priorities = json!({"enum": ["low", "normal", "high", "urgent", null]});
    let time = json!({"format": "date-time"});
    let labels = json!({"maxItems": 64, "items": {"minLength": 1}});
    let mut fields = vec![
        ("Announcement", "type", json!({"pattern": LINE})),
        ("Batch", "messages", json!({"maxItems": 1000, "items": {}})),
        ("EntityEvent", "action", json!({"enum": ["created", "updated", "deleted"]})),
        ("EntityEvent", "id", id.clone()),
        ("EntityEvent", "user_id", id.clone()),
        ("Exclude", "connections", ids.clone()),
        ("Exclude", "users", ids.clone()),
        ("MemberBody", "ttl", json!({"minimum": 1, "maximum": 31_536_000})),
        ("UsersBody", "user_ids", json!({"maxItems": 1000, "items": {"pattern": ID}})),
        ("Publish", "channel", channel.clone()),
        ("NewEvent", "channel", channel.clone()),
        ("NewEvent", "user_id", id.clone()),
        ("NewEvent", "connection_id", id.clone()),
        ("BroadcastEvent", "recipients", ids.clone()),
        ("BroadcastEvent", "exclude", ids.clone()),
        ("NewNotification", "title", json!({"pattern": r"\S"})),
        (
            "NewNotification",
            "recipients",
            json!({"minItems": 1, "maxItems": 10_000, "items": {"pattern": ID}}),
        ),
        ("NewNotification", "type", json!({"pattern": WORD})),
        ("NewNotification", "priority", priorities),
        ("NewNotification", "sender_id", id.clone()),
        ("NewNotification", "expires_at", time.clone()),
        ("NewResourceSubscription", "resource_id", json!({"minLength": 1})),
        ("NewResourceSubscription", "resource_type", json!({"minLength": 1})),
        ("NewTopicSubscription", "topic", json!({"minLength": 1})),
        (
            "NewQuerySubscription",
            "query",
            json!({"properties": {"channels": {
            "type": "array", "minItems": 1, "maxItems": 50, "description": "Without wildcards",
            "items": {"type": "string", "pattern": CHANNEL, "maxLength": 255}}}}),
        ),
        ("SubscriptionChange", "labels", labels.clone()),
        ("SubscriptionChange", "expires_at", time.clone()),
        (
            "SubscriptionStatusChange",
            "status",
            json!({"enum": ["active", "paused", "expired", "cancelled"]}),
        ),
        ("RevokeTokens", "jti", json!({"minLength": 1})),
        ("RevokeTokens", "user_id", id.clone()),
        ("RevokeTokens", "issued_before", time.clone()),
        ("RevokeTokens", "until", time.clone()),
        ("Notification", "status", json!({"enum": ["pending", "delivered", "read", "expired"]})),
        ("Notification", "priority", json!({"enum": ["low", "normal", "high", "urgent"]})),
        ("Notification", "type", json!({"pattern": WORD})),
        ("Notification", "created_at", time.clone()),
        ("Notification", "delivered_at", time.clone()),
        ("Subscription", "type", json!({"enum": ["resource", "topic", "query"]})),
        ("Subscription", "status", json!({"enum": ["active", "paused", "expired", "cancelled"]})),
        ("Subscription", "created_at", time.clone()),
        ("Subscription", "updated_at", time.clone()),
        ("Subscription", "expires_at", time.clone()),
        ("RevokeTokens", "jti", json!({"minLength": 1})),
        ("RevokeTokens", "user_id", id.clone()),
        ("RevokeTokens", "issued_before", time.clone()),
        ("RevokeTokens", "until", time.clone()),
        ("Connection", "transport", json!({"enum": ["websocket", "sse", "poll"]})),
        ("Connection", "connected_at", time.clone()),
    ];
    for message in ["Publish", "Message"] {
        fields.extend([
            (message, "type", json!({"pattern": LINE})),
            (message, "id", id.clone()),
            (message, "idempotency_key", json!({"minLength": 1})),
            (message, "user_id", id.clone()),
        ]);
    }
    for event in ["NewEvent", "BroadcastEvent"] {
        fields.push((event, "event", json!({"pattern": LINE})));
        fields.push((event, "priority", json!({"pattern": "^[a-z]{1,32}$"})));
        fields.push((event, "retry", json!({"minimum": 0, "maximum": u64::MAX})));
    }
    for subscription in ["NewResourceSubscription", "NewTopicSubscription", "NewQuerySubscription"]
    {
        fields.push((subscription, "user_id", id.clone()));
        fields.push((subscription, "labels", labels.clone()));
        fields.push((subscription, "expires_at", time.clone()));
    }
    fields
}
