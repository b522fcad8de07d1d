//! What is a user's between two polls: subscriptions and presence that messages asked for, channels without history,
//! being online; and that notifications which a poll brings are delivered.

use carillon_broker_client::{NewNotification, NotificationId, UserStatus};
use carillon_protocol::UserId;

use super::*;

impl Nodes {
    /// Posts as a user.
    async fn post(&self, index: usize, user: &str, body: &Value) -> Value {
        let mut body = body.clone();
        body["user_id"] = user.into();
        self.call(index, Method::POST, "", user, Some(&body)).await.good()
    }

    async fn present(&self, resource: &str) -> Vec<String> {
        let channel = ChannelName::new(resource).expect("a channel");
        let members = self.node(0).broker.members(&channel).await.expect("listed");
        members.into_iter().map(|member| member.id.as_str().to_owned()).collect()
    }

    async fn eventually_present(&self, resource: &str, expected: &[&str]) {
        let deadline = Instant::now() + PATIENCE;
        while self.present(resource).await != expected {
            assert!(Instant::now() < deadline, "{:?}", self.present(resource).await);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn status(&self, user: &str) -> UserStatus {
        let user = UserId::new(user).expect("a user");
        self.node(0).broker.presence_of(&[user]).await.expect("known").remove(0).status
    }
}

fn replies(answer: &Value) -> Vec<&Value> {
    answer["replies"].as_array().expect("replies").iter().collect()
}

#[tokio::test]
async fn what_a_message_subscribes_to_is_heard_by_the_polls_that_go_on() {
    let nodes = Nodes::start(2, FREE).await;
    nodes.publish(0, "room:old", "message", &json!(0)).await;
    nodes.publish(0, "room:old", "message", &json!(1)).await;
    let subscribe = |channel: &str, payload: Value| json!({"type": "subscribe", "channel": channel, "ack_id": channel, "payload": payload});
    let body = json!({"timeout": 0, "messages": [
        subscribe("chat", json!(null)),
        subscribe("room:old", json!({"limit": 1})),
        subscribe("room:even", json!({"filter": {"even": true}})),
        subscribe("user:bob", json!(null)),
        {"type": "unsubscribe", "channel": "notifications", "ack_id": "own"},
    ]});
    let first = nodes.post(0, "ann", &body).await;
    let kinds: Vec<&str> =
        replies(&first).iter().map(|reply| reply["type"].as_str().unwrap_or_default()).collect();
    assert_eq!(
        kinds,
        ["subscribed", "ack", "subscribed", "ack", "subscribed", "ack", "error", "error"]
    );
    assert_eq!(replies(&first)[0]["payload"]["reason"], json!("fresh"));
    assert_eq!(replies(&first)[2]["payload"]["count"], json!(1));
    assert_eq!(payloads(&first), [&json!(1)], "the last one of room:old");
    for (channel, payload) in [
        ("chat", json!("hi")),
        ("room:even", json!({"even": false})),
        ("room:even", json!({"even": true})),
    ] {
        nodes.publish(1, channel, "message", &payload).await;
    }
    let next = nodes.poll(1, &format!("last_poll_id={}", last_id(&first))).await;
    assert_eq!(payloads(&next), [&json!("hi"), &json!({"even": true})]);
    assert_eq!(
        next["events"],
        nodes.poll(0, &format!("last_poll_id={}", last_id(&first))).await["events"]
    );

    // A position, another node, and unsubscribed again.
    let heard = &events(&next)[0];
    let since = json!({"offset": 0, "epoch": heard["epoch"]});
    let body = json!({"last_poll_id": last_id(&next), "timeout": 0, "messages": [
        subscribe("chat", json!({"since": since})),
        subscribe("room:old", json!({"since": {"offset": 9, "epoch": "other"}})),
        {"type": "unsubscribe", "channel": "room:even"},
    ]});
    let again = nodes.post(0, "ann", &body).await;
    assert_eq!(replies(&again)[0]["payload"]["recovered"], json!(true), "{again}");
    assert_eq!(replies(&again)[2]["payload"]["recovered"], json!(false), "{again}");
    assert_eq!(payloads(&again), [&json!("hi")]);
    nodes.publish(1, "room:even", "message", &json!({"even": true})).await;
    nodes.publish(1, "chat", "message", &json!("end")).await;
    let last = nodes.poll(1, &format!("last_poll_id={}", last_id(&again))).await;
    assert_eq!(payloads(&last), [&json!("end")]);
    nodes.stop().await;
}

#[tokio::test]
async fn a_subscription_that_comes_with_a_repeated_question_holds_from_its_answer_on() {
    let nodes = Nodes::start(1, FREE).await;
    let first = nodes.poll(0, "timeout=0").await;
    nodes.publish(0, "user:ann", "message", &json!("lost")).await;
    let lost = nodes.poll(0, &format!("last_poll_id={}", last_id(&first))).await;
    let body = json!({"last_poll_id": last_id(&first), "messages": [{"type": "subscribe", "channel": "chat"}]});
    let repeated = nodes.post(0, "ann", &body).await;
    assert_eq!(repeated["events"], lost["events"]);
    nodes.publish(0, "chat", "message", &json!("hi")).await;
    let next = nodes.poll(0, &format!("last_poll_id={}", last_id(&repeated))).await;
    assert_eq!(payloads(&next), [&json!("hi")]);
    nodes.stop().await;
}

#[tokio::test]
async fn channels_without_history_are_heard_between_two_polls_on_whichever_node() {
    let nodes = Nodes::start(2, FREE).await;
    for node in [0, 1] {
        nodes.until(|| nodes.node(node).cluster.nodes().len() == 2).await;
    }
    let channels = "channels=presence:doc&timeout=0";
    let mut last = last_id(&nodes.poll(0, channels).await);
    for round in 0..6 {
        nodes.publish(1, "presence:doc", "presence:join", &json!(round)).await;
        nodes.publish(0, "user:ann", "message", &json!(["kept", round])).await;
        let query = format!("last_poll_id={last}&{channels}");
        let answer = nodes.poll((round / 2 + 1) % 2, &query).await;
        let heard: Vec<&Value> = payloads(&answer);
        assert_eq!(heard, [&json!(["kept", round]), &json!(round)], "{round}");
        assert_eq!(
            answer["events"],
            nodes.poll(round % 2, &query).await["events"],
            "a lost answer"
        );
        last = last_id(&answer);
    }
    nodes.stop().await;
}

#[tokio::test]
async fn who_joins_by_a_message_is_there_while_they_poll_wherever() {
    let nodes =
        Nodes::start(2, &[("limits.polls_per_minute", "0"), ("presence.timeout", "2s")]).await;
    let room = "presence:doc";
    let join = json!({"timeout": 0, "messages": [
        {"type": "presence:heartbeat", "channel": room, "ack_id": "h"},
        {"type": "presence:join", "channel": room, "payload": {"name": "Ann", "metadata": {"x": 1}}, "requestId": "r"},
        {"type": "presence:heartbeat", "channel": room, "ack_id": "h"},
    ]});
    let mut answer = nodes.post(0, "ann", &join).await;
    assert_eq!(replies(&answer)[0]["payload"]["code"], json!("CONFLICT"));
    let sync = replies(&answer)[1];
    assert_eq!((&sync["type"], &sync["requestId"]), (&json!("presence:sync"), &json!("r")));
    assert_eq!(sync["payload"]["users"][0]["name"], json!("Ann"));
    assert_eq!(replies(&answer)[2]["type"], json!("ack"));
    // Longer than the silence that ends a presence, polled on the other node alone.
    let until = Instant::now() + Duration::from_secs(4);
    while Instant::now() < until {
        answer = nodes.poll(1, &format!("last_poll_id={}&timeout=0.5", last_id(&answer))).await;
        assert!(payloads(&answer).iter().all(|payload| payload["id"] != "ann"), "{answer}");
        assert_eq!(nodes.present(room).await, ["ann"]);
    }
    nodes.publish(0, room, "presence:join", &json!({"id": "bob"})).await;
    answer = nodes.poll(1, &format!("last_poll_id={}", last_id(&answer))).await;
    assert_eq!(payloads(&answer), [&json!({"id": "bob"})], "joining subscribes (R25)");
    let leave = json!({"timeout": 0, "last_poll_id": last_id(&answer), "messages": [
        {"type": "presence:leave", "channel": room, "ack_id": "l"}]});
    let left = nodes.post(0, "ann", &leave).await;
    assert_eq!(replies(&left)[0]["payload"]["data"]["left"], json!(true));
    nodes.eventually_present(room, &[]).await;

    // Who stops polling is gone after the silence.
    nodes.post(0, "ann", &join).await;
    assert_eq!(nodes.present(room).await, ["ann"]);
    nodes.eventually_present(room, &[]).await;
    nodes.stop().await;
}

#[tokio::test]
async fn a_user_is_online_while_any_poll_is_held_and_no_connection_for_the_limit() {
    let settings = [
        ("limits.polls_per_minute", "0"),
        ("limits.connections_per_user", "1"),
        ("presence.offline_delay", "2s"),
    ];
    let nodes = Nodes::start(2, &settings).await;
    let held = tokio::spawn(nodes.call(0, Method::GET, "?user_id=ann&timeout=6", "ann", None));
    nodes.holding(0, 1).await;
    nodes.poll(1, "timeout=0").await;
    let until = Instant::now() + Duration::from_secs(5);
    while Instant::now() < until {
        assert_eq!(nodes.status("ann").await, UserStatus::Online);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let user = UserId::new("ann").expect("a user");
    let known = nodes.node(1).broker.presence_of(std::slice::from_ref(&user)).await.expect("known");
    assert_eq!(known[0].connections, 0, "a poll is no connection");
    drop(nodes.node(1).admit(Some(&user)).await.expect("the one connection is free"));
    held.await.expect("answered").good();
    let deadline = Instant::now() + PATIENCE;
    while nodes.status("ann").await != UserStatus::Offline {
        assert!(Instant::now() < deadline, "still online");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    nodes.stop().await;
}

fn titles(answer: &Value) -> Vec<&str> {
    payloads(answer).iter().map(|payload| payload["title"].as_str().unwrap_or_default()).collect()
}

/// Returns when so many notifications went through ann's stream.
async fn carried(nodes: &Nodes, count: u64) {
    let stream = ChannelName::user_stream("ann").expect("a channel");
    let deadline = Instant::now() + PATIENCE;
    while nodes.node(0).broker.tops(std::slice::from_ref(&stream)).await.expect("tops")[0].offset
        < count
    {
        assert!(Instant::now() < deadline, "it was never carried");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_chain_of_polls_begins_with_what_is_pending_and_tells_each_once() {
    const ALL: usize = 230;
    let nodes = Nodes::start(2, FREE).await;
    let user = UserId::new("ann").expect("a user");
    let store = &nodes.node(0).notifications;
    let mut newest = None;
    for index in 0..ALL {
        let new = NewNotification::new(format!("n{index}"), "text", vec![user.clone()]);
        newest = Some(store.create(new).await.expect("stored").id);
    }
    nodes.node(0).courier.kick();
    carried(&nodes, ALL as u64).await;
    let numbers =
        |range: std::ops::Range<usize>| range.map(|index| format!("n{index}")).collect::<Vec<_>>();
    let first = nodes.poll(0, "timeout=30").await;
    assert_eq!(titles(&first), numbers(0..100));
    assert_eq!(first["has_more"], json!(true));
    // The client kept sixty of them; it asks elsewhere, and again where an answer was lost.
    let kept = &events(&first)[59]["id"];
    let rest = nodes.poll(1, &format!("last_poll_id={kept}")).await;
    assert_eq!((titles(&rest), rest["has_more"].clone()), (vec_of(&numbers(60..100)), json!(true)));
    let next = format!("last_poll_id={}", last_id(&rest));
    let second = nodes.poll(0, &next).await;
    assert_eq!(titles(&second), numbers(100..200));
    assert_eq!(nodes.poll(1, &next).await["events"], second["events"], "a lost answer");
    let third = nodes.poll(0, &format!("last_poll_id={}", last_id(&second))).await;
    assert_eq!(
        (titles(&third), third["has_more"].clone()),
        (vec_of(&numbers(200..ALL)), json!(false))
    );
    assert_eq!(store.pending(&user, 1).await.expect("read"), []);
    // A live message that was late.
    let newest = newest.as_ref().map(NotificationId::as_str);
    nodes.publish_as(0, "user:ann", "notification", &json!({"title": "twin"}), newest).await;
    nodes.publish(0, "user:ann", "message", &json!({"title": "live"})).await;
    let mut last = last_id(&third);
    let mut heard = Vec::new();
    while heard.last().is_none_or(|title| title != "live") {
        let answer = nodes.poll(1, &format!("last_poll_id={last}")).await;
        heard.extend(titles(&answer).into_iter().map(str::to_owned));
        last = last_id(&answer);
    }
    assert_eq!(heard, ["live"]);
    nodes.stop().await;
}

fn vec_of(titles: &[String]) -> Vec<&str> {
    titles.iter().map(String::as_str).collect()
}

#[tokio::test]
async fn a_poll_marks_what_it_brings() {
    let nodes = Nodes::start(1, FREE).await;
    let user = UserId::new("ann").expect("a user");
    let create = async |title: &str| {
        let new = NewNotification::new(title, "text", vec![user.clone()]);
        let stored = nodes.node(0).notifications.create(new).await.expect("stored");
        nodes.node(0).courier.kick();
        stored.id
    };
    let pending =
        async || nodes.node(0).notifications.pending(&user, 1_000).await.expect("read").len();
    create("before").await;
    carried(&nodes, 1).await;
    let answer = nodes.poll(0, "timeout=30").await;
    assert_eq!(titles(&answer), ["before"], "at once");
    assert_eq!((&events(&answer)[0]["channel"], pending().await), (&json!("notifications"), 0));
    assert_eq!(events(&nodes.poll(0, "timeout=0").await).len(), 0, "it has been delivered");

    // What is read from history without being waited for is marked as well.
    create("later").await;
    carried(&nodes, 2).await;
    assert_eq!(pending().await, 1);
    let answer = nodes.poll(0, &format!("last_poll_id={}", last_id(&answer))).await;
    assert_eq!(titles(&answer), ["later"]);
    let deadline = Instant::now() + PATIENCE;
    while pending().await > 0 {
        assert!(Instant::now() < deadline, "it stayed pending");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    nodes.stop().await;
}
