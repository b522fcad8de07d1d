//! The rule `webhook`: who may is the application's to say.

use super::*;

const NAMESPACES: &str = r#"[
    {"pattern": "room:{id}", "subscribe": ["webhook"], "publish": ["webhook"], "history": {"size": 10, "age": "1h"}},
    {"pattern": "presence:{id}", "subscribe": ["authenticated"], "presence": ["webhook"]},
    {"pattern": "user:{id}", "subscribe": ["self"], "history": {"size": 10, "age": "1h"}},
    {"pattern": "notifications", "subscribe": ["self"]}]"#;

async fn start(receiver: &Receiver) -> Running {
    start_with(receiver, "30s").await
}

async fn start_with(receiver: &Receiver, timeout: &str) -> Running {
    let url = receiver.url();
    let settings = [
        ("authorize.webhook.url", url.as_str()),
        ("authorize.webhook.secret", HOOK_SECRET),
        ("authorize.webhook.timeout", timeout),
        ("namespaces", NAMESPACES),
    ];
    Running::start(&Cluster::memory(), &settings).await
}

fn yes(ttl: Option<f64>) -> Answer {
    let answer = ttl.map_or(json!({"allow": true}), |ttl| json!({"allow": true, "ttl": ttl}));
    (200, answer, NOW)
}

fn no() -> Answer {
    (200, json!({"allow": false}), NOW)
}

#[tokio::test]
async fn the_application_is_asked_about_subscribing_publishing_and_presence() {
    let receiver = Receiver::start(json!({"allow": true})).await;
    let one = start(&receiver).await;
    let mut ada = one.connect("ada").await;
    let subscribe = json!({"type": "subscribe", "channel": "room:1"});
    assert_eq!(ada.request(subscribe.clone()).await["type"], "ack");
    let asked = receiver.until(1).await.remove(0).body;
    assert_eq!(
        (&asked["user_id"], &asked["channel"], &asked["action"]),
        (&json!("ada"), &json!("room:1"), &json!("subscribe"))
    );
    assert!(asked["connection_id"].as_str().is_some_and(|id| one.node.hub.find(id).is_some()));
    assert_eq!((&asked["claims"]["sub"], &asked["claims"]["exp"].is_i64()), (&json!("ada"), &true));
    let publish = json!({"type": "message", "channel": "room:1", "payload": 1});
    assert_eq!(ada.request(publish.clone()).await["type"], "ack");
    let join = json!({"type": "presence:join", "channel": "presence:1"});
    assert_eq!(ada.request(join.clone()).await["type"], "ack");
    let actions: Vec<_> =
        receiver.received().iter().map(|asked| asked.body["action"].clone()).collect();
    assert_eq!(actions, ["subscribe", "publish", "presence"]);
    receiver.answers([no()]);
    let mut bob = one.connect("bob").await;
    for request in [subscribe, publish, join] {
        let error = bob.request(request.clone()).await;
        assert_eq!(error["payload"]["code"], "FORBIDDEN", "{request} gave {error}");
    }
    one.stop().await;
}

#[tokio::test]
async fn every_transport_and_rest_ask() {
    let receiver = Receiver::start(json!({"allow": false})).await;
    let one = start(&receiver).await;
    let token = one.token("ada");
    let publish = json!({"channel": "room:1", "type": "message", "payload": 1});
    let (status, refused) = one.call("POST", "/publish", &token, Some(&publish)).await;
    assert_eq!((status, &refused["code"]), (403, &json!("FORBIDDEN")));
    assert_eq!(receiver.until(1).await[0].body["connection_id"], Value::Null);
    let poll = "/api/v1/realtime/poll?user_id=ada&timeout=0&channels=room:1";
    let (_, answer) = one.call("GET", poll, &token, None).await;
    assert_eq!(answer["errors"][0]["code"], "FORBIDDEN", "{answer}");
    let mut refused = one.try_connect(&token, "&channel=room:1").await.expect("connected");
    assert_eq!(refused.until("error").await["payload"]["code"], "FORBIDDEN");
    receiver.answers([yes(Some(60.0))]);
    assert_eq!(one.call("POST", "/publish", &token, Some(&publish)).await.0, 200);
    let batch = json!({"messages": [publish, publish]});
    let (_, answers) = one.call("POST", "/publish/batch", &token, Some(&batch)).await;
    assert!(
        answers["results"]
            .as_array()
            .is_some_and(|all| all.iter().all(|one| one["offset"].is_u64())),
        "{answers}"
    );
    let (_, answer) = one.call("GET", poll, &token, None).await;
    assert_eq!(answer["errors"], Value::Null, "{answer}");
    let mut stream = TcpStream::connect(one.address).await.expect("connected");
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let request = format!(
        "GET /api/realtime/events?profile=social&channel=room:1 HTTP/1.1\r\nhost: t\r\nauthorization: Bearer {token}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.expect("sent");
    let (mut heard, mut bytes) = (String::new(), [0; 4096]);
    while !heard.contains("event: subscribed") {
        let read = tokio::time::timeout(PATIENCE, stream.read(&mut bytes)).await;
        let read = read.expect("in time").expect("readable");
        assert_ne!(read, 0, "{heard}");
        heard.push_str(&String::from_utf8_lossy(&bytes[..read]));
    }
    assert!(!heard.contains("FORBIDDEN"), "{heard}");
    one.stop().await;
}

#[tokio::test]
async fn an_answer_is_kept_for_its_time_and_the_same_question_is_asked_once() {
    let receiver = Receiver::start(json!({})).await;
    receiver.answers([(200, json!({"allow": true, "ttl": 60}), Duration::from_millis(300))]);
    let one = start(&receiver).await;
    let token = one.token("ada");
    let publish = json!({"channel": "room:1", "type": "message", "payload": 1});
    let calls = (0..20).map(|_| one.call("POST", "/publish", &token, Some(&publish)));
    for (status, body) in futures_util::future::join_all(calls).await {
        assert_eq!(status, 200, "{body}");
    }
    assert_eq!(receiver.count(), 1);
    // Another token, user, channel or action is another question.
    let other = json!({"channel": "room:2", "type": "message"});
    one.call("POST", "/publish", &token, Some(&other)).await;
    one.call("POST", "/publish", &one.token("bob"), Some(&publish)).await;
    assert_eq!(receiver.count(), 3);
    // Without a time an answer is for this once.
    receiver.answers([yes(None)]);
    let third = json!({"channel": "room:3", "type": "message"});
    for _ in 0..2 {
        assert_eq!(one.call("POST", "/publish", &token, Some(&third)).await.0, 200);
    }
    assert_eq!(receiver.count(), 5);
    one.stop().await;
}

#[tokio::test]
async fn what_was_allowed_for_a_time_is_asked_again_and_ends_when_it_is_over() {
    let receiver = Receiver::start(json!({})).await;
    receiver.answers([yes(Some(1.0)), yes(Some(1.0)), no()]);
    let one = start(&receiver).await;
    let mut ada = one.connect("ada").await;
    let subscribe = json!({"type": "subscribe", "channel": "room:1"});
    assert_eq!(ada.request(subscribe).await["type"], "ack");
    let error = ada.until("error").await;
    assert_eq!(
        (&error["channel"], &error["payload"]["code"]),
        (&json!("room:1"), &json!("FORBIDDEN")),
        "{error}"
    );
    let asked = receiver.received();
    assert_eq!(asked.len(), 3);
    for (before, after) in asked.iter().zip(&asked[1..]) {
        assert!(after.at - before.at >= Duration::from_millis(900), "not before the time is over");
    }
    assert!(one.node.hub.listeners("room:1").is_empty());
    // The connection lives on.
    ada.say(json!({"type": "ping"})).await;
    ada.until("pong").await;
    one.stop().await;
}

#[tokio::test]
async fn an_application_that_cannot_be_asked_says_no() {
    let receiver = Receiver::start(json!({})).await;
    let one = start_with(&receiver, "700ms").await;
    let mut ada = one.connect("ada").await;
    let mut room = 0;
    for answer in [
        (500, json!({"allow": true}), NOW),
        (200, json!("yes"), NOW),
        (200, json!({"allow": "true"}), NOW),
        (200, json!({"allow": true}), Duration::from_secs(20)),
    ] {
        room += 1;
        receiver.answers([answer.clone()]);
        let subscribe = json!({"type": "subscribe", "channel": format!("room:{room}")});
        let error = ada.request(subscribe).await;
        assert_eq!(error["payload"]["code"], "FORBIDDEN", "{answer:?} gave {error}");
    }
    receiver.answers([yes(Some(60.0))]);
    let wait = async {
        let again = json!({"type": "subscribe", "channel": "room:1"});
        while ada.request(again.clone()).await["type"] != "ack" {}
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("asked again after a second");
    one.stop().await;
}
