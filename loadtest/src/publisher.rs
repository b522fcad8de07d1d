//! The one who publishes: a schedule or a window, pipelined over one connection.
//!
//! Open loop: message k is due at k/rate and its latency counts from then, however late it was sent
//! (no coordinated omission). Saturation: a window of messages in flight, refilled as deliveries come.

use crate::mark::Mark;
use crate::tally::{Tally, add};
use crate::target::Target;
use anyhow::{Result, bail};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::{Instant, sleep_until, timeout};

/// When the next message goes out.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Pace {
    /// So many messages a second over all channels, whatever happens.
    Rate(f64),
    /// So many messages in flight, counted by deliveries.
    Window(u64),
    /// So many requests unanswered, for runs without listeners.
    Unanswered(u64),
}

/// What is published.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Work {
    /// Channels, taken in turn.
    pub(crate) channels: u32,
    /// Listeners on each.
    pub(crate) members: u64,
    /// Bytes of a payload.
    pub(crate) size: usize,
    /// Messages in one request at most.
    pub(crate) batch: usize,
    /// See [`Pace`].
    pub(crate) pace: Pace,
}

/// A publisher on its own connection.
pub(crate) struct Publisher {
    target: Target,
    writer: RefCell<OwnedWriteHalf>,
    tally: Rc<Tally>,
    /// Last sequence of each channel.
    pub(crate) sequences: RefCell<Vec<u32>>,
    /// Messages sent.
    pub(crate) published: Cell<u64>,
    requests: Cell<u64>,
}

impl Publisher {
    /// Connects; a task counts the answers.
    pub(crate) async fn connect(target: Target, channels: u32, tally: Rc<Tally>) -> Result<Self> {
        let mut stream = TcpStream::connect(target.address).await?;
        stream.set_nodelay(true)?;
        let mut head = Vec::new();
        if let Some(handshake) = target.publisher_handshake() {
            stream.write_all(&handshake).await?;
            while !head.ends_with(b"\r\n\r\n") {
                if stream.read_buf(&mut head).await? == 0 {
                    bail!("the publisher was refused");
                }
            }
        }
        let (reader, writer) = stream.into_split();
        tokio::task::spawn_local(count_answers(reader, tally.clone()));
        Ok(Self {
            target,
            writer: RefCell::new(writer),
            tally,
            sequences: RefCell::new(vec![0; channels as usize]),
            published: Cell::new(0),
            requests: Cell::new(0),
        })
    }

    /// One message with sequence 0 on every channel, to see who listens.
    pub(crate) async fn warm_up(&self, channels: u32, size: usize) -> Result<()> {
        let all: Vec<u32> = (0..channels).collect();
        for chunk in all.chunks(100) {
            let mark = |channel| Mark { channel, sequence: 0, due_ns: 0 };
            let some: Vec<_> = chunk.iter().map(|at| (*at, mark(*at).payload(size))).collect();
            self.send(&some).await?;
        }
        Ok(())
    }

    /// Publishes until `end`.
    pub(crate) async fn run(&self, work: &Work, end: Instant) -> Result<()> {
        let start = Instant::now();
        while Instant::now() < end {
            match work.pace {
                Pace::Rate(rate) => {
                    let due = |k: u64| start + Duration::from_secs_f64(k as f64 / rate);
                    let first = self.published.get();
                    sleep_until(due(first).min(end)).await;
                    let late = Instant::now().duration_since(start).as_secs_f64() * rate;
                    let count = (late as u64 + 1).saturating_sub(first).min(work.batch as u64);
                    self.publish(work, count, |k| due(first + k)).await?;
                }
                Pace::Window(window) => {
                    let done = self.tally.delivered.get() / work.members.max(1);
                    let free = window.saturating_sub(self.published.get().saturating_sub(done));
                    if free == 0 {
                        self.wait_for_deliveries(window, work.members).await;
                        continue;
                    }
                    let now = Instant::now();
                    self.publish(work, free.min(work.batch as u64), |_| now).await?;
                }
                Pace::Unanswered(most) => {
                    if self.requests.get() - self.tally.answered.get() >= most {
                        let _late =
                            timeout(Duration::from_secs(2), self.tally.progress.notified()).await;
                        continue;
                    }
                    let now = Instant::now();
                    self.publish(work, work.batch as u64, |_| now).await?;
                }
            }
        }
        Ok(())
    }

    async fn wait_for_deliveries(&self, window: u64, members: u64) {
        // One slot free, not all: the window stays full as long as the server keeps up.
        let wanted = (self.published.get() + 1).saturating_sub(window) * members;
        self.tally.wake_at.set(wanted);
        let wait = timeout(Duration::from_secs(2), self.tally.progress.notified()).await;
        if wait.is_err() {
            // Lost messages would hold the window shut for ever; the loss itself is counted elsewhere.
            let missing = wanted.saturating_sub(self.tally.delivered.get()).div_ceil(members);
            self.published.set(self.published.get().saturating_sub(missing));
        }
    }

    async fn publish(&self, work: &Work, count: u64, due: impl Fn(u64) -> Instant) -> Result<()> {
        let began = Instant::from_std(self.tally.began);
        let mut messages = Vec::with_capacity(count as usize);
        for k in 0..count {
            let published = self.published.get();
            let channel = (published % u64::from(work.channels)) as u32;
            let sequence = {
                let mut sequences = self.sequences.borrow_mut();
                sequences[channel as usize] += 1;
                sequences[channel as usize]
            };
            let due_ns = due(k).saturating_duration_since(began).as_nanos() as u64;
            let mark = Mark { channel, sequence, due_ns };
            messages.push((channel, mark.payload(work.size)));
            self.published.set(published + 1);
        }
        self.send(&messages).await
    }

    #[expect(clippy::await_holding_refcell_ref, reason = "one task writes, nobody else borrows")]
    async fn send(&self, messages: &[(u32, String)]) -> Result<()> {
        if messages.is_empty() {
            return Ok(());
        }
        let mut bytes = Vec::with_capacity(messages.len() * 300);
        let answers = self.target.push_publish(&mut bytes, messages);
        self.requests.set(self.requests.get() + answers);
        self.writer.borrow_mut().write_all(&bytes).await?;
        Ok(())
    }
}

/// Reads pipelined HTTP answers and counts those that tell of an error.
async fn count_answers(mut reader: OwnedReadHalf, tally: Rc<Tally>) {
    let mut buffer = Vec::with_capacity(65_536);
    while matches!(reader.read_buf(&mut buffer).await, Ok(read) if read > 0) {
        let mut taken = 0;
        while let Some((answer, size)) = http_answer(&buffer[taken..]) {
            add(&tally.answered, 1);
            let errors = memchr::memmem::find_iter(answer, b"\"code\":\"").count() as u64;
            let refused = answer.get(9) != Some(&b'2');
            add(&tally.refused, errors.max(u64::from(refused)));
            taken += size;
        }
        buffer.drain(..taken);
        if taken > 0 {
            tally.progress.notify_one();
        }
    }
}

/// The first whole answer in `bytes` and its size.
fn http_answer(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let body = memchr::memmem::find(bytes, b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(&bytes[..body]).ok()?.to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
    let size = match length {
        Some(length) => body + length.trim().parse::<usize>().ok()?,
        None if head.contains("chunked") => {
            body + memchr::memmem::find(&bytes[body..], b"0\r\n\r\n")? + 5
        }
        None => body,
    };
    Some((bytes.get(..size)?, size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pipelined_answers_are_told_apart() {
        let bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}HTTP/1.1 503 No\r\n\r\n";
        let (first, size) = http_answer(bytes).expect("whole");
        assert!(first.ends_with(b"{}"));
        let (second, _) = http_answer(&bytes[size..]).expect("whole");
        assert_eq!(second[9], b'5');
        assert!(http_answer(&bytes[..size - 1]).is_none());
    }
}
