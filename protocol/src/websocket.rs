//! RFC 6455 framing without IO: reading frames in place out of a shared read buffer, assembling
//! fragments, and writing server frames; permessage-deflate where it was negotiated. Keeps no buffer while no
//! message is incomplete.
//!
//! It must not know: sockets, sessions, what a message says.

mod assembler;
mod deflate;
mod header;
#[cfg(test)]
mod tests;

use bytes::Bytes;

use crate::CloseCode;

pub use assembler::Assembler;
pub use deflate::{message_frame, negotiate};

/// The reserved bit that permessage-deflate gives a meaning: the message is compressed.
const RSV1: u8 = 0x40;

/// What came out of the bytes fed in.
#[derive(Debug, PartialEq)]
pub enum Incoming<'a> {
    /// A whole text message, valid UTF-8.
    Text(&'a str),
    /// A whole binary message.
    Binary(&'a [u8]),
    /// A ping; answer with a pong of the same bytes.
    Ping(&'a [u8]),
    /// A pong.
    Pong,
    /// The peer closes; the code it gave, if any. Answer with a close frame and stop reading.
    Close(Option<u16>),
}

/// The peer broke the protocol; close with this code (1002, 1007 or 1009) and stop reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("close {}: {problem}", .code.number())]
pub struct Violation {
    /// The close code.
    pub code: CloseCode,
    /// What was wrong, for logs.
    pub problem: &'static str,
}

impl Violation {
    const fn protocol(problem: &'static str) -> Self {
        Self { code: CloseCode::Protocol, problem }
    }
}

/// Opcode of a server frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opcode {
    /// A text message.
    Text,
    /// A binary message.
    Binary,
    /// Close, with code and reason.
    Close,
    /// Ping.
    Ping,
    /// Pong.
    Pong,
}

impl Opcode {
    const fn bits(self) -> u8 {
        match self {
            Opcode::Text => 0x1,
            Opcode::Binary => 0x2,
            Opcode::Close => 0x8,
            Opcode::Ping => 0x9,
            Opcode::Pong => 0xA,
        }
    }
}

/// Appends a server frame's header (FIN set, not masked) for a payload of `payload_bytes`.
pub fn push_header(out: &mut Vec<u8>, opcode: Opcode, payload_bytes: usize) {
    push_first(out, opcode.bits(), payload_bytes);
}

/// The same for an opcode with reserved bits.
fn push_first(out: &mut Vec<u8>, bits: u8, payload_bytes: usize) {
    let first = 0x80 | bits;
    if payload_bytes < 126 {
        out.extend_from_slice(&[first, payload_bytes as u8]);
    } else if let Ok(short) = u16::try_from(payload_bytes) {
        out.extend_from_slice(&[first, 126]);
        out.extend_from_slice(&short.to_be_bytes());
    } else {
        out.extend_from_slice(&[first, 127]);
        out.extend_from_slice(&(payload_bytes as u64).to_be_bytes());
    }
}

/// A whole server frame.
#[must_use]
pub fn frame(opcode: Opcode, payload: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(payload.len() + 10);
    push_header(&mut out, opcode, payload.len());
    out.extend_from_slice(payload);
    out.into()
}

/// A close frame with code and reason (cut to 123 bytes).
#[must_use]
pub fn close_frame(code: u16, reason: &str) -> Bytes {
    let mut payload = code.to_be_bytes().to_vec();
    let mut end = reason.len().min(123);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    payload.extend_from_slice(&reason.as_bytes()[..end]);
    frame(Opcode::Close, &payload)
}
