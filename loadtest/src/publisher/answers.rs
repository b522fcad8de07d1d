//! What comes back to a publisher: HTTP responses or acks, counted, timed from when the request was due.

use crate::tally::{Progress, Tally, add};
use crate::websocket::{self, Frame};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use tokio::io::AsyncReadExt as _;
use tokio::net::tcp::OwnedReadHalf;
use tokio::time::Instant;

/// Answers of one connection: they come in the order of what they answer.
pub(super) struct Answers {
    progress: Rc<Progress>,
    tally: Rc<Tally>,
    owed: RefCell<VecDeque<Instant>>,
}

impl Answers {
    /// Nothing is owed.
    pub(super) fn new(progress: Rc<Progress>, tally: Rc<Tally>) -> Self {
        Self { progress, tally, owed: RefCell::default() }
    }

    /// `count` answers are owed to what was due then.
    pub(super) fn expect(&self, count: u64, due: Instant) {
        self.owed.borrow_mut().extend((0..count).map(|_| due));
    }

    /// Answers that did not come yet.
    pub(super) fn owed(&self) -> u64 {
        self.owed.borrow().len() as u64
    }

    fn note(&self, refused: u64) {
        if let Some(due) = self.owed.borrow_mut().pop_front() {
            self.tally.answer(due.elapsed());
        }
        add(&self.tally.refused, refused);
    }

    /// Reads pipelined HTTP responses to the end, and counts those that tell of an error.
    pub(super) async fn count_responses(self: Rc<Self>, mut reader: OwnedReadHalf) {
        let mut buffer = Vec::with_capacity(65_536);
        while matches!(reader.read_buf(&mut buffer).await, Ok(read) if read > 0) {
            let mut taken = 0;
            while let Some((response, size)) = http_response(&buffer[taken..]) {
                let errors = memchr::memmem::find_iter(response, b"\"code\":\"").count() as u64;
                let refused = response.get(9) != Some(&b'2');
                self.note(errors.max(u64::from(refused)));
                taken += size;
            }
            buffer.drain(..taken);
            if taken > 0 {
                self.progress.changed.notify_one();
            }
        }
        self.lost();
    }

    /// Reads frames to the end: an `ack` or an `error` answers a publish.
    pub(super) async fn count_acks(self: Rc<Self>, mut reader: OwnedReadHalf, rest: Vec<u8>) {
        let mut buffer = rest;
        loop {
            let mut taken = 0;
            let ended = loop {
                match websocket::parse(&buffer[taken..]) {
                    Frame::Whole { opcode, payload, size, .. } => {
                        if opcode == websocket::CLOSE {
                            break true;
                        }
                        let is = |kind: &[u8]| memchr::memmem::find(payload, kind).is_some();
                        if is(b"\"type\":\"ack\"") {
                            self.note(0);
                        } else if is(b"\"type\":\"error\"") {
                            self.note(1);
                        }
                        taken += size;
                    }
                    Frame::Partial => break false,
                    Frame::Broken => break true,
                }
            };
            buffer.drain(..taken);
            if taken > 0 {
                self.progress.changed.notify_one();
            }
            if ended || !matches!(reader.read_buf(&mut buffer).await, Ok(read) if read > 0) {
                break;
            }
        }
        self.lost();
    }

    /// The connection ended: what it still owes was not accepted.
    fn lost(&self) {
        let owed = self.owed.take().len() as u64;
        add(&self.tally.refused, owed);
        self.progress.changed.notify_one();
    }
}

/// The first whole response in `bytes` and its size.
fn http_response(bytes: &[u8]) -> Option<(&[u8], usize)> {
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
    fn pipelined_responses_are_told_apart() {
        let bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}HTTP/1.1 503 No\r\n\r\n";
        let (first, size) = http_response(bytes).expect("whole");
        assert!(first.ends_with(b"{}"));
        let (second, _) = http_response(&bytes[size..]).expect("whole");
        assert_eq!(second[9], b'5');
        assert!(http_response(&bytes[..size - 1]).is_none());
    }
}
