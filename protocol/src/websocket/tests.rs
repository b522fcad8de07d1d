//! The assembler against the cases that RFC 6455 and Autobahn care about, and against any cut.

use proptest::prelude::*;

use super::*;

fn client_frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [0x11, 0xA2, 0x33, 0xC4];
    let mut out = vec![first];
    match payload.len() {
        short @ 0..=125 => out.push(0x80 | short as u8),
        middle @ 126..=0xFFFF => {
            out.push(0x80 | 126);
            out.extend_from_slice(&(middle as u16).to_be_bytes());
        }
        long => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(long as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&mask);
    out.extend(payload.iter().enumerate().map(|(index, byte)| byte ^ mask[index % 4]));
    out
}

type Heard = (Vec<String>, Option<u16>);

/// What was heard, as text, and the violation's close code, when fed in pieces that end at `cuts`.
fn hear(stream: &[u8], cuts: &[usize], message_bytes_max: usize) -> Heard {
    let mut assembler = Assembler::new(message_bytes_max);
    let mut heard = Vec::new();
    let mut from = 0;
    for to in cuts.iter().copied().chain([stream.len()]) {
        let mut piece = stream[from..to].to_vec();
        from = to;
        let fed = assembler.feed(&mut piece, &mut |incoming| {
            heard.push(format!("{incoming:?}"));
            true
        });
        if let Err(violation) = fed {
            return (heard, Some(violation.code.number()));
        }
    }
    (heard, None)
}

fn at_once(stream: &[u8]) -> Heard {
    hear(stream, &[], 1 << 20)
}

fn byte_by_byte(stream: &[u8]) -> Heard {
    hear(stream, &(1..stream.len()).collect::<Vec<_>>(), 1 << 20)
}

#[test]
fn an_idle_assembler_is_a_few_words() {
    assert!(size_of::<Assembler>() <= 32);
    let mut assembler = Assembler::new(10);
    let mut stream = client_frame(0x81, b"abc");
    let (one, two) = stream.split_at_mut(5);
    assembler.feed(one, &mut |_| true).expect("valid");
    assert!(!format!("{assembler:?}").contains("partial: None"));
    assembler.feed(two, &mut |_| true).expect("valid");
    assert!(format!("{assembler:?}").contains("partial: None"));
}

#[test]
fn violations_close_with_the_code_of_the_rfc() {
    let cases: [(&str, Vec<u8>, u16); 22] = [
        ("no mask", vec![0x81, 0x01, b'a'], 1002),
        ("RSV1", client_frame(0xC1, b"a"), 1002),
        ("RSV3", client_frame(0x91, b"a"), 1002),
        ("opcode 3", client_frame(0x83, b""), 1002),
        ("opcode B", client_frame(0x8B, b""), 1002),
        ("fragmented ping", client_frame(0x09, b""), 1002),
        ("long ping", client_frame(0x89, &[0; 126]), 1002),
        ("continuation of nothing", client_frame(0x80, b"a"), 1002),
        (
            "new inside fragmented",
            [client_frame(0x01, b"a"), client_frame(0x81, b"b")].concat(),
            1002,
        ),
        ("length not shortest", vec![0x82, 0xFE, 0, 5, 0, 0, 0, 0], 1002),
        ("length over 63 bits", vec![0x82, 0xFF, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 1002),
        ("close of one byte", client_frame(0x88, &[3]), 1002),
        ("close 999", client_frame(0x88, &999_u16.to_be_bytes()), 1002),
        ("close 1004", client_frame(0x88, &1004_u16.to_be_bytes()), 1002),
        ("close 1005", client_frame(0x88, &1005_u16.to_be_bytes()), 1002),
        ("close 1006", client_frame(0x88, &1006_u16.to_be_bytes()), 1002),
        ("close 1015", client_frame(0x88, &1015_u16.to_be_bytes()), 1002),
        ("close 2999", client_frame(0x88, &2999_u16.to_be_bytes()), 1002),
        ("close 5000", client_frame(0x88, &5000_u16.to_be_bytes()), 1002),
        ("close reason", client_frame(0x88, &[0x03, 0xE8, 0xFF]), 1007),
        ("text", client_frame(0x81, b"\xED\xA0\x80"), 1007),
        ("text cut inside a character", client_frame(0x81, b"\xC3"), 1007),
    ];
    for (name, stream, code) in cases {
        assert_eq!(at_once(&stream), (vec![], Some(code)), "{name}");
        assert_eq!(byte_by_byte(&stream), (vec![], Some(code)), "{name}, byte by byte");
    }
}

#[test]
fn invalid_text_fails_before_the_frame_or_message_ends() {
    let whole = client_frame(0x81, b"\xCE\xBA\xF4\x90\x80\x80 and more");
    // Header of 6 bytes, then up to the byte that no UTF-8 may have after F4.
    assert_eq!(at_once(&whole[..6 + 3]), (vec![], None));
    assert_eq!(at_once(&whole[..6 + 4]), (vec![], Some(1007)));
    let fragments = [client_frame(0x01, b"\xF4"), client_frame(0x00, b"\x90")].concat();
    assert_eq!(at_once(&fragments), (vec![], Some(1007)));
}

#[test]
fn an_oversized_message_is_refused_by_its_header() {
    let header = &client_frame(0x82, &[0; 200])[..8];
    assert_eq!(hear(header, &[], 199), (vec![], Some(1009)));
    assert_eq!(hear(header, &[], 200), (vec![], None));
    let fragments = [client_frame(0x01, &[b'a'; 6]), client_frame(0x80, &[b'a'; 5])].concat();
    assert_eq!(hear(&fragments[..18], &[], 10), (vec![], Some(1009)));
}

#[test]
fn control_frames_may_stand_between_fragments() {
    let stream = [
        client_frame(0x01, "Hé".as_bytes().split_at(2).0),
        client_frame(0x89, b"p"),
        client_frame(0x00, b""),
        client_frame(0x8A, b""),
        client_frame(0x80, "Hé".as_bytes().split_at(2).1),
        client_frame(0x82, b""),
        client_frame(0x88, b""),
        client_frame(0x81, b"after the close"),
    ]
    .concat();
    let expected: Vec<String> =
        ["Ping([112])", "Pong", "Text(\"Hé\")", "Binary([])", "Close(None)"]
            .map(str::to_owned)
            .into();
    assert_eq!(at_once(&stream), (expected.clone(), None));
    assert_eq!(byte_by_byte(&stream), (expected, None));
}

#[test]
fn a_cut_right_after_a_header_begins_no_message() {
    let stream = [client_frame(0x81, b"one"), client_frame(0x81, b"two")].concat();
    let expected = vec!["Text(\"one\")".to_owned(), "Text(\"two\")".to_owned()];
    assert_eq!(hear(&stream, &[6], 10), (expected, None));
}

#[test]
fn a_listener_that_has_enough_hears_no_more() {
    let mut stream = [client_frame(0x81, b"1"), client_frame(0x81, b"2")].concat();
    let mut count = 0;
    let mut assembler = Assembler::new(10);
    let mut enough = |_: Incoming<'_>| {
        count += 1;
        false
    };
    assembler.feed(&mut stream.clone(), &mut enough).expect("valid");
    assembler.feed(&mut stream, &mut enough).expect("valid");
    assert_eq!(count, 1);
}

#[test]
fn server_headers_use_the_shortest_length() {
    for (payload_bytes, header) in [
        (0, vec![0x81, 0]),
        (125, vec![0x81, 125]),
        (126, vec![0x81, 126, 0, 126]),
        (65_535, vec![0x81, 126, 255, 255]),
        (65_536, vec![0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
    ] {
        let mut out = Vec::new();
        push_header(&mut out, Opcode::Text, payload_bytes);
        assert_eq!(out, header);
    }
    assert_eq!(&close_frame(4401, &"ü".repeat(100))[..4], [0x88, 124, 0x11, 0x31]);
}

fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let payload = prop::collection::vec(any::<u8>(), 0..200);
    prop_oneof![
        "\\PC{0,80}".prop_map(|text| client_frame(0x81, text.as_bytes())),
        payload.clone().prop_map(|payload| client_frame(0x82, &payload)),
        "\\PC{0,30}".prop_map(|text| {
            let (one, two) = text.as_bytes().split_at(text.len() / 2);
            [client_frame(0x01, one), client_frame(0x89, b"between"), client_frame(0x80, two)]
                .concat()
        }),
        Just(client_frame(0x8A, b"")),
        (any::<u8>(), payload).prop_map(|(first, payload)| client_frame(first, &payload)),
        prop::collection::vec(any::<u8>(), 0..30),
    ]
}

proptest! {
    #[test]
    fn cutting_the_stream_anywhere_changes_nothing(
        frames in prop::collection::vec(any_frame(), 1..6),
        mut cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        limit in prop_oneof![Just(100_usize), Just(1 << 20)],
    ) {
        let stream = frames.concat();
        let mut cuts: Vec<usize> = cuts.drain(..).map(|cut| cut.index(stream.len() + 1)).collect();
        cuts.sort_unstable();
        prop_assert_eq!(hear(&stream, &cuts, limit), hear(&stream, &[], limit));
    }
}

/// What is heard where permessage-deflate was negotiated: at once, and byte by byte.
#[track_caller]
fn inflated(stream: &[u8]) -> Heard {
    let mut all = [vec![], (1..stream.len()).collect::<Vec<_>>()].map(|cuts| {
        let mut assembler = Assembler::new(1_000).with_deflate(true);
        let mut heard = Vec::new();
        let mut from = 0;
        for to in cuts.into_iter().chain([stream.len()]) {
            let mut piece = stream[from..to].to_vec();
            from = to;
            let fed = assembler.feed(&mut piece, &mut |incoming| {
                heard.push(format!("{incoming:?}"));
                true
            });
            if let Err(violation) = fed {
                return (heard, Some(violation.code.number()));
            }
        }
        (heard, None)
    });
    assert_eq!(all[0], all[1]);
    std::mem::take(&mut all[0])
}

#[test]
fn compressed_messages_are_inflated_whole_or_in_fragments() {
    let text = "compressed ".repeat(90);
    let deflated = crate::deflate::deflate(text.as_bytes());
    let (one, two) = deflated.split_at(7);
    let heard = vec![format!("Text({text:?})")];
    assert_eq!(inflated(&client_frame(0xC1, &deflated)), (heard.clone(), None));
    let fragments =
        [client_frame(0x41, one), client_frame(0x89, b"p"), client_frame(0x80, two)].concat();
    let with_ping = vec![format!("Ping({:?})", b"p"), heard[0].clone()];
    assert_eq!(inflated(&fragments), (with_ping, None));
    // A message may go uncompressed all the same, and an empty one may be no bytes at all.
    let plain = [client_frame(0x81, b"plain"), client_frame(0xC2, b"")].concat();
    assert_eq!(inflated(&plain), (vec!["Text(\"plain\")".into(), "Binary([])".into()], None));
}

#[test]
fn compressed_messages_are_held_to_the_rules() {
    let deflated = |bytes: &[u8]| crate::deflate::deflate(bytes);
    let one = deflated(b"one");
    for (what, stream, code) in [
        (
            "RSV1 on a continuation",
            [client_frame(0x41, &one[..1]), client_frame(0xC0, &one[1..])].concat(),
            1002,
        ),
        ("RSV1 on a ping", client_frame(0xC9, b""), 1002),
        ("RSV1 on a close", client_frame(0xC8, b""), 1002),
        ("RSV2 too", client_frame(0xE1, &one), 1002),
        ("no DEFLATE", client_frame(0xC2, &[0xFF; 20]), 1007),
        ("no UTF-8 inside", client_frame(0xC1, &deflated(&[0xFF])), 1007),
        ("a bomb", client_frame(0xC2, &deflated(&[0; 1_001])), 1009),
        ("too long as it comes", client_frame(0xC2, &[0; 1_065]), 1009),
    ] {
        assert_eq!(inflated(&stream), (vec![], Some(code)), "{what}");
    }
    let noise: Vec<u8> =
        (0..1_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    assert_eq!(inflated(&client_frame(0xC2, &deflated(&noise))).1, None, "at the bound");
}
