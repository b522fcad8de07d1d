//! Long polls from outside: real sockets, nodes over one embedded cluster in this process.

mod answers;
mod between;
mod seats;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use carillon_broker_client::{MemoryCluster, NodeId};
use carillon_protocol::publication::Exclude;
use carillon_protocol::{ChannelName, Payload};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use parking_lot::Mutex;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::config::Config;
use crate::node::{Node, Outgoing};
use crate::{auth, clock};

const SECRET: &str = "0123456789abcdef0123456789abcdef-of-the-tests";
/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(20);

struct Running {
    node: Arc<Node>,
    address: std::net::SocketAddr,
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

struct Nodes {
    cluster: MemoryCluster,
    running: Vec<Running>,
    client: Client<HttpConnector, Full<Bytes>>,
    /// Each user's token.
    tokens: Mutex<BTreeMap<String, String>>,
}

#[derive(Debug)]
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Value,
}

impl Answer {
    fn good(self) -> Value {
        assert_eq!(self.status, StatusCode::OK, "{}", self.body);
        self.body
    }

    fn refused(&self) -> (u16, &str) {
        (self.status.as_u16(), self.body["code"].as_str().unwrap_or_default())
    }

    fn rate(&self, name: &str) -> u64 {
        let header = self.headers.get(format!("x-ratelimit-{name}")).expect("a header");
        header.to_str().expect("text").parse().expect("a number")
    }
}

impl Nodes {
    async fn start(count: usize, settings: &[(&str, &str)]) -> Self {
        let fixed = [
            ("server.listen", "127.0.0.1:0"),
            ("operator.listen", "127.0.0.1:0"),
            ("auth.jwt.secret", SECRET),
            ("drain.period", "0s"),
            ("drain.grace", "0s"),
        ];
        let settings: Vec<(&str, &str)> =
            fixed.into_iter().chain(settings.iter().copied()).collect();
        let cluster = MemoryCluster::new();
        let mut running = Vec::new();
        for _ in 0..count {
            let config = Config::development(&settings).expect("the settings are good");
            let id = NodeId::random();
            let (broker, events) = cluster.join(id.clone());
            let app = App::with_broker(config, id, Arc::new(broker), events)
                .await
                .expect("loopback ports are free");
            let (node, address) = (app.node(), app.client_address().expect("bound"));
            let shutdown = CancellationToken::new();
            let task =
                tokio::spawn(app.run(shutdown.clone().cancelled_owned(), CancellationToken::new()));
            running.push(Running { node, address, shutdown, task });
        }
        let client = Client::builder(TokioExecutor::new()).build_http();
        Self { cluster, running, client, tokens: Mutex::default() }
    }

    async fn stop(self) {
        for running in self.running {
            running.shutdown.cancel();
            running.task.await.expect("the node ends");
        }
    }

    fn node(&self, index: usize) -> &Arc<Node> {
        &self.running[index].node
    }

    fn token(&self, user: &str) -> String {
        let mut tokens = self.tokens.lock();
        let token = tokens.entry(user.to_owned()).or_insert_with(|| {
            let ttl = Duration::from_secs(600);
            let user = user.to_owned();
            let token = auth::NewToken { user, name: None, scope: None, channels: None, ttl };
            let jwt = &self.node(0).config.load().auth.jwt;
            auth::mint(jwt, None, &token, clock::unix_ms() / 1_000).expect("minted")
        });
        token.clone()
    }

    fn call(
        &self,
        index: usize,
        method: Method,
        query: &str,
        user: &str,
        body: Option<&Value>,
    ) -> impl Future<Output = Answer> + Send + 'static {
        let request = Request::builder()
            .method(method)
            .uri(format!("http://{}/api/v1/realtime/poll{query}", self.running[index].address))
            .header("authorization", format!("Bearer {}", self.token(user)))
            .header("content-type", "application/json")
            .body(Full::from(body.map_or_else(String::new, Value::to_string)))
            .expect("a request");
        let client = self.client.clone();
        async move {
            let response = tokio::time::timeout(PATIENCE, client.request(request))
                .await
                .expect("in time")
                .expect("answered");
            let (parts, body) = response.into_parts();
            let body = body.collect().await.expect("a body").to_bytes();
            Answer {
                status: parts.status,
                headers: parts.headers,
                body: serde_json::from_slice(&body).unwrap_or(Value::Null),
            }
        }
    }

    /// Polls as `ann`.
    async fn poll(&self, index: usize, query: &str) -> Value {
        self.call(index, Method::GET, &format!("?user_id=ann&{query}"), "ann", None).await.good()
    }

    async fn publish(&self, index: usize, channel: &str, kind: &str, payload: &Value) {
        self.publish_as(index, channel, kind, payload, None).await;
    }

    /// With an id.
    async fn publish_as(
        &self,
        index: usize,
        channel: &str,
        kind: &str,
        payload: &Value,
        id: Option<&str>,
    ) {
        let outgoing = Outgoing {
            channel: ChannelName::new(channel).expect("a channel"),
            kind: kind.into(),
            payload: Payload::of(payload),
            id: id.map(Into::into),
            idempotency_key: None,
            user_id: None,
            exclude: Exclude::default(),
            meta: None,
            sender: "test".to_owned(),
            history: true,
            traceparent: None,
        };
        self.node(index).publish(outgoing).await.expect("published");
    }

    /// Waits until a poll is held on a node.
    async fn holding(&self, index: usize, subscriptions: usize) {
        self.until(|| self.node(index).hub.subscriptions() == subscriptions).await;
    }

    async fn until(&self, condition: impl Fn() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition() {
            assert!(Instant::now() < deadline, "it never came");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

fn events(answer: &Value) -> &[Value] {
    answer["events"].as_array().expect("events")
}

fn last_id(answer: &Value) -> u64 {
    answer["last_poll_id"].as_u64().expect("a number")
}

fn payloads(answer: &Value) -> Vec<&Value> {
    events(answer).iter().map(|event| &event["payload"]).collect()
}

const FREE: &[(&str, &str)] = &[("limits.polls_per_minute", "0")];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_event_arrives_exactly_once_over_two_nodes() {
    const PER_CHANNEL: u64 = 150;
    let nodes = Arc::new(Nodes::start(2, FREE).await);
    let mut rng = rand::rngs::StdRng::seed_from_u64(0x0c0f_fee5);
    let channels = "channels=chat,room:a";
    let mut last = last_id(&nodes.poll(0, &format!("timeout=0&{channels}")).await);
    let publisher = {
        let nodes = Arc::clone(&nodes);
        let mut rng = rand::rngs::StdRng::seed_from_u64(7);
        tokio::spawn(async move {
            let streams = [
                ("chat", "message"),
                ("room:a", "message"),
                ("user:ann", "notification"),
                ("user:ann", "message"),
            ];
            for n in 0..PER_CHANNEL {
                for (stream, kind) in streams {
                    nodes.publish(rng.random_range(0..2), stream, kind, &json!(n)).await;
                }
                if rng.random_range(0..4) == 0 {
                    tokio::time::sleep(Duration::from_millis(rng.random_range(0..15))).await;
                }
            }
        })
    };
    let mut seen = HashSet::new();
    let mut offsets: BTreeMap<String, u64> = BTreeMap::new();
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    let (mut polls, mut repeated) = (0, 0);
    let deadline = Instant::now() + Duration::from_secs(60);
    while seen.len() < 4 * PER_CHANNEL as usize {
        assert!(
            Instant::now() < deadline,
            "lost: {} of {} after {polls} polls",
            seen.len(),
            4 * PER_CHANNEL
        );
        polls += 1;
        let timeout = rng.random_range(0..2);
        let query = format!("last_poll_id={last}&timeout={timeout}&{channels}");
        let mut answer = nodes.poll(polls % 2, &query).await;
        assert_eq!(answer.get("recovered"), None, "{answer}");
        if !events(&answer).is_empty() && rng.random_range(0..3) == 0 {
            // The answer is lost; the client asks again, elsewhere.
            repeated += 1;
            let again = nodes.poll((polls + 1) % 2, &query).await;
            assert_eq!(answer, again);
            answer = again;
        }
        let mut ids: Vec<u64> =
            events(&answer).iter().map(|event| event["id"].as_u64().expect("a number")).collect();
        assert!(ids.is_sorted() && ids.iter().all(|id| *id > last), "{ids:?} after {last}");
        let mut fresh: Vec<Value> = events(&answer).to_vec();
        if fresh.len() > 1 && rng.random_range(0..3) == 0 {
            // The client keeps only part of it: any event's number goes on from there.
            let part = rng.random_range(1..fresh.len());
            fresh.truncate(part);
            ids.truncate(part);
            last = ids[part - 1];
        } else {
            last = last_id(&answer);
        }
        for event in &fresh {
            assert!(
                seen.insert(event["message_id"].as_str().expect("an id").to_owned()),
                "twice: {event}"
            );
            let label = event["channel"].as_str().expect("a channel").to_owned();
            let stream =
                if label == "notifications" { "user:ann".to_owned() } else { label.clone() };
            let offset = event["offset"].as_u64().expect("an offset");
            let before = offsets.insert(stream, offset);
            assert!(before.is_none_or(|before| before < offset), "order: {event}");
            let count = counts.entry(label).or_default();
            assert_eq!(event["payload"], json!(*count), "order: {event}");
            *count += 1;
        }
    }
    publisher.await.expect("published");
    assert!(repeated > 0 && polls > 3, "{repeated} of {polls}");
    let expected: BTreeMap<String, u64> = ["chat", "room:a", "notifications", "user:ann"]
        .map(|label| (label.to_owned(), PER_CHANNEL))
        .into();
    assert_eq!(counts, expected);
    let rest = nodes.poll(0, &format!("last_poll_id={last}&timeout=0&{channels}")).await;
    assert_eq!(events(&rest).len(), 0, "{rest}");
    Arc::into_inner(nodes).expect("ours alone").stop().await;
}

#[tokio::test]
async fn a_post_sends_messages_and_hears_them() {
    let nodes = Nodes::start(1, FREE).await;
    let body = json!({"user_id": "ann", "channels": ["chat", "user:bob", "no such"], "messages": [
        {"type": "message", "channel": "chat", "payload": {"text": "hi"}, "ack_id": "a1", "id": "m1"},
        {"type": "typing_start", "channel": "chat", "payload": {}},
        {"type": "read_receipt", "channel": "chat", "payload": {}, "ack_id": "a2"},
        {"type": "ping", "requestId": "r1"},
        {"type": "entity:created", "channel": "chat", "ack_id": "a3"},
        {"type": "subscribe", "channel": "chat", "ack_id": "a4"},
        {"type": 5},
    ]});
    let answer = nodes.call(0, Method::POST, "", "ann", Some(&body)).await.good();
    let replies = answer["replies"].as_array().expect("replies");
    let kinds: Vec<(&str, &str)> = replies
        .iter()
        .map(|reply| {
            (
                reply["type"].as_str().unwrap_or_default(),
                reply["ack_id"].as_str().unwrap_or_default(),
            )
        })
        .collect();
    assert_eq!(
        kinds,
        [
            ("ack", "a1"),
            ("ack", "a2"),
            ("pong", ""),
            ("error", "a3"),
            ("subscribed", ""),
            ("ack", "a4"),
            ("error", "")
        ]
    );
    assert_eq!(replies[0]["payload"]["data"]["offset"], json!(1));
    assert_eq!(
        (&replies[2]["requestId"], &replies[3]["payload"]["code"]),
        (&json!("r1"), &json!("FORBIDDEN"))
    );
    assert_eq!(payloads(&answer), [&json!({"text": "hi"})], "its own publish, not its own receipt");
    assert_eq!(events(&answer)[0]["user_id"], json!("ann"));
    let refused: Vec<(&Value, &Value)> = answer["errors"]
        .as_array()
        .expect("errors")
        .iter()
        .map(|error| (&error["channel"], &error["code"]))
        .collect();
    assert_eq!(
        refused,
        [(&json!("user:bob"), &json!("FORBIDDEN")), (&json!("no such"), &json!("INVALID_MESSAGE"))]
    );
    let bob =
        nodes.call(0, Method::GET, "/missed?user_id=bob&last_sequence=0", "bob", None).await.good();
    assert_eq!(bob["messages"], json!([]));
    nodes.stop().await;
}
