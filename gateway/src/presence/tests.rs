//! Presence from outside: two nodes over one embedded cluster, clients on real sockets.

use std::sync::Arc;
use std::time::Duration;

use carillon_broker_client::{Broker, MemoryCluster, NodeId};
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::config::Config;
use crate::node::Node;
use crate::{auth, clock};

const SECRET: &str = "0123456789abcdef0123456789abcdef-of-the-tests";
const KEY: &str = "admin-key-0123456789abcdef0123456789";
const KEYS: &str =
    r#"{"admin":{"key":"admin-key-0123456789abcdef0123456789","scopes":["realtime:admin"]}}"#;
const PATIENCE: Duration = Duration::from_secs(30);

struct Running {
    node: Arc<Node>,
    address: std::net::SocketAddr,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Running {
    async fn start(cluster: &MemoryCluster, settings: &[(&str, &str)]) -> Self {
        let fixed = [
            ("server.listen", "127.0.0.1:0"),
            ("operator.listen", "127.0.0.1:0"),
            ("auth.jwt.secret", SECRET),
            ("auth.api_keys", KEYS),
            ("drain.period", "0s"),
            ("drain.grace", "0s"),
            ("presence.offline_delay", "1s"),
        ];
        let settings: Vec<_> = fixed.into_iter().chain(settings.iter().copied()).collect();
        let config = Config::development(&settings).expect("the settings are good");
        let id = NodeId::random();
        let (broker, events) = cluster.join(id.clone());
        let app = App::with_broker(config, id, Arc::new(broker), events)
            .await
            .expect("loopback ports are free");
        let (node, address) = (app.node(), app.client_address().expect("bound"));
        let stop = CancellationToken::new();
        let task = tokio::spawn(app.run(stop.clone().cancelled_owned(), stop.clone()));
        Self { node, address, stop, task }
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.expect("the node ends");
    }

    fn token(&self, user: &str, name: Option<&str>) -> String {
        let token = auth::NewToken {
            user: user.to_owned(),
            name: name.map(str::to_owned),
            scope: None,
            channels: None,
            ttl: Duration::from_secs(600),
        };
        auth::mint(&self.node.config.load().auth.jwt, None, &token, clock::unix_ms() / 1_000)
            .expect("minted")
    }

    async fn connect(&self, user: &str) -> Client {
        let token = self.token(user, Some(&user.to_uppercase()));
        self.connect_with(&token).await
    }

    async fn connect_with(&self, token: &str) -> Client {
        let mut request =
            format!("ws://{}/ws", self.address).into_client_request().expect("a request");
        request
            .headers_mut()
            .insert("authorization", format!("Bearer {token}").parse().expect("a header"));
        let stream = TcpStream::connect(self.address).await.expect("connected");
        let (socket, _) = tokio_tungstenite::client_async(request, stream).await.expect("upgraded");
        let mut client = Client { socket, acks: 0 };
        client.until("connect").await;
        client
    }

    /// A REST call: status and body.
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
        let request = format!(
            "{method} /api/realtime{path} HTTP/1.1\r\nhost: t\r\nconnection: close\r\n{credential}\r\n\
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
}

struct Client {
    socket: tokio_tungstenite::WebSocketStream<TcpStream>,
    acks: u32,
}

impl Client {
    async fn send(&mut self, message: &Value) {
        self.socket.send(Message::text(message.to_string())).await.expect("sent");
    }

    async fn next(&mut self) -> Value {
        loop {
            let frame = tokio::time::timeout(PATIENCE, self.socket.next())
                .await
                .expect("a message in time");
            if let Message::Text(text) = frame.expect("the connection lives").expect("a good frame")
            {
                return serde_json::from_str(text.as_str()).expect("JSON");
            }
        }
    }

    /// The next message of a type; others are passed over.
    async fn until(&mut self, kind: &str) -> Value {
        loop {
            let message = self.next().await;
            if message["type"] == kind {
                return message;
            }
        }
    }

    /// Sends with an `ack_id`; the messages up to its ack or error, that one last.
    async fn ask(&mut self, mut message: Value) -> Vec<Value> {
        self.acks += 1;
        let id = format!("a-{}", self.acks);
        message["ack_id"] = id.clone().into();
        self.send(&message).await;
        let mut heard = Vec::new();
        loop {
            let message = self.next().await;
            let is_answer = message["ack_id"] == id.as_str();
            heard.push(message);
            if is_answer {
                return heard;
            }
        }
    }

    async fn join(&mut self, channel: &str) -> Vec<Value> {
        let payload = json!({"name": "somebody else", "metadata": {"cursor": 7}});
        self.ask(json!({"type": "presence:join", "channel": channel, "payload": payload})).await
    }

    /// What was announced on presence channels up to now, as `type id`: a round trip through the broker ends it.
    async fn announced(&mut self, marker: &str) -> Vec<String> {
        let mut messages = self.ask(json!({"type": "subscribe", "channel": marker})).await;
        self.send(&json!({"type": "end", "channel": marker})).await;
        while messages.last().is_none_or(|message| message["type"] != "end") {
            messages.push(self.next().await);
        }
        let announced = messages.iter().filter_map(|message| {
            let kind = message["type"].as_str().filter(|kind| kind.starts_with("presence:"))?;
            Some(format!("{kind} {}", message["payload"]["id"].as_str()?))
        });
        announced.collect()
    }
}

fn ids(users: &Value) -> Vec<&str> {
    users.as_array().expect("a list").iter().filter_map(|user| user["id"].as_str()).collect()
}

#[tokio::test]
async fn joining_shows_the_list_and_tells_the_others_over_two_nodes() {
    let cluster = MemoryCluster::new();
    let (one, two) = (Running::start(&cluster, &[]).await, Running::start(&cluster, &[]).await);
    let room = "presence:workspace/tasks";
    let (mut ada, mut bob) = (one.connect("ada").await, two.connect("bob").await);
    let heard = ada.join(room).await;
    let kinds: Vec<&str> = heard.iter().filter_map(|message| message["type"].as_str()).collect();
    assert_eq!(kinds, ["subscribed", "presence:sync", "ack"], "{heard:?}");
    let sync = &heard[1];
    assert_eq!((&sync["channel"], sync.get("ack_id")), (&json!(room), None));
    let listed = &sync["payload"]["users"][0];
    assert_eq!(
        (&listed["id"], &listed["name"], &listed["metadata"]),
        (&json!("ada"), &json!("ADA"), &json!({"cursor": 7}))
    );
    assert!(listed["lastSeen"].as_i64().is_some_and(|at| (clock::unix_ms() - at).abs() < 60_000));

    let heard = bob.join(room).await;
    assert_eq!(ids(&heard[1]["payload"]["users"]), ["ada", "bob"]);
    let joined = ada.until("presence:join").await;
    assert_eq!((&joined["channel"], &joined["user_id"]), (&json!(room), &json!("bob")));
    let payload = &joined["payload"];
    assert_eq!(payload.as_object().map(serde_json::Map::len), Some(4));
    assert_eq!((&payload["id"], &payload["name"]), (&json!("bob"), &json!("BOB")));

    let heard = bob.ask(json!({"type": "presence:leave", "channel": room})).await;
    assert_eq!(heard.last().expect("an ack")["payload"]["status"], "success");
    assert_eq!(ada.until("presence:leave").await["payload"]["id"], "bob");
    // Nobody hears of their own coming and going, also who listens on.
    assert!(bob.announced("chat.b").await.is_empty());
    drop(ada);
    assert_eq!(bob.until("presence:leave").await["payload"]["id"], "ada");
    one.stop().await;
    two.stop().await;
}

#[tokio::test]
async fn two_tabs_are_one_entry() {
    let cluster = MemoryCluster::new();
    let (one, two) = (Running::start(&cluster, &[]).await, Running::start(&cluster, &[]).await);
    let room = "presence:tabs";
    let mut watcher = one.connect("watcher").await;
    watcher.join(room).await;
    let (mut tab, mut other) = (one.connect("ada").await, two.connect("ada").await);
    tab.join(room).await;
    let heard = other.join(room).await;
    assert_eq!(ids(&heard[1]["payload"]["users"]), ["ada", "watcher"]);
    other.join(room).await;
    tab.ask(json!({"type": "presence:leave", "channel": room})).await;
    tab.ask(json!({"type": "presence:leave", "channel": room})).await;
    assert_eq!(watcher.announced("chat.w").await, ["presence:join ada"]);
    drop(other);
    assert_eq!(watcher.until("presence:leave").await["payload"]["id"], "ada");
    assert!(watcher.announced("chat.w").await.is_empty());
    one.stop().await;
    two.stop().await;
}

#[tokio::test]
async fn a_second_join_that_fails_leaves_the_first_one_standing() {
    let cluster = MemoryCluster::new();
    let one = Running::start(&cluster, &[]).await;
    let room = "presence:twice";
    let (mut ada, mut watcher) = (one.connect("ada").await, one.connect("watcher").await);
    watcher.join(room).await;
    ada.join(room).await;
    assert_eq!(watcher.until("presence:join").await["payload"]["id"], "ada");
    cluster.set_available(false);
    let answer = ada.ask(json!({"type": "presence:join", "channel": room})).await;
    assert_eq!(answer.last().expect("an error")["payload"]["code"], "UNAVAILABLE");
    cluster.set_available(true);
    let heard = watcher.join(room).await;
    assert_eq!(ids(&heard[0]["payload"]["users"]), ["ada", "watcher"]);
    drop(ada);
    assert_eq!(watcher.until("presence:leave").await["payload"]["id"], "ada");
    one.stop().await;
}

#[tokio::test]
async fn who_came_during_an_outage_is_counted_when_it_is_over() {
    let cluster = MemoryCluster::new();
    let one = Running::start(&cluster, &[]).await;
    cluster.set_available(false);
    let here = one.connect("ada").await;
    let gone = one.connect("ada").await;
    drop(gone);
    cluster.set_available(true);
    let user = carillon_protocol::UserId::new("ada").expect("a user id");
    let counted = async {
        while one.node.broker.connections_of(&user).await != Ok(vec![here_id(&one)]) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, counted).await.expect("counted, and once");
    drop(here);
    one.stop().await;
}

/// The one connection of a node that has one.
fn here_id(running: &Running) -> carillon_protocol::ConnectionId {
    let connections = running.node.hub.connections();
    connections.first().map(|connection| connection.id.clone()).expect("a connection")
}

#[tokio::test]
async fn silence_is_leaving_and_a_heartbeat_brings_back() {
    let cluster = MemoryCluster::new();
    let one = Running::start(&cluster, &[("presence.timeout", "2s")]).await;
    let room = "presence:silent";
    let (mut quiet, mut watcher) = (one.connect("quiet").await, one.connect("watcher").await);
    watcher.join(room).await;
    quiet.join(room).await;
    assert_eq!(watcher.until("presence:join").await["payload"]["id"], "quiet");
    let left = loop {
        // The watcher keeps talking; any message counts.
        watcher.send(&json!({"type": "ping"})).await;
        let message = watcher.next().await;
        if message["type"] == "presence:leave" {
            break message;
        }
    };
    assert_eq!(left["payload"]["id"], "quiet");
    let answer = quiet.ask(json!({"type": "presence:heartbeat", "channel": room})).await;
    assert_eq!(answer.last().expect("an ack")["type"], "ack");
    assert_eq!(watcher.until("presence:join").await["payload"]["id"], "quiet");
    let answer =
        quiet.ask(json!({"type": "presence:heartbeat", "channel": "presence:elsewhere"})).await;
    assert_eq!(answer.last().expect("an error")["payload"]["code"], "CONFLICT");
    one.stop().await;
}

#[tokio::test]
async fn a_dead_nodes_people_leave_once() {
    let cluster = MemoryCluster::new();
    let one = Running::start(&cluster, &[]).await;
    let room = "presence:dies";
    let mut watcher = one.connect("watcher").await;
    watcher.join(room).await;
    watcher.ask(json!({"type": "subscribe", "channel": "presence"})).await;
    // A node that beats once and never again.
    let (dying, _events) = cluster.join(NodeId::random());
    let id = carillon_protocol::ConnectionId::new(&format!("{}-0123456789abcdef", dying.node()))
        .expect("an id");
    let user = carillon_protocol::UserId::new("ghost").expect("a user id");
    let record = carillon_broker_client::ConnectionRecord { id: id.clone(), user: user.clone() };
    carillon_broker_client::PresenceStore::tend(&dying).await.expect("tended");
    dying.register(&record, 0).await.expect("registered");
    carillon_broker_client::PresenceStore::user_seen(&dying, &user, None).await.expect("seen");
    let member = super::member(user, None, None).expect("a member");
    let channel = carillon_protocol::ChannelName::new(room).expect("a channel");
    carillon_broker_client::PresenceStore::join_resource(&dying, &channel, &id, &member)
        .await
        .expect("joined");
    let (mut left, mut offline) = (0, 0);
    while left == 0 || offline == 0 {
        let message = watcher.next().await;
        left +=
            u32::from(message["type"] == "presence:leave" && message["payload"]["id"] == "ghost");
        offline +=
            u32::from(message["type"] == "presence" && message["payload"]["status"] == "offline");
    }
    assert_eq!((left, offline), (1, 1));
    assert!(watcher.announced("chat.w").await.is_empty());
    one.stop().await;
}

#[tokio::test]
async fn a_users_status_is_announced_as_it_changes() {
    let cluster = MemoryCluster::new();
    let (one, two) = (Running::start(&cluster, &[]).await, Running::start(&cluster, &[]).await);
    let mut watcher = one.connect("watcher").await;
    watcher.ask(json!({"type": "subscribe", "channel": "presence:ada"})).await;
    let tab = two.connect("ada").await;
    let online = watcher.until("presence").await;
    assert_eq!((&online["channel"], &online["user_id"]), (&json!("presence:ada"), &json!("ada")));
    let payload = &online["payload"];
    assert_eq!((&payload["user_id"], &payload["status"]), (&json!("ada"), &json!("online")));
    assert!(payload["last_seen"].as_str().is_some_and(|at| at.ends_with('Z')));
    // Away from one tab to another within the grace: no flicker.
    drop(tab);
    let mut tab = one.connect("ada").await;
    let answer = tab.ask(json!({"type": "presence", "payload": {"status": "away"}})).await;
    assert_eq!(answer.last().expect("an ack")["payload"]["data"]["status"], "away");
    assert_eq!(watcher.until("presence").await["payload"]["status"], "away");
    tab.ask(json!({"type": "presence", "payload": {"status": "online"}})).await;
    tab.ask(json!({"type": "presence", "payload": {"status": "busy"}})).await;
    let mut last = watcher.until("presence").await;
    if last["payload"]["status"] == "online" {
        last = watcher.until("presence").await;
    }
    assert_eq!(last["payload"]["status"], "busy");
    let (status, body) = two.call("GET", "/users/ada/presence", KEY, None).await;
    assert_eq!((status, &body["status"], &body["connections"]), (200, &json!("busy"), &json!(1)));
    drop(tab);
    assert_eq!(watcher.until("presence").await["payload"]["status"], "offline");
    let (_, body) = two.call("GET", "/users/ada/presence", KEY, None).await;
    assert_eq!((&body["status"], &body["connections"]), (&json!("offline"), &json!(0)));
    assert!(body["last_seen"].is_string());
    one.stop().await;
    two.stop().await;
}

#[tokio::test]
async fn backends_read_and_write_presence() {
    let cluster = MemoryCluster::new();
    let one = Running::start(&cluster, &[]).await;
    let room = "presence:workspace/tasks";
    let mut ada = one.connect("ada").await;
    ada.join(room).await;
    let path = "/presence/workspace%2Ftasks";
    let (status, body) = one.call("GET", path, KEY, None).await;
    assert_eq!(
        (status, &body["resource"], &body["count"]),
        (200, &json!("workspace/tasks"), &json!(1))
    );
    assert_eq!(body["users"][0]["name"], "ADA");
    let bot = json!({"name": "Bot", "metadata": {"a": [1]}, "ttl": 60});
    let (status, body) = one.call("PUT", &format!("{path}/bot%2F1"), KEY, Some(&bot)).await;
    assert_eq!(
        (status, &body["id"], &body["metadata"]),
        (200, &json!("bot/1"), &json!({"a": [1]}))
    );
    assert_eq!(ada.until("presence:join").await["payload"]["id"], "bot/1");
    let token = one.token("eve", None);
    let (status, body) = one.call("GET", path, &token, None).await;
    assert_eq!(
        (status, ids(&body["users"])),
        (200, vec!["ada", "bot/1"]),
        "users see what they may hear"
    );
    let (status, body) = one.call("PUT", &format!("{path}/eve"), &token, Some(&json!({}))).await;
    assert_eq!((status, &body["code"]), (403, &json!("FORBIDDEN")));
    let (status, _) = one.call("DELETE", &format!("{path}/bot%2F1"), KEY, None).await;
    assert_eq!(status, 204);
    assert_eq!(ada.until("presence:leave").await["payload"]["id"], "bot/1");
    let question = json!({"user_ids": ["nobody", "ada"]});
    let (status, body) = one.call("POST", "/users/presence", KEY, Some(&question)).await;
    assert_eq!(status, 200);
    assert_eq!(
        body["users"][0],
        json!({"user_id": "nobody", "status": "offline", "last_seen": null, "connections": 0})
    );
    assert_eq!(
        (&body["users"][1]["status"], &body["users"][1]["connections"]),
        (&json!("online"), &json!(1))
    );
    one.stop().await;
}

#[tokio::test]
async fn joining_what_may_not_be_heard_is_refused() {
    let cluster = MemoryCluster::new();
    let namespaces = r#"[{"pattern":"presence:open","subscribe":["authenticated"],"presence":["authenticated"]},
        {"pattern":"presence:**","subscribe":["no"],"presence":["no"]}]"#;
    let one = Running::start(&cluster, &[("namespaces", namespaces)]).await;
    let mut ada = one.connect("ada").await;
    let answer = ada.join("presence:closed").await;
    assert_eq!(answer.last().expect("an error")["payload"]["code"], "FORBIDDEN");
    let token = one.token("ada", None);
    assert_eq!(one.call("GET", "/presence/closed", &token, None).await.0, 403);
    let (_, body) = one.call("GET", "/presence/closed", KEY, None).await;
    assert_eq!(body["count"], 0);
    one.stop().await;
}
