//! One application's stream, two brokers: the words of `application.rs` and `revocations.rs` hold for the embedded broker
//! and for Redis.

#[path = "application/facts.rs"]
mod facts;
#[path = "application/facts_events.rs"]
mod facts_events;
#[path = "behaviour/fixture.rs"]
#[allow(dead_code, reason = "shared with the behaviour suite")]
mod fixture;
#[path = "application/memory.rs"]
mod memory;
#[path = "application/redis.rs"]
mod redis;
#[path = "behaviour/redis_server.rs"]
#[allow(dead_code, reason = "shared with the behaviour suite")]
mod redis_server;

/// One test of each fact: `every_fact!(FIXTURE, TEST ATTRIBUTE)`.
#[macro_export]
macro_rules! every_fact {
    ($fixture:expr, $test:meta) => {
        $crate::every_fact! { @ $fixture, $test:
            facts an_entry_goes_to_one_consumer_of_each_group
            facts what_a_consumer_left_is_its_own_when_it_comes_back
            facts what_a_dead_consumer_left_goes_to_another
            facts the_ready_consumer_reads_everything_once_and_bounds_what_waits
            facts a_dead_letter_is_done_and_kept_with_its_reason
            facts a_lease_is_one_nodes_at_a_time
            facts revocations_are_known_by_version_and_can_be_taken_back
            facts lost_revocations_are_written_again
            facts_events only_what_is_switched_on_is_told
            facts_events a_channel_is_occupied_with_its_first_node_and_vacated_with_its_last
            facts_events a_repeated_report_tells_nothing_twice
            facts_events what_was_lost_leaves_a_hole_in_the_sequence
            facts_events presence_and_status_are_told_with_their_changes
            facts_events what_a_dead_node_held_open_is_closed_once
            facts_events a_node_that_comes_back_tells_again
            facts_events a_retiring_node_closes_what_it_held
        }
    };
    (@ $fixture:expr, $test:meta: $($module:ident $fact:ident)*) => {
        $(
            #[$test]
            async fn $fact() {
                $crate::$module::$fact(&$fixture).await;
            }
        )*
    };
}
