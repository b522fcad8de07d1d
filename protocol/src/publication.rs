//! A message as it crosses the cluster: routable without parsing its payload.
//!
//! The body (everything but the position) is written once by the publishing node; the broker puts
//! the position in front when it appends. Layout of a body: version byte, flags, then each text as
//! a LEB128 length and its bytes, in the order of the fields below. Source: `cluster.md` 1.

use bytes::Bytes;

use crate::{ChannelName, ConnectionId, Envelope, MessageId, Payload, Position, Tag, UserId};

const VERSION: u8 = 1;
const HAS_USER: u8 = 1;
const HAS_META: u8 = 2;
const HAS_EXCLUDE: u8 = 4;
const HAS_MSGPACK: u8 = 8;
const HAS_TRACE: u8 = 16;
const HAS_EXPIRY: u8 = 32;
const FLAGS_KNOWN: u8 = HAS_USER | HAS_META | HAS_EXCLUDE | HAS_MSGPACK | HAS_TRACE | HAS_EXPIRY;

/// Who must not hear a publication, live or on recovery (R17).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exclude {
    /// Connections that do not hear it.
    pub connections: Vec<ConnectionId>,
    /// Users none of whose connections hear it.
    pub users: Vec<UserId>,
}

impl Exclude {
    /// Nobody is excluded.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.connections.is_empty() && self.users.is_empty()
    }

    /// Whether this connection of this user must not hear the publication.
    #[must_use]
    pub fn covers(&self, connection: &ConnectionId, user: Option<&UserId>) -> bool {
        self.connections.contains(connection) || user.is_some_and(|user| self.users.contains(user))
    }
}

/// One message on one channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publication {
    /// The channel it was published on.
    pub channel: ChannelName,
    /// Its place in the channel's history; `None` on channels without history.
    pub position: Option<Position>,
    /// Tag of the publication before it; `None` on channels without history.
    pub previous_tag: Option<Tag>,
    /// On channels without history, grows with each message of the channel: microseconds of the server that sent it on. 0 with
    /// history, and where nobody said.
    pub stamp: u64,
    /// The publisher's id, or a UUIDv7.
    pub id: MessageId,
    /// The message type.
    pub kind: Box<str>,
    /// When it was accepted, Unix milliseconds.
    pub timestamp_ms: i64,
    /// The authenticated sender, for client-originated messages or as the backend said.
    pub user_id: Option<UserId>,
    /// The application's `meta`, a JSON object.
    pub meta: Option<Bytes>,
    /// Who must not hear it.
    pub exclude: Exclude,
    /// When it stops mattering, Unix milliseconds: later it is not sent to who comes back. Nobody is told of it.
    pub expires_at_ms: Option<i64>,
    /// W3C trace context of the publishing call.
    pub traceparent: Option<Box<str>>,
    /// Opaque payload.
    pub payload: Payload,
}

/// The bytes are no publication of a version we know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a publication body of version {VERSION}")]
pub struct InvalidBody;

impl Publication {
    /// The envelope that a listener hears, under the label of its subscription.
    #[must_use]
    pub fn envelope<'a>(&'a self, label: &'a str) -> Envelope<'a> {
        Envelope {
            id: self.id.as_str(),
            kind: &self.kind,
            channel: Some(label),
            payload: &self.payload,
            timestamp_ms: self.timestamp_ms,
            position: self.position,
            user_id: self.user_id.as_ref().map(UserId::as_str),
            meta: self.meta.as_ref().and_then(|meta| std::str::from_utf8(meta).ok()),
            ..Envelope::EMPTY
        }
    }

    /// `meta.conflate_key`, if the publisher gave one (R15).
    #[must_use]
    pub fn conflate_key(&self) -> Option<String> {
        let meta: serde_json::Value = serde_json::from_slice(self.meta.as_ref()?).ok()?;
        meta.get("conflate_key")?.as_str().map(str::to_owned)
    }

    /// Bytes this publication holds in a hot tail, roughly.
    #[must_use]
    pub fn weight_bytes(&self) -> usize {
        160 + self.payload.json().len() + self.meta.as_ref().map_or(0, Bytes::len) + self.kind.len()
    }

    /// Writes the body: all fields but channel and position.
    #[must_use]
    pub fn to_body(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(96 + self.payload.json().len());
        let mut flags = 0;
        flags |= if self.user_id.is_some() { HAS_USER } else { 0 };
        flags |= if self.meta.is_some() { HAS_META } else { 0 };
        flags |= if self.exclude.is_empty() { 0 } else { HAS_EXCLUDE };
        flags |= if self.payload.msgpack().is_some() { HAS_MSGPACK } else { 0 };
        flags |= if self.expires_at_ms.is_some() { HAS_EXPIRY } else { 0 };
        flags |= if self.traceparent.is_some() { HAS_TRACE } else { 0 };
        out.extend_from_slice(&[VERSION, flags]);
        push_bytes(&mut out, self.id.as_str().as_bytes());
        push_bytes(&mut out, self.kind.as_bytes());
        push_varint(&mut out, self.timestamp_ms.max(0) as u64);
        if let Some(user) = &self.user_id {
            push_bytes(&mut out, user.as_str().as_bytes());
        }
        if let Some(meta) = &self.meta {
            push_bytes(&mut out, meta);
        }
        if flags & HAS_EXCLUDE != 0 {
            push_varint(&mut out, self.exclude.connections.len() as u64);
            for connection in &self.exclude.connections {
                push_bytes(&mut out, connection.as_str().as_bytes());
            }
            push_varint(&mut out, self.exclude.users.len() as u64);
            for user in &self.exclude.users {
                push_bytes(&mut out, user.as_str().as_bytes());
            }
        }
        if let Some(expires_at_ms) = self.expires_at_ms {
            push_varint(&mut out, expires_at_ms.max(0) as u64);
        }
        if let Some(trace) = &self.traceparent {
            push_bytes(&mut out, trace.as_bytes());
        }
        if let Some(msgpack) = self.payload.msgpack() {
            push_bytes(&mut out, msgpack);
        }
        out.extend_from_slice(self.payload.json());
        out
    }

    /// Reads a body written by [`Publication::to_body`]; the payload shares the given bytes.
    pub fn from_body(
        channel: ChannelName,
        position: Option<Position>,
        previous_tag: Option<Tag>,
        body: &Bytes,
    ) -> Result<Self, InvalidBody> {
        let mut reader = Reader { body, at: 0 };
        if reader.byte()? != VERSION {
            return Err(InvalidBody);
        }
        let flags = reader.byte()?;
        // A field we do not know would be read as the payload.
        if flags & !FLAGS_KNOWN != 0 {
            return Err(InvalidBody);
        }
        let id = MessageId::new(reader.text()?).map_err(|_| InvalidBody)?;
        let kind = reader.text()?.into();
        let timestamp_ms = i64::try_from(reader.varint()?).map_err(|_| InvalidBody)?;
        let user_id = if flags & HAS_USER != 0 {
            Some(UserId::new(reader.text()?).map_err(|_| InvalidBody)?)
        } else {
            None
        };
        let meta = if flags & HAS_META != 0 { Some(reader.bytes()?) } else { None };
        let mut exclude = Exclude::default();
        if flags & HAS_EXCLUDE != 0 {
            for _ in 0..reader.varint()? {
                exclude
                    .connections
                    .push(ConnectionId::new(reader.text()?).map_err(|_| InvalidBody)?);
            }
            for _ in 0..reader.varint()? {
                exclude.users.push(UserId::new(reader.text()?).map_err(|_| InvalidBody)?);
            }
        }
        let expires_at_ms = if flags & HAS_EXPIRY != 0 {
            Some(i64::try_from(reader.varint()?).map_err(|_| InvalidBody)?)
        } else {
            None
        };
        let traceparent = if flags & HAS_TRACE != 0 { Some(reader.text()?.into()) } else { None };
        let msgpack = if flags & HAS_MSGPACK != 0 { Some(reader.bytes()?) } else { None };
        let json = body.slice(reader.at..);
        let payload = match msgpack {
            Some(msgpack) => Payload::with_msgpack(json, msgpack),
            None => Payload::from_json(json),
        };
        Ok(Self {
            channel,
            position,
            previous_tag,
            stamp: 0,
            id,
            kind,
            timestamp_ms,
            user_id,
            meta,
            exclude,
            expires_at_ms,
            traceparent,
            payload,
        })
    }
}

fn push_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn push_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    push_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

struct Reader<'a> {
    body: &'a Bytes,
    at: usize,
}

impl Reader<'_> {
    fn byte(&mut self) -> Result<u8, InvalidBody> {
        let byte = *self.body.get(self.at).ok_or(InvalidBody)?;
        self.at += 1;
        Ok(byte)
    }

    fn varint(&mut self) -> Result<u64, InvalidBody> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(InvalidBody)
    }

    fn bytes(&mut self) -> Result<Bytes, InvalidBody> {
        let length = usize::try_from(self.varint()?).map_err(|_| InvalidBody)?;
        let end =
            self.at.checked_add(length).filter(|end| *end <= self.body.len()).ok_or(InvalidBody)?;
        let bytes = self.body.slice(self.at..end);
        self.at = end;
        Ok(bytes)
    }

    fn text(&mut self) -> Result<&str, InvalidBody> {
        let length = usize::try_from(self.varint()?).map_err(|_| InvalidBody)?;
        let end =
            self.at.checked_add(length).filter(|end| *end <= self.body.len()).ok_or(InvalidBody)?;
        let text = std::str::from_utf8(&self.body[self.at..end]).map_err(|_| InvalidBody)?;
        self.at = end;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ids<T>(new: fn(&str) -> Result<T, crate::ids::InvalidId>) -> impl Strategy<Value = Vec<T>>
    where
        T: std::fmt::Debug,
    {
        prop::collection::vec(
            "[a-z0-9-]{1,40}".prop_map(move |id| new(&id).expect("allowed")),
            0..4,
        )
    }

    prop_compose! {
        fn publication()(
            id in "[ -~é]{1,64}",
            kind in "[a-z:_]{1,200}",
            timestamp_ms in 0..i64::MAX,
            user in prop::option::of("[a-z]{1,200}"),
            meta in prop::option::of(Just(Bytes::from_static(b"{\"conflate_key\":\"k\"}"))),
            connections in ids(ConnectionId::new),
            users in ids(UserId::new),
            expires_at_ms in prop::option::of(0..i64::MAX),
            traceparent in prop::option::of("[0-9a-f-]{55}"),
            json in prop::collection::vec(any::<u8>(), 0..300),
            msgpack in prop::option::of(prop::collection::vec(any::<u8>(), 0..300)),
        ) -> Publication {
            Publication {
                channel: ChannelName::new("chat").expect("allowed"),
                position: None,
                previous_tag: None,
                stamp: 0,
                id: MessageId::new(&id).expect("allowed"),
                kind: kind.into(),
                timestamp_ms,
                user_id: user.map(|user| UserId::new(&user).expect("allowed")),
                meta,
                exclude: Exclude { connections, users },
                expires_at_ms,
                traceparent: traceparent.map(Into::into),
                payload: match msgpack {
                    Some(msgpack) => Payload::with_msgpack(json, msgpack),
                    None => Payload::from_json(json),
                },
            }
        }
    }

    fn read(body: Vec<u8>) -> Result<Publication, InvalidBody> {
        Publication::from_body(ChannelName::new("chat").expect("allowed"), None, None, &body.into())
    }

    proptest! {
        #[test]
        fn a_body_reads_back_as_written(publication in publication()) {
            prop_assert_eq!(read(publication.to_body()), Ok(publication));
        }

        #[test]
        fn no_body_panics_however_it_is_broken(
            publication in publication(),
            at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
            garbage in prop::collection::vec(any::<u8>(), 0..100),
        ) {
            let mut body = publication.to_body();
            let at = at.index(body.len());
            let _ = read(body[..at].to_vec());
            body[at] = byte;
            let _ = read(body);
            let _ = read([&[VERSION], garbage.as_slice()].concat());
            prop_assert_eq!(read([&[VERSION + 1], garbage.as_slice()].concat()), Err(InvalidBody));
        }
    }

    #[test]
    fn a_flag_of_another_version_is_refused() {
        assert_eq!(read(vec![VERSION, 0x80, 1, b'i', 1, b't', 0, b'1']), Err(InvalidBody));
        assert!(read(vec![VERSION, 0, 1, b'i', 1, b't', 0, b'1']).is_ok());
    }
}
