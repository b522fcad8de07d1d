//! MessagePack: the same envelope as a map; payload transcoded from JSON, or the original bytes
//! where it holds binary values.

use crate::{Envelope, Profile};

/// Appends the envelope as one MessagePack map. Field names, presence and order as in JSON.
pub fn write_msgpack(_envelope: &Envelope<'_>, _profile: Profile, _out: &mut Vec<u8>) {
    todo!()
}
