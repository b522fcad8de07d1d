//! A client on a WebSocket: subscribes with positions, publishes with `ack_id`, joins presence.

use super::{
    ANSWER_MAX, Ended, HANDSHAKE_MAX, Order, PRESENCE, SILENCE_MAX, Saying, Talk, sleep_maybe,
    stopped,
};
use crate::check::lane::Meaning;
use crate::check::shared::Shared;
use crate::websocket::{self, Frame};
use anyhow::{Result, bail};
use serde_json::json;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::time::{Instant, timeout};

/// Any message counts as a presence heartbeat; without one for 30 s a user leaves.
const HEARTBEAT_EVERY: Duration = Duration::from_secs(10);
/// A subscribe that was refused is asked for again.
const AGAIN: Duration = Duration::from_millis(500);

/// Connects, hears and says until the end.
pub(super) async fn session(talk: &mut Talk<'_>) -> Ended {
    let opened = timeout(HANDSHAKE_MAX, open(talk)).await;
    let (stream, rest) = match opened {
        Ok(Ok(opened)) => opened,
        Ok(Err(error)) => return refused(&error),
        Err(_) => {
            return Ended::Refused { reason: "handshake timed out".to_owned(), retry_after_ms: 0 };
        }
    };
    talk.connected();
    let (mut reader, writer) = stream.into_split();
    let mut session = Session {
        writer,
        buffer: rest,
        retry_after_ms: 0,
        subscribe_at: None,
        say_at: None,
        answer_by: None,
    };
    let begun = session.begin(talk).await;
    if begun.is_err() {
        return Ended::Cut { retry_after_ms: 0 };
    }
    let mut stalled = false;
    let mut heard_at = Instant::now();
    let mut heartbeat = tokio::time::interval(HEARTBEAT_EVERY);
    heartbeat.tick().await;
    loop {
        match session.take_frames(talk).await {
            Ok(true) => {}
            Ok(false) | Err(_) => return Ended::Cut { retry_after_ms: session.retry_after_ms },
        }
        let silent_at = (!stalled).then(|| heard_at + SILENCE_MAX);
        tokio::select! {
            read = reader.read_buf(&mut session.buffer), if !stalled => match read {
                Ok(read) if read > 0 => heard_at = Instant::now(),
                _ => return Ended::Cut { retry_after_ms: session.retry_after_ms },
            },
            order = talk.orders.recv() => match order {
                None | Some(Order::Quit) => return session.leave().await,
                Some(Order::Away(away)) => return Ended::Away(away),
                Some(Order::Stall) => stalled = true,
                Some(Order::Read) => (stalled, heard_at) = (false, Instant::now()),
                Some(Order::Say(saying, done)) => {
                    let sent = session.say(talk, &saying).await;
                    talk.client.saying.borrow_mut().push_back((saying, done));
                    if sent.is_err() {
                        return Ended::Cut { retry_after_ms: 0 };
                    }
                }
            },
            () = stopped(talk.stop) => return session.leave().await,
            _ = heartbeat.tick(), if talk.client.present && !stalled => {
                if session.send(&json!({"type": "heartbeat"})).await.is_err() {
                    return Ended::Cut { retry_after_ms: 0 };
                }
            }
            () = sleep_maybe(session.subscribe_at) => {
                if session.begin(talk).await.is_err() {
                    return Ended::Cut { retry_after_ms: 0 };
                }
            }
            () = sleep_maybe(session.say_at) => {
                if session.say_again(talk).await.is_err() {
                    return Ended::Cut { retry_after_ms: 0 };
                }
            }
            () = sleep_maybe(silent_at) => return Ended::Cut { retry_after_ms: 0 },
            // A publish without an answer: whether it happened, only another connection can tell.
            () = sleep_maybe(session.answer_by) => return Ended::Cut { retry_after_ms: 0 },
        }
    }
}

/// Reads a refusal's reason out of an error.
pub(super) fn refused(error: &anyhow::Error) -> Ended {
    let refusal = error.downcast_ref::<Refusal>();
    let retry_after_ms = refusal.map_or(0, |refusal| refusal.retry_after_ms);
    Ended::Refused { reason: error.root_cause().to_string(), retry_after_ms }
}

/// A status that was not the one hoped for.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: u16,
    pub(super) retry_after_ms: u64,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "status {}", self.status)
    }
}

impl std::error::Error for Refusal {}

/// Sends `request` and reads the answer's head; what came behind it.
pub(super) async fn open_with(
    address: std::net::SocketAddr,
    request: &[u8],
    wanted: u16,
) -> Result<(TcpStream, Vec<u8>)> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    stream.write_all(request).await?;
    let mut head = Vec::with_capacity(1_024);
    let end = loop {
        if stream.read_buf(&mut head).await? == 0 {
            bail!("closed during the handshake");
        }
        if let Some(at) = memchr::memmem::find(&head, b"\r\n\r\n") {
            break at + 4;
        }
    };
    let text = String::from_utf8_lossy(&head[..end]).to_ascii_lowercase();
    let status = text.get(9..12).and_then(|status| status.parse().ok()).unwrap_or(0);
    if status != wanted {
        let after = text.lines().find_map(|line| line.strip_prefix("retry-after:"));
        let seconds: u64 = after.and_then(|after| after.trim().parse().ok()).unwrap_or(0);
        return Err(Refusal { status, retry_after_ms: seconds * 1_000 }.into());
    }
    Ok((stream, head.split_off(end)))
}

async fn open(talk: &Talk<'_>) -> Result<(TcpStream, Vec<u8>)> {
    let address = talk.shared().address(talk.node);
    let path = format!("/ws?token={}", talk.client.token);
    let request = websocket::client_request(&address.to_string(), &path);
    open_with(address, &request, 101).await
}

struct Session {
    writer: OwnedWriteHalf,
    buffer: Vec<u8>,
    retry_after_ms: u64,
    /// A subscribe was refused: ask again then.
    subscribe_at: Option<Instant>,
    /// A publish was refused: say it again then.
    say_at: Option<Instant>,
    answer_by: Option<Instant>,
}

impl Session {
    async fn send(&mut self, message: &serde_json::Value) -> Result<()> {
        let mut frame = Vec::new();
        websocket::push_client_frame(&mut frame, websocket::TEXT, message.to_string().as_bytes());
        Ok(self.writer.write_all(&frame).await?)
    }

    /// Subscribes to what is not heard yet, joins presence, and repeats what was not acknowledged.
    async fn begin(&mut self, talk: &Talk<'_>) -> Result<()> {
        let first = self.subscribe_at.take().is_none();
        let subscribes: Vec<serde_json::Value> = {
            let lanes = talk.client.lanes.borrow();
            lanes
                .0
                .iter()
                .filter(|lane| !lane.live)
                .map(|lane| {
                    let since = lane.position.as_ref().map(crate::check::lane::Position::json);
                    let payload = since.map_or(json!({}), |since| json!({"since": since}));
                    json!({"type": "subscribe", "channel": lane.name, "payload": payload})
                })
                .collect()
        };
        for subscribe in subscribes {
            self.send(&subscribe).await?;
        }
        if talk.client.present {
            self.send(&json!({"type": "presence:join", "channel": PRESENCE, "payload": {"name": talk.client.name}})).await?;
        }
        if first { self.say_again(talk).await } else { Ok(()) }
    }

    /// Repeats what was not acknowledged.
    async fn say_again(&mut self, talk: &Talk<'_>) -> Result<()> {
        self.say_at = None;
        let again: Vec<Saying> =
            talk.client.saying.borrow().iter().map(|(saying, _)| saying.clone()).collect();
        for saying in again {
            self.say(talk, &saying).await?;
        }
        Ok(())
    }

    async fn say(&mut self, talk: &Talk<'_>, saying: &Saying) -> Result<()> {
        let Saying { index, channel, id, payload } = saying;
        let channel = Shared::channel(*channel);
        let text = format!(
            r#"{{"type":"message","channel":"{channel}","id":"{id}","ack_id":"{index}","payload":{payload}}}"#
        );
        talk.shared().sent(*index);
        self.answer_by.get_or_insert(Instant::now() + ANSWER_MAX);
        let mut frame = Vec::new();
        websocket::push_client_frame(&mut frame, websocket::TEXT, text.as_bytes());
        Ok(self.writer.write_all(&frame).await?)
    }

    /// Everything whole in the buffer; `false` when the server closed.
    async fn take_frames(&mut self, talk: &Talk<'_>) -> Result<bool> {
        let mut taken = 0;
        let mut pongs = Vec::new();
        loop {
            match websocket::parse(&self.buffer[taken..]) {
                Frame::Whole { opcode, payload, size, .. } => {
                    match opcode {
                        websocket::PING => {
                            websocket::push_client_frame(&mut pongs, websocket::PONG, payload);
                        }
                        websocket::CLOSE => return Ok(false),
                        websocket::TEXT => match talk.hear(payload) {
                            Meaning::Disconnect { retry_after_ms } => {
                                self.retry_after_ms = retry_after_ms;
                            }
                            Meaning::Refused { .. } => {
                                self.subscribe_at = Some(Instant::now() + AGAIN);
                            }
                            Meaning::Answer { position: None, .. } => {
                                self.answer_by = None;
                                self.say_at = Some(Instant::now() + AGAIN);
                            }
                            Meaning::Answer { .. } => {
                                let quiet = talk.client.saying.borrow().is_empty();
                                self.answer_by = (!quiet).then(|| Instant::now() + ANSWER_MAX);
                            }
                            _ => {}
                        },
                        _ => {}
                    }
                    taken += size;
                }
                Frame::Partial => break,
                Frame::Broken => bail!("a broken frame"),
            }
        }
        self.buffer.drain(..taken);
        if self.buffer.is_empty() && self.buffer.capacity() > 16 * 1_024 {
            self.buffer = Vec::new();
        }
        if !pongs.is_empty() {
            self.writer.write_all(&pongs).await?;
        }
        Ok(true)
    }

    /// Closes politely.
    async fn leave(&mut self) -> Ended {
        let mut frame = Vec::new();
        websocket::push_client_frame(&mut frame, websocket::CLOSE, &1000_u16.to_be_bytes());
        let _ = self.writer.write_all(&frame).await;
        Ended::Over
    }
}
