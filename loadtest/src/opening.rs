//! The way in of a connection: the request, the head of the answer, and what the two then say to each other.
//!
//! Owns a socket only until it is open. What is said is the profile's; this only carries it.

use crate::target::{Act, Caller, Transport};
use crate::websocket::{self, Frame};
use anyhow::{Result, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// A connection that listens.
pub(crate) struct Opened {
    /// What came already and was not looked at yet.
    pub(crate) rest: Vec<u8>,
    /// The server agreed to permessage-deflate.
    pub(crate) deflate: bool,
}

/// Says `request`, awaits the head of the answer and converses until the connection listens. An error when the server refuses or ends it; a stream is then of no more use.
pub(crate) async fn open(
    stream: &mut TcpStream,
    request: &[u8],
    transport: Transport,
    caller: Caller<'_>,
) -> Result<Opened> {
    stream.write_all(request).await?;
    let (head, mut rest) = head(stream).await?;
    let deflate = memchr::memmem::find(&head, b"permessage-deflate").is_some();
    let profile = caller.target.kind.profile();
    let mut act = profile.converse(caller, None);
    loop {
        match act {
            Act::Open => return Ok(Opened { rest, deflate }),
            Act::Last(text) => {
                say(stream, &text).await?;
                return Ok(Opened { rest, deflate });
            }
            Act::Refused(reason) => bail!("refused: {reason}"),
            Act::Say(text) => say(stream, &text).await?,
            Act::Wait => {}
        }
        if transport == Transport::Sse {
            while rest.is_empty() {
                more(stream, &mut rest).await?;
            }
            return Ok(Opened { rest, deflate });
        }
        act = next(stream, &mut rest, |heard| profile.converse(caller, Some(heard))).await?;
    }
}

/// Reads up to the end of the head; returns it and what came behind it.
async fn head(stream: &mut TcpStream) -> Result<(Vec<u8>, Vec<u8>)> {
    const HEAD_BYTES_MAX: usize = 64 * 1_024;
    let mut head = Vec::with_capacity(1_024);
    let body = loop {
        if stream.read_buf(&mut head).await? == 0 || head.len() > HEAD_BYTES_MAX {
            bail!("closed during the handshake");
        }
        if let Some(at) = memchr::memmem::find(&head, b"\r\n\r\n") {
            break at + 4;
        }
    };
    let status = head.get(9..12).unwrap_or_default();
    if status != b"101" && status != b"200" {
        bail!("status {}", String::from_utf8_lossy(status));
    }
    let rest = head.split_off(body);
    Ok((head, rest))
}

/// Takes one message out of `rest`, reading more where needed. Pings of WebSocket itself wait for the reader
/// of the open connection: no server of ours sends one so early.
async fn next(
    stream: &mut TcpStream,
    rest: &mut Vec<u8>,
    mut hear: impl FnMut(&[u8]) -> Act,
) -> Result<Act> {
    loop {
        let (act, size) = match websocket::parse(rest) {
            Frame::Whole { opcode: websocket::PING | websocket::PONG, size, .. } => (None, size),
            Frame::Whole { opcode: websocket::CLOSE, payload, .. } => {
                let code = payload.get(..2).map(|raw| u16::from_be_bytes([raw[0], raw[1]]));
                bail!("closed with {} before it was open", code.unwrap_or(1005));
            }
            Frame::Whole { payload, size, .. } => (Some(hear(payload)), size),
            Frame::Broken => bail!("no frame of WebSocket"),
            Frame::Partial => {
                more(stream, rest).await?;
                continue;
            }
        };
        rest.drain(..size);
        if let Some(act) = act {
            return Ok(act);
        }
    }
}

async fn more(stream: &mut TcpStream, rest: &mut Vec<u8>) -> Result<()> {
    if stream.read_buf(rest).await? == 0 {
        bail!("closed before the welcome");
    }
    Ok(())
}

async fn say(stream: &mut TcpStream, text: &str) -> Result<()> {
    let mut frame = Vec::with_capacity(text.len() + 14);
    websocket::push_client_frame(&mut frame, websocket::TEXT, text.as_bytes());
    stream.write_all(&frame).await?;
    Ok(())
}
