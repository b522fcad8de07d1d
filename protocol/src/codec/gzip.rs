//! A gzip stream (RFC 1952) for events that are compressed once and heard by many. Each event is a piece
//! of DEFLATE that refers to nothing before it; a listener's stream is the pieces one after the other, with what
//! is its own (the `id:` line) stored between them as it is. Every event ends with a flush, so that a reader has
//! it at once. A stream costs its check sum, and no compressor.

use bytes::Bytes;
use crc32fast::Hasher;

use crate::deflate::{WORTHWHILE_BYTES_MIN, deflate};

/// DEFLATE, no name, no time, no operating system.
const HEAD: [u8; 10] = [0x1F, 0x8B, 8, 0, 0, 0, 0, 0, 0, 0xFF];
/// A stored block without bytes: what was written before can be read now.
const FLUSH: [u8; 5] = [0, 0, 0, 0xFF, 0xFF];
/// The same, and the last.
const LAST: [u8; 5] = [1, 0, 0, 0xFF, 0xFF];
/// Most bytes of a stored block.
const STORED_BYTES_MAX: usize = 0xFFFF;

/// A body that many streams share: its blocks, and behind them its check sum, its length, and whether the blocks
/// are compressed or the bytes themselves.
const NOTE_BYTES: usize = 9;

/// Compresses what many streams will carry, for [`event`]. Small bodies stay as they are.
#[must_use]
pub fn shared_body(bytes: &[u8]) -> Bytes {
    let compressed = bytes.len() >= WORTHWHILE_BYTES_MIN;
    let mut body = if compressed { deflate(bytes) } else { bytes.to_vec() };
    body.extend_from_slice(&crc32fast::hash(bytes).to_le_bytes());
    body.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    body.push(u8::from(compressed));
    body.into()
}

/// Check sum and length of a text, which those of the texts of a stream add up to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    crc: u32,
    /// Modulo 2³².
    bytes: u32,
}

impl Sum {
    fn of(text: &[u8]) -> Self {
        Self { crc: crc32fast::hash(text), bytes: text.len() as u32 }
    }

    /// The sum of this text with another one behind it.
    #[must_use]
    pub fn then(self, next: Sum) -> Self {
        let hasher = |sum: Sum| Hasher::new_with_initial_len(sum.crc, u64::from(sum.bytes));
        let mut whole = hasher(self);
        whole.combine(&hasher(next));
        Self { crc: whole.finalize(), bytes: self.bytes.wrapping_add(next.bytes) }
    }
}

/// The bytes that open a stream, with a first text.
#[must_use]
pub fn open(first: &[u8]) -> (Vec<u8>, Sum) {
    let (stored, sum) = text(first);
    ([&HEAD[..], &stored].concat(), sum)
}

/// An event: a [`shared_body`] and what this listener's copy ends with. The first
/// part stands as it is in the shared bytes; write it, then the second.
#[must_use]
pub fn event(shared: &Bytes, own: &[u8]) -> (Bytes, Vec<u8>, Sum) {
    let (body, note) = shared.split_at(shared.len() - NOTE_BYTES);
    if note[8] == 0 {
        let (stored, sum) = text(&[body, own].concat());
        return (Bytes::new(), stored, sum);
    }
    let word = |at: usize| u32::from_le_bytes([note[at], note[at + 1], note[at + 2], note[at + 3]]);
    let sum = Sum { crc: word(0), bytes: word(4) }.then(Sum::of(own));
    let mut tail = Vec::with_capacity(4 + own.len() + FLUSH.len());
    // The compressed blocks end with the header of a stored one.
    let (first, more) = own.split_at(own.len().min(STORED_BYTES_MAX));
    push_lengths(&mut tail, first.len());
    tail.extend_from_slice(first);
    push_stored(&mut tail, more);
    tail.extend_from_slice(&FLUSH);
    (shared.slice(..body.len()), tail, sum)
}

/// A text that is one listener's alone, stored as it is.
#[must_use]
pub fn text(bytes: &[u8]) -> (Vec<u8>, Sum) {
    let mut out = Vec::with_capacity(bytes.len() + 2 * FLUSH.len());
    push_stored(&mut out, bytes);
    out.extend_from_slice(&FLUSH);
    (out, Sum::of(bytes))
}

/// What ends a stream of these texts.
#[must_use]
pub fn end(sum: Sum) -> Vec<u8> {
    let mut out = LAST.to_vec();
    out.extend_from_slice(&sum.crc.to_le_bytes());
    out.extend_from_slice(&sum.bytes.to_le_bytes());
    out
}

/// Bytes as they are, in as many blocks as they need.
fn push_stored(out: &mut Vec<u8>, bytes: &[u8]) {
    for block in bytes.chunks(STORED_BYTES_MAX) {
        out.push(0);
        push_lengths(out, block.len());
        out.extend_from_slice(block);
    }
}

fn push_lengths(out: &mut Vec<u8>, bytes: usize) {
    let bytes = bytes as u16;
    out.extend_from_slice(&bytes.to_le_bytes());
    out.extend_from_slice(&(!bytes).to_le_bytes());
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::{Decompress, FlushDecompress};
    use proptest::prelude::*;

    use super::*;

    fn whole(stream: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        flate2::read::GzDecoder::new(stream)
            .read_to_end(&mut out)
            .expect("gzip with a right check sum");
        out
    }

    #[test]
    fn every_event_can_be_read_when_it_is_written() {
        let mut reader = Decompress::new_gzip(15);
        let mut read = |bytes: &[u8]| {
            let mut out = Vec::with_capacity(200_000);
            reader.decompress_vec(bytes, &mut out, FlushDecompress::Sync).expect("gzip");
            out
        };
        let (head, mut sum) = open(b"retry: 2000\n\n");
        assert_eq!(read(&head), b"retry: 2000\n\n");
        for size in [1, 255, 256, 5_000, 100_000] {
            let event =
                format!("event: message\ndata: {}\n", "abcdefg ".repeat(size / 8 + 1)).into_bytes();
            let shared = shared_body(&event);
            let (body, tail, more) = super::event(&shared, b"id: 7\n\n");
            sum = sum.then(more);
            let heard = [read(&body), read(&tail)].concat();
            assert_eq!(heard, [&event[..], b"id: 7\n\n"].concat(), "{size}");
        }
        let (ping, more) = text(b": ping\n\n");
        assert_eq!(read(&ping), b": ping\n\n");
        assert_eq!(read(&end(sum.then(more))), b"");
    }

    #[test]
    fn what_is_a_listeners_own_may_be_long() {
        let (mut out, mut sum) = open(b"");
        let long = b"0123456789".repeat(20_000);
        for own in [&long[..], &long[..STORED_BYTES_MAX], b""] {
            let (body, tail, more) = event(&shared_body(&[7; 1_000]), own);
            sum = sum.then(more);
            out.extend_from_slice(&[&body[..], &tail].concat());
        }
        out.extend_from_slice(&end(sum));
        assert_eq!(whole(&out).len(), 3_000 + long.len() + STORED_BYTES_MAX);
    }

    #[test]
    fn a_large_body_is_shared_and_small() {
        let shared = shared_body(&b"0123456789".repeat(10_000));
        assert!(shared.len() < 5_000);
        let (body, tail, _) = event(&shared, b"\n");
        assert_eq!(body.as_ptr(), shared.as_ptr());
        assert_eq!(tail.len(), 10);
    }

    proptest! {
        #[test]
        fn any_stream_is_gzip(events in proptest::collection::vec((proptest::collection::vec(any::<u8>(), 0..700), 1_usize..300, "[a-z]{0,40}"), 0..8)) {
            let (mut out, mut sum) = open(b"first\n\n");
            let mut plain = b"first\n\n".to_vec();
            for (bytes, repeat, own) in events {
                let event = bytes.repeat(repeat);
                let (body, tail, more) = super::event(&shared_body(&event), own.as_bytes());
                sum = sum.then(more);
                out.extend_from_slice(&body);
                out.extend_from_slice(&tail);
                plain.extend_from_slice(&event);
                plain.extend_from_slice(own.as_bytes());
            }
            out.extend_from_slice(&end(sum));
            prop_assert_eq!(whole(&out), plain);
        }
    }
}
