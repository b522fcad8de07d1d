//! Publishing over HTTP: who may, what is refused and where, history, batches, rates, entity events.

use super::*;

#[tokio::test]
async fn a_publish_is_in_history_and_repeating_it_changes_nothing() {
    let rest = Rest::start(&[]).await;
    let message = json!({"channel": "chat", "type": "note", "payload": {"text": "hi", "n": 1.50}, "id": "m-1", "meta": {"a": 1}});
    let first = rest.post("/publish", &message).await;
    assert_eq!(first.status, StatusCode::OK, "{}", first.body);
    assert_eq!(
        (&first.body["id"], &first.body["offset"], &first.body["duplicate"]),
        (&json!("m-1"), &json!(1), &json!(false))
    );
    assert_eq!(first.headers["x-ratelimit-limit"], "1000");
    assert!(
        first.headers.contains_key("x-ratelimit-remaining")
            && first.headers.contains_key("x-ratelimit-reset")
    );
    let again = rest.post("/publish", &message).await;
    assert_eq!((&again.body["offset"], &again.body["duplicate"]), (&json!(1), &json!(true)));
    let history = rest.get("/channels/chat/history").await;
    assert_eq!(history.body["messages"].as_array().map(Vec::len), Some(1), "{}", history.body);
    assert_eq!(history.body["messages"][0]["payload"], message["payload"]);
    assert_eq!(history.body["messages"][0]["meta"], json!({"a": 1}));
    assert_eq!(
        (&history.body["offset"], &history.body["epoch"]),
        (&json!(1), &first.body["epoch"])
    );
    rest.stop().await;
}

#[tokio::test]
async fn history_pages_forward_and_says_when_since_cannot_be_served() {
    let rest = Rest::start(&[]).await;
    for n in 0..5 {
        rest.post("/publish", &json!({"channel": "chat", "type": "note", "payload": n})).await;
    }
    let page = rest.get("/channels/chat/history?since=0&limit=2").await;
    assert_eq!(page.body["messages"].as_array().map(Vec::len), Some(2));
    assert_eq!(page.body["recovered"], true);
    let next = page.body["next"].as_str().expect("another page").to_owned();
    let rest_of_it = rest.get(&format!("/channels/chat/history?since={next}")).await;
    assert_eq!(rest_of_it.body["messages"].as_array().map(Vec::len), Some(3));
    assert_eq!(rest_of_it.body["next"], Value::Null);
    let foreign = rest.get("/channels/chat/history?since=AAAAAAAA:3").await;
    assert_eq!(
        (&foreign.body["recovered"], &foreign.body["reason"]),
        (&json!(false), &json!("epoch"))
    );
    assert_eq!(foreign.body["messages"].as_array().map(Vec::len), Some(5));
    let newest = rest.get("/channels/chat/history?limit=1").await;
    assert_eq!(newest.body["messages"][0]["payload"], 4);
    let cleared = rest.call(Method::DELETE, "/channels/chat/history", ADMIN, None).await;
    assert_eq!(cleared.status, StatusCode::NO_CONTENT);
    let empty = rest.get("/channels/chat/history").await;
    assert_eq!(empty.body["messages"], json!([]));
    assert_ne!(empty.body["epoch"], page.body["epoch"]);
    rest.stop().await;
}

#[tokio::test]
async fn callers_are_known_by_key_or_token_and_by_nothing_else() {
    let rest = Rest::start(&[("auth.cookie", "session")]).await;
    let user = rest.token("alice", None);
    let path = "/api/realtime/stats";
    let plain = |name: &'static str, value: String| {
        Request::builder().uri(path).header(name, value).body(Body::empty()).expect("ok")
    };
    let none = rest.send(Request::builder().uri(path).body(Body::empty()).expect("ok")).await;
    assert_eq!((none.status, none.code()), (StatusCode::UNAUTHORIZED, "MISSING_TOKEN"));
    assert_eq!(none.body["error"], "missing token");
    assert_eq!(none.body["request_id"].as_str(), none.headers["x-request-id"].to_str().ok());
    let cookie = rest.send(plain("cookie", format!("session={user}"))).await;
    assert_eq!(cookie.code(), "MISSING_TOKEN");
    let query =
        Request::builder().uri(format!("{path}?token={user}")).body(Body::empty()).expect("ok");
    assert_eq!(rest.send(query).await.code(), "MISSING_TOKEN");
    assert_eq!(rest.call(Method::GET, "/stats", "wrong", None).await.code(), "INVALID_TOKEN");
    assert_eq!(
        rest.send(plain("authorization", "Basic abc".to_owned())).await.code(),
        "INVALID_TOKEN"
    );
    let refused = rest.call(Method::GET, "/stats", &user, None).await;
    assert_eq!((refused.status, refused.code()), (StatusCode::FORBIDDEN, "FORBIDDEN"));
    let scoped = rest.token("service", Some("openid realtime:admin"));
    assert_eq!(rest.call(Method::GET, "/stats", &scoped, None).await.status, StatusCode::OK);
    assert_eq!(rest.call(Method::GET, "/channels", READER, None).await.status, StatusCode::OK);
    assert_eq!(
        rest.call(Method::DELETE, "/channels/chat/history", READER, None).await.status,
        StatusCode::FORBIDDEN
    );
    rest.stop().await;
}

#[tokio::test]
async fn a_user_publishes_as_themself_where_the_policy_lets_them() {
    let rest = Rest::start(&[]).await;
    let alice = rest.token("alice", None);
    let publish = async |body: Value| {
        rest.call(Method::POST, "/publish", &alice, Some(&body.to_string())).await
    };
    assert_eq!(
        publish(json!({"channel": "chat", "type": "message", "payload": "x"})).await.status,
        StatusCode::OK
    );
    let history = rest.get("/channels/chat/history").await;
    assert_eq!(history.body["messages"][0]["user_id"], "alice");
    for body in [
        json!({"channel": "chat", "type": "message", "user_id": "bob"}),
        json!({"channel": "chat", "type": "entity:created"}),
        json!({"channel": "chat", "type": "connected"}),
        json!({"channel": "news", "type": "message"}),
    ] {
        let refused = publish(body.clone()).await;
        assert_eq!(
            (refused.status, refused.code()),
            (StatusCode::FORBIDDEN, "FORBIDDEN"),
            "{body}"
        );
    }
    let to_peer =
        rest.call(Method::POST, "/users/bob/messages", &alice, Some("{\"type\":\"x\"}")).await;
    assert_eq!(to_peer.status, StatusCode::FORBIDDEN);
    rest.stop().await;
}

#[tokio::test]
async fn bad_bodies_are_refused_with_their_place_and_never_break_anything() {
    let rest = Rest::start(&[("limits.max_message_size", "1024")]).await;
    let publish = async |body: &str| rest.call(Method::POST, "/publish", ADMIN, Some(body)).await;
    for (body, field) in [
        ("", None),
        ("[]", None),
        ("{\"channel\":", None),
        (r#"{"channel":"chat"}"#, Some("type")),
        (r#"{"channel":7,"type":"x"}"#, Some("channel")),
        (r#"{"channel":"chat","type":"x","exclude":{"users":["a",3]}}"#, Some("exclude.users[1]")),
        (r#"{"channel":"chat","type":"x","payload":{"a":1,"a":2}}"#, Some("payload")),
        (r#"{"channel":"chat","type":"x","payload":1e999}"#, Some("payload")),
        (r#"{"channel":"chat","type":"x","meta":[]}"#, Some("meta")),
        (r#"{"channel":"chat","type":"a\nb"}"#, Some("type")),
        (r#"{"channel":"a b","type":"x"}"#, Some("channel")),
        (r#"{"channel":"notifications","type":"x"}"#, Some("channel")),
        (r#"{"channel":"chat","type":"x","id":""}"#, Some("id")),
        (r#"{"channel":"chat","type":"x","user_id":""}"#, Some("user_id")),
    ] {
        let refused = publish(body).await;
        assert_eq!(
            (refused.status, refused.code()),
            (StatusCode::BAD_REQUEST, "INVALID_MESSAGE"),
            "{body}: {}",
            refused.body
        );
        if let Some(field) = field {
            assert_eq!(refused.body["details"]["field"], field, "{body}: {}", refused.body);
        }
    }
    let deep = format!(
        r#"{{"channel":"chat","type":"x","payload":{}{}}}"#,
        "[".repeat(200),
        "]".repeat(200)
    );
    assert_eq!(publish(&deep).await.status, StatusCode::BAD_REQUEST);
    let large = json!({"channel": "chat", "type": "x", "payload": "x".repeat(1_100)}).to_string();
    let too_large = publish(&large).await;
    assert_eq!(
        (too_large.status, too_large.code()),
        (StatusCode::PAYLOAD_TOO_LARGE, "PAYLOAD_TOO_LARGE")
    );
    let huge = format!("{{\"channel\":\"{}\"}}", "x".repeat(200_000));
    assert_eq!(publish(&huge).await.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(publish(r#"{"channel":"nowhere:1","type":"x"}"#).await.code(), "CHANNEL_NOT_FOUND");
    assert_eq!(publish(r#"{"channel":"chat","type":"pong"}"#).await.code(), "FORBIDDEN");
    let fine = publish(r#"{"channel":"chat","type":"x","unknown":{"deep":[1]}}"#).await;
    assert_eq!(fine.status, StatusCode::OK, "{}", fine.body);
    let form = Request::post("/api/realtime/publish")
        .header("x-api-key", ADMIN)
        .header("content-type", "text/plain");
    let refused = rest.send(form.body(Body::from("{}")).expect("ok")).await;
    assert_eq!(
        (refused.status, refused.code()),
        (StatusCode::UNSUPPORTED_MEDIA_TYPE, "UNSUPPORTED_MEDIA_TYPE")
    );
    rest.stop().await;
}

#[tokio::test]
async fn a_batch_keeps_order_and_judges_each_message_alone() {
    let rest = Rest::start(&[]).await;
    let messages = json!({"messages": [
        {"channel": "chat", "type": "x", "payload": 1}, {"channel": "nowhere:1", "type": "x"}, {"type": "x"}, 5,
        {"channel": "chat", "type": "x", "payload": 2},
    ]});
    let answer = rest.post("/publish/batch", &messages).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    let results = answer.body["results"].as_array().expect("results");
    assert_eq!((&results[0]["offset"], &results[4]["offset"]), (&json!(1), &json!(2)));
    assert_eq!(
        (&results[1]["code"], &results[2]["code"]),
        (&json!("CHANNEL_NOT_FOUND"), &json!("INVALID_MESSAGE"))
    );
    assert_eq!(results[3]["code"], "INVALID_MESSAGE");
    let many = json!({"messages": vec![json!({"channel": "chat", "type": "x"}); 1_001]});
    assert_eq!(rest.post("/publish/batch", &many).await.status, StatusCode::BAD_REQUEST);
    assert_eq!(rest.post("/publish/batch", &json!({})).await.status, StatusCode::BAD_REQUEST);
    rest.stop().await;
}

#[tokio::test]
async fn a_channel_over_its_rate_is_refused_with_the_time_to_wait() {
    let rest = Rest::start(&[("limits.publishes_per_second_per_channel", "2")]).await;
    let message = json!({"channel": "chat", "type": "x"});
    rest.post("/publish", &message).await;
    let second = rest.post("/publish", &message).await;
    assert_eq!(second.headers["x-ratelimit-remaining"], "0");
    let refused = rest.post("/publish", &message).await;
    assert_eq!((refused.status, refused.code()), (StatusCode::TOO_MANY_REQUESTS, "RATE_LIMITED"));
    assert!(
        refused.body["details"]["retry_after_ms"]
            .as_u64()
            .is_some_and(|ms| (1..=1_000).contains(&ms))
    );
    assert_eq!(refused.headers["retry-after"], "1");
    assert_eq!(refused.headers["x-ratelimit-limit"], "2");
    rest.stop().await;
}

#[tokio::test]
async fn an_entity_event_has_one_id_on_both_channels() {
    let rest = Rest::start(&[]).await;
    let body = json!({"action": "updated", "data": {"title": "T"}, "changes": ["title"]});
    let answer = rest.post("/entities/Task/a%2Fb%20c/events", &body).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    assert_eq!(answer.body["channels"][0]["channel"], "entity:Task:a/b%20c");
    assert_eq!(answer.body["channels"][1]["channel"], "entity:Task");
    for channel in ["entity:Task:a%2Fb%2520c", "entity:Task"] {
        let history = rest.get(&format!("/channels/{channel}/history")).await;
        let event = &history.body["messages"][0];
        assert_eq!(
            (&event["id"], &event["type"]),
            (&answer.body["id"], &json!("entity:updated")),
            "{}",
            history.body
        );
        assert_eq!(event["meta"], json!({"changes": ["title"]}));
    }
    let deleted = rest.post("/entities/Task/7/events", &json!({"action": "deleted"})).await;
    assert_eq!(deleted.status, StatusCode::OK);
    let history = rest.get("/channels/entity:Task:7/history").await;
    assert_eq!(history.body["messages"][0]["payload"], json!({"id": "7"}));
    assert_eq!(
        rest.post("/entities/Task/7/events", &json!({"action": "moved", "data": 1})).await.status,
        StatusCode::BAD_REQUEST
    );
    assert_eq!(
        rest.post("/entities/Task/7/events", &json!({"action": "created"})).await.status,
        StatusCode::BAD_REQUEST
    );
    rest.stop().await;
}
