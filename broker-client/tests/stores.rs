//! The same facts about stored notifications and subscriptions in memory, on one Redis server, and
//! on a Redis cluster's rules (one server that enforces hash slots).

#[path = "stores/document.rs"]
mod document;
#[path = "stores/facts_inbox.rs"]
mod facts_inbox;
#[path = "stores/facts_outbox.rs"]
mod facts_outbox;
#[path = "stores/facts_subscriptions.rs"]
mod facts_subscriptions;
#[path = "stores/facts_time.rs"]
mod facts_time;
#[path = "stores/interrupted.rs"]
mod interrupted;
#[path = "behaviour/redis_server.rs"]
mod redis_server;
#[path = "stores/stage.rs"]
mod stage;

/// One test of each fact for each kind of store.
macro_rules! facts {
    ($($module:ident: $($fact:ident)*;)*) => {
        mod memory {
            $($(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $fact() {
                    crate::$module::$fact(&crate::stage::Stage::memory()).await;
                }
            )*)*
        }
        mod redis_standalone {
            $($(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $fact() {
                    crate::$module::$fact(&crate::stage::Stage::redis_standalone().await).await;
                }
            )*)*
        }
        mod redis_cluster {
            $($(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $fact() {
                    crate::$module::$fact(&crate::stage::Stage::redis_cluster().await).await;
                }
            )*)*
        }
    };
}

facts! {
    facts_inbox:
        a_created_notification_is_found_with_every_field
        each_recipient_has_it_and_nobody_else
        what_the_contract_forbids_is_refused
        lists_are_newest_first_and_paged_with_a_total
        pages_do_not_shift_while_new_ones_arrive
        lists_are_filtered_by_what_holds_for_the_user
        reading_is_each_recipients_own_and_the_status_the_aggregate
        mark_all_read_counts_what_it_marked
        unread_counts_are_exact_under_concurrent_marks
        delivery_is_each_recipients_own_and_pending_is_oldest_first
        deleting_takes_it_from_everybody_and_dismissing_from_one
        ten_thousand_recipients_have_it_and_one_more_is_refused
        an_inbox_keeps_its_newest_entries;
    facts_time:
        an_expired_notification_is_neither_unread_nor_pending_and_then_gone
        one_that_is_expired_at_birth_is_never_delivered
        nothing_outlives_the_age_bound;
    facts_outbox:
        a_creation_is_claimed_once_until_it_is_acknowledged
        a_claim_that_ends_falls_to_the_next_with_its_progress
        two_nodes_never_claim_the_same
        what_is_deleted_or_expired_is_not_claimed;
    facts_subscriptions:
        a_created_subscription_is_found_by_any_node
        subscriptions_are_listed_oldest_first_and_paged
        a_users_subscriptions_are_the_users_alone
        status_changes_are_seen_everywhere
        an_expired_subscription_ends_and_is_revived_by_a_new_expiry
        a_patch_changes_what_it_names
        concurrent_changes_do_not_overwrite_each_other
        what_is_deleted_is_unknown
        the_limit_counts_what_has_not_ended
        what_no_subscription_may_hold_is_refused;
}
