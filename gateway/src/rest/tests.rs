//! REST from outside: one node with the embedded broker, calls through the client port's router.

mod backend;
mod document;
mod publishing;
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
    for wrong in ["limit=0", "profile=nope", "user_id=%ff"] {
        let answer = rest.get(&format!("/connections?{wrong}")).await;
        assert_eq!(
            (answer.status, answer.code()),
            (StatusCode::BAD_REQUEST, "INVALID_MESSAGE"),
            "{wrong}"
        );
    }
    let name = rest.node.name.clone();
    for (filter, count) in [
        ("profile=uno", 2),
        ("profile=social", 0),
        ("node=elsewhere", 0),
        (&*format!("node={name}"), 2),
    ] {
        let found = rest.get(&format!("/connections?{filter}")).await.body;
        assert_eq!(found["connections"].as_array().map(Vec::len), Some(count), "{filter}");
    }
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
        let frame = tokio::time::timeout(std::time::Duration::from_secs(60), stream.frame()).await;
        let frame = frame
            .unwrap_or_else(|_| panic!("no {wanted:?} in {text:?}"))
            .expect("the stream lives")
            .expect("no error");
        text.push_str(&String::from_utf8_lossy(frame.data_ref().expect("data")));
    }
}

#[tokio::test]
async fn a_key_without_the_scope_is_refused_whatever_it_sends() {
    let rest = Rest::start(&[]).await;
    for (path, body) in
        [("/publish", "{}"), ("/publish/batch", r#"{"messages":[]}"#), ("/broadcast", "{")]
    {
        let answer = rest.call(Method::POST, path, READER, Some(body)).await;
        assert_eq!((answer.status, answer.code()), (StatusCode::FORBIDDEN, "FORBIDDEN"), "{path}");
    }
    rest.stop().await;
}

#[tokio::test]
async fn a_member_is_put_without_a_body_too() {
    let rest = Rest::start(&[]).await;
    let bare = |path: &str| {
        let request = Request::put(format!("/api/realtime{path}")).header("x-api-key", ADMIN);
        request.body(Body::empty()).expect("a request")
    };
    let put = rest.send(bare("/presence/room/ada")).await;
    assert_eq!((put.status, &put.body["id"]), (StatusCode::OK, &json!("ada")));
    assert_eq!(rest.get("/presence/room").await.body["count"], 1);
    let null = rest.call(Method::PUT, "/presence/room/ada", ADMIN, Some("null")).await;
    assert_eq!(null.status, StatusCode::OK);
    // What is sent is read as strictly as anywhere.
    let untyped = Request::put("/api/realtime/presence/room/ada").header("x-api-key", ADMIN);
    let untyped = rest.send(untyped.body(Body::from("{}")).expect("a request")).await;
    assert_eq!(untyped.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    rest.stop().await;
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
