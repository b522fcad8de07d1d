//! The uno document from outside, second half: its WebSocket, its event stream, its events, field by field.

use std::time::Duration;

use super::document::{Pair, example};
use super::*;

/// An event stream as its bytes say it.
struct Events {
    body: Body,
    text: String,
}

/// One event: its lines by name, `data` joined as an EventSource does.
#[derive(Debug, Default)]
struct Event {
    name: String,
    id: Option<String>,
    retry: Option<String>,
    comment: Option<String>,
    data: String,
}

impl Events {
    async fn open(rest: &Rest, user: &str) -> Self {
        let token = rest.token(user, None);
        let request = Request::get(format!("/api/realtime/events?token={token}"));
        let request = request.body(Body::empty()).expect("a request");
        let response = rest.router.clone().oneshot(request).await.expect("infallible");
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { body: response.into_body(), text: String::new() }
    }

    /// The next event that has data.
    async fn next(&mut self) -> Event {
        loop {
            if let Some(end) = self.text.find("\n\n") {
                let block: String = self.text.drain(..end + 2).collect();
                if let Some(event) = Event::read(&block) {
                    return event;
                }
                continue;
            }
            let frame = tokio::time::timeout(Duration::from_secs(60), self.body.frame()).await;
            let frame = frame.expect("an event in time").expect("the stream lives");
            let frame = frame.expect("no error").into_data().expect("data");
            self.text.push_str(std::str::from_utf8(&frame).expect("UTF-8"));
        }
    }

    /// The next event of that name, its data read as JSON.
    async fn json(&mut self, name: &str) -> Value {
        loop {
            let event = self.next().await;
            if event.name == name {
                return serde_json::from_str(&event.data).expect("JSON");
            }
        }
    }
}

impl Event {
    fn read(block: &str) -> Option<Self> {
        let (mut event, mut data) = (Self::default(), Vec::new());
        for line in block.lines().filter(|line| !line.is_empty()) {
            let (name, value) = line.split_once(": ").or(line.split_once(':')).expect("a field");
            match name {
                "event" => event.name = value.to_owned(),
                "id" => event.id = Some(value.to_owned()),
                "retry" => event.retry = Some(value.to_owned()),
                "data" => data.push(value),
                "" => event.comment = Some(value.to_owned()),
                other => panic!("an event has no field {other:?}"),
            }
        }
        event.data = data.join("\n");
        (!data.is_empty()).then_some(event)
    }
}

fn fields(value: &Value) -> Vec<&str> {
    let mut names: Vec<&str> =
        value.as_object().expect("an object").keys().map(String::as_str).collect();
    names.sort_unstable();
    names
}

#[tokio::test]
async fn a_websocket_goes_through_the_document_field_by_field() {
    let pair = Pair::start().await;
    let mut client = pair.open(1, "user-456").await;
    let welcome = client.next().await;
    let id = welcome["connection_id"].as_str().expect("an id").to_owned();
    assert_eq!(welcome, json!({"type": "connection", "connection_id": id}));
    assert_eq!(client.next().await["type"], "subscribed");

    // Client to server, as the document writes it; what becomes of it, an `ack_id` tells.
    client.say(json!({"type": "message", "payload": "Hello, server!"})).await;
    client.say(json!({"type": "message", "payload": "Hello, server!", "ack_id": "a"})).await;
    let ack = client.next().await;
    assert_eq!((&ack["type"], &ack["ack_id"]), (&json!("ack"), &json!("a")));

    // Server to client, sent by the other node.
    let sent = pair
        .one
        .post(
            &format!("/connections/{id}/messages"),
            &json!({"type": "message", "payload": "Hello, client!"}),
        )
        .await;
    assert_eq!((sent.status, sent.body), (StatusCode::OK, json!({"delivered": true})));
    let heard = client.next().await;
    assert_eq!(fields(&heard), ["id", "payload", "timestamp", "type"]);
    assert_eq!((&heard["type"], &heard["payload"]), (&json!("message"), &json!("Hello, client!")));

    // A notification has the fields of the document's message, and those of R34.
    let created = pair.one.post("/notifications", &example()).await.body;
    let heard = client.next().await;
    assert_eq!(heard["type"], "notification");
    let mut wanted = created.clone();
    for private in ["recipients", "read_by"] {
        wanted.as_object_mut().expect("an object").remove(private);
    }
    wanted["read"] = false.into();
    assert_eq!(heard["payload"], wanted);
    pair.stop().await;
}

#[tokio::test]
async fn an_event_stream_goes_through_the_document_field_by_field() {
    let rest = Rest::start(&[("heartbeat.interval", "1s"), ("heartbeat.timeout", "5s")]).await;
    let mut stream = Events::open(&rest, "user-456").await;
    let first = stream.next().await;
    assert_eq!(first.name, "connection");
    let data: Value = serde_json::from_str(&first.data).expect("JSON");
    assert_eq!(fields(&data), ["connection_id"]);
    let ping = stream.json("ping").await;
    assert_eq!(fields(&ping), ["timestamp"]);
    assert!(ping["timestamp"].as_str().is_some_and(|time| time.ends_with('Z')), "{ping}");
    let created = rest.post("/notifications", &example()).await.body;
    let notification = loop {
        let event = stream.next().await;
        if event.name == "notification" {
            break event;
        }
    };
    assert!(notification.id.is_some_and(|id| !id.is_empty()));
    let data: Value = serde_json::from_str(&notification.data).expect("JSON");
    for field in ["id", "title", "message"] {
        assert_eq!(data[field], created[field], "{field}");
    }
    rest.stop().await;
}

#[tokio::test]
async fn events_are_created_and_broadcast_as_the_document_shows() {
    let pair = Pair::start().await;
    let mut one = Events::open(&pair.one, "user-456").await;
    let mut two = Events::open(&pair.two, "user-789").await;
    let id = |welcome: &Value| welcome["connection_id"].as_str().expect("an id").to_owned();
    let first = id(&one.json("connection").await);
    let second = id(&two.json("connection").await);
    let body = json!({
        "event": "update",
        "data": "{\"resource_id\":\"post-789\",\"action\":\"update\"}",
        "priority": "normal",
        "retry": 3000,
        "comment": "Resource update event"
    });
    let created = pair.one.post("/events", &body).await;
    let mut wanted = body.clone();
    wanted["id"] = created.body["id"].clone();
    assert_eq!((created.status, &created.body), (StatusCode::CREATED, &wanted));
    assert!(created.body["id"].is_string());
    for stream in [&mut one, &mut two] {
        let event = loop {
            let event = stream.next().await;
            if event.name == "update" {
                break event;
            }
        };
        assert_eq!(event.data, "{\"resource_id\":\"post-789\",\"action\":\"update\"}");
        assert_eq!(event.retry.as_deref(), Some("3000"));
        assert_eq!(event.comment.as_deref(), Some("Resource update event"));
    }

    // The document's recipients and exclusions: only the live ones of the one less the other count.
    let broadcast = |recipients: Value, exclude: Value| {
        let pair = &pair;
        async move {
            let body = json!({"event": "update", "data": "x", "priority": "normal", "recipients": recipients, "exclude": exclude});
            let answer = pair.two.post("/events/broadcast", &body).await;
            assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
            answer.body
        }
    };
    let both = json!([first, second, "connection-123"]);
    assert_eq!(broadcast(both.clone(), json!(["connection-789"])).await, json!(2));
    assert_eq!(broadcast(both.clone(), json!([second])).await, json!(1));
    assert_eq!(broadcast(json!([]), json!([])).await, json!(0));
    assert_eq!(broadcast(Value::Null, json!([first])).await, json!(1));
    pair.stop().await;
}

#[tokio::test]
async fn an_event_of_several_lines_reads_back_as_it_was() {
    let rest = Rest::start(&[]).await;
    let mut stream = Events::open(&rest, "user-456").await;
    stream.json("connection").await;
    for (data, read) in [
        ("one\ntwo\r\nthree\rfour", "one\ntwo\nthree\nfour"),
        ("", ""),
        ("\n", "\n"),
        ("event: x\n\nid: y", "event: x\n\nid: y"),
        (" leading", " leading"),
    ] {
        rest.post("/events", &json!({"event": "lines", "data": data})).await;
        let event = loop {
            let event = stream.next().await;
            if event.name == "lines" {
                break event;
            }
        };
        assert_eq!(event.data, read);
    }
    rest.stop().await;
}
