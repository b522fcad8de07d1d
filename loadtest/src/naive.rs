//! The naive server: tungstenite, a task and a broadcast receiver a connection.
//!
//! What a Rust programmer writes first, and so what Carillon must beat. The same interface as the
//! floor: `/ws?channel=X` to listen, `/pub` to send text frames `CHANNEL\nPAYLOAD`.

use crate::floor::{bind, channel_in};
use anyhow::Result;
use futures_util::{SinkExt as _, StreamExt as _};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::net::TcpStream;
use tokio::sync::broadcast::{self, error::RecvError};
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

const BACKLOG: usize = 1_024;

type Channels = Arc<Mutex<HashMap<String, broadcast::Sender<Utf8Bytes>>>>;

/// Serves until the process is ended.
pub(crate) fn serve(listen: SocketAddr) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async move {
        let listener = bind(listen)?;
        println!("naive listens on {}", listener.local_addr()?);
        let channels = Channels::default();
        loop {
            let (stream, _) = listener.accept().await?;
            let channels = channels.clone();
            tokio::spawn(async move {
                let _gone = serve_one(stream, channels).await;
            });
        }
    })
}

fn sender(channels: &Channels, channel: &str) -> broadcast::Sender<Utf8Bytes> {
    let mut channels = channels.lock().unwrap_or_else(PoisonError::into_inner);
    channels.entry(channel.to_owned()).or_insert_with(|| broadcast::channel(BACKLOG).0).clone()
}

// The error is tungstenite's own answer type; its size is theirs to decide.
#[expect(clippy::result_large_err, reason = "the signature is tungstenite's callback")]
async fn serve_one(stream: TcpStream, channels: Channels) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut path = String::new();
    let note_path = |request: &Request, response: Response| {
        path = request.uri().to_string();
        Ok(response)
    };
    let mut socket = tokio_tungstenite::accept_hdr_async(stream, note_path).await?;
    let Some(channel) = channel_in(&path) else {
        while let Some(message) = socket.next().await {
            if let Message::Text(text) = message?
                && let Some((channel, payload)) = text.split_once('\n')
            {
                let _nobody_listens = sender(&channels, channel).send(payload.into());
            }
        }
        return Ok(());
    };
    let mut messages = sender(&channels, channel).subscribe();
    loop {
        tokio::select! {
            message = messages.recv() => match message {
                Ok(text) => socket.send(Message::Text(text)).await?,
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return Ok(()),
            },
            read = socket.next() => match read {
                Some(message) => { message?; }
                None => return Ok(()),
            },
        }
    }
}
