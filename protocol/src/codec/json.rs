//! JSON: the envelope's fields in the contract's order, the payload's bytes copied as they are.

use crate::time::push_rfc3339;
use crate::{Envelope, Profile};

/// Appends the envelope as one JSON document (no newline).
///
/// uno's welcome (`connection`) is written exactly as that document shows it: type and
/// `connection_id` alone, which its payload holds.
pub fn write_json(envelope: &Envelope<'_>, profile: Profile, out: &mut Vec<u8>) {
    out.reserve(160 + envelope.payload.json().len());
    if profile == Profile::Uno && envelope.kind == "connection" {
        out.extend_from_slice(b"{\"type\":\"connection\",");
        out.extend_from_slice(envelope.payload.json().strip_prefix(b"{").unwrap_or(b"}"));
        return;
    }
    out.extend_from_slice(b"{\"id\":");
    push_json_string(out, envelope.id);
    out.extend_from_slice(b",\"type\":");
    push_json_string(out, envelope.kind);
    if let Some(channel) = envelope.channel {
        out.extend_from_slice(b",\"channel\":");
        push_json_string(out, channel);
    }
    out.extend_from_slice(b",\"payload\":");
    out.extend_from_slice(envelope.payload.json());
    out.extend_from_slice(b",\"timestamp\":");
    if profile.integer_time() {
        push_number(out, envelope.timestamp_ms);
    } else {
        out.push(b'"');
        push_rfc3339(out, envelope.timestamp_ms);
        out.push(b'"');
    }
    if let Some(ack_id) = envelope.ack_id {
        out.extend_from_slice(b",\"ack_id\":");
        push_json_string(out, ack_id);
    }
    if let Some(request_id) = envelope.request_id {
        out.extend_from_slice(b",\"requestId\":");
        push_json_string(out, request_id);
    }
    if let Some(position) = envelope.position {
        out.extend_from_slice(b",\"offset\":");
        push_number(out, position.offset);
        out.extend_from_slice(b",\"epoch\":\"");
        out.extend_from_slice(position.epoch.as_str().as_bytes());
        out.extend_from_slice(b"\",\"tag\":\"");
        out.extend_from_slice(position.tag.as_str().as_bytes());
        out.push(b'"');
    }
    if let Some(user_id) = envelope.user_id {
        out.extend_from_slice(b",\"user_id\":");
        push_json_string(out, user_id);
    }
    if let Some(meta) = envelope.meta {
        out.extend_from_slice(b",\"meta\":");
        out.extend_from_slice(meta.as_bytes());
    }
    if !envelope.subscription_ids.is_empty() {
        out.extend_from_slice(b",\"subscription_ids\":[");
        for (index, id) in envelope.subscription_ids.iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            push_json_string(out, id);
        }
        out.push(b']');
    }
    out.push(b'}');
}

fn push_number(out: &mut Vec<u8>, number: impl std::fmt::Display) {
    use std::io::Write as _;
    write!(out, "{number}").expect("writing to a Vec cannot fail");
}

/// Appends a JSON string literal.
pub fn push_json_string(out: &mut Vec<u8>, text: &str) {
    if text.bytes().all(|byte| byte >= 0x20 && byte != b'"' && byte != b'\\') {
        out.push(b'"');
        out.extend_from_slice(text.as_bytes());
        out.push(b'"');
    } else {
        serde_json::to_writer(&mut *out, text).expect("writing to a Vec cannot fail");
    }
}
