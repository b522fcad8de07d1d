//! The application from outside: nodes over one embedded cluster, clients on real sockets, a real HTTP receiver.

mod allowed;
mod called;
#[path = "../../../broker-client/tests/behaviour/redis_server.rs"]
mod redis_server;
mod revoked;
mod sent;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use base64::Engine as _;
use bytes::Bytes;
use carillon_broker_client::{
    Broker, Health, MemoryCluster, NodeId, RedisBroker, RedisMode, RedisSettings, RedisTls,
};
use futures_util::{SinkExt as _, StreamExt as _};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;

use redis_server::RedisServer;

use crate::app::App;
use crate::config::Config;
use crate::node::{Node, Stores};
use crate::{auth, clock};

const JWT_SECRET: &str = "0123456789abcdef0123456789abcdef-of-the-tests";
const KEY: &str = "admin-key-0123456789abcdef0123456789";
const KEYS: &str =
    r#"{"admin":{"key":"admin-key-0123456789abcdef0123456789","scopes":["realtime:admin"]}}"#;
/// The key behind it is `the key of the receiver`.
const HOOK_SECRET: &str = "whsec_dGhlIGtleSBvZiB0aGUgcmVjZWl2ZXI=";
const PATIENCE: Duration = Duration::from_secs(30);

/// What the nodes of a test share.
enum Cluster {
    Memory(MemoryCluster),
    Redis(Arc<RedisServer>, String),
}

impl Cluster {
    fn memory() -> Self {
        Self::Memory(MemoryCluster::new())
    }

    fn redis() -> Self {
        Self::Redis(RedisServer::shared(), RedisServer::prefix())
    }
}

/// Each fact over the embedded cluster and over a real Redis.
macro_rules! over_both {
    ($($fact:ident)*) => {
        mod memory {
            $(#[tokio::test] async fn $fact() { super::$fact(&crate::application::tests::Cluster::memory()).await; })*
        }
        mod redis {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $fact() { super::$fact(&crate::application::tests::Cluster::redis()).await; })*
        }
    };
}
use over_both;

struct Running {
    node: Arc<Node>,
    address: SocketAddr,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Running {
    async fn start(cluster: &Cluster, settings: &[(&str, &str)]) -> Self {
        let fixed = [
            ("server.listen", "127.0.0.1:0"),
            ("operator.listen", "127.0.0.1:0"),
            ("auth.jwt.secret", JWT_SECRET),
            ("auth.api_keys", KEYS),
            ("drain.period", "0s"),
            ("drain.grace", "0s"),
            ("presence.offline_delay", "1s"),
        ];
        let settings: Vec<_> = fixed.into_iter().chain(settings.iter().copied()).collect();
        let config = Config::development(&settings).expect("the settings are good");
        let id = NodeId::random();
        let app = match cluster {
            Cluster::Memory(cluster) => {
                let (broker, events) = cluster.join(id.clone());
                App::with_broker(config, id, Arc::new(broker), events).await
            }
            Cluster::Redis(server, prefix) => {
                let settings = RedisSettings {
                    mode: RedisMode::Standalone,
                    urls: vec![server.url()],
                    master_name: None,
                    prefix: prefix.clone(),
                    tls: RedisTls::default(),
                    command_timeout: Duration::from_secs(5),
                };
                let (broker, events) = RedisBroker::connect(settings, id.clone());
                let mut health = broker.health();
                let up = health.wait_for(|health| *health == Health::Up);
                tokio::time::timeout(PATIENCE, up).await.expect("in time").expect("a broker");
                let stores = Stores::redis(&broker);
                App::with_stores(config, id, Arc::new(broker), events, stores).await
            }
        };
        let app = app.expect("loopback ports are free");
        let (node, address) = (app.node(), app.client_address().expect("bound"));
        let stop = CancellationToken::new();
        let task = tokio::spawn(app.run(stop.clone().cancelled_owned(), stop.clone()));
        Self { node, address, stop, task }
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.expect("the node ends");
    }

    fn token(&self, user: &str) -> String {
        let token = auth::NewToken {
            user: user.to_owned(),
            ttl: Duration::from_secs(600),
            ..auth::NewToken::default()
        };
        auth::mint(&self.node.config.load().auth.jwt, None, &token, clock::unix_ms() / 1_000)
            .expect("minted")
    }

    async fn connect(&self, user: &str) -> Client {
        self.try_connect(&self.token(user), "").await.expect("upgraded")
    }

    /// The status of the refusal where it is refused.
    async fn try_connect(&self, token: &str, query: &str) -> Result<Client, u16> {
        let url = format!("ws://{}/ws?token={token}{query}", self.address);
        match tokio_tungstenite::connect_async(url).await {
            Ok((socket, _)) => {
                let mut client = Client { socket, next: 0 };
                client.until("connect").await;
                Ok(client)
            }
            Err(tokio_tungstenite::tungstenite::Error::Http(response)) => {
                Err(response.status().as_u16())
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// A REST call (or a poll, by its whole path): status and body.
    async fn call(
        &self,
        method: &str,
        path: &str,
        credential: &str,
        body: Option<&Value>,
    ) -> (u16, Value) {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let body = body.map(Value::to_string).unwrap_or_default();
        let credential = if credential == KEY {
            format!("x-api-key: {KEY}")
        } else {
            format!("authorization: Bearer {credential}")
        };
        let base = if path.starts_with("/api/") { "" } else { "/api/realtime" };
        let request = format!(
            "{method} {base}{path} HTTP/1.1\r\nhost: t\r\nconnection: close\r\n{credential}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut stream = TcpStream::connect(self.address).await.expect("connected");
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("answered");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        let status =
            head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        (status, serde_json::from_str(body).unwrap_or(Value::Null))
    }

    async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        self.call("POST", path, KEY, Some(&body)).await
    }
}

struct Client {
    socket: tokio_tungstenite::WebSocketStream<tokio_tungstenite::MaybeTlsStream<TcpStream>>,
    next: u64,
}

impl Client {
    async fn next(&mut self) -> Value {
        loop {
            let next = tokio::time::timeout(PATIENCE, self.socket.next()).await;
            match next.expect("a message in time").expect("open").expect("readable") {
                Message::Text(text) => return serde_json::from_str(&text).expect("JSON"),
                Message::Close(frame) => {
                    return json!({"type": "closed", "code": frame.map(|frame| u16::from(frame.code))});
                }
                _ => {}
            }
        }
    }

    async fn until(&mut self, kind: &str) -> Value {
        loop {
            let message = self.next().await;
            if message["type"] == kind {
                return message;
            }
            assert_ne!(message["type"], "closed", "before {kind}: {message}");
        }
    }

    async fn say(&mut self, message: Value) {
        self.socket.send(Message::text(message.to_string())).await.expect("sent");
    }

    /// Says it with an `ack_id` of its own, which is returned.
    async fn begin(&mut self, mut message: Value) -> String {
        self.next += 1;
        let id = format!("a{}", self.next);
        message["ack_id"] = id.as_str().into();
        self.say(message).await;
        id
    }

    /// The ack or error of a request.
    async fn answer(&mut self, ack_id: &str) -> Value {
        loop {
            let message = self.next().await;
            let is_answer = message["type"] == "ack" || message["type"] == "error";
            if is_answer && message["ack_id"] == ack_id {
                return message;
            }
            assert_ne!(message["type"], "closed", "before {ack_id}: {message}");
        }
    }

    async fn request(&mut self, message: Value) -> Value {
        let id = self.begin(message).await;
        self.answer(&id).await
    }
}

/// One call as the receiver got it.
#[derive(Clone, Debug)]
struct Received {
    id: String,
    body: Value,
    at: tokio::time::Instant,
}

/// What it answers: status, body, and how long it takes.
type Answer = (u16, Value, Duration);

/// The application's HTTP side. It verifies every signature with its own code.
#[derive(Clone)]
struct Receiver {
    address: SocketAddr,
    inner: Arc<Inner>,
}

struct Inner {
    received: Mutex<Vec<Received>>,
    changed: Notify,
    /// The next answers; then the last one again and again.
    answers: Mutex<VecDeque<Answer>>,
    /// Lets go the answers that are [`HELD`].
    released: Notify,
    /// Calls that are being answered, and the most that ever were.
    busy: Mutex<(usize, usize)>,
}

impl Receiver {
    async fn start(answer: Value) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let inner = Arc::new(Inner {
            received: Mutex::default(),
            changed: Notify::new(),
            answers: Mutex::new([(200, answer, Duration::ZERO)].into()),
            released: Notify::new(),
            busy: Mutex::default(),
        });
        let routes = axum::Router::new().fallback(receive).with_state(Arc::clone(&inner));
        tokio::spawn(async move { axum::serve(listener, routes).await.expect("served") });
        Self { address, inner }
    }

    fn url(&self) -> String {
        format!("http://{}/hook?tenant=1", self.address)
    }

    /// Answers so from now on, in this order; the last one stays.
    fn answers(&self, answers: impl IntoIterator<Item = Answer>) {
        *self.inner.answers.lock() = answers.into_iter().collect();
    }

    /// The answer that is held, or the next one that will be.
    fn release(&self) {
        self.inner.released.notify_one();
    }

    fn received(&self) -> Vec<Received> {
        self.inner.received.lock().clone()
    }

    fn count(&self) -> usize {
        self.inner.received.lock().len()
    }

    /// Waits until so many calls came.
    async fn until(&self, count: usize) -> Vec<Received> {
        let wait = async {
            loop {
                let changed = self.inner.changed.notified();
                if self.count() >= count {
                    return self.received();
                }
                changed.await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, wait).await;
        waited.unwrap_or_else(|_| panic!("{count} calls, not {:?}", self.received()))
    }
}

async fn receive(
    State(inner): State<Arc<Inner>>,
    headers: HeaderMap,
    body: Bytes,
) -> impl IntoResponse {
    let header = |name: &str| {
        headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
    };
    let (id, timestamp) = (header("webhook-id"), header("webhook-timestamp"));
    let age = clock::unix_ms() / 1_000 - timestamp.parse::<i64>().expect("Unix seconds");
    assert!((0..60).contains(&age), "{timestamp}");
    let signed = [format!("{id}.{timestamp}.").as_bytes(), &body].concat();
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, b"the key of the receiver");
    let good = header("webhook-signature").split(' ').any(|signature| {
        let decode = |text: &str| base64::engine::general_purpose::STANDARD.decode(text).ok();
        signature
            .strip_prefix("v1,")
            .and_then(decode)
            .is_some_and(|tag| aws_lc_rs::hmac::verify(&key, &signed, &tag).is_ok())
    });
    if !good || header("content-type") != "application/json" {
        return (StatusCode::UNAUTHORIZED, "{}".to_owned());
    }
    let received = Received {
        id,
        body: serde_json::from_slice(&body).expect("JSON"),
        at: tokio::time::Instant::now(),
    };
    inner.received.lock().push(received);
    inner.changed.notify_waiters();
    let (status, answer, delay) = {
        let mut answers = inner.answers.lock();
        if answers.len() > 1 { answers.pop_front() } else { answers.front().cloned() }
            .expect("an answer")
    };
    {
        let mut busy = inner.busy.lock();
        busy.0 += 1;
        busy.1 = busy.1.max(busy.0);
    }
    if delay == HELD {
        inner.released.notified().await;
    } else {
        tokio::time::sleep(delay).await;
    }
    inner.busy.lock().0 -= 1;
    (StatusCode::from_u16(status).expect("a status"), answer.to_string())
}

const NOW: Duration = Duration::ZERO;
/// Until the test lets it go.
const HELD: Duration = Duration::MAX;
