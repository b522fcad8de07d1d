//! Reading what our scripts answer. An answer that cannot be read is Redis' state of today, not the
//! caller's defect: it is unavailability.

use carillon_protocol::{Epoch, Position, Tag};
use redis::{FromRedisValue, Value};

use crate::BrokerError;

fn garbled() -> BrokerError {
    BrokerError::unavailable("an answer of Redis cannot be read")
}

/// Any type that the client library can read.
pub(super) fn read<T: FromRedisValue>(value: Value) -> Result<T, BrokerError> {
    T::from_redis_value(value).map_err(|_| garbled())
}

pub(super) fn bytes(value: &Value) -> Result<&[u8], BrokerError> {
    match value {
        Value::BulkString(bytes) => Ok(bytes),
        _ => Err(garbled()),
    }
}

pub(super) fn items(value: Value) -> Result<Vec<Value>, BrokerError> {
    match value {
        Value::Array(items) => Ok(items),
        _ => Err(garbled()),
    }
}

/// Reads epoch, tag, offset as a channel's meta begins with them; what follows the space after them.
pub(super) fn position(text: &[u8]) -> Result<(Position, &[u8]), BrokerError> {
    let read = || {
        let epoch = Epoch::parse(std::str::from_utf8(text.get(..8)?).ok()?)?;
        let tag = Tag::parse(std::str::from_utf8(text.get(8..16)?).ok()?)?;
        let rest = text.get(16..)?;
        let end = rest.iter().position(|byte| *byte == b' ').unwrap_or(rest.len());
        let offset = std::str::from_utf8(&rest[..end]).ok()?.parse().ok()?;
        Some((Position { epoch, offset, tag }, rest.get(end + 1..).unwrap_or_default()))
    };
    read().ok_or_else(garbled)
}

/// A tag, or `None` for an empty text.
pub(super) fn tag(value: &Value) -> Result<Option<Tag>, BrokerError> {
    match bytes(value)? {
        b"" => Ok(None),
        text => std::str::from_utf8(text).ok().and_then(Tag::parse).map(Some).ok_or_else(garbled),
    }
}

/// A stream's entry: offset, tag, predecessor's tag, body.
pub(super) fn entry(value: Value) -> Result<(u64, Tag, Tag, bytes::Bytes), BrokerError> {
    let [id, fields]: [Value; 2] = items(value)?.try_into().map_err(|_| garbled())?;
    let [_, body, _, own, _, previous]: [Value; 6] =
        items(fields)?.try_into().map_err(|_| garbled())?;
    let offset =
        std::str::from_utf8(bytes(&id)?).ok().and_then(|id| id.split_once('-')?.0.parse().ok());
    let Value::BulkString(body) = body else { return Err(garbled()) };
    match (offset, tag(&own)?, tag(&previous)?) {
        (Some(offset), Some(own), Some(previous)) => Ok((offset, own, previous, body.into())),
        _ => Err(garbled()),
    }
}
