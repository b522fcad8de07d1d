//! The Carillon wire contract, without IO, clock, logging or async.
//!
//! What a client may say is a [`ClientMessage`]; what it hears is an [`Envelope`], dressed by a
//! [`Profile`] and written by a [`Codec`]. A message that crosses the cluster is a [`Publication`]:
//! its payload is opaque bytes that nobody parses on the way from publisher to socket.
//!
//! Invariants that hold everywhere below:
//! * a [`ChannelName`], [`UserId`] or [`MessageId`] cannot hold a value the contract forbids;
//! * every error code and its HTTP status stand in one table ([`ErrorCode`]), every close code in
//!   another ([`CloseCode`]); no other file writes such a number;
//! * time is a parameter (`now_ms`, Unix milliseconds or any monotonic milliseconds, as stated);
//! * the crate builds for `wasm32-unknown-unknown`.
//!
//! What this crate must not know: sockets, tokio, Redis, configuration files.

pub mod channel;
pub mod client_message;
pub mod codec;
pub mod codes;
pub mod cursor;
pub mod deflate;
pub mod envelope;
pub mod filter;
pub mod ids;
pub mod payload;
pub mod position;
pub mod profile;
pub mod publication;
pub mod session;
pub mod time;
pub mod websocket;

pub use channel::{ChannelName, Pattern};
pub use client_message::ClientMessage;
pub use codec::Codec;
pub use codes::{CloseCode, ErrorCode};
pub use cursor::Cursor;
pub use envelope::Envelope;
pub use filter::Filter;
pub use ids::{ConnectionId, MessageId, UserId};
pub use payload::Payload;
pub use position::{Epoch, Position, Since, Tag};
pub use profile::Profile;
pub use publication::Publication;
