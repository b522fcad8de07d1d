//! Calls to the application, by webhook and by stream.

use super::*;
use carillon_broker_client::InboundConsumer;

fn hooked(receiver: &Receiver) -> Vec<(String, String)> {
    vec![
        ("inbound.webhook.url".to_owned(), receiver.url()),
        ("inbound.webhook.secret".to_owned(), HOOK_SECRET.to_owned()),
    ]
}

async fn start(settings: &[(String, String)], more: &[(&str, &str)]) -> Running {
    let settings: Vec<(&str, &str)> = settings
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .chain(more.iter().copied())
        .collect();
    Running::start(&Cluster::memory(), &settings).await
}

#[tokio::test]
async fn a_call_is_signed_and_its_answer_is_the_acks_data() {
    let receiver = Receiver::start(json!({"order": 7, "items": [1.5]})).await;
    let one = start(&hooked(&receiver), &[]).await;
    let mut ada = one.connect("ada").await;
    let call = json!({"type": "cart:add", "id": "c-1", "payload": {"sku": "a", "n": 1.0}});
    let ack = ada.request(call).await;
    assert_eq!(ack["type"], "ack", "{ack}");
    assert_eq!(ack["payload"]["status"], "success");
    assert_eq!(ack["payload"]["data"], json!({"order": 7, "items": [1.5]}));
    let received = receiver.until(1).await.remove(0);
    assert!(received.id.starts_with("msg_"), "{received:?}");
    let body = &received.body;
    assert_eq!(
        (&body["kind"], &body["type"], &body["id"], &body["user_id"]),
        (&json!("message"), &json!("cart:add"), &json!("c-1"), &json!("ada"))
    );
    assert_eq!(
        (&body["payload"], &body["channel"]),
        (&json!({"sku": "a", "n": 1.0}), &Value::Null)
    );
    assert!(body["connection_id"].as_str().is_some_and(|id| one.node.hub.find(id).is_some()));
    // An empty or plain answer says yes; `requestId` alone is answered too.
    receiver.answers([(204, Value::Null, NOW)]);
    ada.say(json!({"type": "cart:clear", "requestId": "r1"})).await;
    let ack = ada.until("ack").await;
    assert_eq!((&ack["requestId"], &ack["payload"]["data"]), (&json!("r1"), &json!({})), "{ack}");
    one.stop().await;
}

#[tokio::test]
async fn a_slow_application_delays_later_calls_of_the_connection_and_nothing_else() {
    let receiver = Receiver::start(json!({})).await;
    receiver.answers([
        (200, json!({"n": 1}), HELD),
        (200, json!({"n": 2}), NOW),
        (200, json!({"n": 3}), NOW),
    ]);
    let one = start(&hooked(&receiver), &[("inbound.webhook.timeout", "30s")]).await;
    let (mut ada, mut bob) = (one.connect("ada").await, one.connect("bob").await);
    let first = ada.begin(json!({"type": "slow"})).await;
    let second = ada.begin(json!({"type": "quick"})).await;
    receiver.until(1).await;
    // Everything else of the same connection goes on, and other connections' calls do.
    ada.say(json!({"type": "ping"})).await;
    let pong = ada.next().await;
    assert_eq!(pong["type"], "pong", "{pong}");
    let published = ada.request(json!({"type": "message", "channel": "chat", "payload": 1})).await;
    assert_eq!(published["type"], "ack", "{published}");
    let of_bob = bob.request(json!({"type": "bobs"})).await;
    assert_eq!(of_bob["payload"]["data"], json!({"n": 2}));
    assert_eq!(receiver.count(), 2, "ada's second call waits for her first");
    receiver.release();
    let answer = ada.answer(&first).await;
    assert_eq!(answer["payload"]["data"], json!({"n": 1}));
    assert_eq!(ada.answer(&second).await["payload"]["data"], json!({"n": 3}));
    let order: Vec<_> = receiver
        .received()
        .iter()
        .map(|call| call.body["type"].as_str().map(str::to_owned))
        .collect();
    assert_eq!(order, ["slow", "bobs", "quick"].map(|kind| Some(kind.to_owned())));
    one.stop().await;
}

#[tokio::test]
async fn an_application_that_fails_is_unavailable_and_the_connection_lives_on() {
    let receiver = Receiver::start(json!({})).await;
    let one = start(&hooked(&receiver), &[("inbound.webhook.timeout", "2s")]).await;
    let mut ada = one.connect("ada").await;
    receiver.answers([(500, json!({"data": "not this"}), NOW)]);
    let error = ada.request(json!({"type": "x"})).await;
    assert_eq!(
        (&error["type"], &error["payload"]["code"]),
        (&json!("error"), &json!("UNAVAILABLE"))
    );
    assert_eq!(error["payload"]["details"]["status"], 500);
    receiver.answers([(302, json!({}), NOW)]);
    assert_eq!(ada.request(json!({"type": "x"})).await["payload"]["code"], "UNAVAILABLE");
    receiver.answers([(200, json!({}), Duration::from_secs(20))]);
    let began = tokio::time::Instant::now();
    let calls = [ada.begin(json!({"type": "x"})).await, ada.begin(json!({"type": "y"})).await];
    for call in calls {
        assert_eq!(ada.answer(&call).await["payload"]["code"], "UNAVAILABLE");
    }
    // The second waited for the first; its time ran all the same.
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    receiver.answers([(200, json!({"back": true}), NOW)]);
    assert_eq!(ada.request(json!({"type": "x"})).await["payload"]["data"], json!({"back": true}));
    one.stop().await;
}

#[tokio::test]
async fn calls_under_way_are_bounded() {
    let receiver = Receiver::start(json!({})).await;
    receiver.answers([(200, json!({}), HELD), (200, json!({}), NOW)]);
    let more = [("limits.messages_per_second", "0"), ("inbound.webhook.timeout", "30s")];
    let one = start(&hooked(&receiver), &more).await;
    let mut ada = one.connect("ada").await;
    for number in 0..70 {
        ada.begin(json!({"type": "x", "payload": number})).await;
    }
    let (mut done, mut refused) = (0, 0);
    while done + refused < 70 {
        let answer = ada.next().await;
        match answer["payload"]["code"].as_str() {
            Some("RATE_LIMITED") => {
                assert!(answer["payload"]["details"]["retry_after_ms"].is_number(), "{answer}");
                refused += 1;
                if refused == 6 {
                    receiver.release();
                }
            }
            None if answer["type"] == "ack" => done += 1,
            _ => panic!("{answer}"),
        }
    }
    assert_eq!((done, refused), (64, 6));
    assert_eq!(receiver.inner.busy.lock().1, 1, "one at a time");
    let numbers: Vec<_> =
        receiver.received().iter().map(|call| call.body["payload"].as_u64()).collect();
    assert_eq!(numbers, (0..64).map(Some).collect::<Vec<_>>());
    one.stop().await;
}

#[tokio::test]
async fn a_call_is_made_though_its_connection_went_and_a_polls_is_answered_with_it() {
    let receiver = Receiver::start(json!({"ok": 1})).await;
    receiver.answers([(200, json!({}), Duration::from_millis(300)), (200, json!({"ok": 1}), NOW)]);
    let one = start(&hooked(&receiver), &[]).await;
    let mut ada = one.connect("ada").await;
    ada.say(json!({"type": "bye:1"})).await;
    ada.say(json!({"type": "bye:2"})).await;
    ada.say(json!({"type": "disconnect"})).await;
    receiver.until(2).await;
    let token = one.token("bob");
    let poll = json!({"user_id": "bob", "timeout": 0, "messages": [
        {"type": "cart:add", "ack_id": "p1"}, {"type": "cart:add", "ack_id": "p2"}]});
    let (status, answer) = one.call("POST", "/api/v1/realtime/poll", &token, Some(&poll)).await;
    assert_eq!(status, 200, "{answer}");
    let acks: Vec<_> = answer["replies"].as_array().expect("replies").iter().collect();
    assert_eq!(acks.len(), 2, "{answer}");
    assert!(acks.iter().all(|ack| ack["payload"]["data"] == json!({"ok": 1})), "{answer}");
    one.stop().await;
}

#[tokio::test]
async fn without_a_webhook_calls_and_copies_are_queued_on_the_stream() {
    let one = start(&[], &[("inbound.types", r#"["order"]"#)]).await;
    let mut ada = one.connect("ada").await;
    let ack = ada.request(json!({"type": "cart:add", "payload": {"sku": "a"}})).await;
    assert_eq!(ack["payload"]["data"]["status"], "queued", "{ack}");
    let publish = |kind: &str, id: &str| json!({"type": kind, "channel": "chat", "id": id, "payload": {"n": id}});
    assert_eq!(ada.request(publish("message", "m1")).await["type"], "ack");
    assert_eq!(ada.request(publish("order", "m2")).await["type"], "ack");
    let token = one.token("bob");
    let (status, _) = one.call("POST", "/publish", &token, Some(&publish("order", "m3"))).await;
    assert_eq!(status, 200);
    let batch = json!({"messages": [publish("order", "m4"), publish("message", "m5")]});
    let (status, _) = one.call("POST", "/publish/batch", &token, Some(&batch)).await;
    assert_eq!(status, 200);
    // A backend knows what it published.
    assert_eq!(one.post("/publish", publish("order", "m6")).await.0, 200);
    let mut consumer = InboundConsumer::new(one.node.broker.clone(), "shop", "shop-1");
    let mut queued = Vec::new();
    for _ in 0..4 {
        let message = consumer.next().await.expect("a message");
        let body: Value = message.read().expect("JSON");
        queued.push((
            message.kind.clone(),
            body["user_id"].clone(),
            body["channel"].clone(),
            body["id"].clone(),
        ));
        if queued.len() == 1 {
            assert_eq!(ack["payload"]["data"]["id"], message.id);
        }
        consumer.ack(&message.id).await.expect("acknowledged");
    }
    let order = |user: &str, id: &str| ("order".to_owned(), json!(user), json!("chat"), json!(id));
    assert_eq!(
        queued,
        [
            ("cart:add".to_owned(), json!("ada"), Value::Null, Value::Null),
            order("ada", "m2"),
            order("bob", "m3"),
            order("bob", "m4"),
        ]
    );
    let more = tokio::time::timeout(Duration::from_millis(500), consumer.next()).await;
    assert!(more.is_err(), "{more:?}");
    one.stop().await;
}
