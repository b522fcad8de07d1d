//! A client on an event stream: resumes with `Last-Event-ID`.

use super::websocket::{open_with, refused};
use super::{Ended, HANDSHAKE_MAX, Order, SILENCE_MAX, Talk, sleep_maybe, stopped};
use crate::check::http::Chunks;
use crate::check::lane::Meaning;
use std::time::Duration;
use tokio::io::AsyncReadExt as _;
use tokio::time::{Instant, timeout};

/// A channel that is not heard by then: the client opens the stream anew, since it cannot ask for it.
const SUBSCRIBED_BY: Duration = Duration::from_secs(20);

/// Connects and hears until the end.
pub(super) async fn session(talk: &mut Talk<'_>) -> Ended {
    let address = talk.shared().address(talk.node);
    let last = talk.client.cursor.borrow().clone();
    let request = {
        let mut lanes = talk.client.lanes.borrow_mut();
        for lane in &mut lanes.0 {
            // The cursor is all that the server hears of the client's positions.
            lane.asked = last.is_some();
        }
        let names: Vec<&str> = lanes.0.iter().map(|lane| lane.name.as_str()).collect();
        let last = last.map_or(String::new(), |last| format!("Last-Event-ID: {last}\r\n"));
        format!(
            "GET /api/realtime/events?profile=social&channel={}&token={} HTTP/1.1\r\nHost: {address}\r\nAccept: text/event-stream\r\n{last}\r\n",
            names.join(","),
            talk.client.token
        )
    };
    let opened = timeout(HANDSHAKE_MAX, open_with(address, request.as_bytes(), 200)).await;
    let (mut stream, mut raw) = match opened {
        Ok(Ok(opened)) => opened,
        Ok(Err(error)) => return refused(&error),
        Err(_) => {
            return Ended::Refused { reason: "handshake timed out".to_owned(), retry_after_ms: 0 };
        }
    };
    talk.connected();
    let (mut chunks, mut text) = (Chunks::default(), Vec::new());
    let (mut stalled, mut heard_at, began) = (false, Instant::now(), Instant::now());
    let mut retry_after_ms = 0;
    loop {
        let over = chunks.feed(&raw, &mut text).unwrap_or(true);
        raw.clear();
        let mut taken = 0;
        while let Some(end) = memchr::memmem::find(&text[taken..], b"\n\n") {
            if let Meaning::Disconnect { retry_after_ms: wait } =
                event(talk, &text[taken..taken + end])
            {
                retry_after_ms = wait;
            }
            taken += end + 2;
        }
        text.drain(..taken);
        if over {
            return Ended::Cut { retry_after_ms };
        }
        let silent_at = (!stalled).then(|| heard_at + SILENCE_MAX);
        let unheard_at = (!talk.client.live.get()).then(|| began + SUBSCRIBED_BY);
        tokio::select! {
            read = stream.read_buf(&mut raw), if !stalled => match read {
                Ok(read) if read > 0 => heard_at = Instant::now(),
                _ => return Ended::Cut { retry_after_ms },
            },
            order = talk.orders.recv() => match order {
                None | Some(Order::Quit) => return Ended::Over,
                Some(Order::Away(away)) => return Ended::Away(away),
                Some(Order::Stall) => stalled = true,
                Some(Order::Read) => (stalled, heard_at) = (false, Instant::now()),
                // Streams do not speak; who wants to publish chooses another client.
                Some(Order::Say(..)) => {}
            },
            () = stopped(talk.stop) => return Ended::Over,
            () = sleep_maybe(silent_at) => return Ended::Cut { retry_after_ms: 0 },
            () = sleep_maybe(unheard_at) => return Ended::Cut { retry_after_ms: 0 },
        }
    }
}

/// One event: its `id:` is kept only once its data was taken in.
fn event(talk: &Talk<'_>, text: &[u8]) -> Meaning {
    let (mut id, mut data) = (None, Vec::new());
    for line in text.split(|byte| *byte == b'\n') {
        if let Some(rest) = line.strip_prefix(b"data:") {
            if !data.is_empty() {
                data.push(b'\n');
            }
            data.extend_from_slice(rest.strip_prefix(b" ").unwrap_or(rest));
        } else if let Some(rest) = line.strip_prefix(b"id:") {
            id = Some(String::from_utf8_lossy(rest).trim().to_owned());
        }
    }
    let meaning = if data.is_empty() { Meaning::Other } else { talk.hear(&data) };
    if let Some(id) = id {
        *talk.client.cursor.borrow_mut() = Some(id);
    }
    meaning
}
