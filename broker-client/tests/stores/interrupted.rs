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
async fn expired_ones_go_from_redis_by_themselves_untouched_and_without_a_scan() {
    const USERS: usize = 100;
    let (server, prefix) = (RedisServer::start(&["--hz", "100"]), RedisServer::prefix());
    let limits =
        NotificationLimits { expired_kept: Duration::ZERO, ..NotificationLimits::default() };
    let link = Link::to(&server, &prefix, true).await;
    let mut connection = link.connection();
    let store = store(link, limits, Clock::system());
    let users: Vec<_> = (0..USERS).map(|n| user(&format!("user-{n}"))).collect();
    for _ in 0..10 {
        let expires = Clock::system().now().after(Duration::from_millis(1_500));
        let new = NewNotification::new("soon over", "text", users.iter().cloned());
        let id = store.create(new.expires_at(expires)).await.expect("created").id;
        store.ack_outbox(&id).await.expect("acknowledged");
    }
    // One that stays keeps its own inbox and no other.
    let stays = NewNotification::new("stays", "text", [users[0].clone()]);
    let stays = store.create(stays).await.expect("created").id;
    store.ack_outbox(&stays).await.expect("acknowledged");
    let size = || {
        let mut connection = connection.clone();
        async move {
            let size = redis::cmd("DBSIZE").query_async::<usize>(&mut connection).await;
            size.expect("asked")
        }
    };
    // Of each user five keys, but nobody has read or taken anything out: order, unread, pending, purge, meta.
    assert!(size().await > 5 * (USERS - 1));
    // Its record and the five keys of its inbox.
    while size().await > 6 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let stats: String =
        redis::cmd("INFO").arg("commandstats").query_async(&mut connection).await.expect("asked");
    for command in ["scan", "hscan", "zscan", "sscan", "keys"] {
        assert!(!stats.contains(&format!("cmdstat_{command}:")), "{stats}");
    }
    // What stays ends as well, and touching the inbox cleans it of what expired.
    let keys: Vec<String> =
        redis::cmd("KEYS").arg("*").query_async(&mut connection).await.expect("keys");
    for key in &keys {
        let ends: i64 =
            redis::cmd("PTTL").arg(key).query_async(&mut connection).await.expect("asked");
        assert!(ends > 0, "{key} never ends");
    }
    let meta = format!("{prefix}:{{u:user-0}}:notifications:meta");
    let entries = async |connection: &mut redis::aio::MultiplexedConnection| {
        let entries = redis::cmd("HLEN").arg(&meta).query_async::<usize>(connection).await;
        entries.expect("asked")
    };
    assert_eq!(entries(&mut connection).await, 11);
    assert_eq!(store.unread_count(&users[0]).await, Ok(1));
    assert_eq!(entries(&mut connection).await, 1);
}
