//! Making ids: messages (UUIDv7), connections (node and 64 random bits), requests.

use carillon_broker_client::NodeId;
use carillon_protocol::{ConnectionId, MessageId};

/// A new message id: UUIDv7.
#[must_use]
pub fn message_id() -> MessageId {
    let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
    MessageId::new(uuid::Uuid::now_v7().hyphenated().encode_lower(&mut text))
        .expect("36 ASCII characters")
}

/// A new connection id. It begins with its node's id, so that any node knows whom to ask for it.
#[must_use]
pub fn connection_id(node: &NodeId) -> ConnectionId {
    ConnectionId::new(&format!("{node}-{:016x}", rand::random::<u64>()))
        .expect("29 ASCII characters")
}

/// The node of a connection id; `None` when the text is none of ours.
pub use carillon_broker_client::asking::node_of;
