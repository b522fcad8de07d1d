//! The uno document from outside, on two nodes of one cluster: notifications and subscriptions, body by
//! body and answer by answer.

use std::time::Duration;

use carillon_broker_client::{MemoryCluster, NodeId};
use futures_util::{SinkExt, StreamExt};
use tokio_tungstenite::tungstenite::Message;

use super::*;
use crate::node::Stores;

type Socket =
    tokio_tungstenite::WebSocketStream<tokio_tungstenite::MaybeTlsStream<tokio::net::TcpStream>>;

/// How long something may take that must happen.
const PATIENCE: Duration = Duration::from_secs(5);

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

#[tokio::test]
async fn a_subscription_goes_through_the_document_field_by_field() {
    let pair = Pair::start().await;
    let body = json!({
        "user_id": "user-456", "resource_id": "post-789", "resource_type": "post",
        "labels": ["important", "post-updates"], "metadata": {"notification_channel": "email"},
        "expires_at": "2125-05-16T10:30:00Z"
    });
    let resource = pair.one.post("/subscriptions/resource", &body).await;
    assert_eq!(resource.status, StatusCode::CREATED, "{}", resource.body);
    let mut wanted = body.clone();
    for (field, value) in [
        ("type", json!("resource")),
        ("status", json!("active")),
        ("topic", Value::Null),
        ("query", Value::Null),
    ] {
        wanted[field] = value;
    }
    for stamped in ["id", "created_at", "updated_at"] {
        wanted[stamped] = resource.body[stamped].clone();
    }
    assert_eq!(resource.body, wanted);
    next_millisecond().await;
    let jane = pair.two.token("user-456", None);
    let body = json!({
        "user_id": "user-456", "topic": "new-posts", "labels": ["news", "updates"],
        "metadata": {"notification_channel": "in-app"}, "payload_filter": {"category": "tech"}
    });
    let topic =
        pair.two.call(Method::POST, "/subscriptions/topic", &jane, Some(&body.to_string())).await;
    assert_eq!(
        (topic.status, &topic.body["topic"], &topic.body["expires_at"]),
        (StatusCode::CREATED, &json!("new-posts"), &Value::Null)
    );
    assert!(topic.body.get("payload_filter").is_none());
    let list = pair.two.call(Method::GET, "/subscriptions?status=active", &jane, None).await;
    assert_eq!(
        (&list.body, &list.headers["x-total-count"]),
        (&json!([resource.body, topic.body]), &http::HeaderValue::from(2))
    );

    let path = format!("/subscriptions/{}", resource.body["id"].as_str().expect("an id"));
    let stranger = pair.two.token("stranger", None);
    assert_eq!(
        pair.one.call(Method::GET, &path, &stranger, None).await.status,
        StatusCode::NOT_FOUND
    );
    assert_eq!(pair.one.call(Method::GET, &path, &jane, None).await.body, resource.body);
    let paused = pair
        .one
        .call(Method::PATCH, &format!("{path}/status"), &jane, Some(r#"{"status":"paused"}"#))
        .await;
    assert_eq!((paused.status, &paused.body["status"]), (StatusCode::OK, &json!("paused")));
    let patched = pair
        .one
        .call(Method::PATCH, &path, &jane, Some(r#"{"labels":["x"],"expires_at":null}"#))
        .await;
    assert_eq!(
        (&patched.body["labels"], &patched.body["expires_at"]),
        (&json!(["x"]), &Value::Null)
    );
    assert_eq!(patched.body["metadata"], resource.body["metadata"]);
    let bad = pair
        .one
        .call(Method::PATCH, &format!("{path}/status"), &jane, Some(r#"{"status":"lost"}"#))
        .await;
    assert_eq!(bad.status, StatusCode::BAD_REQUEST);
    let foreign = r#"{"user_id":"other","topic":"t"}"#;
    assert_eq!(
        pair.one.call(Method::POST, "/subscriptions/topic", &jane, Some(foreign)).await.code(),
        "FORBIDDEN"
    );
    assert_eq!(
        pair.one.call(Method::DELETE, &path, &jane, None).await.status,
        StatusCode::NO_CONTENT
    );
    assert_eq!(
        pair.two.call(Method::DELETE, &path, &jane, None).await.status,
        StatusCode::NOT_FOUND
    );
    pair.stop().await;
}

#[tokio::test]
async fn a_stored_subscription_acts_on_live_and_later_connections_once_an_event() {
    let pair = Pair::start().await;
    let mut phone = pair.connect(1, "user-456").await;
    let stored = |path: &'static str, body: Value| {
        let pair = &pair;
        async move { pair.one.post(&format!("/subscriptions/{path}"), &body).await.body["id"].clone() }
    };
    let topic = json!({"user_id": "user-456", "topic": "new-posts", "payload_filter": {"category": "tech"}});
    let filtered = stored("topic", topic).await;
    next_millisecond().await;
    let query = json!({"user_id": "user-456", "query": {"channels": ["topic:new-posts", "topic:other"], "where": {"n": {"$gte": 2}}}});
    let queried = stored("query", query).await;
    pair.until_listening("topic:other", 1).await;
    let mut laptop = pair.connect(0, "user-456").await;
    // A ping is answered when what was under way is done.
    assert!(phone.so_far().await.is_empty() && laptop.so_far().await.is_empty());
    pair.until_listening("topic:new-posts", 2).await;

    let publish = |category: &'static str, n: u32| {
        let pair = &pair;
        async move {
            let message = json!({"channel": "topic:new-posts", "type": "post", "payload": {"category": category, "n": n}});
            assert_eq!(pair.one.post("/publish", &message).await.status, StatusCode::OK);
        }
    };
    publish("art", 1).await;
    publish("tech", 1).await;
    publish("tech", 2).await;
    for listener in [&mut phone, &mut laptop] {
        let first = listener.next().await;
        assert_eq!(
            (&first["payload"]["n"], &first["subscription_ids"]),
            (&json!(1), &json!([filtered])),
            "{first}"
        );
        let second = listener.next().await;
        assert_eq!(
            (&second["payload"]["n"], &second["subscription_ids"]),
            (&json!(2), &json!([filtered, queried]))
        );
        assert!(listener.so_far().await.is_empty());
    }

    // What the client asks for itself comes once, with the ids where some match.
    phone.say(json!({"type": "subscribe", "payload": {"channel": "topic:new-posts"}})).await;
    assert_eq!(phone.next().await["type"], "subscribed");
    publish("art", 1).await;
    publish("tech", 1).await;
    let plain = phone.next().await;
    assert_eq!(
        (&plain["payload"]["category"], plain.get("subscription_ids")),
        (&json!("art"), None),
        "{plain}"
    );
    assert_eq!(phone.next().await["subscription_ids"], json!([filtered]));
    phone.say(json!({"type": "unsubscribe", "payload": {"channel": "topic:new-posts"}})).await;
    assert_eq!(phone.next().await["type"], "unsubscribed");
    publish("art", 1).await;
    publish("tech", 3).await;
    assert_eq!(phone.next().await["subscription_ids"], json!([filtered, queried]));

    // Paused and deleted ones match nothing, and nobody listens for them.
    let path = format!("/subscriptions/{}", filtered.as_str().expect("an id"));
    pair.two
        .call(Method::PATCH, &format!("{path}/status"), ADMIN, Some(r#"{"status":"paused"}"#))
        .await;
    let path = format!("/subscriptions/{}", queried.as_str().expect("an id"));
    pair.two.call(Method::DELETE, &path, ADMIN, None).await;
    pair.until_listening("topic:new-posts", 0).await;
    publish("tech", 3).await;
    assert!(phone.so_far().await.is_empty());
    pair.stop().await;
}
