//! A cursor: the positions of all of a stream's channels in one opaque text (R3, R22).
//! URL-safe, header-safe; nothing in it is secret or trusted.

use std::collections::HashSet;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use smallvec::SmallVec;

use crate::channel::CHANNEL_BYTES_MAX;
use crate::{ChannelName, Epoch, Position, Tag};

/// The binary form's first byte.
const VERSION: u8 = 1;
/// The most channels that a cursor may name.
const CHANNELS_MAX: usize = 1_000;
/// The longest text that is looked at.
const TEXT_BYTES_MAX: usize = 64 * 1024;

/// Positions by channel. Channels without history are not in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    positions: Vec<(ChannelName, Position)>,
}

/// The text is no cursor of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a cursor")]
pub struct InvalidCursor;

impl Cursor {
    /// The positions.
    #[must_use]
    pub fn positions(&self) -> &[(ChannelName, Position)] {
        &self.positions
    }

    /// The position of one channel.
    #[must_use]
    pub fn get(&self, channel: &str) -> Option<Position> {
        self.positions
            .iter()
            .find(|(name, _)| name.as_str() == channel)
            .map(|(_, position)| *position)
    }

    /// Sets or replaces a channel's position.
    pub fn set(&mut self, channel: &ChannelName, position: Position) {
        match self.positions.iter_mut().find(|(name, _)| name == channel) {
            Some((_, old)) => *old = position,
            None => self.positions.push((channel.clone(), position)),
        }
    }

    /// Forgets a channel.
    pub fn remove(&mut self, channel: &str) {
        self.positions.retain(|(name, _)| name.as_str() != channel);
    }

    /// Appends the text: base64url, without padding, of version byte, number of channels, and for each
    /// its name after one byte of length, epoch, offset, tag; numbers as LEB128.
    pub fn write(&self, out: &mut Vec<u8>) {
        let mut raw = SmallVec::<[u8; 512]>::new();
        raw.push(VERSION);
        push_varint(&mut raw, self.positions.len() as u64);
        for (channel, position) in &self.positions {
            let name = channel.as_str().as_bytes();
            // A channel name has at most 255 bytes.
            raw.push(name.len() as u8);
            raw.extend_from_slice(name);
            raw.extend_from_slice(position.epoch.as_str().as_bytes());
            push_varint(&mut raw, position.offset);
            raw.extend_from_slice(position.tag.as_str().as_bytes());
        }
        let from = out.len();
        out.resize(from + raw.len().div_ceil(3) * 4, 0);
        let written =
            URL_SAFE_NO_PAD.encode_slice(&raw, &mut out[from..]).expect("there is room enough");
        out.truncate(from + written);
    }

    /// The text.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut out = Vec::new();
        self.write(&mut out);
        String::from_utf8(out).expect("base64url")
    }

    /// Reads a text written by [`Cursor::write`]. At most 1,000 channels and 64 KiB.
    ///
    /// # Errors
    /// Anything else, a channel that stands twice included.
    pub fn parse(text: &str) -> Result<Self, InvalidCursor> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(InvalidCursor);
        }
        let raw = URL_SAFE_NO_PAD.decode(text).map_err(|_| InvalidCursor)?;
        let mut rest = raw.as_slice();
        if take(&mut rest, 1)? != [VERSION] {
            return Err(InvalidCursor);
        }
        let count = usize::try_from(varint(&mut rest)?).map_err(|_| InvalidCursor)?;
        if count > CHANNELS_MAX {
            return Err(InvalidCursor);
        }
        let mut positions = Vec::with_capacity(count);
        let mut named = HashSet::with_capacity(count);
        for _ in 0..count {
            let length = usize::from(take(&mut rest, 1)?[0]);
            let name = ascii(take(&mut rest, length.min(CHANNEL_BYTES_MAX))?)?;
            if !named.insert(name) {
                return Err(InvalidCursor);
            }
            let channel = ChannelName::new(name).map_err(|_| InvalidCursor)?;
            let epoch = Epoch::parse(ascii(take(&mut rest, 8)?)?).ok_or(InvalidCursor)?;
            let offset = varint(&mut rest)?;
            let tag = Tag::parse(ascii(take(&mut rest, 8)?)?).ok_or(InvalidCursor)?;
            positions.push((channel, Position { epoch, offset, tag }));
        }
        if rest.is_empty() { Ok(Self { positions }) } else { Err(InvalidCursor) }
    }
}

fn push_varint(raw: &mut SmallVec<[u8; 512]>, mut value: u64) {
    while value >= 0x80 {
        raw.push(value as u8 | 0x80);
        value >>= 7;
    }
    raw.push(value as u8);
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Result<&'a [u8], InvalidCursor> {
    let (taken, after) = rest.split_at_checked(length).ok_or(InvalidCursor)?;
    *rest = after;
    Ok(taken)
}

fn varint(rest: &mut &[u8]) -> Result<u64, InvalidCursor> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let byte = take(rest, 1)?[0];
        value |= u64::from(byte & 0x7F) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(InvalidCursor)
}

fn ascii(bytes: &[u8]) -> Result<&str, InvalidCursor> {
    std::str::from_utf8(bytes).map_err(|_| InvalidCursor)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cursor() -> impl Strategy<Value = Cursor> {
        let place = ("[a-z:.%0-9]{1,60}", any::<u64>(), any::<u64>(), any::<u64>());
        prop::collection::vec(place, 0..20).prop_map(|places| {
            let mut cursor = Cursor::default();
            for (channel, epoch, offset, tag) in places {
                let channel = ChannelName::new(&channel).expect("made of channel bytes");
                let (epoch, tag) = (Epoch::from_random(epoch), Tag::from_random(tag));
                cursor.set(&channel, Position { epoch, offset, tag });
            }
            cursor
        })
    }

    proptest! {
        #[test]
        fn a_cursor_reads_back_as_written(cursor in cursor()) {
            let text = cursor.to_text();
            prop_assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'));
            prop_assert_eq!(Cursor::parse(&text), Ok(cursor));
        }

        #[test]
        fn a_cursor_cut_short_or_lengthened_is_none(cursor in cursor(), cut in any::<prop::sample::Index>()) {
            let text = cursor.to_text();
            prop_assert_eq!(Cursor::parse(&text[..cut.index(text.len())]), Err(InvalidCursor));
            prop_assert_eq!(Cursor::parse(&format!("{text}AAAA")), Err(InvalidCursor));
        }

        #[test]
        fn garbage_is_refused_without_a_panic(text in "\\PC{0,80}", raw in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = Cursor::parse(&text);
            let _ = Cursor::parse(&URL_SAFE_NO_PAD.encode([&[VERSION, 1], raw.as_slice()].concat()));
        }
    }

    #[test]
    fn the_start_of_a_history_and_the_longest_name_fit() {
        let mut cursor = Cursor::default();
        let position =
            Position { epoch: Epoch::from_random(1), offset: 0, tag: Position::START_TAG };
        cursor.set(&ChannelName::new(&"x".repeat(CHANNEL_BYTES_MAX)).expect("allowed"), position);
        assert_eq!(Cursor::parse(&cursor.to_text()), Ok(cursor));
    }
}
