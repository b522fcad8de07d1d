//! DEFLATE (RFC 1951) in pieces that refer to nothing before them, so that one piece, compressed once,
//! may stand in every listener's stream. WebSocket messages and gzip event streams are made of them.
//!
//! Compressors and decompressors are large (300 kB, 40 kB) and the same for all: each thread keeps one.

use std::cell::RefCell;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

/// Fewer bytes are not worth compressing: what is saved does not pay for the headers.
pub const WORTHWHILE_BYTES_MIN: usize = 256;

/// How every flushed piece ends: the lengths of a stored block without bytes. Left out of a piece.
const TAIL: [u8; 4] = [0, 0, 0xFF, 0xFF];
/// Room that a decompressor is given first.
const FIRST_BYTES: usize = 1_024;

thread_local! {
    // Level 1: a third of the time of the default for nearly the same size on JSON.
    static COMPRESSOR: RefCell<Compress> = RefCell::new(Compress::new(Compression::new(1), false));
    static DECOMPRESSOR: RefCell<Decompress> = RefCell::new(Decompress::new(false));
}

/// Why bytes cannot be inflated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InflateError {
    /// More bytes than were allowed would come out.
    #[error("inflates to more than is allowed")]
    TooLarge,
    /// This is no DEFLATE.
    #[error("is not DEFLATE")]
    Corrupt,
}

/// Compresses `bytes` into blocks that end on a byte, right behind the header of a stored block whose
/// lengths and bytes the caller adds (or, in a WebSocket message, leaves out: RFC 7692 section 7.2.1).
#[must_use]
pub fn deflate(bytes: &[u8]) -> Vec<u8> {
    COMPRESSOR.with_borrow_mut(|compressor| {
        compressor.reset();
        let mut out = Vec::with_capacity(bytes.len() / 2 + 64);
        loop {
            let taken = compressor.total_in() as usize;
            // Compressing fails only for misuse of its state.
            let _ = compressor.compress_vec(&bytes[taken..], &mut out, FlushCompress::Sync);
            if out.len() < out.capacity() && compressor.total_in() as usize == bytes.len() {
                break;
            }
            out.reserve(bytes.len() / 2 + 64);
        }
        debug_assert!(out.ends_with(&TAIL), "a flush ends with an empty stored block");
        out.truncate(out.len() - TAIL.len());
        out
    })
}

/// The reverse of [`deflate`], and of any compressor whose last four bytes were left out. What follows the
/// stream's own end is ignored.
///
/// # Errors
/// More than `bytes_max` bytes come out (no more than that are ever held), or `bytes` are no DEFLATE.
pub fn inflate(bytes: &[u8], bytes_max: usize) -> Result<Vec<u8>, InflateError> {
    DECOMPRESSOR.with_borrow_mut(|decompressor| {
        decompressor.reset(false);
        let mut out = Vec::new();
        for mut piece in [bytes, &TAIL] {
            loop {
                if out.len() > bytes_max {
                    return Err(InflateError::TooLarge);
                }
                if out.len() == out.capacity() {
                    // One byte more than is allowed tells that it is too much.
                    let room = bytes_max.saturating_add(1) - out.len();
                    out.reserve_exact(room.min(out.len().max(FIRST_BYTES)));
                }
                let before = decompressor.total_in();
                let status = decompressor
                    .decompress_vec(piece, &mut out, FlushDecompress::Sync)
                    .map_err(|_| InflateError::Corrupt)?;
                piece = &piece[(decompressor.total_in() - before) as usize..];
                if status == Status::StreamEnd {
                    return if out.len() > bytes_max {
                        Err(InflateError::TooLarge)
                    } else {
                        Ok(out)
                    };
                }
                if piece.is_empty() && out.len() < out.capacity() {
                    break;
                }
                if status == Status::BufError && out.len() < out.capacity() {
                    return Err(InflateError::Corrupt);
                }
            }
        }
        if out.len() > bytes_max { Err(InflateError::TooLarge) } else { Ok(out) }
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_bomb_is_stopped_at_the_bound() {
        let bomb = deflate(&vec![0; 50 << 20]);
        assert!(bomb.len() < 600_000, "{}", bomb.len());
        assert_eq!(inflate(&bomb, 1 << 20), Err(InflateError::TooLarge));
        assert_eq!(inflate(&bomb, (50 << 20) - 1), Err(InflateError::TooLarge));
        assert_eq!(inflate(&bomb, 50 << 20).expect("at the bound").len(), 50 << 20);
        assert_eq!(inflate(&bomb, usize::MAX).expect("no bound").len(), 50 << 20);
    }

    #[test]
    fn nothing_comes_out_of_nothing() {
        assert_eq!(inflate(b"", 0), Ok(Vec::new()));
        assert_eq!(inflate(&deflate(b""), 0), Ok(Vec::new()));
        // How some peers write an empty message (RFC 7692 section 7.2.3.6).
        assert_eq!(inflate(&[0], 0), Ok(Vec::new()));
    }

    #[test]
    fn a_final_block_ends_the_message() {
        let mut compressor = Compress::new(Compression::new(6), false);
        let mut out = Vec::with_capacity(1_000);
        compressor.compress_vec(b"finished", &mut out, FlushCompress::Finish).expect("room");
        // RFC 7692 section 7.2.3.4: an empty block follows.
        assert_eq!(inflate(&[&out[..], &[0]].concat(), 100).as_deref(), Ok(&b"finished"[..]));
        assert_eq!(inflate(&out, 7), Err(InflateError::TooLarge));
    }

    #[test]
    fn what_is_no_deflate_is_refused() {
        assert_eq!(inflate(&[0xFF; 20], 100), Err(InflateError::Corrupt));
        assert_eq!(inflate(&[0x06], 100), Err(InflateError::Corrupt));
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(bytes in proptest::collection::vec(any::<u8>(), 0..5_000), repeat in 1_usize..40) {
            let bytes = bytes.repeat(repeat);
            prop_assert_eq!(inflate(&deflate(&bytes), bytes.len()), Ok(bytes));
        }

        #[test]
        fn any_bytes_end_within_the_bound(bytes in proptest::collection::vec(any::<u8>(), 0..3_000)) {
            if let Ok(out) = inflate(&bytes, 10_000) {
                prop_assert!(out.len() <= 10_000);
            }
        }
    }
}
