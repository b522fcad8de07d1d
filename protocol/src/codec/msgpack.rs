//! MessagePack: the same envelope as a map; payload transcoded from JSON, or the original bytes
//! where it holds binary values.

use std::fmt;

use rmp::encode::{
    write_array_len, write_bool, write_f64, write_map_len, write_nil, write_sint, write_str,
    write_uint,
};
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use crate::time::rfc3339;
use crate::{Envelope, Payload, Profile};

/// Appends the envelope as one MessagePack map. Field names, presence and order as in JSON.
///
/// uno's welcome (`connection`) is type and `connection_id` alone.
pub fn write_msgpack(envelope: &Envelope<'_>, profile: Profile, out: &mut Vec<u8>) {
    out.reserve(160 + envelope.payload.json().len());
    if profile == Profile::Uno && envelope.kind == "connection" {
        let welcome = envelope.payload.to_value();
        let connection_id = welcome.get("connection_id").and_then(serde_json::Value::as_str);
        map_len(out, 1 + usize::from(connection_id.is_some()));
        text_field(out, "type", envelope.kind);
        optional_field(out, "connection_id", connection_id);
        return;
    }
    let optional = [
        envelope.channel.is_some(),
        envelope.ack_id.is_some(),
        envelope.request_id.is_some(),
        envelope.user_id.is_some(),
        envelope.meta.is_some(),
        !envelope.subscription_ids.is_empty(),
    ];
    let present = optional.into_iter().filter(|present| *present).count();
    map_len(out, 4 + present + if envelope.position.is_some() { 3 } else { 0 });
    text_field(out, "id", envelope.id);
    text_field(out, "type", envelope.kind);
    optional_field(out, "channel", envelope.channel);
    text(out, "payload");
    match envelope.payload.msgpack() {
        Some(original) => out.extend_from_slice(original),
        None => push_json(out, envelope.payload.json()),
    }
    text(out, "timestamp");
    if profile.integer_time() {
        signed(out, envelope.timestamp_ms);
    } else {
        text(out, &rfc3339(envelope.timestamp_ms));
    }
    optional_field(out, "ack_id", envelope.ack_id);
    optional_field(out, "requestId", envelope.request_id);
    if let Some(position) = envelope.position {
        text(out, "offset");
        unsigned(out, position.offset);
        text_field(out, "epoch", position.epoch.as_str());
        text_field(out, "tag", position.tag.as_str());
    }
    optional_field(out, "user_id", envelope.user_id);
    if let Some(meta) = envelope.meta {
        text(out, "meta");
        push_json(out, meta.as_bytes());
    }
    if !envelope.subscription_ids.is_empty() {
        text(out, "subscription_ids");
        array_len(out, envelope.subscription_ids.len());
        for id in envelope.subscription_ids {
            text(out, id);
        }
    }
}

/// One value of a map in the making.
pub(crate) enum Member<'a> {
    /// To be transcoded.
    Json(Payload),
    /// MessagePack already.
    Original(&'a [u8]),
}

/// A map of its members.
pub(crate) fn msgpack_map<'a>(
    members: impl ExactSizeIterator<Item = (&'a str, Member<'a>)>,
) -> Vec<u8> {
    let mut out = Vec::with_capacity(64);
    map_len(&mut out, members.len());
    for (name, member) in members {
        text(&mut out, name);
        match member {
            Member::Json(payload) => push_json(&mut out, payload.json()),
            Member::Original(bytes) => out.extend_from_slice(bytes),
        }
    }
    out
}

fn optional_field(out: &mut Vec<u8>, name: &str, value: Option<&str>) {
    if let Some(value) = value {
        text_field(out, name, value);
    }
}

fn text_field(out: &mut Vec<u8>, name: &str, value: &str) {
    text(out, name);
    text(out, value);
}

const INFALLIBLE: &str = "writing to a Vec cannot fail";

fn text(out: &mut Vec<u8>, value: &str) {
    write_str(out, value).expect(INFALLIBLE);
}

fn unsigned(out: &mut Vec<u8>, value: u64) {
    write_uint(out, value).expect(INFALLIBLE);
}

fn signed(out: &mut Vec<u8>, value: i64) {
    write_sint(out, value).expect(INFALLIBLE);
}

fn map_len(out: &mut Vec<u8>, pairs: usize) {
    write_map_len(out, u32::try_from(pairs).unwrap_or(u32::MAX)).expect(INFALLIBLE);
}

fn array_len(out: &mut Vec<u8>, items: usize) {
    write_array_len(out, u32::try_from(items).unwrap_or(u32::MAX)).expect(INFALLIBLE);
}

/// Appends JSON text as MessagePack, without a tree between; nil where it is no JSON, so that the
/// map around it stays whole.
fn push_json(out: &mut Vec<u8>, json: &[u8]) {
    let from = out.len();
    let mut document = serde_json::Deserializer::from_slice(json);
    if Transcode(out).deserialize(&mut document).is_err() {
        out.truncate(from);
        write_nil(out).expect(INFALLIBLE);
    }
}

/// JSON does not say how many items a container has, MessagePack says it first: room for the usual
/// one-byte head is left and widened where fifteen items were not enough.
fn patch_head(out: &mut Vec<u8>, at: usize, count: usize, write_len: fn(&mut Vec<u8>, usize)) {
    let mut head = Vec::with_capacity(5);
    write_len(&mut head, count);
    out.splice(at..=at, head);
}

struct Transcode<'a>(&'a mut Vec<u8>);

impl<'de> DeserializeSeed<'de> for Transcode<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Transcode<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        write_nil(self.0).expect(INFALLIBLE);
        Ok(())
    }

    fn visit_bool<E>(self, value: bool) -> Result<(), E> {
        write_bool(self.0, value).expect(INFALLIBLE);
        Ok(())
    }

    fn visit_u64<E>(self, value: u64) -> Result<(), E> {
        unsigned(self.0, value);
        Ok(())
    }

    fn visit_i64<E>(self, value: i64) -> Result<(), E> {
        signed(self.0, value);
        Ok(())
    }

    fn visit_f64<E>(self, value: f64) -> Result<(), E> {
        write_f64(self.0, value).expect(INFALLIBLE);
        Ok(())
    }

    fn visit_str<E>(self, value: &str) -> Result<(), E> {
        text(self.0, value);
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let at = self.0.len();
        self.0.push(0);
        let mut count = 0;
        while items.next_element_seed(Transcode(self.0))?.is_some() {
            count += 1;
        }
        patch_head(self.0, at, count, array_len);
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        let at = self.0.len();
        self.0.push(0);
        let mut count = 0;
        while members.next_key_seed(Transcode(self.0))?.is_some() {
            members.next_value_seed(Transcode(self.0))?;
            count += 1;
        }
        patch_head(self.0, at, count, map_len);
        Ok(())
    }
}
