//! A backend's services over a real Redis: what one backend does, another one and a node see.

#[path = "redis/node.rs"]
#[allow(dead_code, reason = "each test binary uses its part")]
mod node;
#[path = "redis/process.rs"]
#[allow(dead_code, reason = "each test binary uses its part")]
mod process;

use carillon_broker_client::realtime::{
    Message, NotFound, Realtime, RealtimeError, RealtimeOptions,
};
use carillon_broker_client::{
    Event, NewNotification, NewSubscription, Page, RedisMode, SubscriptionStatus,
};
use carillon_protocol::UserId;

use node::{Node, PATIENCE, channel, settings};
use process::RedisProcess;

/// Calls fail as unavailable until Redis was reached; afterwards they do not.
async fn reached(realtime: &Realtime, user: &UserId) {
    let reached = async {
        while let Err(RealtimeError::Unavailable(_)) =
            realtime.notifications().unread_count(user).await
        {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, reached).await.expect("Redis is there");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_backend_stores_and_sends_another_and_a_node_see() {
    let server = RedisProcess::start(&[]);
    let settings = settings(RedisMode::Standalone, vec![server.url()]);
    let mut node = Node::up(settings.clone()).await;
    let jane = UserId::new("jane").expect("an id");
    let one = Realtime::redis(settings.clone(), RealtimeOptions::default());
    let other = Realtime::redis(settings, RealtimeOptions::default());
    reached(&one, &jane).await;
    reached(&other, &jane).await;

    let new = NewNotification::new("Hello", "Something happened", [jane.clone()]);
    let stored = one.notifications().create(new).await.expect("stored");
    assert_eq!(other.notifications().unread_count(&jane).await, Ok(1));
    let read = other.notifications().mark_read(&jane, &stored.id).await.expect("read");
    assert!(read.is_read_by(&jane));
    assert_eq!(one.notifications().unread_count(&jane).await, Ok(0));
    one.notifications().delete(&stored.id).await.expect("deleted");
    let gone = other.notifications().find(&stored.id).await;
    assert_eq!(gone, Err(RealtimeError::NotFound(NotFound::Notification)));

    let new = NewSubscription::topic(jane.clone(), "news");
    let stored = one.subscriptions().create(new).await.expect("stored");
    let active = Some(SubscriptionStatus::Active);
    let listed = other.subscriptions().list(&jane, active, Page::default()).await.expect("listed");
    assert_eq!(listed.subscriptions[0].id, stored.id);

    node.subscribe(&channel("user:jane")).await.expect("subscribed");
    let sent = other.websocket().send_to_user(&jane, Message::text("hi")).await.expect("sent");
    loop {
        match node.heard().await {
            Event::Publication(heard) => {
                assert_eq!(heard.position, sent.position);
                assert_eq!(heard.payload.to_value(), "hi");
                break;
            }
            // Nodes are told of what was stored.
            Event::Told(_) => {}
            unexpected => panic!("heard {unexpected:?}"),
        }
    }
    one.close().await;
    other.close().await;
}
