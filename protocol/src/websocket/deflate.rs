//! permessage-deflate (RFC 7692), always without context takeover: a message is compressed by itself, so that
//! all who negotiated it share one frame, and no connection keeps a window. Ruling R30.

use std::borrow::Cow;

use bytes::Bytes;

use super::{Opcode, RSV1, frame, push_first};
use crate::deflate::{WORTHWHILE_BYTES_MIN, deflate};

/// The extension's name.
const NAME: &str = "permessage-deflate";
/// What is answered to an offer.
const ANSWER: &str = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";
/// The same where the offer asked about the server's window, which must be answered.
const ANSWER_WITH_WINDOW: &str = "permessage-deflate; server_no_context_takeover; client_no_context_takeover; server_max_window_bits=15";

/// The value to answer in `Sec-WebSocket-Extensions` to the values that a client sent there; `None` where it
/// offers nothing that we take. The first acceptable offer counts; one that asks for a smaller window is
/// declined, because frames are shared.
#[must_use]
pub fn negotiate<'a>(offers: impl IntoIterator<Item = &'a str>) -> Option<&'static str> {
    offers.into_iter().flat_map(|value| value.split(',')).find_map(accept)
}

fn accept(offer: &str) -> Option<&'static str> {
    let mut parts = offer.split(';').map(str::trim);
    if !parts.next()?.eq_ignore_ascii_case(NAME) {
        return None;
    }
    let mut seen: Vec<Cow<'_, str>> = Vec::new();
    let mut answer = ANSWER;
    for part in parts {
        let (name, value) = match part.split_once('=') {
            Some((name, value)) => (name.trim(), Some(value.trim().trim_matches('"'))),
            None => (part, None),
        };
        match (name, value) {
            ("server_no_context_takeover" | "client_no_context_takeover", None)
            | ("client_max_window_bits", None) => {}
            ("client_max_window_bits", Some(bits)) => {
                window_bits(bits)?;
            }
            ("server_max_window_bits", Some(bits)) => {
                if window_bits(bits)? < 15 {
                    return None;
                }
                answer = ANSWER_WITH_WINDOW;
            }
            _ => return None,
        }
        if seen.iter().any(|other| other == name) {
            return None;
        }
        seen.push(name.into());
    }
    Some(answer)
}

/// 8 to 15, without leading zeros.
fn window_bits(text: &str) -> Option<u8> {
    text.parse().ok().filter(|bits| (8..=15).contains(bits) && !text.starts_with(['0', '+']))
}

/// A whole server frame of a message, compressed where that was negotiated and is worthwhile.
#[must_use]
pub fn message_frame(opcode: Opcode, payload: &[u8], compressed: bool) -> Bytes {
    if !compressed || payload.len() < WORTHWHILE_BYTES_MIN {
        return frame(opcode, payload);
    }
    let deflated = deflate(payload);
    if deflated.len() >= payload.len() {
        return frame(opcode, payload);
    }
    let mut out = Vec::with_capacity(deflated.len() + 10);
    push_first(&mut out, RSV1 | opcode.bits(), deflated.len());
    out.extend_from_slice(&deflated);
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offers_are_answered_without_context_takeover() {
        for offer in [
            "permessage-deflate",
            "permessage-deflate; client_max_window_bits",
            "permessage-deflate; client_max_window_bits=10",
            "permessage-deflate;server_no_context_takeover ; client_no_context_takeover",
            "x-webkit-deflate-frame, permessage-deflate",
            "permessage-deflate; server_max_window_bits=9, permessage-deflate",
            "permessage-deflate; unknown, PERMESSAGE-DEFLATE",
        ] {
            assert_eq!(negotiate([offer]), Some(ANSWER), "{offer}");
        }
        assert_eq!(negotiate(["foo", "permessage-deflate"]), Some(ANSWER));
        for offer in ["15", "\"15\""] {
            let offer = format!("permessage-deflate; server_max_window_bits={offer}");
            assert_eq!(negotiate([offer.as_str()]), Some(ANSWER_WITH_WINDOW));
        }
    }

    #[test]
    fn what_cannot_be_kept_is_declined() {
        for parameters in [
            "server_max_window_bits=14",
            "server_max_window_bits",
            "server_max_window_bits=16",
            "server_max_window_bits=015",
            "client_max_window_bits=7",
            "client_max_window_bits=+9",
            "client_max_window_bits=",
            "client_max_window_bits; client_max_window_bits=9",
            "server_no_context_takeover=1",
            "server_no_context_takeover; server_no_context_takeover",
            "mystery",
            "",
        ] {
            let offer = format!("permessage-deflate; {parameters}");
            assert_eq!(negotiate([offer.as_str()]), None, "{parameters:?}");
        }
        assert_eq!(negotiate([]), None);
        assert_eq!(negotiate([""]), None);
    }

    #[test]
    fn frames_are_compressed_where_it_is_worthwhile() {
        let text = "a message that repeats itself ".repeat(40);
        let compressed = message_frame(Opcode::Text, text.as_bytes(), true);
        assert_eq!(compressed[0], 0xC1);
        assert!(compressed.len() < text.len() / 4);
        assert_eq!(message_frame(Opcode::Text, text.as_bytes(), false)[0], 0x81);
        assert_eq!(message_frame(Opcode::Text, b"short", true)[0], 0x81);
        let noise: Vec<u8> =
            (0..1_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        assert!(
            message_frame(Opcode::Binary, &noise, true).len()
                <= frame(Opcode::Binary, &noise).len()
        );
    }
}
