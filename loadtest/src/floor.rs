//! The floor: the least a server can do and still be a WebSocket server that fans out.
//!
//! One thread; a message is framed once and given to each socket by one non-blocking `write()`. No
//! tasks a connection, no JSON, no history, no queues: what a socket does not take at once is lost,
//! and the driver will say so. Subscribers connect to `/ws?channel=X`; a publisher connects to
//! `/pub` and sends text frames `CHANNEL\nPAYLOAD`.

use crate::websocket::{self, Frame};
use anyhow::Result;
use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::LocalSet;

type Channels = Rc<RefCell<HashMap<Vec<u8>, Vec<TcpStream>>>>;

/// Serves until the process is ended.
pub(crate) fn serve(listen: SocketAddr) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async move {
        let listener = bind(listen)?;
        println!("floor listens on {}", listener.local_addr()?);
        let channels = Channels::default();
        loop {
            let (stream, _) = listener.accept().await?;
            let channels = channels.clone();
            // Ends with the handshake for a subscriber; the socket then only hangs in its channel.
            tokio::task::spawn_local(async move {
                let _gone = admit(stream, &channels).await;
            });
        }
    })
}

/// A listener with a backlog that a connect storm fits in.
pub(crate) fn bind(listen: SocketAddr) -> Result<TcpListener> {
    let socket = tokio::net::TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(listen)?;
    Ok(socket.listen(4_096)?)
}

async fn admit(mut stream: TcpStream, channels: &Channels) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut head = Vec::with_capacity(1_024);
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read_buf(&mut head).await? == 0 || head.len() > 16_384 {
            return Ok(());
        }
    }
    let Some((answer, path)) = websocket::server_answer(&String::from_utf8_lossy(&head)) else {
        return Ok(());
    };
    stream.write_all(answer.as_bytes()).await?;
    match channel_in(&path) {
        Some(channel) => {
            channels.borrow_mut().entry(channel.as_bytes().to_vec()).or_default().push(stream);
        }
        None => publish_from(stream, channels).await?,
    }
    Ok(())
}

/// The value of `channel` in a request's path.
pub(crate) fn channel_in(path: &str) -> Option<&str> {
    let query = path.split_once('?')?.1;
    query.split('&').find_map(|pair| pair.strip_prefix("channel="))
}

async fn publish_from(mut stream: TcpStream, channels: &Channels) -> Result<()> {
    let mut buffer = Vec::with_capacity(65_536);
    while stream.read_buf(&mut buffer).await? > 0 {
        let mut taken = 0;
        while let Frame::Whole { mask, payload, size, .. } = websocket::parse(&buffer[taken..]) {
            let mut message = payload.to_vec();
            websocket::unmask(&mut message, mask.unwrap_or_default());
            if let Some(at) = memchr::memchr(b'\n', &message) {
                fan_out(channels, &message[..at], &message[at + 1..]);
            }
            taken += size;
        }
        buffer.drain(..taken);
    }
    Ok(())
}

fn fan_out(channels: &Channels, channel: &[u8], payload: &[u8]) {
    let mut frame = Vec::with_capacity(payload.len() + 10);
    websocket::push_server_frame(&mut frame, websocket::TEXT, payload);
    if let Some(members) = channels.borrow_mut().get_mut(channel) {
        members.retain(|socket| match socket.try_write(&frame) {
            Ok(written) => written == frame.len(),
            Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
        });
    }
}
