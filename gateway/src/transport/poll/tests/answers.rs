//! What one question is answered: where it starts, its pages, how long it is held, what is refused, what history adds.

use super::*;

#[tokio::test]
async fn the_first_answer_starts_now_and_what_follows_is_answered_at_once() {
    let nodes = Nodes::start(1, FREE).await;
    nodes.publish(0, "user:ann", "message", &json!("before")).await;
    let first = nodes.poll(0, "timeout=0").await;
    assert_eq!((events(&first).len(), &first["has_more"]), (0, &json!(false)));
    assert_eq!(
        (first.get("recovered"), first.get("replies"), first.get("errors")),
        (None, None, None)
    );
    nodes.publish(0, "user:ann", "notification", &json!({"n": 1.50})).await;
    let began = Instant::now();
    let answer = nodes.poll(0, &format!("last_poll_id={}", last_id(&first))).await;
    assert!(began.elapsed() < Duration::from_secs(5));
    let event = &events(&answer)[0];
    assert_eq!(
        (&event["type"], &event["channel"]),
        (&json!("notification"), &json!("notifications"))
    );
    assert_eq!((&event["offset"], &event["payload"]["n"]), (&json!(2), &json!(1.5)));
    assert!(
        event["epoch"].is_string() && event["tag"].is_string() && event["message_id"].is_string()
    );
    assert!(event["timestamp"].as_str().is_some_and(|time| time.ends_with('Z')));
    assert_eq!(event["id"], answer["last_poll_id"]);
    let dnr = nodes.poll(0, &format!("last_poll_id={}&profile=dnr", last_id(&first))).await;
    assert!(events(&dnr)[0]["timestamp"].is_i64());
    assert_eq!(last_id(&dnr), last_id(&answer), "the same question");
    nodes.stop().await;
}

#[tokio::test]
async fn an_unknown_number_starts_from_now_and_says_so() {
    let nodes = Nodes::start(1, FREE).await;
    nodes.publish(0, "user:ann", "message", &json!("before")).await;
    let answer = nodes.poll(0, "last_poll_id=456").await;
    assert_eq!((&answer["recovered"], events(&answer).len()), (&json!(false), 0));
    nodes.publish(0, "user:ann", "message", &json!("after")).await;
    let next = nodes.poll(0, &format!("last_poll_id={}", last_id(&answer))).await;
    assert_eq!((payloads(&next), next.get("recovered")), (vec![&json!("after")], None));
    let other = nodes
        .call(0, Method::GET, &format!("?user_id=bob&last_poll_id={}", last_id(&next)), "bob", None)
        .await;
    assert_eq!(other.good()["recovered"], json!(false), "numbers are a user's own");
    nodes.stop().await;
}

#[tokio::test]
async fn a_page_holds_at_most_a_hundred() {
    let nodes = Nodes::start(1, FREE).await;
    let first = nodes.poll(0, "timeout=0&channels=chat").await;
    for n in 0..130 {
        nodes.publish(0, if n % 2 == 0 { "chat" } else { "user:ann" }, "message", &json!(n)).await;
    }
    let page = nodes.poll(0, &format!("last_poll_id={}&channels=chat", last_id(&first))).await;
    assert_eq!((events(&page).len(), &page["has_more"]), (100, &json!(true)));
    let rest = nodes.poll(0, &format!("last_poll_id={}&channels=chat", last_id(&page))).await;
    assert_eq!((events(&rest).len(), &rest["has_more"]), (30, &json!(false)));
    let all: HashSet<i64> = [&page, &rest]
        .into_iter()
        .flat_map(|page| payloads(page))
        .filter_map(Value::as_i64)
        .collect();
    assert_eq!(all.len(), 130);
    nodes.stop().await;
}

#[tokio::test]
async fn a_held_poll_wakes_and_gives_back_what_it_took() {
    let nodes = Nodes::start(2, FREE).await;
    let held = tokio::spawn(nodes.call(
        0,
        Method::GET,
        "?user_id=ann&channels=chat,presence:doc",
        "ann",
        None,
    ));
    nodes.holding(0, 3).await;
    nodes.publish(1, "chat", "message", &json!("hi")).await;
    let answer = held.await.expect("answered").good();
    assert_eq!(payloads(&answer), [&json!("hi")]);
    // The seat is kept for the next one for a while.
    nodes.holding(0, 3).await;
    assert_eq!(nodes.node(0).metrics.connections_live(), 1);

    let query = format!("?user_id=ann&channels=presence:doc&last_poll_id={}", last_id(&answer));
    let held = tokio::spawn(nodes.call(0, Method::GET, &query, "ann", None));
    nodes.holding(0, 2).await;
    nodes.publish(1, "presence:doc", "presence:join", &json!({"id": "bob"})).await;
    let fleeting = held.await.expect("answered").good();
    assert_eq!(payloads(&fleeting), [&json!({"id": "bob"})]);
    assert_eq!(
        fleeting["events"],
        nodes.poll(1, &query[12..]).await["events"],
        "repeated from the store"
    );

    let query = format!("?user_id=ann&last_poll_id={}", last_id(&fleeting));
    let gone = tokio::spawn(nodes.call(0, Method::GET, &query, "ann", None));
    nodes.holding(0, 3).await;
    gone.abort();
    nodes.holding(0, 0).await;
    assert_eq!(nodes.node(0).metrics.connections_live(), 0);
    nodes.stop().await;
}

#[tokio::test]
async fn a_held_poll_ends_with_its_timeout_and_when_the_node_drains() {
    let nodes = Nodes::start(1, FREE).await;
    let first = nodes.poll(0, "timeout=0").await;
    let query = format!("last_poll_id={}", last_id(&first));
    let late = nodes.poll(0, &format!("{query}&timeout=0.05")).await;
    assert_eq!((events(&late).len(), last_id(&late)), (0, last_id(&first)));
    let held =
        tokio::spawn(nodes.call(0, Method::GET, &format!("?user_id=ann&{query}"), "ann", None));
    nodes.until(|| nodes.node(0).pollers.answering() == 1).await;
    nodes.stop().await;
    let answer = held.await.expect("answered").good();
    assert_eq!((events(&answer).len(), last_id(&answer)), (0, last_id(&first)));
}

#[tokio::test]
async fn wrong_questions_are_refused() {
    let nodes = Nodes::start(1, FREE).await;
    for (query, expected) in [
        ("?user_id=bob&timeout=0", (403, "FORBIDDEN")),
        ("?timeout=0", (400, "INVALID_MESSAGE")),
        ("?user_id=ann&last_poll_id=x", (400, "INVALID_MESSAGE")),
        ("?user_id=ann&last_poll_id=-1", (400, "INVALID_MESSAGE")),
        ("?user_id=ann&timeout=soon", (400, "INVALID_MESSAGE")),
        ("?user_id=ann&profile=none", (400, "INVALID_MESSAGE")),
        ("/missed?user_id=ann", (400, "INVALID_MESSAGE")),
        ("/missed?user_id=ann&last_sequence=x", (400, "INVALID_MESSAGE")),
        ("/missed?user_id=bob&last_sequence=1", (403, "FORBIDDEN")),
    ] {
        let answer = nodes.call(0, Method::GET, query, "ann", None).await;
        assert_eq!(answer.refused(), expected, "{query}");
    }
    for body in [
        json!({"user_id": "ann", "last_poll_id": "7"}),
        json!({"user_id": "ann", "messages": {}}),
        json!([]),
    ] {
        let answer = nodes.call(0, Method::POST, "", "ann", Some(&body)).await;
        assert_eq!(answer.refused(), (400, "INVALID_MESSAGE"), "{body}");
    }
    let other = nodes.call(0, Method::POST, "", "ann", Some(&json!({"user_id": "bob"}))).await;
    assert_eq!(other.refused(), (403, "FORBIDDEN"));
    nodes.cluster.set_available(false);
    let away = nodes.call(0, Method::GET, "?user_id=ann&timeout=0", "ann", None).await;
    assert_eq!(away.refused(), (503, "UNAVAILABLE"));
    assert!(away.headers.contains_key("retry-after"));
    nodes.cluster.set_available(true);
    nodes.stop().await;
}

#[tokio::test]
async fn the_thirty_first_poll_of_a_minute_is_refused_on_any_node() {
    let nodes = Nodes::start(2, &[]).await;
    for n in 0..30 {
        let answer = nodes.call(n % 2, Method::GET, "?user_id=ann&timeout=0", "ann", None).await;
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!((answer.rate("limit"), answer.rate("remaining")), (30, 29 - n as u64));
        let now = clock::unix_ms() as u64 / 1_000;
        assert!((now..=now + 61).contains(&answer.rate("reset")));
    }
    let refused = nodes.call(0, Method::GET, "?user_id=ann&timeout=0", "ann", None).await;
    assert_eq!((refused.refused(), refused.rate("remaining")), ((429, "RATE_LIMITED"), 0));
    let retry_after_ms = refused.body["details"]["retry_after_ms"].as_u64().expect("milliseconds");
    assert!((1..=60_000).contains(&retry_after_ms) && refused.headers.contains_key("retry-after"));
    let other = nodes.call(0, Method::GET, "?user_id=bob&timeout=0", "bob", None).await;
    assert_eq!((other.status, other.rate("remaining")), (StatusCode::OK, 29));
    nodes.stop().await;
}

#[tokio::test]
async fn missed_reads_the_users_own_stream() {
    let nodes = Nodes::start(2, FREE).await;
    for n in 0..105 {
        nodes
            .publish(0, "user:ann", if n % 2 == 0 { "notification" } else { "message" }, &json!(n))
            .await;
    }
    let missed = async |sequence| {
        let query = format!("/missed?user_id=ann&last_sequence={sequence}");
        nodes.call(1, Method::GET, &query, "ann", None).await.good()
    };
    let page = missed(3).await;
    let messages = page["messages"].as_array().expect("messages");
    assert_eq!(
        (messages.len(), &page["has_more"], &page["recovered"]),
        (100, &json!(true), &json!(true))
    );
    assert_eq!((&messages[0]["offset"], &messages[0]["payload"]), (&json!(4), &json!(3)));
    assert_eq!(
        (&messages[0]["channel"], &messages[1]["channel"]),
        (&json!("user:ann"), &json!("notifications"))
    );
    assert!(messages[0]["id"].is_string() && page["epoch"].is_string());
    let rest = missed(103).await;
    assert_eq!(
        (rest["messages"].as_array().map(Vec::len), &rest["has_more"]),
        (Some(2), &json!(false))
    );
    let none = missed(105).await;
    assert_eq!((&none["messages"], &none["recovered"]), (&json!([]), &json!(true)));
    assert_eq!(missed(1_000).await["recovered"], json!(false));
    nodes.stop().await;
}

#[tokio::test]
async fn lost_history_is_told_and_the_channel_goes_on() {
    let nodes = Nodes::start(1, FREE).await;
    let first = nodes.poll(0, "timeout=0&channels=chat").await;
    nodes.publish(0, "chat", "message", &json!("lost")).await;
    let chat = ChannelName::new("chat").expect("a channel");
    nodes.node(0).broker.clear_history(&chat).await.expect("cleared");
    let answer = nodes.poll(0, &format!("last_poll_id={}&channels=chat", last_id(&first))).await;
    assert_eq!(answer["recovered"], json!(false));
    let event = &events(&answer)[0];
    assert_eq!((&event["type"], &event["channel"]), (&json!("resync"), &json!("chat")));
    assert_eq!(event["payload"]["reason"], json!("epoch"));
    nodes.publish(0, "chat", "message", &json!("found")).await;
    let next = nodes.poll(0, &format!("last_poll_id={}&channels=chat", last_id(&answer))).await;
    assert_eq!((payloads(&next), next.get("recovered")), (vec![&json!("found")], None));
    nodes.stop().await;
}

#[tokio::test]
async fn an_entity_event_on_both_its_channels_is_one_event() {
    let nodes = Nodes::start(1, FREE).await;
    let channels = "channels=entity:Task,entity:Task:1";
    let first = nodes.poll(0, &format!("timeout=0&{channels}")).await;
    let send = async |channel: &str, id: &str| {
        let outgoing = Outgoing {
            channel: ChannelName::new(channel).expect("a channel"),
            kind: "entity:updated".into(),
            payload: Payload::of(&json!({"id": id})),
            id: Some(id.into()),
            idempotency_key: None,
            user_id: None,
            exclude: Exclude::default(),
            meta: None,
            sender: "test".to_owned(),
            history: true,
            traceparent: None,
        };
        nodes.node(0).publish(outgoing).await.expect("published");
    };
    send("entity:Task", "e1").await;
    send("entity:Task:1", "e1").await;
    send("entity:Task:1", "e2").await;
    let answer = nodes.poll(0, &format!("last_poll_id={}&{channels}", last_id(&first))).await;
    let heard: Vec<(&str, &str)> = events(&answer)
        .iter()
        .map(|event| {
            (
                event["channel"].as_str().unwrap_or_default(),
                event["message_id"].as_str().unwrap_or_default(),
            )
        })
        .collect();
    assert_eq!(heard, [("entity:Task:1", "e1"), ("entity:Task:1", "e2")]);
    send("entity:Task", "e2").await;
    send("entity:Task", "e3").await;
    let next = nodes.poll(0, &format!("last_poll_id={}&{channels}", last_id(&answer))).await;
    assert_eq!(payloads(&next), [&json!({"id": "e3"})]);
    nodes.stop().await;
}
