//! A publication on its way to sockets, with the frames that its listeners share.
//!
//! Each combination of codec and profile is encoded, and compressed, at most once, by the first listener that
//! needs it; all others clone a reference to the same bytes. Knows nothing of who listens.

use std::sync::OnceLock;

use bytes::Bytes;
use carillon_protocol::codec::{gzip, write_json, write_msgpack, write_sse_body};
use carillon_protocol::websocket::{Opcode, message_frame};
use carillon_protocol::{ChannelName, Codec, Envelope, Profile, Publication};

/// How a connection's messages are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Medium {
    /// WebSocket frames in a codec.
    WebSocket(Codec),
    /// Server-sent events; the `id:` line differs a connection and is not part of the shared bytes.
    Sse,
    /// A long poll: JSON documents collected for an answer.
    Poll,
}

/// Medium and profile of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dress {
    /// How messages are written.
    pub medium: Medium,
    /// For whom they are dressed.
    pub profile: Profile,
    /// permessage-deflate, or a gzip event stream. A long poll's answer is compressed as a whole.
    pub compressed: bool,
}

/// The user stream's label for its notifications (R7).
pub const NOTIFICATIONS: &str = "notifications";

/// A publication and the bytes made from it. Shared by reference among all listeners of the node.
#[derive(Debug)]
pub struct Dispatch {
    /// The message.
    pub publication: Publication,
    frames: [OnceLock<Bytes>; 16],
}

impl Dispatch {
    /// Nothing is encoded yet.
    #[must_use]
    pub fn new(publication: Publication) -> Self {
        Self { publication, frames: Default::default() }
    }

    /// Whether this belongs under the label `notifications` of a user stream (R7).
    #[must_use]
    pub fn is_notification(&self) -> bool {
        self.publication.kind.starts_with("notification")
    }

    /// The channel as listeners know it.
    #[must_use]
    pub fn label(&self) -> &str {
        if self.is_notification() && is_user_stream(&self.publication.channel) {
            NOTIFICATIONS
        } else {
            self.publication.channel.as_str()
        }
    }

    /// The bytes for a dress: a whole frame, or for SSE the event without its `id:` line (compressed: as
    /// [`gzip::event`] takes it).
    #[must_use]
    pub fn frame(&self, dress: Dress) -> &Bytes {
        self.frames[variant(dress)]
            .get_or_init(|| self.encode(self.publication.envelope(self.label()), dress))
    }

    /// The same with the ids of persistent subscriptions: one user's bytes, shared with nobody.
    #[must_use]
    pub fn frame_for(&self, dress: Dress, subscriptions: &[Box<str>]) -> Bytes {
        let envelope = self.publication.envelope(self.label());
        self.encode(Envelope { subscription_ids: subscriptions, ..envelope }, dress)
    }

    /// For a poll, which orders by it what has no position, the stamp stands in a line of its own in front.
    fn encode(&self, envelope: Envelope<'_>, dress: Dress) -> Bytes {
        let document = encode(&envelope, dress);
        match self.publication.stamp {
            stamp if stamp > 0 && dress.medium == Medium::Poll => {
                [format!("{stamp}\n").as_bytes(), &document].concat().into()
            }
            _ => document,
        }
    }
}

/// Whether a channel is a user's own stream: `user:{id}` and nothing more.
#[must_use]
pub fn is_user_stream(channel: &ChannelName) -> bool {
    channel.as_str().strip_prefix("user:").is_some_and(|user| !user.contains([':', '.']))
}

/// Which of the shared encodings a dress reads. Profiles differ on the wire only in how time is
/// written and, on SSE, in whether the envelope is there.
const fn variant(dress: Dress) -> usize {
    let integer_time = dress.profile.integer_time() as usize;
    let compressed = if dress.compressed { 7 } else { 0 };
    match dress.medium {
        Medium::WebSocket(Codec::Json | Codec::Ndjson) => compressed + integer_time,
        Medium::WebSocket(Codec::MessagePack) => compressed + 2 + integer_time,
        Medium::Sse if dress.profile.sse_payload_only() => compressed + 4,
        Medium::Sse => compressed + 5 + integer_time,
        Medium::Poll => 14 + integer_time,
    }
}

/// Encodes one envelope for one dress (also used for a connection's own replies).
#[must_use]
pub fn encode(envelope: &Envelope<'_>, dress: Dress) -> Bytes {
    let mut document = Vec::with_capacity(192 + envelope.payload.json().len());
    match dress.medium {
        Medium::WebSocket(Codec::MessagePack) => {
            write_msgpack(envelope, dress.profile, &mut document);
            message_frame(Opcode::Binary, &document, dress.compressed)
        }
        Medium::WebSocket(Codec::Json | Codec::Ndjson) => {
            write_json(envelope, dress.profile, &mut document);
            message_frame(Opcode::Text, &document, dress.compressed)
        }
        Medium::Sse => {
            write_sse_body(envelope, dress.profile, &mut document);
            if dress.compressed { gzip::shared_body(&document) } else { document.into() }
        }
        Medium::Poll => {
            write_json(envelope, dress.profile, &mut document);
            document.into()
        }
    }
}

#[cfg(test)]
mod tests {
    use carillon_protocol::publication::Exclude;
    use carillon_protocol::{MessageId, Payload};

    use super::*;

    #[test]
    fn every_dress_is_encoded_once_and_shared() {
        let publication = Publication {
            channel: ChannelName::new("room:1").expect("a channel"),
            position: None,
            previous_tag: None,
            stamp: 0,
            id: MessageId::new("m1").expect("an id"),
            kind: "message".into(),
            timestamp_ms: 0,
            user_id: None,
            meta: None,
            exclude: Exclude::default(),
            expires_at_ms: None,
            traceparent: None,
            payload: Payload::of(&"x".repeat(1_000)),
        };
        let dispatch = Dispatch::new(publication);
        let media = [
            Medium::WebSocket(Codec::Json),
            Medium::WebSocket(Codec::MessagePack),
            Medium::Sse,
            Medium::Poll,
        ];
        let mut distinct = std::collections::BTreeSet::new();
        for medium in media {
            for profile in [Profile::Social, Profile::Uno, Profile::Dnr] {
                for compressed in [false, true] {
                    let dress = Dress { medium, profile, compressed };
                    let frame = dispatch.frame(dress);
                    assert_eq!(frame.as_ptr(), dispatch.frame(dress).as_ptr(), "{dress:?}");
                    assert_eq!(*frame, encode(&dispatch.publication.envelope("room:1"), dress));
                    assert_eq!(
                        compressed && medium != Medium::Poll,
                        frame.len() < 1_000,
                        "{dress:?}"
                    );
                    distinct.insert(frame.as_ptr());
                }
            }
        }
        assert_eq!(distinct.len(), 16);
    }
}
