//! A client that polls: one kept HTTP connection, each poll asked from where the last one ended.

use super::read::hear;
use super::{Subscriber, dial};
use crate::tally::add;
use anyhow::{Context as _, Result, bail};
use std::net::SocketAddr;
use std::rc::Rc;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// How long the server may hold a poll, seconds.
const HELD_SECONDS: u64 = 25;

/// The parts of a request around the number it goes on from.
pub(crate) struct Ask {
    /// Up to and with `last_poll_id=`.
    pub(crate) before: String,
    /// From the query's next part, which is the time-out, to the end.
    pub(crate) after: String,
}

/// Polls until the connection ends, which is counted.
pub(super) async fn run(address: SocketAddr, ask: Ask, subscriber: Rc<Subscriber>) {
    let tally = subscriber.tally.clone();
    let began = std::time::Instant::now();
    let polls = async {
        let mut stream = dial(subscriber.index, address).await?;
        let mut buffer = Vec::new();
        let mut last = 0;
        let mut wait = 0;
        loop {
            let request = format!("{}{last}&timeout={wait}{}", ask.before, ask.after);
            stream.write_all(request.as_bytes()).await?;
            let body = answer(&mut stream, &mut buffer).await?;
            add(&tally.bytes, buffer.len() as u64);
            add(&tally.polls, 1);
            hear(&buffer[body..], &subscriber, &tally, tally.now_ns());
            last = last_poll_id(&buffer[body..]).context("no last_poll_id")?;
            if wait == 0 {
                tally.connected(began.elapsed());
                wait = HELD_SECONDS;
            }
        }
    };
    let ended: Result<()> = polls.await;
    if let Err(error) = ended {
        tally.retry(&error.root_cause().to_string());
    }
    add(&tally.closed, 1);
}

/// Reads one answer; returns where its body begins in `buffer`.
async fn answer(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Result<usize> {
    buffer.clear();
    let body = loop {
        if stream.read_buf(buffer).await? == 0 {
            bail!("closed");
        }
        if let Some(at) = memchr::memmem::find(buffer, b"\r\n\r\n") {
            break at + 4;
        }
    };
    let head = String::from_utf8_lossy(&buffer[..body]).to_ascii_lowercase();
    if head.get(9..12) != Some("200") {
        bail!("poll answered {}", head.get(9..12).unwrap_or_default());
    }
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
    let size = body
        + length.and_then(|length| length.trim().parse::<usize>().ok()).context("no length")?;
    while buffer.len() < size {
        if stream.read_buf(buffer).await? == 0 {
            bail!("closed");
        }
    }
    Ok(body)
}

fn last_poll_id(body: &[u8]) -> Option<u64> {
    let name = b"\"last_poll_id\":";
    let from = memchr::memmem::rfind(body, name)? + name.len();
    let size = body[from..].iter().position(|byte| !byte.is_ascii_digit())?;
    std::str::from_utf8(&body[from..from + size]).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    #[test]
    fn number_of_the_next_poll_is_read_behind_the_events() {
        let body = br#"{"events":[{"id":7}],"last_poll_id":1234567890123,"has_more":false}"#;
        assert_eq!(super::last_poll_id(body), Some(1_234_567_890_123));
        assert_eq!(super::last_poll_id(b"{}"), None);
    }
}
