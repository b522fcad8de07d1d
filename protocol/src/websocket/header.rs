//! One client frame's header, checked as far as its bytes reach, and unmasking.

use super::{RSV1, Violation};

/// The longest header: two bytes, eight of length, four of mask.
pub(super) const HEADER_BYTES_MAX: usize = 14;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Continuation,
    Text,
    Binary,
    Close,
    Ping,
    Pong,
}

impl Kind {
    pub(super) const fn is_control(self) -> bool {
        matches!(self, Kind::Close | Kind::Ping | Kind::Pong)
    }
}

/// A whole header.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    pub(super) fin: bool,
    pub(super) kind: Kind,
    /// The message that begins here is compressed.
    pub(super) compressed: bool,
    pub(super) mask: [u8; 4],
    pub(super) payload_bytes: u64,
    /// Its own length.
    pub(super) bytes: usize,
}

impl Header {
    /// Reads the header at the front of `bytes`; `None` where more bytes are needed. A violation is
    /// told as soon as the byte that shows it is there. RSV1 may be set where permessage-deflate was negotiated, on the
    /// first frame of a message.
    pub(super) fn read(bytes: &[u8], deflate: bool) -> Result<Option<Self>, Violation> {
        let Some(&first) = bytes.first() else { return Ok(None) };
        let begins_message = matches!(first & 0x0F, 0x1 | 0x2);
        let reserved = if deflate && begins_message { 0x70 & !RSV1 } else { 0x70 };
        if first & reserved != 0 {
            return Err(Violation::protocol("a reserved bit is set"));
        }
        let compressed = first & RSV1 != 0;
        let fin = first & 0x80 != 0;
        let kind = match first & 0x0F {
            0x0 => Kind::Continuation,
            0x1 => Kind::Text,
            0x2 => Kind::Binary,
            0x8 => Kind::Close,
            0x9 => Kind::Ping,
            0xA => Kind::Pong,
            _ => return Err(Violation::protocol("a reserved opcode")),
        };
        if kind.is_control() && !fin {
            return Err(Violation::protocol("a fragmented control frame"));
        }
        let Some(&second) = bytes.get(1) else { return Ok(None) };
        if second & 0x80 == 0 {
            return Err(Violation::protocol("a client frame without a mask"));
        }
        let short = second & 0x7F;
        if kind.is_control() && short > 125 {
            return Err(Violation::protocol("a control frame over 125 bytes"));
        }
        let length_bytes = match short {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let Some(extended) = bytes.get(2..2 + length_bytes) else { return Ok(None) };
        let extended = extended.iter().fold(0_u64, |length, byte| length << 8 | u64::from(*byte));
        let payload_bytes = match short {
            126 if extended < 126 => {
                return Err(Violation::protocol("a length not in its shortest form"));
            }
            127 if extended <= 0xFFFF => {
                return Err(Violation::protocol("a length not in its shortest form"));
            }
            127 if extended >> 63 != 0 => return Err(Violation::protocol("a length over 63 bits")),
            126 | 127 => extended,
            _ => u64::from(short),
        };
        let bytes_until_mask = 2 + length_bytes;
        let Some(mask) = bytes.get(bytes_until_mask..bytes_until_mask + 4) else { return Ok(None) };
        let mask = [mask[0], mask[1], mask[2], mask[3]];
        Ok(Some(Self { fin, kind, compressed, mask, payload_bytes, bytes: bytes_until_mask + 4 }))
    }
}

/// Unmasks in place a piece of a payload that begins `at` bytes into it.
pub(super) fn unmask(piece: &mut [u8], mask: [u8; 4], at: u64) {
    let mask: [u8; 4] = std::array::from_fn(|index| mask[(index + (at & 3) as usize) & 3]);
    let half = u64::from(u32::from_ne_bytes(mask));
    let word = half << 32 | half;
    let mut words = piece.chunks_exact_mut(8);
    for bytes in &mut words {
        let masked = <[u8; 8]>::try_from(&*bytes).expect("chunks of eight");
        bytes.copy_from_slice(&(u64::from_ne_bytes(masked) ^ word).to_ne_bytes());
    }
    for (byte, mask) in words.into_remainder().iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
}
