//! The services of `broker-client` beside two running nodes: what a backend does there reaches real sockets.

use carillon_broker_client::realtime::{
    ConnectionState, ConnectionsQuery, EventPriority, Message, MessageType, NewEvent, NotFound,
    Realtime, RealtimeError, Transport,
};
use carillon_broker_client::{NewNotification, NewSubscription, SubscriptionStatus};
use carillon_protocol::{ConnectionId, UserId};
use std::sync::Arc;

use super::document::{Pair, example};
use super::*;

fn user(id: &str) -> UserId {
    UserId::new(id).expect("an id")
}

fn backend(pair: &Pair) -> Realtime {
    let stores = &pair.stores;
    Realtime::memory_with(
        &pair.cluster,
        Arc::clone(&stores.notifications),
        Arc::clone(&stores.subscriptions),
    )
}

#[tokio::test]
async fn a_backends_notifications_and_marks_reach_devices_on_every_node() {
    let pair = Pair::start().await;
    let realtime = backend(&pair);
    let mut phone = pair.connect(0, "user-456").await;
    let mut laptop = pair.connect(1, "user-456").await;
    let new: NewNotification = serde_json::from_value(example()).expect("the document's body");
    let stored = realtime.notifications().create(new).await.expect("stored");
    for listener in [&mut phone, &mut laptop] {
        assert_eq!(listener.next().await["payload"]["id"], stored.id.as_str());
    }
    pair.until_status(stored.id.as_str(), "delivered").await;
    let jane = user("user-456");
    let marked = realtime.notifications().mark_read(&jane, &stored.id).await.expect("marked");
    assert!(marked.is_read_by(&jane));
    for listener in [&mut phone, &mut laptop] {
        let told = listener.next().await;
        assert_eq!(told["type"], "notification_read");
        assert_eq!(told["payload"]["notification_id"], stored.id.as_str());
    }
    assert_eq!(realtime.notifications().mark_all_read(&user("user-789")).await, Ok(1));
    realtime.notifications().delete(&stored.id).await.expect("deleted");
    let gone = realtime.notifications().find(&stored.id).await;
    assert_eq!(gone, Err(RealtimeError::NotFound(NotFound::Notification)));
    realtime.close().await;
    pair.stop().await;
}

#[tokio::test]
async fn a_backends_subscriptions_act_on_live_connections() {
    let pair = Pair::start().await;
    let realtime = backend(&pair);
    let mut phone = pair.connect(1, "user-456").await;
    let subscriptions = realtime.subscriptions();
    let new = NewSubscription::topic(user("user-456"), "new-posts");
    let stored = subscriptions.create(new).await.expect("stored");
    pair.until_listening("topic:new-posts", 1).await;
    let message = json!({"channel": "topic:new-posts", "type": "post", "payload": 1});
    pair.one.post("/publish", &message).await;
    assert_eq!(phone.next().await["subscription_ids"], json!([stored.id]));
    let paused = subscriptions.update_status(&stored.id, SubscriptionStatus::Paused).await;
    assert!(paused.is_ok_and(|paused| paused.status == SubscriptionStatus::Paused));
    pair.until_listening("topic:new-posts", 0).await;
    realtime.close().await;
    pair.stop().await;
}

#[tokio::test]
async fn a_backend_sees_reaches_and_ends_connections_with_true_counts() {
    let pair = Pair::start().await;
    let realtime = backend(&pair);
    let mut clients = Vec::new();
    let mut ids = Vec::new();
    for (node, name) in [(0, "user-456"), (1, "user-456"), (1, "user-789")] {
        let mut client = pair.open(node, name).await;
        let welcome = client.next().await;
        ids.push(
            ConnectionId::new(welcome["connection_id"].as_str().expect("an id")).expect("one"),
        );
        assert_eq!(client.next().await["type"], "subscribed");
        clients.push(client);
    }
    let (connections, jane) = (realtime.connections(), user("user-456"));
    let subscription = NewSubscription::topic(jane.clone(), "new-posts");
    let subscription = realtime.subscriptions().create(subscription).await.expect("stored");
    pair.until_listening("topic:new-posts", 2).await;
    let seen = connections.find(&ids[1]).await.expect("live");
    assert!(seen.is_active() && seen.is_authenticated());
    assert_eq!(
        (seen.state, seen.transport),
        (ConnectionState::Connected, Some(Transport::WebSocket))
    );
    assert_eq!(seen.user_id.as_ref(), Some(&jane));
    assert!(
        seen.subscriptions.contains(&subscription.id) && seen.channels.contains("topic:new-posts")
    );
    let query = ConnectionsQuery::new().user(&jane).transport(Transport::WebSocket);
    assert_eq!(connections.list(query).await.expect("listed").len(), 2);
    assert_eq!(connections.list(ConnectionsQuery::new().limit(1)).await.expect("listed").len(), 1);

    let websocket = realtime.websocket();
    let id = websocket.send(&ids[1], Message::text("Hello, client!")).await.expect("sent");
    let heard = clients[1].next().await;
    assert_eq!((&heard["id"], &heard["payload"]), (&json!(id), &json!("Hello, client!")));
    websocket.send_to_user(&jane, Message::text("Hello, Jane!")).await.expect("published");
    for client in &mut clients[..2] {
        assert_eq!(client.next().await["payload"], "Hello, Jane!");
    }
    let all = Message::new(MessageType::SYSTEM).json(&json!({"down": true})).expect("JSON");
    assert_eq!(websocket.broadcast(all.clone()).await, Ok(3));
    assert_eq!(websocket.broadcast(all.except_user(jane.clone())).await, Ok(1));

    // An event is for event streams: there is none.
    let events = realtime.events();
    let event = NewEvent::new("update", "x").priority(EventPriority::High);
    let event = events.create(event).expect("made");
    assert_eq!(events.broadcast(&event, &[]).await, Ok(0));
    let none = RealtimeError::NotFound(NotFound::Connection);
    assert_eq!(events.send(&ids[0], &event).await, Err(none.clone()));
    assert!(events.create(NewEvent::new("a\nb", "x")).is_err());

    connections.disconnect(&ids[0]).await.expect("closed");
    let gone = ConnectionId::new("connection-123").expect("an id");
    assert_eq!(connections.disconnect(&gone).await, Err(none));
    assert_eq!(connections.disconnect_user(&user("user-789")).await, Ok(1));
    realtime.close().await;
    pair.stop().await;
}

#[tokio::test]
async fn an_event_reaches_the_streams_that_a_backend_names() {
    let pair = Pair::start().await;
    let realtime = backend(&pair);
    let token = pair.two.token("user-456", None);
    let request = Request::get(format!("/api/realtime/events?token={token}"));
    let request = request.body(Body::empty()).expect("a request");
    let mut stream =
        pair.two.router.clone().oneshot(request).await.expect("infallible").into_body();
    read_until(&mut stream, "event: subscribed").await;
    let query = ConnectionsQuery::new().transport(Transport::Sse);
    let listed = realtime.connections().list(query).await.expect("listed");
    let events = realtime.events();
    let event = NewEvent::new("update", "to one").comment("c");
    let event = events.create(event).expect("made");
    events.send(&listed[0].id, &event).await.expect("sent");
    read_until(&mut stream, "data: to one").await;
    let jane = user("user-456");
    let event = events.create(NewEvent::new("update", "to the user")).expect("made");
    assert_eq!(events.send_to_user(&jane, &event).await, Ok(1));
    read_until(&mut stream, "data: to the user").await;
    let event = events.create(NewEvent::new("update", "to some")).expect("made");
    let ids = [listed[0].id.clone(), listed[0].id.clone()];
    assert_eq!(events.broadcast_to(&event, ids, &[]).await, Ok(1));
    assert_eq!(events.broadcast(&event, &[listed[0].id.clone()]).await, Ok(0));
    realtime.close().await;
    pair.stop().await;
}

#[tokio::test]
async fn a_change_that_a_node_could_not_hear_is_made_up_for_when_it_hears_again() {
    let pair = Pair::start().await;
    let _phone = pair.connect(1, "user-456").await;
    let deaf = pair.two.node.id.clone();
    pair.cluster.interrupt(&deaf);
    let body = json!({"user_id": "user-456", "topic": "new-posts"});
    let stored = pair.one.post("/subscriptions/topic", &body).await;
    assert_eq!(stored.status, StatusCode::CREATED, "{}", stored.body);
    assert!(pair.two.node.hub.listeners("topic:new-posts").is_empty());
    pair.cluster.restore(&deaf);
    pair.until_listening("topic:new-posts", 1).await;
    pair.stop().await;
}
