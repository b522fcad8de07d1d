//! A cursor: the positions of all of a stream's channels in one opaque text (R3, R22).
//! URL-safe, header-safe; nothing in it is secret or trusted.

use crate::{ChannelName, Position};

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
        self.positions.iter().find(|(name, _)| name.as_str() == channel).map(|(_, position)| *position)
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

    /// Appends the text (base64url of a compact binary form).
    pub fn write(&self, _out: &mut Vec<u8>) {
        todo!()
    }

    /// The text.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut out = Vec::new();
        self.write(&mut out);
        String::from_utf8(out).expect("base64url")
    }

    /// Reads a text written by [`Cursor::write`]. At most 1,000 channels and 64 KiB.
    pub fn parse(_text: &str) -> Result<Self, InvalidCursor> {
        todo!()
    }
}
