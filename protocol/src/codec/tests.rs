//! Every codec against a real parser of its format, and the strict readers against hostile input.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::{ClientMessage, Envelope, Epoch, Position, Profile, Tag};

/// A JSON value of any shape, nested a little.
fn any_json() -> impl Strategy<Value = Value> {
    let number = any::<f64>().prop_filter_map("finite", |n| n.is_finite().then(|| json!(n)));
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        number,
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 40, 20, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..20).prop_map(Value::from),
            prop::collection::btree_map(any::<String>(), inner, 0..20)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

#[derive(Debug, Clone)]
struct Example {
    texts: [String; 6],
    payload: Value,
    meta: Option<Value>,
    optional: u8,
    offset: u64,
    timestamp_ms: i64,
    subscription_ids: Vec<Box<str>>,
}

prop_compose! {
    fn example()(
        texts in any::<[String; 6]>(),
        payload in any_json(),
        meta in prop::option::of(any_json()),
        optional in any::<u8>(),
        offset in any::<u64>(),
        timestamp_ms in 0..4_000_000_000_000_i64,
        subscription_ids in prop::collection::vec("[a-z]{1,8}".prop_map(Box::from), 0..20),
    ) -> Example {
        Example { texts, payload, meta, optional, offset, timestamp_ms, subscription_ids }
    }
}

impl Example {
    /// The envelope goes through `write`; what should come out of a parser stands beside it.
    fn written(
        &self,
        profile: Profile,
        write: fn(&Envelope<'_>, Profile, &mut Vec<u8>),
    ) -> (Vec<u8>, Value) {
        let payload = Payload::of(&self.payload);
        let meta = self.meta.as_ref().map(Value::to_string);
        let [id, kind, channel, ack_id, request_id, user_id] =
            self.texts.each_ref().map(String::as_str);
        let set = |bit: u8| self.optional & (1 << bit) != 0;
        let position = Position {
            epoch: Epoch::from_random(self.offset),
            offset: self.offset,
            tag: Tag::from_random(!self.offset),
        };
        let envelope = Envelope {
            id,
            kind,
            payload: &payload,
            timestamp_ms: self.timestamp_ms,
            channel: set(0).then_some(channel),
            ack_id: set(1).then_some(ack_id),
            request_id: set(2).then_some(request_id),
            user_id: set(3).then_some(user_id),
            position: set(4).then_some(position),
            meta: meta.as_deref(),
            subscription_ids: &self.subscription_ids,
        };
        let mut out = Vec::new();
        write(&envelope, profile, &mut out);
        let mut expected = json!({"id": id, "type": kind, "payload": self.payload});
        expected["timestamp"] = if profile == Profile::Dnr {
            self.timestamp_ms.into()
        } else {
            crate::time::rfc3339(self.timestamp_ms).into()
        };
        let optional = [
            (0, "channel", channel),
            (1, "ack_id", ack_id),
            (2, "requestId", request_id),
            (3, "user_id", user_id),
        ];
        for (_, name, value) in optional.into_iter().filter(|(bit, ..)| set(*bit)) {
            expected[name] = value.into();
        }
        if set(4) {
            expected["offset"] = self.offset.into();
            expected["epoch"] = position.epoch.as_str().into();
            expected["tag"] = position.tag.as_str().into();
        }
        if let Some(meta) = &self.meta {
            expected["meta"] = meta.clone();
        }
        if !self.subscription_ids.is_empty() {
            expected["subscription_ids"] = json!(self.subscription_ids);
        }
        (out, expected)
    }
}

/// MessagePack as rmpv reads it, in JSON's terms.
fn from_msgpack(value: &rmpv::Value) -> Value {
    match value {
        rmpv::Value::Nil => Value::Null,
        rmpv::Value::Boolean(value) => (*value).into(),
        rmpv::Value::Integer(value) => {
            value.as_u64().map(Value::from).or(value.as_i64().map(Value::from)).expect("64 bits")
        }
        rmpv::Value::F32(value) => f64::from(*value).into(),
        rmpv::Value::F64(value) => (*value).into(),
        rmpv::Value::String(text) => text.as_str().expect("UTF-8").into(),
        rmpv::Value::Array(items) => items.iter().map(from_msgpack).collect(),
        rmpv::Value::Map(pairs) => Value::Object(
            pairs
                .iter()
                .map(|(key, value)| (key.as_str().expect("text").to_owned(), from_msgpack(value)))
                .collect(),
        ),
        rmpv::Value::Binary(_) | rmpv::Value::Ext(..) => panic!("nothing of JSON becomes {value}"),
    }
}

fn field_names(msgpack: &rmpv::Value) -> Vec<&str> {
    msgpack.as_map().expect("a map").iter().map(|(key, _)| key.as_str().expect("text")).collect()
}

/// The least that an EventSource does (WHATWG HTML 9.2.6): fields by line, dispatch on a blank one.
fn event_source(text: &str) -> Vec<(String, String, String)> {
    let (mut events, mut event, mut data, mut id) =
        (Vec::new(), String::new(), String::new(), String::new());
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    for line in text.split_terminator('\n') {
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            _ if line.is_empty() => {
                if !data.is_empty() {
                    data.pop();
                    events.push((
                        std::mem::take(&mut event),
                        std::mem::take(&mut data),
                        id.clone(),
                    ));
                }
                event.clear();
            }
            "event" => event = value.to_owned(),
            "data" => data = data + value + "\n",
            "id" => id = value.to_owned(),
            _ => {}
        }
    }
    events
}

proptest! {
    #[test]
    fn json_is_what_a_parser_reads_back(example in example()) {
        for profile in [Profile::Social, Profile::Dnr] {
            let (out, expected) = example.written(profile, write_json);
            prop_assert_eq!(serde_json::from_slice::<Value>(&out).expect("JSON"), expected);
            prop_assert!(!out.contains(&b'\n') && !out.contains(&b'\r'));
        }
    }

    #[test]
    fn msgpack_holds_the_same_fields_in_the_same_order(example in example()) {
        for profile in [Profile::Social, Profile::Dnr] {
            let (out, expected) = example.written(profile, write_msgpack);
            let mut rest = out.as_slice();
            let read = rmpv::decode::read_value(&mut rest).expect("MessagePack");
            prop_assert!(rest.is_empty());
            prop_assert_eq!(from_msgpack(&read), expected);
            let order = ["id", "type", "channel", "payload", "timestamp", "ack_id", "requestId", "offset",
                "epoch", "tag", "user_id", "meta", "subscription_ids"];
            let ranks: Vec<_> = field_names(&read).into_iter().map(|name| order.iter().position(|n| *n == name)).collect();
            prop_assert!(ranks.is_sorted() && !ranks.contains(&None));
        }
    }

    #[test]
    fn an_event_source_reads_sse_back(text in any::<String>(), payload in any_json()) {
        let send = |payload: &Payload, profile| {
            let envelope = Envelope { id: "1", kind: "error", payload, ..Envelope::EMPTY };
            let mut out = Vec::new();
            write_sse(&envelope, profile, Some("cursor"), &mut out);
            event_source(&String::from_utf8(out).expect("UTF-8")).pop().expect("one event")
        };
        let (event, data, id) = send(&Payload::of(&text), Profile::Uno);
        prop_assert_eq!((event.as_str(), id.as_str()), ("carillon-error", "cursor"));
        prop_assert_eq!(data, text.replace("\r\n", "\n").replace('\r', "\n"));
        let (_, data, _) = send(&Payload::of(&payload), Profile::Social);
        prop_assert_eq!(&serde_json::from_str::<Value>(&data).expect("JSON")["payload"], &payload);
    }

    #[test]
    fn a_valid_json_message_is_read_and_its_payload_kept(payload in any_json(), ack_id in "[a-z\"é]{1,9}", pretty in any::<bool>()) {
        let document = json!({"type": "t", "ack_id": ack_id, "payload": payload, "more": payload});
        let text = if pretty { serde_json::to_string_pretty(&document) } else { serde_json::to_string(&document) };
        let message = ClientMessage::parse(Codec::Json, text.expect("JSON").as_bytes()).expect("valid");
        prop_assert_eq!(message.correlation.ack_id.as_deref(), Some(ack_id.as_str()));
        prop_assert_eq!(message.payload.json_str(), payload.to_string());
    }

    #[test]
    fn strict_json_accepts_only_what_serde_json_accepts(
        document in any_json(),
        at in any::<prop::sample::Index>(),
        byte in prop::sample::select(b"{}[]\",:0e.-\\u\x00n 9\xFFt".to_vec()),
    ) {
        let mut text = json!({"type": "t", "payload": document}).to_string().into_bytes();
        let at = at.index(text.len());
        text[at] = byte;
        let lenient = serde_json::from_slice::<Value>(&text);
        let read = strict::read_json(&text);
        match (lenient, read.problem) {
            // One byte was changed: two keys may have become one, which serde_json lets pass.
            (Ok(value), Some(problem)) => {
                prop_assert!(!value.is_object() || problem.reason == "a key stands twice in an object", "{problem:?}");
            }
            (Err(error), None) => prop_assert!(false, "accepted what serde_json refuses: {error}"),
            _ => {}
        }
    }

    #[test]
    fn a_valid_msgpack_message_is_read(payload in any_json()) {
        let document = Payload::of(&json!({"type": "t", "payload": payload, "more": payload}));
        let envelope = Envelope { kind: "t", payload: &document, ..Envelope::EMPTY };
        let mut out = Vec::new();
        write_msgpack(&envelope, Profile::Dnr, &mut out);
        let message = ClientMessage::parse(Codec::MessagePack, &out);
        // Its own id is empty, which no client may send: the rest was read first.
        prop_assert_eq!(&message.expect_err("empty id").refusal.details["field"], "id");
        let read = strict::read_msgpack(&out);
        prop_assert_eq!(read.problem, None);
        prop_assert_eq!(read.fields.payload.expect("a payload").to_value(), document.to_value());
    }

    #[test]
    fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        for codec in [Codec::Json, Codec::MessagePack] {
            let _ = ClientMessage::parse(codec, &bytes);
        }
        // Garbage that gets past the first byte.
        let _ = ClientMessage::parse(Codec::MessagePack, &[b"\x8f\xa7payload", bytes.as_slice()].concat());
        let _ = ClientMessage::parse(Codec::Json, &[b"{\"payload\":", bytes.as_slice()].concat());
    }
}

#[test]
fn what_the_rules_forbid_is_refused_and_the_ack_id_still_known() {
    let deep = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    for payload in [
        "1e999".to_owned(),
        "-1e999".to_owned(),
        "9".repeat(400),
        r#"{"a":1,"a":2}"#.to_owned(),
        r#"[{"a":1,"b":{"a":1},"\u0061":2}]"#.to_owned(),
        format!(
            "{{{}}}",
            (0..40).map(|n| format!("\"k{}\":0", n % 39)).collect::<Vec<_>>().join(",")
        ),
        deep(128),
        deep(100_000),
    ] {
        let text = format!(r#"{{"payload":{payload},"type":"t","ack_id":"7"}}"#);
        let unreadable = ClientMessage::parse(Codec::Json, text.as_bytes()).expect_err(&payload);
        assert_eq!(unreadable.correlation.ack_id.as_deref(), Some("7"), "{payload:.40}");
        assert!(
            unreadable.refusal.details["at"].as_str().is_some_and(|at| at.starts_with("byte "))
        );
        assert!(compact_json(&payload).is_err(), "{payload:.40}");
    }
    let text = format!(r#"{{"type":"t","payload":{}}}"#, deep(127));
    let deepest = ClientMessage::parse(Codec::Json, text.as_bytes()).expect("128 levels").payload;
    // What is let in can be looked into and written again.
    assert!(deepest.to_value().is_array());
    let envelope = Envelope { kind: "t", payload: &deepest, ..Envelope::EMPTY };
    let mut out = Vec::new();
    write_msgpack(&envelope, Profile::Dnr, &mut out);
    assert_eq!(strict::read_msgpack(&out).fields.payload, Some(deepest));
    for text in [
        "",
        "[]",
        "1",
        "{}x",
        "{\"type\":\"t\"} {}",
        "{\"type\":\"t\",}",
        "{\"a\":\"\\ud800\"}",
        "{\"a\":01}",
        "{\"a\":\"\n\"}",
    ] {
        assert!(strict::read_json(text.as_bytes()).problem.is_some(), "{text}");
    }
    assert!(strict::read_json(b"{\"a\":\"\xFF\"}").problem.is_some());
}

#[test]
fn a_payload_is_kept_byte_for_byte_unless_it_holds_line_breaks() {
    let payload = |text: &str| {
        let document = format!("{{\"type\":\"t\",\"payload\": {text} }}");
        let message = ClientMessage::parse(Codec::Json, document.as_bytes()).expect("valid");
        assert_eq!(compact_json(text).as_ref(), Ok(&message.payload));
        message.payload.json_str().to_owned()
    };
    assert_eq!(payload(r#"[1.0, 2e0,"\u0061" ]"#), r#"[1.0, 2e0,"\u0061" ]"#);
    assert_eq!(
        payload("{ \"a b\" :\n\t[1,\r\n 2, \"x \\\" \\\\\" , \" y \"] }"),
        r#"{"a b":[1,2,"x \" \\"," y "]}"#
    );
    assert_eq!(compact_json(" \n[1]\n").expect("valid").json_str(), "[1]");
    assert_eq!(compact_json("[1] 2").expect_err("two values").byte, 4);
}

fn msgpack(value: &rmpv::Value) -> Vec<u8> {
    let mut out = Vec::new();
    rmpv::encode::write_value(&mut out, value).expect("a Vec");
    out
}

fn message(payload: rmpv::Value) -> Vec<u8> {
    msgpack(&rmpv::Value::Map(vec![
        ("payload".into(), payload),
        ("type".into(), "t".into()),
        ("ack_id".into(), "7".into()),
    ]))
}

#[test]
fn binary_values_reach_json_as_base64_and_msgpack_as_they_were() {
    let payload = rmpv::Value::Map(vec![("b".into(), rmpv::Value::Binary(vec![0, 255]))]);
    let original = msgpack(&payload);
    let read = ClientMessage::parse(Codec::MessagePack, &message(payload)).expect("valid");
    assert_eq!(read.payload.json_str(), r#"{"b":"AP8="}"#);
    assert_eq!(read.payload.msgpack().map(|bytes| bytes.to_vec()), Some(original.clone()));
    let envelope = Envelope { id: "1", kind: "t", payload: &read.payload, ..Envelope::EMPTY };
    let mut out = Vec::new();
    write_msgpack(&envelope, Profile::Dnr, &mut out);
    assert!(out.windows(original.len()).any(|window| window == original));
    let plain =
        ClientMessage::parse(Codec::MessagePack, &message(rmpv::Value::from(1.5))).expect("valid");
    assert_eq!((plain.payload.json_str(), plain.payload.msgpack()), ("1.5", None));
}

#[test]
fn msgpack_that_json_cannot_hold_is_refused_and_the_ack_id_still_known() {
    use rmpv::Value as M;
    let mut deep = M::Nil;
    for _ in 0..128 {
        deep = M::Array(vec![deep]);
    }
    for payload in [
        M::F64(f64::NAN),
        M::F32(f32::INFINITY),
        M::Ext(1, vec![1, 2, 3]),
        M::Map(vec![(M::from(1), M::Nil)]),
        M::Map(vec![("a".into(), M::Nil), ("a".into(), M::Nil)]),
        deep,
    ] {
        let unreadable =
            ClientMessage::parse(Codec::MessagePack, &message(payload)).expect_err("refused");
        assert_eq!(unreadable.correlation.ack_id.as_deref(), Some("7"));
    }
    let mut trailing = message(M::Nil);
    trailing.push(0xC0);
    for bytes in [
        &trailing[..],
        b"",
        b"\x90",
        b"\xC1",
        b"\x81\xA4type\xA1\xFF",
        b"\x81\xA1a\xDF\xFF\xFF\xFF\xFF",
    ] {
        assert!(strict::read_msgpack(bytes).problem.is_some(), "{bytes:?}");
    }
    assert!(
        strict::read_msgpack(&[&b"\x81\xA1a"[..], &[0x91; 1 << 20]].concat()).problem.is_some()
    );
}

#[test]
fn the_uno_welcome_is_exactly_type_and_connection_id() {
    let payload = Payload::of(&json!({"connection_id": "c1"}));
    let envelope = Envelope { id: "1", kind: "connection", payload: &payload, ..Envelope::EMPTY };
    let mut out = Vec::new();
    write_json(&envelope, Profile::Uno, &mut out);
    assert_eq!(out, br#"{"type":"connection","connection_id":"c1"}"#);
    out.clear();
    write_msgpack(&envelope, Profile::Uno, &mut out);
    let read = rmpv::decode::read_value(&mut out.as_slice()).expect("MessagePack");
    assert_eq!(field_names(&read), ["type", "connection_id"]);
}
