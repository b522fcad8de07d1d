//! Facts about notifications and time.

use std::time::Duration;

use carillon_broker_client::{NewNotification, NotificationQuery, NotificationStatus};

use crate::stage::{LIMITS, Stage, user};

const MINUTE: Duration = Duration::from_secs(60);

pub(crate) async fn an_expired_notification_is_neither_unread_nor_pending_and_then_gone(
    stage: &Stage,
) {
    let ann = user("ann");
    let new = NewNotification::new("soon over", "text", [ann.clone()]);
    let created =
        stage.here.create(new.expires_at(stage.clock.now().after(MINUTE))).await.expect("created");
    stage.create(&["stays"], std::slice::from_ref(&ann)).await;
    assert_eq!(stage.there.unread_count(&ann).await, Ok(2));

    stage.clock.pass(MINUTE);
    assert_eq!(stage.there.unread_count(&ann).await, Ok(1));
    assert_eq!(stage.there.pending(&ann, 1).await.expect("pending")[0].title, "stays");
    assert_eq!(stage.there.mark_all_read(&ann).await, Ok(1));
    let found = stage.there.find(&created.id).await.expect("an answer").expect("found");
    assert_eq!(found.status, NotificationStatus::Expired);
    assert_eq!(stage.titles(&ann, &NotificationQuery::default()).await, ["stays", "soon over"]);

    stage.clock.pass(LIMITS.expired_kept);
    assert_eq!(stage.there.find(&created.id).await, Ok(None));
    assert_eq!(stage.there.find_for(&ann, &created.id).await, Ok(None));
    let page = stage.there.list(&ann, &NotificationQuery::default()).await.expect("a page");
    assert_eq!((page.notifications.len(), page.total), (1, 1));
}

pub(crate) async fn one_that_is_expired_at_birth_is_never_delivered(stage: &Stage) {
    let ann = user("ann");
    let long_ago = "1950-01-01T00:00:00Z".parse().expect("a moment");
    let new = NewNotification::new("too late", "text", [ann.clone()]).expires_at(long_ago);
    let created = stage.here.create(new).await.expect("created");
    assert_eq!(created.status, NotificationStatus::Expired);
    assert_eq!(stage.there.find(&created.id).await.expect("an answer"), Some(created));
    assert_eq!(stage.there.unread_count(&ann).await, Ok(0));
    assert_eq!(stage.there.pending(&ann, 10).await, Ok(Vec::new()));
    stage.clock.pass(MINUTE);
    assert_eq!(stage.there.claim_outbox(10, MINUTE).await, Ok(Vec::new()));
}

pub(crate) async fn nothing_outlives_the_age_bound(stage: &Stage) {
    let ann = user("ann");
    let far = stage.clock.now().after(LIMITS.age_max * 10);
    let new = NewNotification::new("for ever", "text", [ann.clone()]).expires_at(far);
    let created = stage.here.create(new).await.expect("created");
    stage.clock.pass(LIMITS.age_max - MINUTE);
    assert_eq!(stage.there.unread_count(&ann).await, Ok(1));
    stage.clock.pass(MINUTE);
    assert_eq!(stage.there.unread_count(&ann).await, Ok(0));
    assert_eq!(stage.there.pending(&ann, 10).await, Ok(Vec::new()));
    assert_eq!(stage.there.find(&created.id).await, Ok(None));
    assert_eq!(
        stage.there.list(&ann, &NotificationQuery::default()).await.expect("a page").total,
        0
    );
}
