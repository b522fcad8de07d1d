//! Facts about the outbox that drives the fan-out.

use std::collections::BTreeSet;
use std::time::Duration;

use carillon_broker_client::NewNotification;

use crate::stage::{Stage, user};

const LEASE: Duration = Duration::from_secs(10);

pub(crate) async fn a_creation_is_claimed_once_until_it_is_acknowledged(stage: &Stage) {
    let created = stage.create(&["one"], &[user("ann"), user("bob")]).await.remove(0);
    let claimed = stage.there.claim_outbox(16, LEASE).await.expect("claimed");
    assert_eq!(claimed.len(), 1);
    assert_eq!(claimed[0].notification, created);
    assert_eq!(claimed[0].waiting(), created.recipients);
    assert_eq!(stage.here.claim_outbox(16, LEASE).await, Ok(Vec::new()));
    assert_eq!(stage.there.ack_outbox(&created.id).await, Ok(true));
    assert_eq!(stage.there.ack_outbox(&created.id).await, Ok(false));
    stage.clock.pass(LEASE * 2);
    assert_eq!(stage.here.claim_outbox(16, LEASE).await, Ok(Vec::new()));
    assert_eq!(stage.here.advance_outbox(&created.id, 1, LEASE).await, Ok(false));
}

pub(crate) async fn a_claim_that_ends_falls_to_the_next_with_its_progress(stage: &Stage) {
    let created = stage.create(&["one"], &[user("ann"), user("bob")]).await.remove(0);
    stage.here.claim_outbox(16, LEASE).await.expect("claimed");
    stage.clock.pass(LEASE / 2);
    assert_eq!(stage.here.advance_outbox(&created.id, 1, LEASE).await, Ok(true));
    stage.clock.pass(LEASE / 2);
    assert_eq!(stage.there.claim_outbox(16, LEASE).await, Ok(Vec::new()), "advancing extends");
    stage.clock.pass(LEASE / 2);
    let claimed = stage.there.claim_outbox(16, LEASE).await.expect("claimed");
    assert_eq!(claimed[0].waiting(), [user("bob")]);
}

pub(crate) async fn two_nodes_never_claim_the_same(stage: &Stage) {
    let titles: Vec<String> = (0..40).map(|n| n.to_string()).collect();
    let titles: Vec<&str> = titles.iter().map(String::as_str).collect();
    let created = stage.create(&titles, &[user("ann")]).await;
    let mut claimed = Vec::new();
    loop {
        let (here, there) =
            tokio::join!(stage.here.claim_outbox(16, LEASE), stage.there.claim_outbox(16, LEASE));
        let (here, there) = (here.expect("claimed"), there.expect("claimed"));
        if here.is_empty() && there.is_empty() {
            break;
        }
        claimed.extend(here.into_iter().chain(there).map(|entry| entry.notification.id));
    }
    assert_eq!(claimed.len(), created.len());
    let distinct: BTreeSet<_> = claimed.into_iter().collect();
    assert_eq!(distinct, created.into_iter().map(|created| created.id).collect());
}

pub(crate) async fn what_is_deleted_or_expired_is_not_claimed(stage: &Stage) {
    let deleted = stage.create(&["deleted"], &[user("ann")]).await.remove(0);
    let expires = stage.clock.now().after(LEASE);
    let new = NewNotification::new("expired", "text", [user("ann")]).expires_at(expires);
    stage.here.create(new).await.expect("created");
    stage.here.delete(&deleted.id).await.expect("deleted");
    stage.clock.pass(LEASE);
    assert_eq!(stage.there.claim_outbox(16, LEASE).await, Ok(Vec::new()));
}
