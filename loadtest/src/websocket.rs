//! The little of RFC 6455 that a load driver needs: handshakes as bytes, frame headers, masks.
//!
//! Knows nothing of sockets, channels or messages. It trusts the server to send unfragmented
//! frames; what it cannot read it reports as [`Frame::Broken`], which ends the connection.

use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

/// The client's key in every handshake: its only purpose is to show that the peer speaks WebSocket.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
/// The client's mask. Any value is valid; zero makes masking free.
const MASK: [u8; 4] = [0; 4];

/// Opcode of a text frame.
pub(crate) const TEXT: u8 = 1;
/// Opcode of a close frame.
pub(crate) const CLOSE: u8 = 8;
/// Opcode of a ping.
pub(crate) const PING: u8 = 9;
/// Opcode of a pong.
pub(crate) const PONG: u8 = 10;

/// What stands at the start of a buffer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Frame<'a> {
    /// A whole frame and how many bytes of the buffer it took. Masked payloads stay masked.
    Whole { opcode: u8, mask: Option<[u8; 4]>, payload: &'a [u8], size: usize },
    /// More bytes are needed.
    Partial,
    /// A length that no peer of ours sends.
    Broken,
}

/// Reads the frame at the start of `bytes`.
pub(crate) fn parse(bytes: &[u8]) -> Frame<'_> {
    const PAYLOAD_MAX: u64 = 64 << 20;
    let [first, second, ..] = *bytes else { return Frame::Partial };
    let (length, mut at) = match second & 0x7f {
        126 => match bytes.get(2..4) {
            Some(raw) => (u64::from(u16::from_be_bytes([raw[0], raw[1]])), 4),
            None => return Frame::Partial,
        },
        127 => match bytes.get(2..10).and_then(|raw| raw.try_into().ok()) {
            Some(raw) => (u64::from_be_bytes(raw), 10),
            None => return Frame::Partial,
        },
        short => (u64::from(short), 2),
    };
    if length > PAYLOAD_MAX {
        return Frame::Broken;
    }
    let mask = if second & 0x80 == 0 {
        None
    } else {
        let Some(raw) = bytes.get(at..at + 4) else { return Frame::Partial };
        at += 4;
        Some([raw[0], raw[1], raw[2], raw[3]])
    };
    let size = at + length as usize;
    match bytes.get(at..size) {
        Some(payload) => Frame::Whole { opcode: first & 0x0f, mask, payload, size },
        None => Frame::Partial,
    }
}

fn header(into: &mut Vec<u8>, opcode: u8, length: usize, mask_bit: u8) {
    into.push(0x80 | opcode);
    match length {
        0..=125 => into.push(mask_bit | length as u8),
        126..=0xffff => {
            into.push(mask_bit | 126);
            into.extend_from_slice(&(length as u16).to_be_bytes());
        }
        _ => {
            into.push(mask_bit | 127);
            into.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
}

/// Appends a frame as a server sends it.
pub(crate) fn push_server_frame(into: &mut Vec<u8>, opcode: u8, payload: &[u8]) {
    header(into, opcode, payload.len(), 0);
    into.extend_from_slice(payload);
}

/// Appends a frame as a client sends it: masked, with the zero mask.
pub(crate) fn push_client_frame(into: &mut Vec<u8>, opcode: u8, payload: &[u8]) {
    header(into, opcode, payload.len(), 0x80);
    into.extend_from_slice(&MASK);
    into.extend_from_slice(payload);
}

/// Undoes a mask in place.
pub(crate) fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    if mask != MASK {
        for (at, byte) in payload.iter_mut().enumerate() {
            *byte ^= mask[at % 4];
        }
    }
}

/// The request that opens a WebSocket on `path`.
pub(crate) fn client_request(host: &str, path: &str) -> Vec<u8> {
    format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    .into_bytes()
}

/// Adds `line` (with its line end) to a request that has no body.
pub(crate) fn add_header(request: &mut Vec<u8>, line: &str) {
    let end = request.len() - 2;
    request.splice(end..end, line.bytes());
}

/// Whether a frame that begins with `first` is of a compressed message (RFC 7692: RSV1).
pub(crate) fn is_compressed(first: u8) -> bool {
    first & 0x40 != 0
}

/// The answer of a server to a request's head, and the path that was asked for.
pub(crate) fn server_answer(head: &str) -> Option<(String, String)> {
    let path = head.split(' ').nth(1)?.to_owned();
    let key = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("sec-websocket-key").then(|| value.trim().to_owned())
    })?;
    let accept = derive_accept_key(key.as_bytes());
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\n\r\n"
    );
    Some((answer, path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_of_every_length_class_are_read_back() {
        for length in [0, 1, 125, 126, 65_535, 65_536] {
            let payload = vec![7_u8; length];
            for masked in [false, true] {
                let mut bytes = Vec::new();
                if masked {
                    push_client_frame(&mut bytes, TEXT, &payload);
                } else {
                    push_server_frame(&mut bytes, TEXT, &payload);
                }
                assert_eq!(parse(&bytes[..bytes.len() - 1]), Frame::Partial);
                let Frame::Whole { opcode, mask, payload: read, size } = parse(&bytes) else {
                    panic!("a whole frame");
                };
                assert_eq!((opcode, mask.is_some(), size), (TEXT, masked, bytes.len()));
                assert_eq!(read, payload);
            }
        }
    }

    #[test]
    fn added_header_stands_before_the_empty_line() {
        let mut request = client_request("h", "/ws");
        add_header(&mut request, "X-A: b\r\n");
        let text = String::from_utf8(request).expect("text");
        assert!(text.ends_with("Version: 13\r\nX-A: b\r\n\r\n"), "{text}");
    }

    #[test]
    fn absurd_length_is_broken_and_not_an_allocation() {
        let mut bytes = vec![0x81, 127];
        bytes.extend_from_slice(&u64::MAX.to_be_bytes());
        assert_eq!(parse(&bytes), Frame::Broken);
    }
}
