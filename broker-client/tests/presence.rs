//! One presence, two brokers: the words of `presence.rs` hold for the embedded broker and for Redis.

#[path = "presence/facts.rs"]
mod facts;
#[path = "behaviour/fixture.rs"]
#[allow(dead_code, reason = "shared with the behaviour suite")]
mod fixture;
#[path = "presence/memory.rs"]
mod memory;
#[path = "presence/redis.rs"]
mod redis;
#[path = "behaviour/redis_server.rs"]
#[allow(dead_code, reason = "shared with the behaviour suite")]
mod redis_server;

/// One test of each fact: `every_fact!(FIXTURE, TEST ATTRIBUTE)`.
#[macro_export]
macro_rules! every_fact {
    ($fixture:expr, $test:meta) => {
        $crate::every_fact! { @ $fixture, $test:
            a_join_is_announced_once_and_shows_everyone
            two_tabs_are_one_entry
            leaving_tells_when_they_were_last_seen
            a_backends_entry_lasts_until_removed
            a_backends_entry_ends_with_its_time
            what_a_dead_node_held_is_taken_back_once
            a_node_that_comes_back_joins_again
            a_retiring_node_takes_its_holds_along
            a_user_is_online_with_the_first_connection_and_offline_after_the_last
            a_quick_reconnect_is_no_flicker
            a_registration_that_outlasts_the_farewell_ends_offline
            users_of_a_dead_node_go_offline_once
            a_status_stays_as_chosen_and_changes_are_coalesced
            a_change_that_waits_for_its_turn_is_announced_though_the_node_is_new
            a_user_never_seen_is_offline
            many_users_leave_in_any_order
            announcements_replay_to_the_list_under_churn
        }
    };
    (@ $fixture:expr, $test:meta: $($fact:ident)*) => {
        $(
            #[$test]
            async fn $fact() {
                $crate::facts::$fact(&$fixture).await;
            }
        )*
    };
}
