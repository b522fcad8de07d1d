//! SSE: `event:` is the type, `data:` the payload or the whole envelope, `id:` an opaque cursor.
//! Source: `protocol.md` 1 and 6, rulings R26 and R39.

use super::json::write_json;
use crate::{Envelope, Profile};

/// Appends an event without `id:` and without the closing blank line, so that the same bytes can
/// be shared by connections whose cursors differ. `meta.retry` and `meta.comment` of an event
/// made by `POST /events` become `retry:` and comment lines.
pub fn write_sse_body(envelope: &Envelope<'_>, profile: Profile, out: &mut Vec<u8>) {
    if let Some(meta) =
        envelope.meta.and_then(|meta| serde_json::from_str::<serde_json::Value>(meta).ok())
    {
        if let Some(comment) = meta.get("comment").and_then(|comment| comment.as_str()) {
            for line in lines(comment) {
                out.extend_from_slice(b": ");
                out.extend_from_slice(line.as_bytes());
                out.push(b'\n');
            }
        }
        if let Some(retry) = meta.get("retry").and_then(serde_json::Value::as_u64) {
            out.extend_from_slice(format!("retry: {retry}\n").as_bytes());
        }
    }
    out.extend_from_slice(b"event: ");
    let event = if envelope.kind == "error" { "carillon-error" } else { envelope.kind };
    // Types hold no control characters; were one to, it must not begin a line of its own.
    out.extend_from_slice(lines(event).next().unwrap_or_default().as_bytes());
    out.push(b'\n');
    if profile.sse_payload_only() {
        let json = envelope.payload.json_str();
        match json.starts_with('"').then(|| serde_json::from_str::<String>(json).ok()).flatten() {
            Some(text) => push_data(out, &text),
            None => push_data(out, json),
        }
    } else {
        let mut document = Vec::new();
        write_json(envelope, profile, &mut document);
        push_data(out, &String::from_utf8_lossy(&document));
    }
}

/// Appends a whole event, with the cursor as its `id:` where there is one.
pub fn write_sse(
    envelope: &Envelope<'_>,
    profile: Profile,
    cursor: Option<&str>,
    out: &mut Vec<u8>,
) {
    write_sse_body(envelope, profile, out);
    if let Some(cursor) = cursor {
        out.extend_from_slice(b"id: ");
        out.extend_from_slice(cursor.as_bytes());
        out.push(b'\n');
    }
    out.push(b'\n');
}

/// One `data:` line a line of text; CRLF, LF and CR all end a line, as an EventSource reads them.
fn push_data(out: &mut Vec<u8>, text: &str) {
    for line in lines(text) {
        out.extend_from_slice(b"data: ");
        out.extend_from_slice(line.as_bytes());
        out.push(b'\n');
    }
}

fn lines(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let current = rest?;
        match current.find(['\r', '\n']) {
            None => {
                rest = None;
                Some(current)
            }
            Some(end) => {
                let width = if current[end..].starts_with("\r\n") { 2 } else { 1 };
                rest = Some(&current[end + width..]);
                Some(&current[..end])
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Payload;

    fn event(payload: &Payload, profile: Profile) -> String {
        let envelope = Envelope { id: "1", kind: "update", payload, ..Envelope::EMPTY };
        let mut out = Vec::new();
        write_sse(&envelope, profile, Some("c"), &mut out);
        String::from_utf8(out).expect("UTF-8")
    }

    #[test]
    fn a_string_payload_of_several_lines_becomes_several_data_lines() {
        let payload = Payload::of(&"one\r\ntwo\rthree\n");
        assert_eq!(
            event(&payload, Profile::Uno),
            "event: update\ndata: one\ndata: two\ndata: three\ndata: \nid: c\n\n"
        );
    }

    #[test]
    fn social_carries_the_whole_envelope() {
        let text = event(&Payload::from_json(&b"{\"a\":1}"[..]), Profile::Social);
        assert!(text.contains("data: {\"id\":\"1\",\"type\":\"update\""), "{text}");
    }
}
