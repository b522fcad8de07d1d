//! Client transports: bytes and routes only. Sockets are accepted in `accept`, credentials and
//! query read in `handshake`, and each transport turns a request into a driven connection.

pub mod accept;
pub mod client_io;
pub mod handshake;
pub mod poll;
pub mod proxy;
mod reserve;
pub mod sse;
mod upgrade;
pub mod websocket;

#[cfg(test)]
mod tests;
