//! Lifecycle events by webhook, over two nodes.

use super::*;

over_both! {
    every_event_of_two_nodes_arrives_once_in_order
    an_entry_is_sent_again_under_its_id_until_it_is_taken_or_a_dead_letter
    another_node_sends_when_the_sender_goes
    messages_of_the_stream_go_to_the_inbound_webhook
}

const ALL: [(&str, &str); 8] = [
    ("events.channel_occupied", "true"),
    ("events.channel_vacated", "true"),
    ("events.presence_join", "true"),
    ("events.presence_leave", "true"),
    ("events.user_online", "true"),
    ("events.user_offline", "true"),
    ("events.connection_opened", "true"),
    ("events.connection_closed", "true"),
];

async fn start(cluster: &Cluster, receiver: &Receiver, more: &[(&str, &str)]) -> Running {
    let url = receiver.url();
    let hook = [("events.webhook.url", url.as_str()), ("events.webhook.secret", HOOK_SECRET)];
    let settings: Vec<_> = hook.into_iter().chain(ALL).chain(more.iter().copied()).collect();
    Running::start(cluster, &settings).await
}

fn kinds(received: &[Received]) -> Vec<String> {
    received.iter().map(|call| call.body["type"].as_str().unwrap_or("?").to_owned()).collect()
}

fn sequences(received: &[Received]) -> Vec<u64> {
    received.iter().filter_map(|call| call.body["sequence"].as_u64()).collect()
}

async fn every_event_of_two_nodes_arrives_once_in_order(cluster: &Cluster) {
    let receiver = Receiver::start(json!({})).await;
    let one = start(cluster, &receiver, &[]).await;
    let two = start(cluster, &receiver, &[]).await;
    let (mut ada, mut bob) = (one.connect("ada").await, two.connect("ada").await);
    for client in [&mut ada, &mut bob] {
        let subscribe = json!({"type": "subscribe", "channel": "chat"});
        assert_eq!(client.request(subscribe).await["type"], "ack");
        let join = json!({"type": "presence:join", "channel": "presence:doc"});
        assert_eq!(client.request(join).await["type"], "ack");
    }
    // online, two opened, two channels occupied, one join.
    let mut began = kinds(&receiver.until(6).await);
    began.sort();
    assert_eq!(
        began,
        [
            "channel_occupied",
            "channel_occupied",
            "connection_opened",
            "connection_opened",
            "presence_join",
            "user_online"
        ]
    );
    for mut client in [ada, bob] {
        client.say(json!({"type": "disconnect"})).await;
    }
    // Closed twice, left, two vacated, offline.
    let received = receiver.until(12).await;
    let mut ended = kinds(&received[6..]);
    ended.sort();
    assert_eq!(
        ended,
        [
            "channel_vacated",
            "channel_vacated",
            "connection_closed",
            "connection_closed",
            "presence_leave",
            "user_offline"
        ]
    );
    assert_eq!(sequences(&received), (1..=12).collect::<Vec<_>>());
    let closed =
        received.iter().find(|call| call.body["type"] == "connection_closed").expect("closed");
    let data = &closed.body["data"];
    assert_eq!(
        (&data["user_id"], &data["transport"], &data["reason"]),
        (&json!("ada"), &json!("websocket"), &json!("closed"))
    );
    assert!(data["duration_ms"].is_u64() && data["node"].is_string(), "{data}");
    one.stop().await;
    two.stop().await;
}

async fn an_entry_is_sent_again_under_its_id_until_it_is_taken_or_a_dead_letter(cluster: &Cluster) {
    let receiver = Receiver::start(json!({})).await;
    receiver.answers([
        (500, json!({}), NOW),
        (503, json!({}), NOW),
        (200, json!({}), NOW),
        (410, json!({}), NOW),
        (410, json!({}), NOW),
        (410, json!({}), NOW),
        (200, json!({}), NOW),
    ]);
    let one = start(cluster, &receiver, &[("events.attempts", "3")]).await;
    let _ada = one.connect("ada").await;
    // Online and opened, in either order: the first is taken at the third attempt, the second never.
    let received = receiver.until(6).await;
    let ids: Vec<&str> = received.iter().map(|call| call.id.as_str()).collect();
    assert!(ids[0].starts_with("evt_"), "{ids:?}");
    assert_eq!((ids[0], ids[0], ids[3], ids[3]), (ids[1], ids[2], ids[4], ids[5]), "{ids:?}");
    assert_ne!(ids[0], ids[3]);
    assert_eq!(sequences(&received), [1, 1, 1, 2, 2, 2]);
    let pauses: Vec<Duration> = received.windows(2).map(|two| two[1].at - two[0].at).collect();
    assert!(
        pauses[0] >= Duration::from_millis(250) && pauses[1] >= Duration::from_millis(500),
        "{pauses:?}"
    );
    let dead = async {
        loop {
            let dead = one.node.broker.dead_letters(10).await.expect("read");
            if let [(letter, reason)] = dead.as_slice() {
                return (letter.sequence, reason.clone());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let (sequence, reason) = tokio::time::timeout(PATIENCE, dead).await.expect("a dead letter");
    assert_eq!(sequence, Some(2));
    assert!(reason.contains("3 attempts") && reason.contains("410"), "{reason}");
    // The next one follows.
    let _bob = one.connect("bob").await;
    assert_eq!(sequences(&receiver.until(7).await)[6], 3);
    one.stop().await;
}

async fn another_node_sends_when_the_sender_goes(cluster: &Cluster) {
    let receiver = Receiver::start(json!({})).await;
    let one = start(cluster, &receiver, &[]).await;
    let _ada = one.connect("ada").await;
    receiver.until(2).await;
    let two = start(cluster, &receiver, &[]).await;
    one.stop().await;
    let _bob = two.connect("bob").await;
    // The first node's connection closed, its user goes offline; bob's online and opened. What the first node had sent and
    // not acknowledged may come again, under its id.
    let mut calls = 6;
    let taken = loop {
        let mut received = receiver.until(calls).await;
        received.dedup_by(|later, earlier| later.id == earlier.id);
        if received.len() == 6 {
            break received;
        }
        calls += 1;
    };
    assert_eq!(sequences(&taken), (1..=6).collect::<Vec<_>>());
    two.stop().await;
}

async fn messages_of_the_stream_go_to_the_inbound_webhook(cluster: &Cluster) {
    let (events, messages) = (Receiver::start(json!({})).await, Receiver::start(json!({})).await);
    let url = messages.url();
    let more = [
        ("inbound.webhook.url", url.as_str()),
        ("inbound.webhook.secret", HOOK_SECRET),
        ("inbound.types", r#"["order"]"#),
    ];
    let one = start(cluster, &events, &more).await;
    let mut ada = one.connect("ada").await;
    let order = json!({"type": "order", "channel": "chat", "id": "o-1", "payload": {"n": 1}});
    assert_eq!(ada.request(order).await["type"], "ack");
    let copy = messages.until(1).await.remove(0);
    assert!(copy.id.starts_with("evt_"), "{copy:?}");
    let body = copy.body;
    assert_eq!(
        (&body["type"], &body["channel"], &body["payload"], &body["sequence"]),
        (&json!("order"), &json!("chat"), &json!({"n": 1}), &Value::Null)
    );
    assert!(events.until(2).await.iter().all(|call| call.body["kind"] == "event"));
    one.stop().await;
}
