//! A publication as it crosses pub/sub: `offset SP epoch SP tag SP previous SP body`, written by
//! `append.lua`; `stamp - - - body` without history, written by `pass.lua`; `!` when the channel began a new epoch.

use bytes::Bytes;
use carillon_protocol::{ChannelName, Epoch, Position, Publication, Tag};

/// Behind the stamp of a body that no history holds.
const WITHOUT_HISTORY: &[u8] = b"- - - ";

/// The channel began a new epoch.
pub(super) const RENEWED: &[u8] = b"!";

/// `None` when the bytes are not ours.
pub(super) fn read(channel: ChannelName, bytes: &Bytes) -> Option<Publication> {
    let mut at = 0;
    let mut field = || {
        let length = bytes[at..].iter().take(24).position(|byte| *byte == b' ')?;
        let text = std::str::from_utf8(&bytes[at..at + length]).ok()?;
        at += length + 1;
        Some(text)
    };
    let first = field()?;
    if bytes[first.len() + 1..].starts_with(WITHOUT_HISTORY) {
        let body = bytes.slice(first.len() + 1 + WITHOUT_HISTORY.len()..);
        let passing = Publication::from_body(channel, None, None, &body).ok()?;
        // A node of an earlier version gives none.
        return Some(Publication { stamp: first.parse().unwrap_or(0), ..passing });
    }
    let offset = first.parse().ok()?;
    let (epoch, tag, previous) =
        (Epoch::parse(field()?)?, Tag::parse(field()?)?, Tag::parse(field()?)?);
    let body = bytes.slice(at..);
    Publication::from_body(channel, Some(Position { epoch, offset, tag }), Some(previous), &body)
        .ok()
}
