//! What is replaced, what is finished, and that all of it is bounded.

use carillon_protocol::publication::Exclude;
use carillon_protocol::{ChannelName, MessageId, Payload, Profile, Publication};

use super::*;
use crate::dispatch::Medium;

const DRESS: Dress = Dress { medium: Medium::Sse, profile: Profile::Social, compressed: false };

fn dispatch(number: usize, bytes: usize) -> Dispatch {
    Dispatch::new(Publication {
        channel: ChannelName::new("metrics.load").expect("a channel"),
        position: None,
        previous_tag: None,
        stamp: 0,
        id: MessageId::new(&format!("m{number}")).expect("an id"),
        kind: "message".into(),
        timestamp_ms: 0,
        user_id: None,
        meta: None,
        exclude: Exclude::default(),
        expires_at_ms: None,
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

#[test]
fn a_changed_bound_holds_from_now_on() {
    let outbox = Outbox::new(Wire::Pulled, 1_000).for_sse(true, None);
    assert_eq!(outbox.push(&dispatch(0, 8_000), DRESS, 0), Pushed::First);
    assert_eq!(outbox.push(&dispatch(1, 8_000), DRESS, 0), Pushed::Full);
    outbox.bound(20_000);
    assert_eq!(outbox.push(&dispatch(1, 8_000), DRESS, 0), Pushed::Queued);
    assert_eq!(outbox.push(&dispatch(2, 8_000), DRESS, 0), Pushed::Full);
}

#[test]
fn a_gzip_stream_ends_with_the_sum_of_what_was_sent() {
    use std::io::Read;

    let dress = Dress { compressed: true, ..DRESS };
    let (opening, sum) = carillon_protocol::codec::gzip::open(b"retry: 1\n\n");
    let outbox = Outbox::new(Wire::Pulled, 20_000).for_sse(false, Some(sum));
    let mut stream = opening;
    outbox.push(&dispatch(0, 100), dress, 7);
    stream.extend(outbox.take().concat());
    for number in 1..200 {
        // The queue is full now and then, and what is older is dropped.
        outbox.push(&dispatch(number, 100), dress, 7);
    }
    outbox.push_sse_text(b": ping\n\n");
    outbox.push_sse_end();
    stream.extend(outbox.take().concat());
    let mut text = String::new();
    flate2::read::GzDecoder::new(&stream[..]).read_to_string(&mut text).expect("a right sum");
    assert!(text.starts_with("retry: 1\n\nevent: message\n") && text.ends_with(": ping\n\n"));
    let events = text.matches("event: message").count();
    assert!(events < 200 && text.contains("\"199:x"), "{events} events");
}

#[test]
fn a_gzip_event_that_was_begun_counts_where_others_are_dropped() {
    use std::io::Read;

    let dress = Dress { compressed: true, ..DRESS };
    let (mut stream, sum) = carillon_protocol::codec::gzip::open(b"retry: 1\n\n");
    let outbox = Outbox::new(Wire::Pulled, 2_000).for_sse(false, Some(sum));
    for number in 0..20 {
        outbox.push(&dispatch(number, 100), dress, 7);
        if number == 0 {
            outbox.state.lock().written(10);
        }
    }
    outbox.push_sse_end();
    // `take` hands the begun event out whole, its first ten bytes too.
    stream.extend(outbox.take().concat());
    let mut text = String::new();
    flate2::read::GzDecoder::new(&stream[..]).read_to_string(&mut text).expect("a right sum");
    let events = text.matches("event: message").count();
    assert!(events < 20 && text.contains("\"0:x") && text.contains("\"19:x"), "{events} events");
}

#[test]
fn the_close_frame_is_queued_behind_a_queue_that_is_full_to_the_brim() {
    let dress = Dress { medium: Medium::Poll, ..DRESS };
    let outbox = Outbox::new(Wire::Pulled, 1_000);
    outbox.push_raw(Bytes::from(vec![0; 1_000]));
    outbox.push_own(&Bytes::from_static(b"disconnect"), dress);
    outbox.push_raw(Bytes::from_static(b"ping"));
    outbox.push_last(Bytes::from_static(b"close"));
    let queued = outbox.take();
    assert_eq!(queued[1..], [Bytes::from_static(b"disconnect"), Bytes::from_static(b"close")]);
}
