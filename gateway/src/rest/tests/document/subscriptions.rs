//! The document's subscriptions: stored, listed, and acting on connections.

use super::*;

#[tokio::test]
async fn a_subscription_goes_through_the_document_field_by_field() {
    let pair = Pair::start().await;
    let body = json!({
        "user_id": "user-456", "resource_id": "post-789", "resource_type": "post",
        "labels": ["important", "post-updates"], "metadata": {"notification_channel": "email"},
        "expires_at": "2125-05-16T10:30:00Z"
    });
    let resource = pair.one.post("/subscriptions/resource", &body).await;
    assert_eq!(resource.status, StatusCode::CREATED, "{}", resource.body);
    let mut wanted = body.clone();
    for (field, value) in [
        ("type", json!("resource")),
        ("status", json!("active")),
        ("topic", Value::Null),
        ("query", Value::Null),
    ] {
        wanted[field] = value;
    }
    for stamped in ["id", "created_at", "updated_at"] {
        wanted[stamped] = resource.body[stamped].clone();
    }
    assert_eq!(resource.body, wanted);
    next_millisecond().await;
    let jane = pair.two.token("user-456", None);
    let body = json!({
        "user_id": "user-456", "topic": "new-posts", "labels": ["news", "updates"],
        "metadata": {"notification_channel": "in-app"}, "payload_filter": {"category": "tech"}
    });
    let topic =
        pair.two.call(Method::POST, "/subscriptions/topic", &jane, Some(&body.to_string())).await;
    assert_eq!(
        (topic.status, &topic.body["topic"], &topic.body["expires_at"]),
        (StatusCode::CREATED, &json!("new-posts"), &Value::Null)
    );
    assert!(topic.body.get("payload_filter").is_none());
    let list = pair.two.call(Method::GET, "/subscriptions?status=active", &jane, None).await;
    assert_eq!(
        (&list.body, &list.headers["x-total-count"]),
        (&json!([resource.body, topic.body]), &http::HeaderValue::from(2))
    );

    let path = format!("/subscriptions/{}", resource.body["id"].as_str().expect("an id"));
    let stranger = pair.two.token("stranger", None);
    assert_eq!(
        pair.one.call(Method::GET, &path, &stranger, None).await.status,
        StatusCode::NOT_FOUND
    );
    assert_eq!(pair.one.call(Method::GET, &path, &jane, None).await.body, resource.body);
    let paused = pair
        .one
        .call(Method::PATCH, &format!("{path}/status"), &jane, Some(r#"{"status":"paused"}"#))
        .await;
    assert_eq!((paused.status, &paused.body["status"]), (StatusCode::OK, &json!("paused")));
    let patched = pair
        .one
        .call(Method::PATCH, &path, &jane, Some(r#"{"labels":["x"],"expires_at":null}"#))
        .await;
    assert_eq!(
        (&patched.body["labels"], &patched.body["expires_at"]),
        (&json!(["x"]), &Value::Null)
    );
    assert_eq!(patched.body["metadata"], resource.body["metadata"]);
    let bad = pair
        .one
        .call(Method::PATCH, &format!("{path}/status"), &jane, Some(r#"{"status":"lost"}"#))
        .await;
    assert_eq!(bad.status, StatusCode::BAD_REQUEST);
    let foreign = r#"{"user_id":"other","topic":"t"}"#;
    assert_eq!(
        pair.one.call(Method::POST, "/subscriptions/topic", &jane, Some(foreign)).await.code(),
        "FORBIDDEN"
    );
    assert_eq!(
        pair.one.call(Method::DELETE, &path, &jane, None).await.status,
        StatusCode::NO_CONTENT
    );
    assert_eq!(
        pair.two.call(Method::DELETE, &path, &jane, None).await.status,
        StatusCode::NOT_FOUND
    );
    pair.stop().await;
}

#[tokio::test]
async fn a_stored_subscription_acts_on_live_and_later_connections_once_an_event() {
    let pair = Pair::start().await;
    let mut phone = pair.connect(1, "user-456").await;
    let stored = |path: &'static str, body: Value| {
        let pair = &pair;
        async move { pair.one.post(&format!("/subscriptions/{path}"), &body).await.body["id"].clone() }
    };
    let topic = json!({"user_id": "user-456", "topic": "new-posts", "payload_filter": {"category": "tech"}});
    let filtered = stored("topic", topic).await;
    next_millisecond().await;
    let query = json!({"user_id": "user-456", "query": {"channels": ["topic:new-posts", "topic:other"], "where": {"n": {"$gte": 2}}}});
    let queried = stored("query", query).await;
    pair.until_listening("topic:other", 1).await;
    let mut laptop = pair.connect(0, "user-456").await;
    // A ping is answered when what was under way is done.
    assert!(phone.so_far().await.is_empty() && laptop.so_far().await.is_empty());
    pair.until_listening("topic:new-posts", 2).await;

    let publish = |category: &'static str, n: u32| {
        let pair = &pair;
        async move {
            let message = json!({"channel": "topic:new-posts", "type": "post", "payload": {"category": category, "n": n}});
            assert_eq!(pair.one.post("/publish", &message).await.status, StatusCode::OK);
        }
    };
    publish("art", 1).await;
    publish("tech", 1).await;
    publish("tech", 2).await;
    for listener in [&mut phone, &mut laptop] {
        let first = listener.next().await;
        assert_eq!(
            (&first["payload"]["n"], &first["subscription_ids"]),
            (&json!(1), &json!([filtered])),
            "{first}"
        );
        let second = listener.next().await;
        assert_eq!(
            (&second["payload"]["n"], &second["subscription_ids"]),
            (&json!(2), &json!([filtered, queried]))
        );
        assert!(listener.so_far().await.is_empty());
    }

    // What the client asks for itself comes once, with the ids where some match.
    phone.say(json!({"type": "subscribe", "payload": {"channel": "topic:new-posts"}})).await;
    assert_eq!(phone.next().await["type"], "subscribed");
    publish("art", 1).await;
    publish("tech", 1).await;
    let plain = phone.next().await;
    assert_eq!(
        (&plain["payload"]["category"], plain.get("subscription_ids")),
        (&json!("art"), None),
        "{plain}"
    );
    assert_eq!(phone.next().await["subscription_ids"], json!([filtered]));
    phone.say(json!({"type": "unsubscribe", "payload": {"channel": "topic:new-posts"}})).await;
    assert_eq!(phone.next().await["type"], "unsubscribed");
    publish("art", 1).await;
    publish("tech", 3).await;
    assert_eq!(phone.next().await["subscription_ids"], json!([filtered, queried]));

    // Paused and deleted ones match nothing, and nobody listens for them.
    let path = format!("/subscriptions/{}", filtered.as_str().expect("an id"));
    pair.two
        .call(Method::PATCH, &format!("{path}/status"), ADMIN, Some(r#"{"status":"paused"}"#))
        .await;
    let path = format!("/subscriptions/{}", queried.as_str().expect("an id"));
    pair.two.call(Method::DELETE, &path, ADMIN, None).await;
    pair.until_listening("topic:new-posts", 0).await;
    publish("tech", 3).await;
    assert!(phone.so_far().await.is_empty());
    pair.stop().await;
}
