//! Assembling messages from client frames that arrive cut at any byte. A whole frame is handed
//! out of the read buffer itself; only what is incomplete is copied, into a box that goes away with it.

use super::header::{HEADER_BYTES_MAX, Header, Kind, unmask};
use super::{Incoming, Violation};
use crate::CloseCode;
use crate::deflate::{InflateError, inflate};

/// Reads masked client frames and assembles messages.
#[derive(Debug)]
pub struct Assembler {
    message_bytes_max: usize,
    /// permessage-deflate was negotiated.
    deflate: bool,
    /// Set only while a frame or a message is incomplete, so that an idle connection costs no more
    /// than these few words.
    partial: Option<Box<Partial>>,
    closed: bool,
}

#[derive(Debug, Default)]
struct Partial {
    /// A header of which some bytes are missing.
    header: smallvec::SmallVec<[u8; HEADER_BYTES_MAX]>,
    /// A frame of which payload is missing.
    frame: Option<Frame>,
    /// Payload of an incomplete control frame; it may stand between a message's fragments.
    control: Vec<u8>,
    /// A data message that was begun.
    message: Option<Message>,
}

#[derive(Clone, Copy, Debug)]
struct Frame {
    header: Header,
    /// Payload bytes taken so far.
    taken: u64,
}

#[derive(Debug, Default)]
struct Message {
    text: bool,
    compressed: bool,
    bytes: Vec<u8>,
    /// Up to here `bytes` is known to be UTF-8 (text that is not compressed).
    checked: usize,
}

impl Message {
    /// Adds a piece; text is checked at once, so that a violation is told before the message ends.
    fn push(&mut self, piece: &[u8]) -> Result<(), Violation> {
        self.bytes.extend_from_slice(piece);
        if self.text && !self.compressed {
            match std::str::from_utf8(&self.bytes[self.checked..]) {
                Ok(_) => self.checked = self.bytes.len(),
                Err(error) if error.error_len().is_none() => self.checked += error.valid_up_to(),
                Err(_) => return Err(INVALID_TEXT),
            }
        }
        Ok(())
    }
}

const TOO_LARGE: Violation =
    Violation { code: CloseCode::TooLarge, problem: "a message over the limit" };
const INVALID_TEXT: Violation =
    Violation { code: CloseCode::InvalidUtf8, problem: "a text message is not UTF-8" };

fn text(bytes: &[u8]) -> Result<Incoming<'_>, Violation> {
    std::str::from_utf8(bytes).map(Incoming::Text).map_err(|_| INVALID_TEXT)
}

/// Hands a whole message over, inflated where it is compressed.
fn hear_message(
    is_text: bool,
    compressed: bool,
    bytes: &[u8],
    message_bytes_max: usize,
    heard: &mut dyn FnMut(Incoming<'_>) -> bool,
) -> Result<bool, Violation> {
    let inflated;
    let bytes: &[u8] = if compressed {
        inflated = inflate(bytes, message_bytes_max).map_err(|error| match error {
            InflateError::TooLarge => TOO_LARGE,
            InflateError::Corrupt => Violation {
                code: CloseCode::InvalidUtf8,
                problem: "a compressed message cannot be inflated",
            },
        })?;
        &inflated
    } else {
        bytes
    };
    Ok(heard(if is_text { text(bytes)? } else { Incoming::Binary(bytes) }))
}

impl Assembler {
    /// A fresh connection's assembler; a limit of 0 is none.
    #[must_use]
    pub fn new(message_bytes_max: usize) -> Self {
        let mut assembler =
            Self { message_bytes_max, deflate: false, partial: None, closed: false };
        assembler.limit(message_bytes_max);
        assembler
    }

    /// Takes compressed messages too: permessage-deflate was negotiated.
    #[must_use]
    pub fn with_deflate(mut self, deflate: bool) -> Self {
        self.deflate = deflate;
        self
    }

    /// Changes the largest message, from the next frame on; 0 is no limit.
    pub fn limit(&mut self, message_bytes_max: usize) {
        self.message_bytes_max =
            if message_bytes_max == 0 { usize::MAX } else { message_bytes_max };
    }

    /// Feeds bytes that were read (the buffer is unmasked in place) and hands every complete
    /// message to `heard`, in order. What is incomplete at the end is kept inside, in a buffer that is
    /// given back as soon as the message is complete. When `heard` returns `false` the rest of
    /// the bytes is dropped (the connection is closing), as is everything after a close frame or
    /// a violation.
    ///
    /// # Errors
    /// The peer broke RFC 6455 (1002), sent text that is not UTF-8 (1007) or announced a message
    /// over the limit (1009).
    pub fn feed(
        &mut self,
        bytes: &mut [u8],
        heard: &mut dyn FnMut(Incoming<'_>) -> bool,
    ) -> Result<(), Violation> {
        let mut rest = bytes;
        while !rest.is_empty() && !self.closed {
            let frame = match self.partial.as_mut().and_then(|partial| partial.frame.take()) {
                Some(frame) => frame,
                None => match self.begin(&mut rest) {
                    Ok(Some(frame)) => frame,
                    Ok(None) => return Ok(()),
                    Err(violation) => return Err(self.fail(violation)),
                },
            };
            let missing = frame.header.payload_bytes - frame.taken;
            let here = usize::try_from(missing).unwrap_or(usize::MAX).min(rest.len());
            let (piece, after) = std::mem::take(&mut rest).split_at_mut(here);
            rest = after;
            unmask(piece, frame.header.mask, frame.taken);
            let frame = Frame { taken: frame.taken + here as u64, ..frame };
            match self.take(frame, piece, heard) {
                Ok(true) => {}
                Ok(false) => {
                    self.closed = true;
                    self.partial = None;
                }
                Err(violation) => return Err(self.fail(violation)),
            }
        }
        Ok(())
    }

    fn fail(&mut self, violation: Violation) -> Violation {
        self.closed = true;
        self.partial = None;
        violation
    }

    /// Reads the next header off `rest`; `None` when it is incomplete and was put aside.
    fn begin(&mut self, rest: &mut &mut [u8]) -> Result<Option<Frame>, Violation> {
        let put_aside = self.partial.as_ref().map_or(0, |partial| partial.header.len());
        let (header, taken) = if put_aside == 0 {
            let Some(header) = Header::read(rest, self.deflate)? else {
                self.partial.get_or_insert_default().header.extend_from_slice(rest);
                return Ok(None);
            };
            (header, header.bytes)
        } else {
            let partial = self.partial.get_or_insert_default();
            let more = rest.len().min(HEADER_BYTES_MAX - put_aside);
            partial.header.extend_from_slice(&rest[..more]);
            let Some(header) = Header::read(&partial.header, self.deflate)? else {
                return Ok(None);
            };
            partial.header.clear();
            (header, header.bytes - put_aside)
        };
        *rest = &mut std::mem::take(rest)[taken..];
        self.check_place(&header)?;
        let frame = Frame { header, taken: 0 };
        // An empty payload is complete already, even where no byte follows.
        if rest.is_empty() && header.payload_bytes > 0 {
            self.partial.get_or_insert_default().frame = Some(frame);
            return Ok(None);
        }
        Ok(Some(frame))
    }

    /// Whether a frame may stand here, and its message still fits.
    fn check_place(&self, header: &Header) -> Result<(), Violation> {
        if header.kind.is_control() {
            return Ok(());
        }
        let begun = self.partial.as_ref().and_then(|partial| partial.message.as_ref());
        if begun.is_none() && header.kind == Kind::Continuation {
            return Err(Violation::protocol("a continuation of nothing"));
        }
        if begun.is_some() && header.kind != Kind::Continuation {
            return Err(Violation::protocol("a new message inside a fragmented one"));
        }
        let begun_bytes = begun.map_or(0, |message| message.bytes.len());
        let compressed = begun.map_or(header.compressed, |message| message.compressed);
        // What cannot be compressed grows by a few bytes in a thousand; what comes out is judged then.
        let slack = if compressed { self.message_bytes_max / 1_024 + 64 } else { 0 };
        let room = self.message_bytes_max.saturating_add(slack).saturating_sub(begun_bytes);
        if header.payload_bytes > room as u64 {
            return Err(TOO_LARGE);
        }
        Ok(())
    }

    /// Takes an unmasked piece of a frame; `false` ends the connection's reading.
    fn take(
        &mut self,
        frame: Frame,
        piece: &[u8],
        heard: &mut dyn FnMut(Incoming<'_>) -> bool,
    ) -> Result<bool, Violation> {
        let Header { fin, kind, payload_bytes, .. } = frame.header;
        if frame.taken < payload_bytes {
            self.keep(frame, piece)?;
            return Ok(true);
        }
        let in_one_piece = piece.len() as u64 == payload_bytes;
        if kind.is_control() {
            let mut control = Vec::new();
            let payload = if in_one_piece {
                piece
            } else {
                control = std::mem::take(&mut self.partial.get_or_insert_default().control);
                control.extend_from_slice(piece);
                &control
            };
            let proceeds = hear_control(kind, payload, heard);
            drop(control);
            self.release();
            return proceeds;
        }
        if in_one_piece && fin && kind != Kind::Continuation {
            let (is_text, compressed) = (kind == Kind::Text, frame.header.compressed);
            let proceeds = hear_message(is_text, compressed, piece, self.message_bytes_max, heard)?;
            self.release();
            return Ok(proceeds);
        }
        self.keep(frame, piece)?;
        let partial = self.partial.get_or_insert_default();
        partial.frame = None;
        if !fin {
            return Ok(true);
        }
        let Some(message) = partial.message.take() else { return Ok(true) };
        self.release();
        let Message { text, compressed, bytes, .. } = message;
        hear_message(text, compressed, &bytes, self.message_bytes_max, heard)
    }

    /// Puts a piece aside and remembers the frame.
    fn keep(&mut self, frame: Frame, piece: &[u8]) -> Result<(), Violation> {
        let partial = self.partial.get_or_insert_default();
        partial.frame = Some(frame);
        if frame.header.kind.is_control() {
            partial.control.extend_from_slice(piece);
            return Ok(());
        }
        let (text, compressed) = (frame.header.kind == Kind::Text, frame.header.compressed);
        let begun = || Message { text, compressed, ..Message::default() };
        partial.message.get_or_insert_with(begun).push(piece)
    }

    /// Gives the box back when nothing is incomplete.
    fn release(&mut self) {
        let idle = self.partial.as_ref().is_some_and(|partial| {
            partial.header.is_empty() && partial.frame.is_none() && partial.message.is_none()
        });
        if idle {
            self.partial = None;
        }
    }
}

fn hear_control(
    kind: Kind,
    payload: &[u8],
    heard: &mut dyn FnMut(Incoming<'_>) -> bool,
) -> Result<bool, Violation> {
    match kind {
        Kind::Ping => Ok(heard(Incoming::Ping(payload))),
        Kind::Close => {
            heard(Incoming::Close(close_code(payload)?));
            Ok(false)
        }
        _ => Ok(heard(Incoming::Pong)),
    }
}

fn close_code(payload: &[u8]) -> Result<Option<u16>, Violation> {
    let (code, reason) = match payload {
        [] => return Ok(None),
        [_] => return Err(Violation::protocol("a close payload of one byte")),
        [high, low, reason @ ..] => (u16::from_be_bytes([*high, *low]), reason),
    };
    if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
        return Err(Violation::protocol("a close code that may not be sent"));
    }
    if std::str::from_utf8(reason).is_err() {
        return Err(Violation {
            code: CloseCode::InvalidUtf8,
            problem: "a close reason is not UTF-8",
        });
    }
    Ok(Some(code))
}
