//! Reads a connection to its end: WebSocket frames or events of a stream, in place.

use super::Subscriber;
use super::inflate::Inflater;
use super::resume::{Subscribed, subscribed};
use crate::mark::Mark;
use crate::tally::{Tally, add};
use crate::target::{Target, Transport};
use crate::websocket::{self, Frame};
use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::tcp::OwnedReadHalf;

const BUFFER_BYTES: usize = 256 * 1_024;

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; BUFFER_BYTES].into_boxed_slice());
    static INFLATER: RefCell<Inflater> = RefCell::new(Inflater::new());
    // Servers put the mark at the same place of every message.
    static HINT: Cell<usize> = const { Cell::new(0) };
}

/// A connection that is read.
pub(super) struct Reading {
    pub(super) target: Rc<Target>,
    pub(super) transport: Transport,
    pub(super) subscriber: Rc<Subscriber>,
    pub(super) tally: Rc<Tally>,
}

impl Reading {
    /// Reads until the connection ends, which is counted.
    pub(super) async fn run(self, mut reader: OwnedReadHalf, mut rest: Vec<u8>) {
        if !rest.is_empty() {
            let taken = self.consume(&rest);
            rest.drain(..taken.unwrap_or(rest.len()));
        }
        let ended = std::future::poll_fn(|context| {
            BUFFER.with_borrow_mut(|buffer| {
                loop {
                    let kept = rest.len();
                    buffer[..kept].copy_from_slice(&rest);
                    let mut into = ReadBuf::new(&mut buffer[kept..]);
                    std::task::ready!(Pin::new(&mut reader).poll_read(context, &mut into))?;
                    let filled = into.filled().len();
                    if filled == 0 {
                        return Poll::Ready(std::io::Result::Ok(()));
                    }
                    add(&self.tally.bytes, filled as u64);
                    let all = &buffer[..kept + filled];
                    let Some(taken) = self.consume(all) else {
                        return Poll::Ready(Ok(()));
                    };
                    rest.clear();
                    rest.extend_from_slice(&all[taken..]);
                    if rest.len() > BUFFER_BYTES / 2 {
                        return Poll::Ready(Ok(()));
                    }
                }
            })
        });
        let _how = ended.await;
        add(&self.tally.closed, 1);
    }

    /// Takes whole messages from `bytes`; returns how many bytes they were, or nothing when the
    /// connection is over.
    fn consume(&self, bytes: &[u8]) -> Option<usize> {
        let Self { target, transport, subscriber, tally } = self;
        let now = tally.now_ns();
        if *transport != Transport::Ws {
            return Some(consume_stream(bytes, subscriber, tally, now));
        }
        let profile = target.kind.profile();
        let mut taken = 0;
        loop {
            match websocket::parse(&bytes[taken..]) {
                Frame::Whole { opcode, payload, size, .. } => {
                    match opcode {
                        websocket::PING => {
                            let mut pong = Vec::new();
                            websocket::push_client_frame(&mut pong, websocket::PONG, payload);
                            subscriber.try_write(&pong);
                        }
                        websocket::CLOSE => return None,
                        _ if websocket::is_compressed(bytes[taken]) => {
                            INFLATER.with_borrow_mut(|inflater| {
                                let plain = inflater.inflate(payload, tally)?;
                                hear(plain, subscriber, tally, now);
                                Some(())
                            })?;
                        }
                        _ => {
                            hear(payload, subscriber, tally, now);
                            if let Some(text) = profile.answer(target, payload) {
                                subscriber.try_send(text.as_bytes());
                            }
                        }
                    }
                    taken += size;
                }
                Frame::Partial => return Some(taken),
                Frame::Broken => return None,
            }
        }
    }
}

/// Events end with an empty line; a mark never spans two, and chunk sizes between do not matter.
fn consume_stream(bytes: &[u8], subscriber: &Subscriber, tally: &Tally, now: u64) -> usize {
    let mut taken = 0;
    while let Some(end) = memchr::memmem::find(&bytes[taken..], b"\n\n") {
        hear(&bytes[taken..taken + end], subscriber, tally, now);
        taken += end + 2;
    }
    taken
}

/// Reads every mark of a message: one, or several where a server batches.
pub(super) fn hear(message: &[u8], subscriber: &Subscriber, tally: &Tally, now: u64) {
    let mut rest = message;
    let mut hint = HINT.get();
    let mut marks = 0;
    while let Some((mark, end)) = Mark::find(rest, &mut hint) {
        marks += 1;
        HINT.set(hint);
        if !subscriber.ready.replace(true) {
            add(&tally.ready, 1);
        }
        // Zero is warm-up.
        if mark.sequence > 0 {
            subscriber.ears.borrow_mut().hear(mark.channel, mark.sequence);
            tally.deliver(&mark, now);
        }
        rest = &rest[end..];
        hint = 0;
        if rest.len() < 40 {
            break;
        }
    }
    if marks == 0 {
        hear_other(message, subscriber, tally);
    } else if subscriber.resume.wanted.get() {
        subscriber.resume.note(message);
    }
}

/// What is not a measured message: answers.
fn hear_other(message: &[u8], subscriber: &Subscriber, tally: &Tally) {
    let is = |kind: &[u8]| memchr::memmem::find(message, kind).is_some();
    if let Some(how) = subscribed(message) {
        if let Some(cut_at) = subscriber.resume.cut_at.take() {
            add(if how == Subscribed::Recovered { &tally.recovered } else { &tally.fresh }, 1);
            tally.came_back(cut_at.elapsed());
        }
        return;
    }
    if is(b"\"type\":\"ack\"") {
        add(&subscriber.answered, 1);
        add(&tally.acked, 1);
    } else if is(b"\"type\":\"error\"") {
        add(&subscriber.answered, 1);
        add(&tally.refused, 1);
    } else if is(b"\"type\":\"resync\"") {
        add(&tally.resyncs, 1);
    }
}
