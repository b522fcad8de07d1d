//! Session tests under a virtual clock.

use serde_json::{Value, json};

use super::*;
use crate::Codec;
use crate::envelope::{Correlation, Refusal};

const UNIX_MS: i64 = 1_709_294_400_123;

/// A session of user `u1` whose clock is moved by hand.
struct Bench {
    session: Session,
    routes: Routes,
    now_ms: u64,
}

impl Bench {
    fn new() -> Self {
        let limits = SessionLimits { messages_per_second: 100, heartbeat_timeout_ms: 70_000 };
        Self { session: Session::new(limits, 5_000), routes: Routes::default(), now_ms: 5_000 }
    }

    fn say(&mut self, message: &Value) -> Step {
        self.say_text(&message.to_string())
    }

    fn say_text(&mut self, text: &str) -> Step {
        let message = ClientMessage::parse(Codec::Json, text.as_bytes());
        self.session.handle_message(self.now_ms, UNIX_MS, Some("u1"), &self.routes, message)
    }
}

fn step(message: &Value) -> Step {
    Bench::new().say(message)
}

fn request(message: &Value) -> Request {
    match step(message) {
        Step::Perform(request, _) => request,
        other => panic!("{message} became {other:?}"),
    }
}

fn published(message: &Value) -> ClientPublish {
    match request(message) {
        Request::Publish(publish) => publish,
        other => panic!("{message} became {other:?}"),
    }
}

/// Code and `details` of the error that is the only reply.
fn refused(step: Step) -> (String, Value, Correlation) {
    match step {
        Step::Reply(mut replies) if replies.len() == 1 && replies[0].kind == "error" => {
            let error = replies.remove(0);
            let payload = error.payload.to_value();
            let code = payload["code"].as_str().expect("a code").to_owned();
            (code, payload["details"].clone(), error.correlation)
        }
        other => panic!("expected one error, got {other:?}"),
    }
}

fn correlation(ack_id: Option<&str>, request_id: Option<&str>) -> Correlation {
    Correlation { ack_id: ack_id.map(Into::into), request_id: request_id.map(Into::into) }
}

#[test]
fn r20_own_replies_carry_the_request_id_and_acks_both() {
    let (a, r) = (Some("a1"), Some("r1"));
    let none = None;
    for (carried, own, ack) in [
        ((none, none), (none, none), None),
        ((a, none), (none, none), Some((a, none))),
        ((none, r), (none, r), None),
        ((a, r), (none, r), Some((a, r))),
    ] {
        let mut message = json!({"type": "ping"});
        message["ack_id"] = carried.0.into();
        message["requestId"] = carried.1.into();
        let Step::Reply(replies) = step(&message) else { panic!("a ping is answered") };
        let heard: Vec<_> =
            replies.iter().map(|reply| (&*reply.kind, reply.correlation.clone())).collect();
        let mut expected = vec![("pong", correlation(own.0, own.1))];
        expected.extend(ack.map(|(ack_id, request_id)| ("ack", correlation(ack_id, request_id))));
        assert_eq!(heard, expected);
    }
}

#[test]
fn r20_a_request_without_a_reply_of_its_own_is_acked_under_the_name_that_asked() {
    let data = json!({"offset": 3});
    assert_eq!(Session::done(correlation(None, None), &data), None);
    let ack = Session::done(correlation(Some("a1"), None), &data).expect("an ack");
    assert_eq!(ack.payload.to_value(), json!({"ack_id": "a1", "status": "success", "data": data}));
    let ack = Session::done(correlation(None, Some("r1")), &data).expect("an ack");
    assert_eq!(ack.correlation, correlation(None, Some("r1")));
    assert_eq!(ack.payload.to_value(), json!({"status": "success", "data": data}));
    let both = correlation(Some("a1"), Some("r1"));
    let error = Session::refused(both.clone(), &Refusal::new(ErrorCode::Forbidden, "no"));
    assert_eq!((&*error.kind, error.correlation), ("error", both));
}

#[test]
fn r1_types_of_the_server_are_refused_to_clients() {
    for kind in [
        "connect",
        "connection",
        "connected",
        "connect_x",
        "subscribed",
        "unsubscribed",
        "ack",
        "error",
        "pong",
        "resync",
        "notification",
        "notification_new",
        "notifications",
        "presence:sync",
        "presence:x",
        "entity:created",
        "entity:x",
        "feed_update",
        "count_update",
    ] {
        for channel in [None, Some("chat")] {
            let message = json!({"type": kind, "channel": channel, "ack_id": "a1"});
            let (code, details, carried) = refused(step(&message));
            assert_eq!((code.as_str(), &details["type"]), ("FORBIDDEN", &json!(kind)));
            assert_eq!(carried, correlation(Some("a1"), None));
        }
    }
    for kind in [
        "message",
        "typing",
        "read_receipt",
        "subscribed_x",
        "entities",
        "task:moved",
        "presence_x",
    ] {
        assert_eq!(
            published(&json!({"type": kind, "channel": "chat", "payload": {}})).channel.as_str(),
            "chat"
        );
    }
}

#[test]
fn r1_backends_may_send_notifications_and_entities_but_no_control_types() {
    for kind in
        ["notification", "entity:created", "feed_update", "count_update", "message", "task:moved"]
    {
        assert!(!is_control(kind), "{kind}");
    }
    for kind in [
        "connect",
        "connected",
        "connection",
        "ack",
        "error",
        "pong",
        "resync",
        "disconnect",
        "presence:join",
    ] {
        assert!(is_control(kind), "{kind}");
    }
}

#[test]
fn r4_the_sender_in_relayed_payloads_is_the_servers_word() {
    let forged = json!({"conversation_id": "c1", "user_id": "victim", "userId": "victim", "text": "hi", "isTyping": "x"});
    for kind in ["typing_start", "typing_stop", "read_receipt"] {
        let publish = published(&json!({"type": kind, "payload": forged}));
        let payload = publish.payload.to_value();
        assert_eq!(
            (&payload["user_id"], &payload["userId"]),
            (&json!("u1"), &json!("u1")),
            "{kind}"
        );
        assert_eq!(payload["conversation_id"], "c1");
    }
    let publish = published(&json!({"type": "chat:send", "channel": "general", "payload": forged}));
    assert_eq!(&*publish.kind, "chat:message");
    assert_eq!(
        publish.payload.to_value(),
        json!({"userId": "u1", "text": "hi", "timestamp": UNIX_MS})
    );
    let publish = published(
        &json!({"type": "typing:start", "payload": {"channel": "general", "userId": "victim"}}),
    );
    assert_eq!(&*publish.kind, "typing:indicator");
    assert_eq!(
        publish.payload.to_value(),
        json!({"userId": "u1", "isTyping": true, "channel": "general"})
    );

    let mut bench = Bench::new();
    let text = json!({"type": "typing_start", "payload": forged}).to_string();
    let message = ClientMessage::parse(Codec::Json, text.as_bytes());
    let anonymous = bench.session.handle_message(5_000, UNIX_MS, None, &bench.routes, message);
    let Step::Perform(Request::Publish(publish), _) = anonymous else { panic!("{anonymous:?}") };
    let payload = publish.payload.to_value();
    assert!(payload.get("user_id").is_none() && payload.get("userId").is_none());
}

#[test]
fn r4_who_acts_is_the_servers_word_also_where_a_payload_only_says_so() {
    let forged = json!({"type": "join", "userId": "victim", "user_id": "victim", "at": 1.0});
    let signed = json!({"type": "join", "userId": "u1", "user_id": "u1", "at": 1.0});
    for (kind, channel) in
        [("message", "presence"), ("chat:message", "general"), ("typing:indicator", "general")]
    {
        let message = json!({"type": kind, "channel": channel, "payload": forged});
        assert_eq!(published(&message).payload.to_value(), signed, "{kind} on {channel}");
    }
    // Elsewhere a payload is the application's, byte by byte.
    let text = r#"{"type":"message","channel":"chat","payload":{"userId":"x",  "n":1.50}}"#;
    let Step::Perform(Request::Publish(free), _) = Bench::new().say_text(text) else {
        panic!("a publish")
    };
    assert_eq!(free.payload.json_str(), r#"{"userId":"x",  "n":1.50}"#);
}

#[test]
fn typing_says_whether_and_a_receipt_says_when() {
    for (kind, is_typing) in [("typing_start", true), ("typing_stop", false)] {
        let publish =
            published(&json!({"type": kind, "channel": "chat", "payload": {"username": "jane"}}));
        let expected = json!({"username": "jane", "user_id": "u1", "is_typing": is_typing});
        assert_eq!(publish.payload.to_value(), expected);
    }
    let receipt = |payload: Value| {
        published(&json!({"type": "read_receipt", "channel": "chat", "payload": payload}))
            .payload
            .to_value()
    };
    let filled = receipt(json!({"message_ids": ["m1"]}));
    assert_eq!(filled["read_at"], json!(crate::time::rfc3339(UNIX_MS)));
    assert_eq!(
        receipt(json!({"read_at": "2024-03-01T12:05:00Z"}))["read_at"],
        "2024-03-01T12:05:00Z"
    );
}

#[test]
fn r10_relays_go_to_the_channel_or_the_conversation_and_typing_is_never_kept() {
    for (kind, history) in [
        ("typing_start", false),
        ("typing_stop", false),
        ("typing:start", false),
        ("typing:stop", false),
        ("read_receipt", true),
    ] {
        for (message, channel) in [
            (json!({"type": kind, "payload": {"conversation_id": "c:1"}}), "conversation:c%3A1"),
            (
                json!({"type": kind, "payload": {"conversation_id": "c1", "channel": "room:1"}}),
                "room:1",
            ),
            (
                json!({"type": kind, "channel": "room:2", "payload": {"conversation_id": "c1"}}),
                "room:2",
            ),
            (json!({"type": kind, "channel": "room:2"}), "room:2"),
        ] {
            let publish = published(&message);
            assert_eq!(publish.channel.as_str(), channel, "{message}");
            assert_eq!((publish.relay, publish.history), (true, history), "{message}");
        }
        assert_eq!(refused(step(&json!({"type": kind, "payload": {}}))).0, "INVALID_MESSAGE");
        assert_eq!(
            refused(step(&json!({"type": kind, "channel": "a b", "payload": {}}))).0,
            "INVALID_MESSAGE"
        );
    }
    let sent =
        published(&json!({"type": "chat:send", "payload": {"channel": "general", "text": "x"}}));
    assert_eq!((sent.relay, sent.history), (false, true));
}

#[test]
fn r11_a_message_with_a_channel_is_published_untouched() {
    let publish = published(
        &json!({"type": "message", "channel": "chat", "id": "m1", "payload": [1, {"a": null}]}),
    );
    assert_eq!(publish.payload.json_str(), r#"[1,{"a":null}]"#);
    assert_eq!((&*publish.kind, publish.id.as_deref()), ("message", Some("m1")));
    let inbound = request(&json!({"type": "order:place", "payload": {"n": 1}}));
    assert!(matches!(inbound, Request::Inbound { kind, .. } if &*kind == "order:place"));
}

#[test]
fn r21_subscribe_reads_channel_since_limit_and_filter_from_either_place() {
    let Request::Subscribe(plain) =
        request(&json!({"type": "subscribe", "payload": {"channel": "news"}}))
    else {
        panic!("a subscribe")
    };
    assert_eq!(
        (plain.channel.as_str(), plain.since, plain.limit, plain.filter),
        ("news", None, None, None)
    );
    let message = json!({"type": "subscribe", "channel": "news", "payload": {
        "since": {"offset": 7, "epoch": "AAAAAAAA", "tag": "BBBBBBBB"}, "limit": 20, "filter": {"a": 1}}});
    let Request::Subscribe(full) = request(&message) else { panic!("a subscribe") };
    assert_eq!(full.since, Some(Since::new("AAAAAAAA", 7, Some("BBBBBBBB"))));
    assert_eq!((full.limit, full.filter), (Some(20), Some(json!({"a": 1}))));
}

#[test]
fn a_wrong_shape_is_refused_with_its_place_and_the_ack_id_comes_back() {
    let subscribe = |payload: Value| json!({"type": "subscribe", "channel": "news", "ack_id": "a1", "payload": payload});
    let cases = [
        (subscribe(json!({"limit": -1})), "payload.limit"),
        (subscribe(json!({"limit": 1.5})), "payload.limit"),
        (subscribe(json!({"filter": [1]})), "payload.filter"),
        (subscribe(json!({"since": 4})), "payload.since.offset"),
        (subscribe(json!({"since": {"offset": 1}})), "payload.since.epoch"),
        (subscribe(json!({"since": {"offset": 1, "epoch": "e", "tag": 2}})), "payload.since.tag"),
        (json!({"type": "subscribe", "ack_id": "a1"}), "channel"),
        (json!({"type": "subscribe", "ack_id": "a1", "channel": "a b"}), "channel"),
        (json!({"type": "subscribe", "ack_id": "a1", "channel": "x".repeat(256)}), "channel"),
        (json!({"type": "subscribe", "ack_id": "a1", "channel": 7}), "channel"),
        (
            json!({"type": "subscribe", "ack_id": "a1", "payload": {"channel": 7}}),
            "payload.channel",
        ),
        (json!({"type": "presence:join", "ack_id": "a1", "channel": "room:1"}), "channel"),
        (json!({"type": "presence:join", "ack_id": "a1", "channel": "presence:"}), "channel"),
        (
            json!({"type": "presence:join", "ack_id": "a1", "channel": "presence:1", "payload": {"name": 1}}),
            "payload.name",
        ),
        (
            json!({"type": "presence", "ack_id": "a1", "payload": {"status": "offline"}}),
            "payload.status",
        ),
        (json!({"type": "presence", "ack_id": "a1"}), "payload.status"),
        (
            json!({"type": "notification_read", "ack_id": "a1", "payload": {}}),
            "payload.notification_id",
        ),
        (json!({"type": "auth", "ack_id": "a1", "payload": {"token": ""}}), "payload.token"),
        (
            json!({"type": "typing_start", "ack_id": "a1", "channel": "chat", "payload": 3}),
            "payload",
        ),
        (json!({"ack_id": "a1"}), "type"),
        (json!({"type": 5, "ack_id": "a1"}), "type"),
        (json!({"type": "x".repeat(257), "ack_id": "a1"}), "type"),
        (json!({"type": "t", "ack_id": "a1", "id": "x".repeat(257)}), "id"),
        (json!({"type": "t", "ack_id": "a1", "requestId": "x".repeat(257)}), "requestId"),
    ];
    for (message, field) in cases {
        let (code, details, carried) = refused(step(&message));
        assert_eq!(
            (code.as_str(), &details["field"]),
            ("INVALID_MESSAGE", &json!(field)),
            "{message}"
        );
        assert_eq!(carried, correlation(Some("a1"), None), "{message}");
    }
    let (code, _, carried) =
        refused(step(&json!({"type": "t", "ack_id": "x".repeat(257), "requestId": "r1"})));
    assert_eq!((code.as_str(), carried), ("INVALID_MESSAGE", correlation(None, Some("r1"))));
    let (code, details, _) = refused(Bench::new().say_text("{\"type\":"));
    assert_eq!((code.as_str(), &details["at"]), ("INVALID_MESSAGE", &json!("byte 8")));
}

#[test]
fn r23_a_goodbye_ends_the_session() {
    assert_eq!(step(&json!({"type": "disconnect"})), Step::Goodbye(Correlation::default()));
    let asks = json!({"type": "disconnect", "ack_id": "a1"});
    assert_eq!(step(&asks), Step::Goodbye(correlation(Some("a1"), None)));
}

#[test]
fn r27_a_hundred_messages_pass_and_the_next_is_told_when_to_come_back() {
    let mut bench = Bench::new();
    let ping = json!({"type": "ping", "ack_id": "a1"});
    for _ in 0..100 {
        assert!(matches!(bench.say(&ping), Step::Reply(replies) if replies[0].kind == "pong"));
    }
    let (code, details, carried) = refused(bench.say(&ping));
    assert_eq!((code.as_str(), carried), ("RATE_LIMITED", correlation(Some("a1"), None)));
    let retry_after_ms = details["retry_after_ms"].as_u64().expect("milliseconds");
    assert_eq!(retry_after_ms, 10);
    bench.now_ms += retry_after_ms;
    assert!(matches!(bench.say(&ping), Step::Reply(replies) if replies[0].kind == "pong"));
    assert_eq!(refused(bench.say(&ping)).0, "RATE_LIMITED");
    // A second later the bucket is full again, and no fuller.
    bench.now_ms += 60_000;
    let passed = (0..150)
        .filter(|_| matches!(bench.say(&ping), Step::Reply(replies) if replies[0].kind == "pong"))
        .count();
    assert_eq!(passed, 100);
}

#[test]
fn unreadable_messages_count_against_the_rate() {
    let mut bench = Bench::new();
    for _ in 0..100 {
        assert_eq!(refused(bench.say_text("{")).0, "INVALID_MESSAGE");
    }
    assert_eq!(refused(bench.say_text("{")).0, "RATE_LIMITED");
}

#[test]
fn three_seconds_over_the_rate_are_abuse_and_a_pause_forgives() {
    let flood = |bench: &mut Bench, ms: u64| {
        for _ in 0..ms {
            bench.now_ms += 1;
            if bench.say(&json!({"type": "ping"})) == Step::Close(CloseCode::Abuse) {
                return Some(bench.now_ms);
            }
        }
        None
    };
    let mut bench = Bench::new();
    assert_eq!(flood(&mut bench, 3_000), None);
    bench.now_ms += 2_000;
    assert_eq!(flood(&mut bench, 3_000), None);
    let closed_at_ms = flood(&mut bench, 1_000).expect("four seconds of flood");
    // One message a millisecond empties the bucket, which the 112th finds; three seconds of refusals follow.
    assert_eq!(closed_at_ms, 5_000 + 3_000 + 2_000 + 112 + 3_000);
}

#[test]
fn a_limit_of_zero_admits_everything() {
    let mut bench = Bench::new();
    let limits = SessionLimits { messages_per_second: 0, heartbeat_timeout_ms: 0 };
    bench.session = Session::new(limits, 0);
    assert_eq!(bench.session.silence_deadline_ms(), None);
    for _ in 0..1_000 {
        assert!(
            matches!(bench.say(&json!({"type": "ping"})), Step::Reply(replies) if replies[0].kind == "pong")
        );
    }
}

#[test]
fn anything_heard_moves_the_deadline_of_silence() {
    let mut bench = Bench::new();
    assert_eq!(bench.session.silence_deadline_ms(), Some(75_000));
    bench.session.handle_bytes(6_000);
    assert_eq!(bench.session.silence_deadline_ms(), Some(76_000));
    bench.now_ms = 7_000;
    bench.say(&json!({"type": "heartbeat"}));
    assert_eq!(bench.session.silence_deadline_ms(), Some(77_000));
}

#[test]
fn operators_routes_beat_the_shipped_ones_and_cannot_take_the_servers_types() {
    let row = |from: &str, to: &str| -> Route {
        serde_json::from_value(json!({"from": from, "to": to})).expect("a row")
    };
    let routes = Routes::with(vec![row("chat:send", "message")]).expect("allowed");
    assert_eq!(routes.find("chat:send").map(|route| route.to.as_str()), Some("message"));
    assert!(routes.find("read_receipt").is_some());
    for (from, to) in [
        ("ack", "x"),
        ("x", "ack"),
        ("x", "presence:join"),
        ("ping", "x"),
        ("subscribe", "x"),
        ("", "x"),
        ("x", ""),
    ] {
        assert!(Routes::with(vec![row(from, to)]).is_err(), "{from} to {to}");
    }
}

/// What a message in MessagePack is published as, its payload as MessagePack.
fn published_msgpack(kind: &str, payload: Vec<(&str, rmpv::Value)>) -> (Value, rmpv::Value) {
    let payload = payload.into_iter().map(|(name, value)| (name.into(), value)).collect();
    let message = rmpv::Value::Map(vec![
        ("type".into(), kind.into()),
        ("channel".into(), "room:1".into()),
        ("payload".into(), rmpv::Value::Map(payload)),
    ]);
    let mut bytes = Vec::new();
    rmpv::encode::write_value(&mut bytes, &message).expect("a Vec");
    let message = ClientMessage::parse(Codec::MessagePack, &bytes);
    let mut session = Bench::new().session;
    match session.handle_message(5_000, UNIX_MS, Some("u1"), &Routes::default(), message) {
        Step::Perform(Request::Publish(publish), _) => {
            let msgpack = publish.payload.msgpack().expect("binary").clone();
            (publish.payload.to_value(), rmpv::decode::read_value(&mut &*msgpack).expect("whole"))
        }
        other => panic!("{kind} became {other:?}"),
    }
}

#[test]
fn r24_binary_values_stay_binary_through_routes_relays_and_the_senders_name() {
    use rmpv::Value as M;
    let binary = || M::Binary(vec![1, 2]);
    let nested = || M::Map(vec![("b".into(), binary()), ("f".into(), M::F64(1.0))]);
    let field = |map: &M, name: &str| map[name].clone();

    let (json, msgpack) = published_msgpack("chat:send", vec![("text", binary())]);
    assert_eq!((&json["text"], &json["userId"]), (&json!("AQI="), &json!("u1")));
    assert_eq!((field(&msgpack, "text"), field(&msgpack, "userId")), (binary(), "u1".into()));

    let came = vec![("user_id", binary()), ("is_typing", binary()), ("x", nested())];
    let (json, msgpack) = published_msgpack("typing_start", came);
    assert_eq!(json, json!({"user_id": "u1", "is_typing": true, "x": {"b": "AQI=", "f": 1.0}}));
    assert_eq!((field(&msgpack, "user_id"), field(&msgpack, "x")), ("u1".into(), nested()));
    assert_eq!(field(&msgpack, "is_typing"), true.into());

    let came = vec![("userId", "forged".into()), ("text", binary())];
    let (json, msgpack) = published_msgpack("chat:message", came);
    assert_eq!(json, json!({"userId": "u1", "text": "AQI="}));
    assert_eq!((field(&msgpack, "userId"), field(&msgpack, "text")), ("u1".into(), binary()));
}

#[test]
fn a_new_token_stands_in_the_payload_or_beside_the_type() {
    let expected = Request::Authenticate("t".into());
    assert_eq!(request(&json!({"type": "auth", "payload": {"token": "t"}})), expected);
    assert_eq!(request(&json!({"type": "auth", "token": "t"})), expected);
    let (code, details, _) = refused(step(&json!({"type": "auth", "token": 5})));
    assert_eq!((code.as_str(), &details["field"]), ("INVALID_MESSAGE", &json!("token")));
    // Elsewhere it is a field like any unknown one.
    assert_eq!(published(&json!({"type": "t", "channel": "room:1", "token": 5})).kind, "t".into());
}

#[test]
fn what_is_wrong_with_a_field_is_a_sentence_about_it() {
    for (message, sentence) in [
        (json!({"type": 1}), "type must be a string"),
        (json!({"type": "t", "channel": ""}), "channel must not be empty"),
        (json!({"type": "t", "id": "i".repeat(257)}), "id must be at most 256 bytes"),
        (json!({"type": "subscribe"}), "channel is required"),
        (
            json!({"type": "presence", "payload": {"status": "x"}}),
            "payload.status is one of online, away, busy",
        ),
    ] {
        let Step::Reply(replies) = step(&message) else { panic!("{message} was accepted") };
        assert_eq!(replies[0].payload.to_value()["message"], sentence);
    }
}
