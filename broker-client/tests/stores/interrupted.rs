//! What holds on Redis when a node dies half-way, and what Redis holds when all is over.

use std::sync::Arc;
use std::time::Duration;

use carillon_broker_client::{
    Clock, NewNotification, NotificationLimits, NotificationStore, RedisNotifications, StoreError,
};

use crate::redis_server::RedisServer;
use crate::stage::{Link, cluster_of_one, user};

fn store(link: Link, limits: NotificationLimits, clock: Clock) -> RedisNotifications {
    RedisNotifications::new(Arc::new(link), limits, clock)
}

/// A clock one minute ahead: whatever the dead node had begun is due.
fn later() -> Clock {
    Clock::from_fn(|| Clock::system().now().after(Duration::from_secs(60)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_creation_that_died_half_way_is_finished_by_another_node() {
    let limits = NotificationLimits::default();
    let users: Vec<_> = (0..1_001).map(|n| user(&format!("user-{n}"))).collect();
    for (one_slot, scripts) in
        [(true, 1), (true, 6), (true, 12), (false, 1), (false, 300), (false, 1_002)]
    {
        let server = if one_slot { RedisServer::shared() } else { cluster_of_one().await };
        let prefix = RedisServer::prefix();
        let dying = Link::to(&server, &prefix, one_slot).await.die_after(scripts);
        let dying = store(dying, limits, Clock::system());
        let new = NewNotification::new("whole", "text", users.iter().cloned());
        let died = dying.create(new).await;
        assert!(matches!(died, Err(StoreError::Unavailable(_))), "{died:?}");

        let survivor = store(Link::to(&server, &prefix, one_slot).await, limits, later());
        // Read by the first before the others have it: the repetition does not make it unread again.
        let early = survivor.mark_all_read(&users[0]).await.expect("marked");
        let claimed = survivor.claim_outbox(64, Duration::from_secs(10)).await.expect("claimed");
        assert_eq!(claimed.len(), 1);
        assert_eq!(claimed[0].waiting(), users);
        assert_eq!(survivor.unread_count(&users[0]).await, Ok(1 - early));
        for reader in &users[1..] {
            assert_eq!(survivor.unread_count(reader).await, Ok(1));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_that_died_half_way_is_finished_by_another_node() {
    for one_slot in [true, false] {
        let server = if one_slot { RedisServer::shared() } else { cluster_of_one().await };
        let (prefix, limits) = (RedisServer::prefix(), NotificationLimits::default());
        let survivor = store(Link::to(&server, &prefix, one_slot).await, limits, later());
        let users: Vec<_> = (0..20).map(|n| user(&format!("user-{n}"))).collect();
        let new = NewNotification::new("gone", "text", users.iter().cloned());
        let id = survivor.create(new).await.expect("created").id;

        let dying = Link::to(&server, &prefix, one_slot).await.die_after(10);
        let died = store(dying, limits, Clock::system()).delete(&id).await;
        assert!(matches!(died, Err(StoreError::Unavailable(_))), "{died:?}");
        assert_eq!(survivor.find(&id).await, Ok(None));
        let claimed = survivor.claim_outbox(64, Duration::from_secs(10)).await;
        assert_eq!(claimed, Ok(Vec::new()));
        for reader in &users {
            assert_eq!(survivor.unread_count(reader).await, Ok(0));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_key_ends_by_itself_and_an_expired_record_is_gone_from_redis() {
    let (server, prefix) = (RedisServer::shared(), RedisServer::prefix());
    let limits =
        NotificationLimits { expired_kept: Duration::ZERO, ..NotificationLimits::default() };
    let link = Link::to(&server, &prefix, true).await;
    let mut connection = link.connection();
    let store = store(link, limits, Clock::system());
    let ann = user("ann");
    let expires = Clock::system().now().after(Duration::from_millis(200));
    let new = NewNotification::new("soon over", "text", [ann.clone()]).expires_at(expires);
    let id = store.create(new).await.expect("created").id;
    store.ack_outbox(&id).await.expect("acknowledged");

    let record = format!("{prefix}:{{n0}}:notification:{id}");
    let mut exists = true;
    while exists {
        exists =
            redis::cmd("EXISTS").arg(&record).query_async(&mut connection).await.expect("asked");
    }
    let keys: Vec<String> = redis::cmd("KEYS")
        .arg(format!("{prefix}:*"))
        .query_async(&mut connection)
        .await
        .expect("keys");
    for key in &keys {
        let ends: i64 =
            redis::cmd("PTTL").arg(key).query_async(&mut connection).await.expect("asked");
        assert!(ends > 0, "{key} never ends");
    }
    assert_eq!(store.unread_count(&ann).await, Ok(0));
    let left: Vec<String> = redis::cmd("KEYS")
        .arg(format!("{prefix}:*"))
        .query_async(&mut connection)
        .await
        .expect("keys");
    assert!(left.is_empty(), "touching the inbox cleans it: {left:?}");
}
