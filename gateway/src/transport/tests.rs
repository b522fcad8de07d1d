//! Transports under bad weather, from outside: storms, sockets that say nothing, a broker that is away.

use std::sync::Arc;
use std::time::Duration;

use carillon_broker_client::{MemoryCluster, NodeId};
use carillon_protocol::{Cursor, UserId};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::config::Config;
use crate::node::Node;
use crate::{auth, clock};

const SECRET: &str = "0123456789abcdef0123456789abcdef-of-the-tests";
const PATIENCE: Duration = Duration::from_secs(30);
const ROOM: &str = "room:a";

struct Running {
    node: Arc<Node>,
    cluster: MemoryCluster,
    address: std::net::SocketAddr,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Running {
    async fn start() -> Self {
        let settings = [
            ("server.listen", "127.0.0.1:0"),
            ("operator.listen", "127.0.0.1:0"),
            ("auth.jwt.secret", SECRET),
            ("drain.period", "0s"),
            ("drain.grace", "0s"),
        ];
        let config = Config::development(&settings).expect("the settings are good");
        let (cluster, id) = (MemoryCluster::new(), NodeId::random());
        let (broker, events) = cluster.join(id.clone());
        let app = App::with_broker(config, id, Arc::new(broker), events).await.expect("bound");
        let (node, address) = (app.node(), app.client_address().expect("bound"));
        let stop = CancellationToken::new();
        let task = tokio::spawn(app.run(stop.clone().cancelled_owned(), stop.clone()));
        Self { node, cluster, address, stop, task }
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.expect("the node ends");
    }

    fn token(&self) -> String {
        let token = auth::NewToken {
            user: "ann".to_owned(),
            name: None,
            scope: None,
            channels: None,
            ttl: Duration::from_secs(600),
        };
        auth::mint(&self.node.config.load().auth.jwt, None, &token, clock::unix_ms() / 1_000)
            .expect("minted")
    }

    async fn publish(&self, payload: u64) {
        let body = json!({"channel": ROOM, "type": "message", "payload": payload}).to_string();
        let head = format!(
            "POST /api/realtime/publish HTTP/1.1\r\nHost: a\r\nConnection: close\r\nAuthorization: Bearer {}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            self.token(),
            body.len()
        );
        let answer = everything(self.ask(&head).await).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }

    /// Sends a request's head and returns the socket.
    async fn ask(&self, head: &str) -> TcpStream {
        let mut socket = TcpStream::connect(self.address).await.expect("connected");
        socket.write_all(head.as_bytes()).await.expect("written");
        socket
    }

    async fn stream(&self, last_event_id: Option<&str>) -> Stream {
        let last = last_event_id.map_or(String::new(), |id| format!("Last-Event-ID: {id}\r\n"));
        let head = format!(
            "GET /api/realtime/events?profile=social&channel={ROOM} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {}\r\n{last}\r\n",
            self.token()
        );
        let mut stream = Stream(BufReader::new(self.ask(&head).await));
        assert!(stream.line().await.starts_with("HTTP/1.1 200 "));
        stream
    }
}

/// An event stream; chunk sizes between the events are passed over.
struct Stream(BufReader<TcpStream>);

impl Stream {
    async fn line(&mut self) -> String {
        let mut line = String::new();
        let read = timeout(PATIENCE, self.0.read_line(&mut line)).await.expect("a line in time");
        assert!(read.expect("a line") > 0, "the stream ended");
        line.trim_end().to_owned()
    }

    /// The next event's id and data.
    async fn event(&mut self) -> (Option<String>, Value) {
        let (mut id, mut document) = (None, None);
        loop {
            let line = self.line().await;
            if let Some(text) = line.strip_prefix("id: ") {
                id = Some(text.to_owned());
            } else if let Some(data) = line.strip_prefix("data: ") {
                document = Some(serde_json::from_str(data).expect("JSON"));
            } else if line.is_empty()
                && let Some(document) = document.take()
            {
                return (id, document);
            }
        }
    }

    async fn until(&mut self, kind: &str) -> (Option<String>, Value) {
        loop {
            let (id, event) = self.event().await;
            assert_ne!(event["type"], "error", "{event}");
            if event["type"] == kind {
                return (id, event);
            }
        }
    }
}

async fn everything(mut socket: TcpStream) -> String {
    let mut answer = String::new();
    timeout(PATIENCE, socket.read_to_string(&mut answer))
        .await
        .expect("ended in time")
        .expect("no reset");
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn stream_opened_without_the_broker_recovers_when_it_is_back() {
    let node = Running::start().await;
    let mut before = node.stream(None).await;
    before.until("subscribed").await;
    node.publish(1).await;
    let (cursor, first) = before.until("message").await;
    assert_eq!(first["payload"], 1);
    drop(before);
    node.publish(2).await;
    node.cluster.set_available(false);
    let mut after = node.stream(cursor.as_deref()).await;
    after.until("connect").await;
    node.cluster.set_available(true);
    let (_, subscribed) = after.until("subscribed").await;
    assert_eq!(subscribed["payload"]["recovered"], true, "{subscribed}");
    let (_, missed) = after.until("message").await;
    assert_eq!(missed["payload"], 2);
    node.publish(3).await;
    assert_eq!(after.until("message").await.1["payload"], 3);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connection_admitted_without_the_broker_counts_when_it_is_back() {
    let node = Running::start().await;
    node.cluster.set_available(false);
    let mut stream = node.stream(None).await;
    stream.until("connect").await;
    node.cluster.set_available(true);
    let user = UserId::new("ann").expect("a user");
    let end = Instant::now() + PATIENCE;
    while node.node.broker.connections_of(&user).await.expect("listed").len() != 1 {
        assert!(Instant::now() < end, "never registered");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn first_event_of_a_resumed_stream_forgets_no_channel() {
    let node = Running::start().await;
    let mut before = node.stream(None).await;
    before.until("subscribed").await;
    node.publish(1).await;
    let (cursor, _) = before.until("message").await;
    drop(before);
    node.publish(2).await;
    let cursor = cursor.expect("an id");
    let mut after = node.stream(Some(&cursor)).await;
    // Cut here, the client would come back with this id: it must still say where the room was left.
    let (id, welcome) = after.event().await;
    assert_eq!(welcome["type"], "connect");
    let id = Cursor::parse(&id.expect("an id")).expect("a cursor");
    let given = Cursor::parse(&cursor).expect("a cursor");
    assert_eq!(id.get(ROOM), given.get(ROOM));
    assert_eq!(id.get("user:ann"), given.get("user:ann"));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_that_do_not_ask_within_ten_seconds_are_closed() {
    let node = Running::start().await;
    let began = Instant::now();
    let silent = node.ask("").await;
    let half = node.ask("GET /ws HTTP/1.1\r\nHost: a\r\n").await;
    let mut trickle = node.ask("GET /ws HTTP/1.1\r\nX: ").await;
    let trickling = async {
        while trickle.write_all(b"a").await.is_ok() {
            assert!(began.elapsed() < PATIENCE, "a byte a time keeps a socket open");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::join!(everything(silent), everything(half), trickling);
    assert!(began.elapsed() >= Duration::from_secs(9), "a slow client has ten seconds");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn body_that_never_comes_is_not_waited_for_without_a_credential() {
    let node = Running::start().await;
    let post = |path: &str| {
        format!(
            "POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 999\r\n\r\n{{"
        )
    };
    for path in ["/api/realtime/publish", "/api/realtime/notifications", "/api/v1/realtime/poll"] {
        let answer = everything(node.ask(&post(path)).await).await;
        assert!(answer.starts_with("HTTP/1.1 401 "), "{path}: {answer}");
    }
    node.stop().await;
}

/// A handshake as browsers send it; `more` lines stand in its head.
fn handshake(token: &str, more: &str) -> String {
    format!(
        "GET /ws?channel={ROOM} HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nX-Request-Id: mine\r\n\
         Sec-WebSocket-Protocol: carillon.bearer, {token}\r\n{more}\r\n"
    )
}

/// hyper's, whatever the sockets' own reading of handshakes takes.
const LEFT_TO_HYPER: &str = "Content-Length: 0\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn handshake_is_answered_alike_with_and_without_hyper() {
    let node = Running::start().await;
    let mut answers = Vec::new();
    for more in ["", LEFT_TO_HYPER] {
        let mut socket = node.ask(&handshake(&node.token(), more)).await;
        // A first message in the same bytes would be just as early.
        let ping = br#"{"type":"ping"}"#;
        let frame = [&[0x81, 0x80 | ping.len() as u8, 0, 0, 0, 0][..], ping].concat();
        socket.write_all(&frame).await.expect("written");
        let mut stream = Stream(BufReader::new(socket));
        assert_eq!(stream.line().await, "HTTP/1.1 101 Switching Protocols");
        let mut lines = Vec::new();
        loop {
            let line = stream.line().await;
            if line.is_empty() {
                break;
            }
            // What hyper and the layers of REST add to every answer.
            if !["date:", "vary:", "access-control-"].iter().any(|own| line.starts_with(own)) {
                lines.push(line);
            }
        }
        lines.sort();
        answers.push(lines);
        let mut heard = Vec::new();
        while !heard.windows(6).any(|window| window == b"\"pong\"") {
            let read = timeout(PATIENCE, stream.0.read_buf(&mut heard)).await.expect("in time");
            assert!(read.expect("read") > 0, "{}", String::from_utf8_lossy(&heard));
        }
        let text = String::from_utf8_lossy(&heard);
        assert!(text.find("\"connect\"") < text.find("\"subscribed\""), "{text}");
    }
    assert_eq!(answers[0], answers[1]);
    assert!(answers[0].contains(&"sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=".to_owned()));
    assert!(answers[0].contains(&"x-request-id: mine".to_owned()));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_handshake_is_answered_alike_with_and_without_hyper() {
    let node = Running::start().await;
    for more in ["", LEFT_TO_HYPER] {
        let more = format!("{more}Connection: close\r\n");
        let answer = everything(node.ask(&handshake("no.such.token", &more)).await).await;
        assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
        let (_, body) = answer.split_once("\r\n\r\n").expect("a body");
        let body: Value = serde_json::from_str(body).expect("JSON");
        assert_eq!((&body["code"], &body["request_id"]), (&json!("INVALID_TOKEN"), &json!("mine")));
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn storm_beyond_the_doors_is_told_when_to_come_back() {
    let node = Running::start().await;
    let mut places = Vec::new();
    // A free place is given at once, which on a busy machine is not a moment.
    while let Ok(place) = timeout(Duration::from_secs(1), node.node.doors.enter()).await {
        places.push(place.expect("a place"));
    }
    let head = format!(
        "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nAuthorization: Bearer {}\r\n\r\n",
        node.token()
    );
    let mut refused = Stream(BufReader::new(node.ask(&head).await));
    assert!(refused.line().await.starts_with("HTTP/1.1 503 "));
    while !refused.line().await.eq_ignore_ascii_case("retry-after: 2") {}
    places.pop();
    let mut taken = Stream(BufReader::new(node.ask(&head).await));
    assert!(taken.line().await.starts_with("HTTP/1.1 101 "));
    // The place is free again once the welcome was sent.
    timeout(PATIENCE, node.node.doors.enter()).await.expect("in time").expect("a place");
    node.stop().await;
}
