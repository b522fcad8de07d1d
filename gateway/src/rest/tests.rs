//! REST from outside: one node with the embedded broker, calls through the client port's router.

mod backend;
mod document;
mod streams;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::app::{App, client_routes};
use crate::config::Config;
use crate::node::Node;
use crate::{auth, clock};

const SECRET: &str = "0123456789abcdef0123456789abcdef-of-the-tests";
const KEYS: &str = r#"{"admin":{"key":"admin-key-0123456789abcdef0123456789","scopes":["realtime:admin"]},
    "reader":{"key":"reader-key-0123456789abcdef012345678","scopes":["realtime:read"]}}"#;
const ADMIN: &str = "admin-key-0123456789abcdef0123456789";
const READER: &str = "reader-key-0123456789abcdef012345678";

/// A running node and its routes.
struct Rest {
    node: Arc<Node>,
    router: Router,
    shutdown: CancellationToken,
    running: tokio::task::JoinHandle<()>,
}

struct Answer {
    status: StatusCode,
    headers: http::HeaderMap,
    body: Value,
}

impl Answer {
    fn code(&self) -> &str {
        self.body["code"].as_str().unwrap_or_default()
    }
}

/// Settings of every node of the tests, and then these.
fn fixed<'a>(settings: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let fixed = [
        ("server.listen", "127.0.0.1:0"),
        ("operator.listen", "127.0.0.1:0"),
        ("auth.jwt.secret", SECRET),
        ("auth.api_keys", KEYS),
        ("drain.period", "0s"),
        ("drain.grace", "0s"),
    ];
    fixed.into_iter().chain(settings.iter().copied()).collect()
}

impl Rest {
    async fn start(settings: &[(&str, &str)]) -> Self {
        let config = Config::development(&fixed(settings)).expect("the settings are good");
        let app = App::bind(config).await.expect("loopback ports are free");
        Self::run(app)
    }

    fn run(app: App) -> Self {
        let node = app.node();
        let shutdown = CancellationToken::new();
        let hurry = shutdown.clone();
        let running = tokio::spawn(app.run(shutdown.clone().cancelled_owned(), hurry));
        Self { router: client_routes(&node), node, shutdown, running }
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.running.await.expect("the node ends");
    }

    fn token(&self, user: &str, scope: Option<&str>) -> String {
        let token = auth::NewToken {
            user: user.to_owned(),
            name: None,
            scope: scope.map(str::to_owned),
            channels: None,
            ttl: std::time::Duration::from_secs(600),
        };
        auth::mint(&self.node.config.load().auth.jwt, None, &token, clock::unix_ms() / 1_000)
            .expect("minted")
    }

    async fn send(&self, request: Request) -> Answer {
        let response = self.router.clone().oneshot(request).await.expect("infallible");
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.expect("a body").to_bytes();
        let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        Answer { status: parts.status, headers: parts.headers, body }
    }

    async fn call(&self, method: Method, path: &str, key: &str, body: Option<&str>) -> Answer {
        let credential = if key.contains('.') {
            ("authorization", format!("Bearer {key}"))
        } else {
            ("x-api-key", key.to_owned())
        };
        let request = Request::builder()
            .method(method)
            .uri(format!("/api/realtime{path}"))
            .header(credential.0, credential.1)
            .header("content-type", "application/json")
            .body(body.map_or_else(Body::empty, |body| Body::from(body.to_owned())));
        self.send(request.expect("a request")).await
    }

    async fn post(&self, path: &str, body: &Value) -> Answer {
        self.call(Method::POST, path, ADMIN, Some(&body.to_string())).await
    }

    async fn get(&self, path: &str) -> Answer {
        self.call(Method::GET, path, ADMIN, None).await
    }
}

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

#[tokio::test]
async fn connections_are_listed_reached_and_closed() {
    let rest = Rest::start(&[]).await;
    let token = rest.token("alice", None);
    let open = async || {
        let request = Request::get(format!("/api/realtime/events?token={token}&channel=chat"))
            .body(Body::empty())
            .expect("ok");
        let response = rest.router.clone().oneshot(request).await.expect("infallible");
        assert_eq!(response.status(), StatusCode::OK);
        response.into_body()
    };
    let (mut one, mut two) = (open().await, open().await);
    // The stream's welcome says that it is subscribed.
    for stream in [&mut one, &mut two] {
        read_until(stream, "event: subscribed").await;
    }
    let first = rest.get("/connections?limit=1&user_id=alice&transport=sse&channel=chat").await;
    let id = first.body["connections"][0]["id"].as_str().expect("a connection").to_owned();
    assert_eq!(first.body["connections"][0]["user_id"], "alice");
    let next = first.body["next"].as_str().expect("another page");
    let second = rest.get(&format!("/connections?limit=1&cursor={next}")).await;
    assert_ne!(second.body["connections"][0]["id"], id.as_str());
    assert_eq!(second.body["next"], Value::Null);
    assert_eq!(rest.get("/connections?cursor=%21").await.status, StatusCode::BAD_REQUEST);
    assert_eq!(rest.get("/connections?limit=0").await.status, StatusCode::BAD_REQUEST);
    assert_eq!(rest.get(&format!("/connections/{id}")).await.body["transport"], "sse");
    let channel = rest.get("/channels/chat").await;
    assert_eq!(channel.body["subscribers"], 2);
    let listed = rest.get("/channels?prefix=ch").await;
    assert_eq!(
        listed.body,
        json!({"channels": [{"channel": "chat", "subscribers": 2}], "next": null})
    );
    let sent = rest
        .post(&format!("/connections/{id}/messages"), &json!({"type": "hello", "payload": "you"}))
        .await;
    assert_eq!(sent.body, json!({"delivered": true}));
    assert_eq!(
        rest.post("/connections/nobody/messages", &json!({"type": "hello"})).await.status,
        StatusCode::NOT_FOUND
    );
    assert_eq!(
        rest.post("/broadcast", &json!({"type": "all"})).await.body,
        json!({"recipients": 2})
    );
    let but_alice = json!({"type": "all", "exclude": {"users": ["alice"]}});
    assert_eq!(rest.post("/broadcast", &but_alice).await.body, json!({"recipients": 0}));
    let event = json!({"event": "update", "data": "{\"a\":1}", "priority": "high", "retry": 3000, "comment": "c", "user_id": "alice"});
    let created = rest.post("/events", &event).await;
    assert_eq!(created.status, StatusCode::CREATED);
    assert_eq!(
        (&created.body["data"], &created.body["priority"]),
        (&json!("{\"a\":1}"), &json!("high"))
    );
    read_until(&mut one, "data: {\"a\":1}").await;
    let some = json!({"event": "update", "data": "x", "recipients": [id, id, "connection-123"], "exclude": ["connection-789"]});
    assert_eq!(rest.post("/events/broadcast", &some).await.body, json!(1));
    assert_eq!(
        rest.post("/events", &json!({"data": {"a": 1}})).await.status,
        StatusCode::BAD_REQUEST
    );
    let stats = rest.get("/stats").await;
    assert_eq!(stats.body["totals"]["connections"], 2, "{}", stats.body);
    assert_eq!(stats.body["redis"]["state"], "up");
    assert_eq!(
        rest.call(Method::DELETE, &format!("/connections/{id}"), ADMIN, None).await.status,
        StatusCode::NO_CONTENT
    );
    let gone =
        rest.call(Method::DELETE, "/connections/000000000000-0000000000000000", ADMIN, None).await;
    assert_eq!(gone.status, StatusCode::NOT_FOUND);
    let rest_of_them = rest.call(Method::DELETE, "/users/alice/connections", ADMIN, None).await;
    assert!(
        rest_of_them.body["disconnected"].as_u64().is_some_and(|closed| closed >= 1),
        "{}",
        rest_of_them.body
    );
    rest.stop().await;
}

/// Reads an event stream until its text holds `wanted`.
async fn read_until(stream: &mut Body, wanted: &str) {
    let mut text = String::new();
    while !text.contains(wanted) {
        let frame = tokio::time::timeout(std::time::Duration::from_secs(5), stream.frame()).await;
        let frame = frame
            .unwrap_or_else(|_| panic!("no {wanted:?} in {text:?}"))
            .expect("the stream lives")
            .expect("no error");
        text.push_str(&String::from_utf8_lossy(frame.data_ref().expect("data")));
    }
}

#[tokio::test]
async fn unknown_paths_and_methods_have_the_error_body() {
    let rest = Rest::start(&[]).await;
    let unknown = rest.get("/nothing").await;
    assert_eq!((unknown.status, unknown.code()), (StatusCode::NOT_FOUND, "NOT_FOUND"));
    let wrong = rest.call(Method::DELETE, "/publish", ADMIN, None).await;
    assert_eq!(
        (wrong.status, wrong.code()),
        (StatusCode::METHOD_NOT_ALLOWED, "METHOD_NOT_ALLOWED")
    );
    assert_eq!(wrong.headers["allow"], "POST");
    let events = rest.call(Method::DELETE, "/events", ADMIN, None).await;
    let allow = events.headers["allow"].to_str().expect("text").to_owned();
    assert!(allow.contains("GET") && allow.contains("POST"), "{allow}");
    let document = rest.get("/openapi.json").await;
    assert!(document.body["openapi"].as_str().is_some_and(|version| version.starts_with("3.1")));
    rest.stop().await;
}
