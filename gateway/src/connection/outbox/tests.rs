//! What is replaced, what is finished, and that all of it is bounded.

use carillon_protocol::publication::Exclude;
use carillon_protocol::{ChannelName, MessageId, Payload, Profile, Publication};

use super::*;

const DRESS: Dress = Dress { medium: Medium::Sse, profile: Profile::Social, compressed: false };

fn dispatch(number: usize, bytes: usize) -> Dispatch {
    Dispatch::new(Publication {
        channel: ChannelName::new("metrics.load").expect("a channel"),
        position: None,
        previous_tag: None,
        id: MessageId::new(&format!("m{number}")).expect("an id"),
        kind: "message".into(),
        timestamp_ms: 0,
        user_id: None,
        meta: None,
        exclude: Exclude::default(),
        traceparent: None,
        payload: Payload::of(&format!("{number}:{}", "x".repeat(bytes))),
    })
}

fn text(outbox: &Outbox) -> String {
    String::from_utf8(outbox.take().concat()).expect("text")
}

#[test]
fn large_conflated_events_are_replaced_whole() {
    for chunked in [false, true] {
        let outbox = Outbox::new(Wire::Pulled, 20_000).for_sse(chunked, None);
        for number in 0..50 {
            assert_ne!(outbox.push(&dispatch(number, 8_000), DRESS, 7), Pushed::Full);
            assert!(outbox.queued_bytes() <= 20_000, "{}", outbox.queued_bytes());
        }
        let text = text(&outbox);
        assert_eq!(text.matches("event: message").count(), text.matches("\n\n").count());
        assert!(text.contains("\"49:x") && !text.contains("\"10:x"));
    }
}

#[test]
fn an_event_that_was_begun_is_finished() {
    let outbox = Outbox::new(Wire::Pulled, 20_000).for_sse(true, None);
    outbox.push(&dispatch(0, 8_000), DRESS, 7);
    outbox.push(&dispatch(1, 8_000), DRESS, 7);
    // The chunk's head and some of the body have left.
    outbox.state.lock().written(100);
    for number in 2..9 {
        outbox.push(&dispatch(number, 8_000), DRESS, 7);
    }
    let rest = text(&outbox);
    assert!(rest.contains("xxx\"") && rest.contains("\"8:x") && !rest.contains("\"1:x"));
    assert_eq!(rest.matches("\n\n").count(), 2);
}

#[test]
fn many_conflation_keys_are_bounded_too() {
    let outbox = Outbox::new(Wire::Pulled, 20_000).for_sse(true, None);
    let pushed: Vec<Pushed> = (0..9)
        .map(|number| outbox.push(&dispatch(number, 8_000), DRESS, 1 + number as u64))
        .collect();
    assert_eq!(pushed.iter().filter(|pushed| **pushed == Pushed::Full).count(), 7);
}
