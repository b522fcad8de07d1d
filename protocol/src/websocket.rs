//! RFC 6455 framing without IO: reading frames in place out of a shared read buffer, assembling
//! fragments, and writing server frames. Keeps no buffer while no message is incomplete.

use bytes::Bytes;

use crate::CloseCode;

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

/// Reads masked client frames and assembles messages.
#[derive(Debug)]
pub struct Assembler {
    message_bytes_max: usize,
}

impl Assembler {
    /// A fresh connection's assembler.
    #[must_use]
    pub fn new(message_bytes_max: usize) -> Self {
        Self { message_bytes_max }
    }

    /// Feeds bytes that were read (the buffer is unmasked in place) and hands every complete
    /// message to `heard`, in order. What is incomplete at the end is kept inside, in a buffer that is
    /// given back as soon as the message is complete. When `heard` returns `false` the rest of
    /// the bytes is dropped (the connection is closing).
    pub fn feed(
        &mut self,
        _bytes: &mut [u8],
        _heard: &mut dyn FnMut(Incoming<'_>) -> bool,
    ) -> Result<(), Violation> {
        let _ = self.message_bytes_max;
        todo!()
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

/// Appends a server frame's header (FIN set, not masked) for a payload of `payload_bytes`.
pub fn push_header(_out: &mut Vec<u8>, _opcode: Opcode, _payload_bytes: usize) {
    todo!()
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
