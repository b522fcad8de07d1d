//! The uno document from outside, on two nodes of one cluster: notifications and subscriptions, body by
//! body and answer by answer.

mod subscriptions;

use std::time::Duration;

use carillon_broker_client::{MemoryCluster, NodeId};
use futures_util::{SinkExt, StreamExt};
use tokio_tungstenite::tungstenite::Message;

use super::*;
use crate::node::Stores;

type Socket =
    tokio_tungstenite::WebSocketStream<tokio_tungstenite::MaybeTlsStream<tokio::net::TcpStream>>;

/// How long something may take that must happen.
const PATIENCE: Duration = Duration::from_secs(60);

/// Two nodes that share broker and stores.
pub(super) struct Pair {
    pub(super) one: Rest,
    pub(super) two: Rest,
    pub(super) cluster: MemoryCluster,
    pub(super) stores: Stores,
    addresses: [std::net::SocketAddr; 2],
}

/// A user's WebSocket on one of the nodes.
pub(super) struct Listener(Socket);

impl Pair {
    pub(super) async fn start() -> Self {
        let (cluster, stores) = (MemoryCluster::new(), Stores::memory());
        let (one, first) = Self::node(&cluster, &stores).await;
        let (two, second) = Self::node(&cluster, &stores).await;
        Self { one, two, cluster, stores, addresses: [first, second] }
    }

    async fn node(cluster: &MemoryCluster, stores: &Stores) -> (Rest, std::net::SocketAddr) {
        let id = NodeId::random();
        let (broker, events) = cluster.join(id.clone());
        let config = Config::development(&fixed(&[])).expect("the settings are good");
        let app = App::with_stores(config, id, Arc::new(broker), events, stores.clone());
        let app = app.await.expect("loopback ports are free");
        let address = app.client_address().expect("bound");
        (Rest::run(app), address)
    }

    pub(super) async fn stop(self) {
        self.one.stop().await;
        self.two.stop().await;
    }

    /// Connects a user to a node; nothing is read.
    pub(super) async fn open(&self, node: usize, user: &str) -> Listener {
        let token = self.one.token(user, None);
        let url = format!("ws://{}/api/realtime/ws?token={token}", self.addresses[node]);
        Listener(tokio_tungstenite::connect_async(url).await.expect("connected").0)
    }

    /// Connects a user to a node and reads the welcome.
    pub(super) async fn connect(&self, node: usize, user: &str) -> Listener {
        let mut listener = self.open(node, user).await;
        assert_eq!(listener.next().await["type"], "connection");
        assert_eq!(listener.next().await["type"], "subscribed");
        listener
    }

    /// Waits until so many connections of the cluster listen to a channel.
    pub(super) async fn until_listening(&self, channel: &str, connections: usize) {
        let wait = async {
            loop {
                let hubs = [&self.one.node.hub, &self.two.node.hub];
                if hubs.iter().map(|hub| hub.listeners(channel).len()).sum::<usize>() == connections
                {
                    return;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.expect("they listen");
    }

    /// Reads a notification until it has a status; marks of deliveries follow the deliveries.
    pub(super) async fn until_status(&self, id: &str, status: &str) -> Value {
        let wait = async {
            loop {
                let seen = self.two.get(&format!("/notifications/{id}")).await.body;
                if seen["status"] == status {
                    return seen;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.expect("the status comes")
    }
}

impl Listener {
    pub(super) async fn next(&mut self) -> Value {
        loop {
            let next = tokio::time::timeout(PATIENCE, self.0.next()).await;
            match next.expect("a message in time").expect("open").expect("readable") {
                Message::Text(text) => return serde_json::from_str(&text).expect("JSON"),
                Message::Close(_) => panic!("closed"),
                _ => {}
            }
        }
    }

    pub(super) async fn say(&mut self, message: Value) {
        self.0.send(Message::text(message.to_string())).await.expect("sent");
    }

    /// Everything that comes before the answer to a ping.
    pub(super) async fn so_far(&mut self) -> Vec<Value> {
        self.say(json!({"type": "ping"})).await;
        let mut heard = Vec::new();
        loop {
            let message = self.next().await;
            if message["type"] == "pong" {
                return heard;
            }
            heard.push(message);
        }
    }
}

/// What is stored in the same millisecond has no order.
async fn next_millisecond() {
    let now = clock::unix_ms();
    while clock::unix_ms() == now {
        tokio::task::yield_now().await;
    }
}

pub(super) fn example() -> Value {
    json!({
        "title": "New message",
        "message": "You have a new message from Jane",
        "recipients": ["user-456", "user-789"],
        "type": "message",
        "priority": "normal",
        "sender_id": "user-123",
        "resource_type": "message",
        "resource_id": "message-789",
        "actions": [
            {"label": "View", "action": "view", "data": {"id": "message-789"}},
            {"label": "Reply", "action": "reply", "data": {"id": "message-789"}}
        ],
        "metadata": {"thread_id": "thread-123"},
        "expires_at": "2125-05-16T10:30:00Z"
    })
}

/// The document's answer to [`example`], with what this time differs.
fn answer(sent: &Value, seen: &Value, status: &str, read_by: Value) -> Value {
    let mut answer = sent.clone();
    answer.as_object_mut().expect("an object").remove("expires_at");
    for stamped in ["id", "created_at", "delivered_at"] {
        answer[stamped] = seen[stamped].clone();
    }
    answer["status"] = status.into();
    answer["read_by"] = read_by;
    answer
}

#[tokio::test]
async fn a_notification_goes_through_the_document_field_by_field() {
    let pair = Pair::start().await;
    let mut phone = pair.connect(1, "user-456").await;
    let mut laptop = pair.connect(0, "user-456").await;
    let created = pair.one.post("/notifications", &example()).await;
    assert_eq!(created.status, StatusCode::CREATED, "{}", created.body);
    assert_eq!(created.body, answer(&example(), &created.body, "pending", json!([])));
    assert_eq!(created.body["delivered_at"], Value::Null);
    let id = created.body["id"].as_str().expect("an id").to_owned();

    // On the other node's WebSocket, as the document shows it.
    let pushed = phone.next().await;
    assert_eq!(
        (&pushed["type"], &pushed["channel"]),
        (&json!("notification"), &json!("notifications"))
    );
    for field in
        ["id", "title", "message", "type", "priority", "created_at", "sender_id", "actions"]
    {
        assert_eq!(pushed["payload"][field], created.body[field], "{field}");
    }
    assert_eq!(pushed["payload"]["read"], false);
    assert!(
        pushed["payload"].get("recipients").is_none() && pushed["payload"].get("read_by").is_none()
    );
    assert_eq!(laptop.next().await["payload"]["id"], id.as_str());

    let delivered = pair.until_status(&id, "delivered").await;
    assert!(delivered["delivered_at"].is_string());
    assert_eq!(delivered, answer(&example(), &delivered, "delivered", json!([])));

    let jane = pair.two.token("user-456", None);
    let list = pair
        .two
        .call(
            Method::GET,
            "/notifications?user_id=user-456&status=delivered&page=1&page_size=20",
            &jane,
            None,
        )
        .await;
    assert_eq!(
        (list.status, &list.headers["x-total-count"]),
        (StatusCode::OK, &http::HeaderValue::from(1))
    );
    assert_eq!(list.body, json!([delivered]));
    let count =
        pair.two.call(Method::GET, "/notifications/unread-count/user-456", &jane, None).await;
    assert_eq!(count.body, json!(1));

    // Read on the phone: the laptop hears of it, the phone gets the ack alone.
    phone
        .say(
            json!({"type": "notification_read", "payload": {"notification_id": id}, "ack_id": "a"}),
        )
        .await;
    let ack = phone.next().await;
    assert_eq!((&ack["type"], &ack["ack_id"]), (&json!("ack"), &json!("a")), "{ack}");
    let told = laptop.next().await;
    assert_eq!(
        (&told["type"], &told["payload"]["notification_id"]),
        (&json!("notification_read"), &json!(id))
    );
    assert!(told["payload"]["read_at"].is_string());
    assert!(phone.so_far().await.is_empty());

    let again = pair
        .one
        .call(Method::POST, &format!("/notifications/{id}/mark-read?user_id=user-456"), &jane, None)
        .await;
    assert_eq!(again.body, answer(&example(), &delivered, "delivered", json!(["user-456"])));
    let count = pair.two.get("/notifications/unread-count/user-456").await;
    assert_eq!(count.body, json!(0));
    let all = pair
        .two
        .call(Method::POST, "/notifications/mark-all-read?user_id=user-789", ADMIN, None)
        .await;
    assert_eq!(all.body, json!({"marked": 1}));
    assert_eq!(pair.one.get(&format!("/notifications/{id}")).await.body["status"], "read");

    let gone = pair.one.call(Method::DELETE, &format!("/notifications/{id}"), ADMIN, None).await;
    assert_eq!(gone.status, StatusCode::NO_CONTENT);
    assert_eq!(pair.two.get(&format!("/notifications/{id}")).await.status, StatusCode::NOT_FOUND);
    pair.stop().await;
}

#[tokio::test]
async fn what_is_pending_comes_once_after_the_welcome_oldest_first() {
    let pair = Pair::start().await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        let created = pair.one.post("/notifications", &example()).await;
        ids.push(created.body["id"].clone());
        next_millisecond().await;
    }
    let carried = async {
        while pair.two.get("/channels/user:user-456/history").await.body["messages"]
            .as_array()
            .map(Vec::len)
            != Some(3)
        {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, carried).await.expect("the outbox is carried");
    let mut expired = example();
    expired["expires_at"] = json!("2020-01-01T00:00:00Z");
    let expired = pair.one.post("/notifications", &expired).await;
    assert_eq!((expired.status, &expired.body["status"]), (StatusCode::CREATED, &json!("expired")));
    let mut phone = pair.connect(1, "user-456").await;
    let mut heard = Vec::new();
    while heard.len() < 3 {
        let message = phone.next().await;
        assert_eq!(message["type"], "notification");
        heard.push(message["payload"]["id"].clone());
    }
    assert_eq!(heard, ids);
    for id in &ids {
        pair.until_status(id.as_str().expect("an id"), "delivered").await;
    }
    // Another device of the same user: nothing is pending any more, and nothing came twice.
    let mut laptop = pair.connect(0, "user-456").await;
    assert!(laptop.so_far().await.is_empty());
    assert!(phone.so_far().await.is_empty());
    pair.stop().await;
}

#[tokio::test]
async fn nobody_touches_what_is_not_theirs_and_a_foreign_id_looks_unknown() {
    let pair = Pair::start().await;
    let created = pair.one.post("/notifications", &example()).await;
    let id = created.body["id"].as_str().expect("an id").to_owned();
    let stranger = pair.two.token("stranger", None);
    let mut answers = Vec::new();
    for id in [id.as_str(), "unknown"] {
        for (method, path) in [
            (Method::GET, format!("/notifications/{id}")),
            (Method::DELETE, format!("/notifications/{id}")),
            (Method::POST, format!("/notifications/{id}/mark-read")),
        ] {
            let mut answer = pair.two.call(method, &path, &stranger, None).await;
            answer.body["request_id"] = Value::Null;
            answers.push((answer.status, answer.body));
        }
    }
    assert!(answers.iter().all(|(status, _)| *status == StatusCode::NOT_FOUND));
    assert_eq!(answers[..3], answers[3..]);
    for path in [
        "/notifications?user_id=user-456",
        "/notifications/unread-count/user-456",
        "/subscriptions?user_id=user-456",
    ] {
        assert_eq!(
            pair.two.call(Method::GET, path, &stranger, None).await.code(),
            "FORBIDDEN",
            "{path}"
        );
    }
    let body = example().to_string();
    assert_eq!(
        pair.two.call(Method::POST, "/notifications", &stranger, Some(&body)).await.code(),
        "FORBIDDEN"
    );
    assert_eq!(pair.two.get("/notifications").await.code(), "INVALID_MESSAGE");
    let mut phone = pair.connect(0, "stranger").await;
    phone
        .say(
            json!({"type": "notification_read", "payload": {"notification_id": id}, "ack_id": "a"}),
        )
        .await;
    assert_eq!(phone.next().await["payload"]["code"], "NOT_FOUND");
    pair.stop().await;
}

#[tokio::test]
async fn pages_are_numbered_from_one_and_clamped() {
    let pair = Pair::start().await;
    for _ in 0..3 {
        pair.one.post("/notifications", &example()).await;
    }
    let page = |query: &'static str| {
        let pair = &pair;
        async move { pair.two.get(&format!("/notifications?user_id=user-456&{query}")).await }
    };
    assert_eq!(page("page=2&page_size=2").await.body.as_array().map(Vec::len), Some(1));
    assert_eq!(page("page=9&page_size=2").await.body, json!([]));
    assert_eq!(page("page=99999999999999999999&page_size=9999").await.body, json!([]));
    assert_eq!(page("unread=true&priority=high").await.body, json!([]));
    for wrong in [
        "page=0",
        "page=-1",
        "page=x",
        "page_size=x",
        "status=lost",
        "unread=maybe",
        "priority=none",
        "type=A",
    ] {
        assert_eq!(page(wrong).await.status, StatusCode::BAD_REQUEST, "{wrong}");
    }
    pair.stop().await;
}
