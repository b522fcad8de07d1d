//! What each profile says, byte for byte, and how far a scripted server lets a connection in.

use super::*;
use crate::mark::Mark;
use crate::opening;
use crate::websocket::Frame;
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::Message;

fn target(kind: Kind, plain: Plain) -> Target {
    Target {
        kind,
        address: ([127, 0, 0, 1], 8082).into(),
        host: "127.0.0.1:8082".to_owned(),
        jwt_secret: String::new(),
        user: "load".to_owned(),
        api_key: "key".to_owned(),
        publish_by: PublishBy::Rest,
        plain,
        recipients: 1,
    }
}

fn of(kind: Kind) -> Target {
    target(kind, Plain::default())
}

fn listener<'a>(target: &'a Target, channel: &'a str) -> Caller<'a> {
    Caller { target, index: 7, channel: Some(channel) }
}

/// The bytes of two publishes, and how many answers they will have.
fn published(target: &Target) -> (String, u64) {
    let mut bytes = Vec::new();
    let answers = target.push_publish(&mut bytes, &[(0, "{}".to_owned()), (1, "[1]".to_owned())]);
    (String::from_utf8(bytes).expect("text"), answers)
}

/// The texts of client frames, unmasked by their zero mask.
fn texts(mut bytes: &[u8]) -> Vec<String> {
    let mut texts = Vec::new();
    while let Frame::Whole { opcode, payload, size, .. } = websocket::parse(bytes) {
        assert_eq!(opcode, websocket::TEXT);
        texts.push(String::from_utf8(payload.to_vec()).expect("text"));
        bytes = &bytes[size..];
    }
    assert!(bytes.is_empty());
    texts
}

#[test]
fn carillon_publishes_one_message_or_a_batch_and_counts_each_refusal() {
    let target = of(Kind::Carillon);
    let (text, answers) = published(&target);
    assert_eq!(answers, 1);
    let (head, body) = text.split_once("\r\n\r\n").expect("a body");
    assert!(head.starts_with("POST /api/realtime/publish/batch HTTP/1.1\r\nHost: 127.0.0.1:8082"));
    assert!(head.contains("X-API-Key: key") && head.ends_with(&format!(": {}", body.len())));
    let body: serde_json::Value = serde_json::from_str(body).expect("JSON");
    assert_eq!(body["messages"][1]["channel"], "room:bench-1");
    let mut one = Vec::new();
    target.push_publish(&mut one, &[(0, "{}".to_owned())]);
    assert!(one.starts_with(b"POST /api/realtime/publish HTTP/1.1"));
    let profile = target.kind.profile();
    assert_eq!(profile.refusals(b"HTTP/1.1 200 OK\r\n\r\n{}"), 0);
    assert_eq!(profile.refusals(b"HTTP/1.1 200 OK\r\n\r\n{\"code\":\"a\",\"code\":\"b\"}"), 2);
    assert_eq!(profile.refusals(b"HTTP/1.1 503 No\r\n\r\n"), 1);
}

#[test]
fn carillon_takes_acknowledged_publishes_over_a_members_websocket() {
    let target = Target { publish_by: PublishBy::Websocket, ..of(Kind::Carillon) };
    let request = String::from_utf8(target.open_publisher(2).expect("a WebSocket")).expect("text");
    assert!(request.starts_with("GET /ws?token="), "{request}");
    let mut bytes = Vec::new();
    assert_eq!(target.push_publish(&mut bytes, &[(0, "{}".to_owned())]), 1);
    assert!(texts(&bytes)[0].contains("\"channel\":\"room:bench-0\",\"ack_id\":"));
    let verdict = |heard: &str| target.kind.profile().verdict(heard.as_bytes());
    assert_eq!(verdict("{\"type\":\"ack\",\"ack_id\":\"1\"}"), Some(0));
    assert_eq!(verdict("{\"type\":\"error\",\"code\":\"forbidden\"}"), Some(1));
    assert_eq!(verdict("{\"type\":\"presence\"}"), None);
}

#[test]
fn floor_and_plain_publish_channel_and_payload_on_two_lines() {
    for kind in [Kind::Floor, Kind::Naive, Kind::Plain] {
        let target = of(kind);
        let mut bytes = Vec::new();
        let messages = [(0, "{}".to_owned()), (1, "[1]".to_owned())];
        assert_eq!(target.push_publish(&mut bytes, &messages), 0);
        assert_eq!(texts(&bytes), ["bench-0\n{}", "bench-1\n[1]"]);
        let request = target.open(Transport::Ws, listener(&target, "bench-0")).expect("a request");
        assert!(request.starts_with(b"GET /ws?channel=bench-0 HTTP/1.1\r\n"));
        assert!(target.open(Transport::Sse, listener(&target, "bench-0")).is_err());
        assert!(target.open_publisher(0).expect("a WebSocket").starts_with(b"GET /pub HTTP/1.1"));
    }
}

#[test]
fn nchan_posts_each_message_and_listens_over_either_transport() {
    let target = of(Kind::Nchan);
    let (text, answers) = published(&target);
    assert_eq!(answers, 2);
    assert!(text.starts_with("POST /pub?channel=bench-0 HTTP/1.1\r\n"));
    assert!(text.ends_with("Content-Length: 3\r\n\r\n[1]"));
    assert!(target.open_publisher(0).is_none());
    let request = target.open(Transport::Sse, listener(&target, "a")).expect("a request");
    let request = String::from_utf8(request).expect("text");
    assert!(request.starts_with("GET /sub?channel=a ") && request.contains("text/event-stream"));
}

#[test]
fn socketio_joins_the_namespace_after_the_open_packet_and_answers_pings() {
    let target = of(Kind::Socketio);
    let caller = listener(&target, "bench-3");
    let profile = target.kind.profile();
    assert_eq!(profile.ws_path(caller), "/socket.io/?EIO=4&transport=websocket&channel=bench-3");
    let hear = |heard: &str| profile.converse(caller, Some(heard.as_bytes()));
    assert_eq!(profile.converse(caller, None), Act::Wait);
    let open = r#"0{"sid":"x","upgrades":[],"pingInterval":25000,"pingTimeout":20000}"#;
    assert_eq!(hear(open), Act::Say("40".to_owned()));
    assert_eq!(hear("2"), Act::Say("3".to_owned()));
    assert_eq!(hear(r#"40{"sid":"y"}"#), Act::Open);
    assert!(matches!(hear(r#"44{"message":"no"}"#), Act::Refused(_)));
    assert!(matches!(hear("1"), Act::Refused(_)));
    assert_eq!(profile.answer(&target, b"2"), Some("3"));
    assert_eq!(profile.answer(&target, b"42[\"message\",2]"), None);
    let mut bytes = Vec::new();
    target.push_publish(&mut bytes, &[(3, "{\"a\":1}".to_owned())]);
    assert_eq!(texts(&bytes), ["42[\"publish\",\"bench-3\",{\"a\":1}]"]);
}

#[test]
fn centrifugo_connects_then_subscribes_and_answers_pings_wherever_they_stand() {
    let mut target = of(Kind::Centrifugo);
    target.jwt_secret = "secret".to_owned();
    let caller = listener(&target, "bench-0");
    let profile = target.kind.profile();
    let Act::Say(connect) = profile.converse(caller, None) else { panic!("connects first") };
    let connect: serde_json::Value = serde_json::from_str(&connect).expect("JSON");
    assert_eq!(connect["connect"]["token"].as_str().expect("a token").split('.').count(), 3);
    let hear = |heard: &str| profile.converse(caller, Some(heard.as_bytes()));
    let subscribe = Act::Say(r#"{"id":2,"subscribe":{"channel":"bench-0"}}"#.to_owned());
    let connected = r#"{"id":1,"connect":{"client":"x","version":"6.0","ping":25,"pong":true}}"#;
    assert_eq!(hear(connected), subscribe);
    assert_eq!(hear("{}"), Act::Say("{}".to_owned()));
    // A push of another subscription before the reply does not open this one.
    assert_eq!(hear(r#"{"push":{"channel":"user#1","pub":{"data":{}}}}"#), Act::Wait);
    let both = "{\"push\":{\"channel\":\"a\",\"join\":{}}}\n{\"id\":2,\"subscribe\":{}}";
    assert_eq!(hear(both), Act::Open);
    let denied = hear(r#"{"id":2,"error":{"code":103,"message":"permission denied"}}"#);
    assert!(matches!(denied, Act::Refused(reason) if reason.contains("permission denied")));
    let publisher = Caller { channel: None, ..caller };
    assert_eq!(profile.converse(publisher, Some(connected.as_bytes())), Act::Open);

    for ping in ["{}", "{}\n{\"push\":{}}", "{\"push\":{}}\n{}", "{\"id\":1}\n{}\n{\"id\":2}"] {
        assert_eq!(profile.answer(&target, ping.as_bytes()), Some("{}"), "{ping}");
    }
    let push = r#"{"push":{"channel":"bench-0","pub":{"data":{},"offset":3}}}"#;
    assert_eq!(profile.answer(&target, push.as_bytes()), None);
}

#[test]
fn centrifugo_publishes_through_its_http_api() {
    let target = of(Kind::Centrifugo);
    let (text, answers) = published(&target);
    assert_eq!(answers, 1);
    assert!(text.starts_with("POST /api/batch HTTP/1.1") && text.contains("X-API-Key: key\r\n"));
    let body = text.split_once("\r\n\r\n").expect("a body").1;
    let body: serde_json::Value = serde_json::from_str(body).expect("JSON");
    let expected = serde_json::json!({"commands": [
        {"publish": {"channel": "bench-0", "data": {}}},
        {"publish": {"channel": "bench-1", "data": [1]}},
    ]});
    assert_eq!(body, expected);
    let profile = target.kind.profile();
    assert_eq!(profile.refusals(b"HTTP/1.1 200 OK\r\n\r\n{\"result\":{\"offset\":1}}"), 0);
    assert_eq!(profile.refusals(b"HTTP/1.1 200 OK\r\n\r\n{\"error\":{\"code\":107}}"), 1);
}

#[test]
fn plain_fills_its_templates() {
    let plain = Plain {
        path: "/live?who={index}".to_owned(),
        subscribe: Some(r#"{"op":"sub","topic":"{channel}"}"#.to_owned()),
        subscribed: Some("\"op\":\"ok\"".to_owned()),
        ping: Some("hi".to_owned()),
        pong: Some("ho".to_owned()),
        post: Some("/topics/{channel}".to_owned()),
        publish: Some(r#"{"data":{payload}}"#.to_owned()),
        header: vec!["Authorization: Bearer x".to_owned()],
        ..Plain::default()
    };
    let target = target(Kind::Plain, plain);
    let caller = listener(&target, "bench-0");
    let profile = target.kind.profile();
    assert_eq!(profile.ws_path(caller), "/live?who=7");
    let said = Act::Say(r#"{"op":"sub","topic":"bench-0"}"#.to_owned());
    assert_eq!(profile.converse(caller, None), said);
    assert_eq!(profile.converse(caller, Some(b"{\"op\":\"hello\"}")), Act::Wait);
    assert_eq!(profile.converse(caller, Some(b"hi")), Act::Say("ho".to_owned()));
    assert_eq!(profile.converse(caller, Some(b"{\"op\":\"ok\"}")), Act::Open);
    assert_eq!(profile.answer(&target, b"hi"), Some("ho"));
    let (text, answers) = published(&target);
    assert_eq!(answers, 2);
    assert!(text.starts_with("POST /topics/bench-0 HTTP/1.1\r\n"));
    assert!(text.contains("Authorization: Bearer x\r\n"));
    assert!(text.ends_with("\r\n\r\n{\"data\":[1]}"));
}

#[test]
fn address_is_found_in_any_url_but_not_behind_tls() {
    for url in ["127.0.0.1:9", "http://127.0.0.1:9/", "ws://127.0.0.1:9/ws?channel=a:b"] {
        assert_eq!(locate(url).expect(url), ("127.0.0.1:9".to_owned(), ([127, 0, 0, 1], 9).into()));
    }
    assert_eq!(locate("ws://127.0.0.1").expect("a default port").1.port(), 80);
    assert!(locate("wss://127.0.0.1:9").is_err());
}

/// A server that says what it is told to say, in turn, and returns what it heard.
async fn scripted(listener: TcpListener, script: &[&str]) -> Vec<String> {
    let (stream, _) = listener.accept().await.expect("a client");
    let mut socket = tokio_tungstenite::accept_async(stream).await.expect("a handshake");
    let mut heard = Vec::new();
    for line in script {
        match line.strip_prefix('>') {
            Some(text) => socket.send(Message::text(text)).await.expect("a reader"),
            None => heard.push(socket.next().await.expect("a frame").expect("valid").to_string()),
        }
    }
    heard
}

/// All that came behind the opening, to the end of the connection; and what the server heard.
async fn opened(kind: Kind, script: &[&str]) -> (Result<Vec<u8>>, Vec<String>) {
    let socket = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = socket.local_addr().expect("bound");
    let target = Target { address, host: address.to_string(), ..of(kind) };
    let caller = listener(&target, "bench-0");
    let request = target.open(Transport::Ws, caller).expect("a request");
    let client = async {
        let mut stream = TcpStream::connect(address).await?;
        let opened = opening::open(&mut stream, &request, Transport::Ws, caller).await?;
        let mut rest = opened.rest;
        stream.read_to_end(&mut rest).await?;
        Ok(rest)
    };
    tokio::join!(client, scripted(socket, script))
}

#[tokio::test]
async fn connection_opens_against_a_scripted_centrifugo_and_keeps_what_came_early() {
    let mark = Mark { channel: 0, sequence: 1, due_ns: 5 };
    let push = format!(
        ">{{\"push\":{{\"channel\":\"bench-0\",\"pub\":{{\"data\":{}}}}}}}",
        mark.payload(64)
    );
    let connected = ">{\"id\":1,\"connect\":{\"client\":\"x\",\"ping\":25,\"pong\":true}}";
    let script = ["", connected, "", ">{\"id\":2,\"subscribe\":{}}", &push];
    let (rest, heard) = opened(Kind::Centrifugo, &script).await;
    assert_eq!(
        heard,
        ["{\"id\":1,\"connect\":{}}", "{\"id\":2,\"subscribe\":{\"channel\":\"bench-0\"}}"]
    );
    let rest = rest.expect("open");
    assert_eq!(Mark::find(&rest, &mut 0).map(|found| found.0), Some(mark));
}

#[tokio::test]
async fn refusal_of_a_scripted_socketio_ends_the_opening() {
    let script = [">0{\"sid\":\"x\"}", "", ">44{\"message\":\"not you\"}"];
    let (rest, heard) = opened(Kind::Socketio, &script).await;
    assert_eq!(heard, ["40"]);
    assert!(rest.expect_err("refused").to_string().contains("not you"));
}
