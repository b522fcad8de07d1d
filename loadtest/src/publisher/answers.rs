//! What comes back to a publisher: HTTP responses or acks, counted, timed from when the request was due.

use crate::tally::{Progress, Tally, add};
use crate::target::Target;
use crate::websocket::{self, Frame};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use tokio::io::AsyncReadExt as _;
use tokio::net::tcp::OwnedReadHalf;
use tokio::time::Instant;

/// Answers of one connection: they come in the order of what they answer.
pub(super) struct Answers {
    target: Rc<Target>,
    progress: Rc<Progress>,
    tally: Rc<Tally>,
    owed: RefCell<VecDeque<Instant>>,
    /// Pongs that the server is due, said with the next publish: one task writes.
    due: RefCell<Vec<u8>>,
}

impl Answers {
    /// Nothing is owed.
    pub(super) fn new(target: Rc<Target>, progress: Rc<Progress>, tally: Rc<Tally>) -> Self {
        Self { target, progress, tally, owed: RefCell::default(), due: RefCell::default() }
    }

    /// Frames that have to go out before the next publish.
    pub(super) fn take_due(&self) -> Vec<u8> {
        self.due.take()
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
        let profile = self.target.kind.profile();
        let mut buffer = Vec::with_capacity(65_536);
        while matches!(reader.read_buf(&mut buffer).await, Ok(read) if read > 0) {
            let mut taken = 0;
            while let Some((response, size)) = http_response(&buffer[taken..]) {
                self.note(profile.refusals(response));
                taken += size;
            }
            buffer.drain(..taken);
            if taken > 0 {
                self.progress.changed.notify_one();
            }
        }
        self.lost();
    }

    /// Reads frames to the end: some answer a publish, some want an answer themselves.
    pub(super) async fn count_frames(self: Rc<Self>, mut reader: OwnedReadHalf, rest: Vec<u8>) {
        let profile = self.target.kind.profile();
        let mut buffer = rest;
        loop {
            let mut taken = 0;
            let ended = loop {
                match websocket::parse(&buffer[taken..]) {
                    Frame::Whole { opcode, payload, size, .. } => {
                        if opcode == websocket::CLOSE {
                            break true;
                        }
                        let mut due = self.due.borrow_mut();
                        if opcode == websocket::PING {
                            websocket::push_client_frame(&mut due, websocket::PONG, payload);
                        } else if let Some(text) = profile.answer(&self.target, payload) {
                            websocket::push_client_frame(
                                &mut due,
                                websocket::TEXT,
                                text.as_bytes(),
                            );
                        } else if let Some(refused) = profile.verdict(payload) {
                            self.note(refused);
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
