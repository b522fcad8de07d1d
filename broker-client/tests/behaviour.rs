//! One behaviour, two brokers: every fact below holds for the embedded broker and for Redis.
//!
//! Facts are async functions over a [`fixture::Fixture`]; `every_fact!` lists them and makes one
//! test of each for each broker. Redis is a real server started by the tests; they fail without it.

#[path = "behaviour/facts_cluster.rs"]
mod facts_cluster;
#[path = "behaviour/facts_delivery.rs"]
mod facts_delivery;
#[path = "behaviour/facts_history.rs"]
mod facts_history;
#[path = "behaviour/facts_polls.rs"]
mod facts_polls;
#[path = "behaviour/fixture.rs"]
mod fixture;
#[path = "behaviour/memory.rs"]
mod memory;
#[path = "behaviour/redis.rs"]
mod redis;
#[path = "behaviour/redis_server.rs"]
mod redis_server;

/// One test of each fact: `every_fact!(FIXTURE, TEST ATTRIBUTE)`.
#[macro_export]
macro_rules! every_fact {
    ($fixture:expr, $test:meta) => {
        $crate::every_fact! { @ $fixture, $test, facts_history:
            offsets_grow_by_one_and_tags_chain
            an_acknowledged_publication_is_in_history_as_it_was_heard
            history_keeps_the_newest_by_size
            history_forgets_by_age
            tops_create_an_epoch_and_keep_it
            history_after_an_offset_tells_the_tag_there
            history_after_a_trimmed_offset_shows_the_hole
            history_last_answers_the_newest
            history_of_nothing_is_the_top_alone
            history_is_paged
            clearing_history_begins_a_new_epoch
            a_known_position_that_history_lost_begins_a_new_epoch
            what_was_trimmed_is_not_lost
            publishing_without_retention_keeps_nothing
            what_no_history_holds_is_stamped_in_order
        }
        $crate::every_fact! { @ $fixture, $test, facts_delivery:
            what_is_published_after_subscribe_is_heard
            what_is_published_after_unsubscribe_is_not_heard
            subscribing_twice_hears_once
            two_nodes_hear_the_same
            many_channels_are_heard_at_once
            a_repeated_key_publishes_nothing
            a_repeated_key_without_history_publishes_nothing
            either_of_two_keys_makes_a_repetition
            the_same_key_of_another_sender_or_channel_publishes
            a_batch_keeps_order_and_answers_in_order
            concurrent_publishers_leave_no_hole_and_all_nodes_hear_one_order
            a_payload_of_one_mebibyte_crosses
            every_field_of_a_publication_crosses
        }
        $crate::every_fact! { @ $fixture, $test, facts_cluster:
            health_is_up
            the_limit_of_connections_holds_over_nodes
            registering_again_does_not_count_twice
            connections_of_a_stale_node_do_not_count
            of_those_that_arrive_together_as_many_are_admitted_as_there_are_places
            connections_of_a_node_that_was_never_heard_of_count
            connections_of_a_user_are_listed_until_deregistered
            beats_name_the_living_until_they_retire
            a_dead_node_is_swept
            retiring_takes_registrations_along
            a_node_is_told_bytes
            all_nodes_are_told_the_sender_too
            nobody_listens_under_an_unknown_node
            inbound_ids_grow
            calls_are_counted_in_windows
            one_call_of_many_at_once_is_counted_once
        }
        $crate::every_fact! { @ $fixture, $test, facts_polls:
            poll_ids_grow_and_every_id_finds_its_page
            a_page_comes_after_the_id_that_was_asked_with
            a_poll_is_counted_and_finds_what_answered_its_question
            a_poll_is_counted_with_its_page
            a_question_is_answered_once
            old_poll_pages_make_room
        }
    };
    (@ $fixture:expr, $test:meta, $module:ident: $($fact:ident)*) => {
        $(
            #[$test]
            async fn $fact() {
                $crate::$module::$fact(&$fixture).await;
            }
        )*
    };
}
