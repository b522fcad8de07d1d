//! Inflates compressed messages. A server that compresses once sends everybody the same bytes: what is equal, byte for
//! byte, to what was inflated before needs no second inflating.

use crate::tally::{Tally, add};
use flate2::{Decompress, FlushDecompress, Status};

/// Different messages that may be under way at the same time.
const KEPT: usize = 16;
const PLAIN_BYTES_MAX: usize = 4 << 20;

/// Messages inflated last.
pub(super) struct Inflater {
    engine: Decompress,
    kept: Vec<(Vec<u8>, Vec<u8>)>,
    next: usize,
}

impl Inflater {
    /// Nothing inflated yet.
    pub(super) fn new() -> Self {
        Self { engine: Decompress::new(false), kept: Vec::new(), next: 0 }
    }

    /// The message that `compressed` holds; nothing when it is no deflate data.
    pub(super) fn inflate(&mut self, compressed: &[u8], tally: &Tally) -> Option<&[u8]> {
        add(&tally.compressed, 1);
        // Newest first: connections hear the same messages in the same order.
        let known = (0..self.kept.len())
            .map(|back| (self.next + self.kept.len() - 1 - back) % self.kept.len())
            .find(|at| self.kept[*at].0 == compressed);
        let at = match known {
            Some(at) => at,
            None => {
                let plain = self.inflate_anew(compressed)?;
                add(&tally.inflated, 1);
                if self.kept.len() < KEPT {
                    self.kept.push((compressed.to_vec(), plain));
                    self.next = 0;
                    self.kept.len() - 1
                } else {
                    let at = self.next;
                    self.next = (at + 1) % KEPT;
                    self.kept[at] = (compressed.to_vec(), plain);
                    at
                }
            }
        };
        Some(&self.kept[at].1)
    }

    fn inflate_anew(&mut self, compressed: &[u8]) -> Option<Vec<u8>> {
        self.engine.reset(false);
        // RFC 7692 7.2.2: the sender left this tail out.
        let whole = [compressed, &[0x00, 0x00, 0xff, 0xff]].concat();
        let mut plain = Vec::with_capacity(whole.len() * 4);
        loop {
            let taken = self.engine.total_in() as usize;
            let how =
                self.engine.decompress_vec(&whole[taken..], &mut plain, FlushDecompress::Sync);
            let done = self.engine.total_in() as usize == whole.len();
            match how {
                Ok(Status::StreamEnd) => return Some(plain),
                Ok(_) if done && plain.len() < plain.capacity() => return Some(plain),
                Ok(_) if plain.len() < PLAIN_BYTES_MAX => plain.reserve(plain.capacity().max(64)),
                _ => return None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compress, Compression, FlushCompress};

    fn deflate(text: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(text.len() + 64);
        let mut engine = Compress::new(Compression::fast(), false);
        engine.compress_vec(text, &mut bytes, FlushCompress::Sync).expect("compress");
        bytes.truncate(bytes.len() - 4);
        bytes
    }

    #[test]
    fn equal_bytes_are_inflated_once_and_others_anew() {
        let tally = Tally::new();
        let mut inflater = Inflater::new();
        for round in 0..3 {
            for number in 0..KEPT {
                let text = format!("{number} {}", "words that compress ".repeat(200));
                let plain = inflater.inflate(&deflate(text.as_bytes()), &tally);
                assert_eq!(plain, Some(text.as_bytes()), "round {round}");
            }
        }
        assert_eq!((tally.compressed.get(), tally.inflated.get()), (48, 16));
        assert_eq!(inflater.inflate(b"\xff\xff\xff", &tally), None);
    }
}
