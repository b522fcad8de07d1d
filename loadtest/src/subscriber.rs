//! The mass of connections that listen: raw sockets, one shared read buffer, frames read in place.
//!
//! Owns connecting and reading. Does not publish, and does not know what server it speaks to: what is
//! said is the target's. Everything is on one thread, so the count needs no locks.

use crate::mark::Mark;
use crate::opening;
use crate::tally::{Order, Tally, add};
use crate::target::{Caller, Target, Transport};
use crate::websocket::{self, Frame};
use anyhow::{Context as _, Result};
use std::cell::{Cell, RefCell};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::pin::Pin;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpSocket, TcpStream};

/// So many connections leave from one loopback address: under the ephemeral ports a pair has.
const CONNECTIONS_PER_ADDRESS: usize = 25_000;
const BUFFER_BYTES: usize = 256 * 1_024;

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; BUFFER_BYTES].into_boxed_slice());
    // Servers put the mark at the same place of every message.
    static HINT: Cell<usize> = const { Cell::new(0) };
}

/// What is known of one listening connection.
pub(crate) struct Subscriber {
    /// The channel it listens on.
    pub(crate) channel: u32,
    /// What it heard there.
    pub(crate) order: RefCell<Order>,
    target: Rc<Target>,
    ready: Cell<bool>,
    writer: OwnedWriteHalf,
}

impl Subscriber {
    /// Sends a text frame, if the socket takes it at once.
    pub(crate) fn try_send(&self, text: &[u8]) -> bool {
        let mut frame = Vec::with_capacity(text.len() + 14);
        websocket::push_client_frame(&mut frame, websocket::TEXT, text);
        matches!(self.writer.try_write(&frame), Ok(written) if written == frame.len())
    }
}

/// As [`connect_once`], again after a refusal, as a client would: a node in a storm may answer 503.
pub(crate) async fn connect(
    index: usize,
    target: &Rc<Target>,
    transport: Transport,
    channel: u32,
    tally: &Rc<Tally>,
) -> Result<Rc<Subscriber>> {
    const ATTEMPTS_MAX: u64 = 20;
    let mut attempt = 0;
    loop {
        let began = Instant::now();
        match connect_once(index, target, transport, channel, tally).await {
            Err(error) if attempt < ATTEMPTS_MAX => {
                attempt += 1;
                tally.retry(&error.root_cause().to_string());
                tokio::time::sleep(Duration::from_millis(50 * attempt)).await;
            }
            Ok(subscriber) => {
                tally.connected(began.elapsed());
                return Ok(subscriber);
            }
            Err(error) => return Err(error),
        }
    }
}

/// Connects, subscribes to the channel of that number, and leaves a task that reads until the end.
async fn connect_once(
    index: usize,
    target: &Rc<Target>,
    transport: Transport,
    channel: u32,
    tally: &Rc<Tally>,
) -> Result<Rc<Subscriber>> {
    let began = Instant::now();
    let mut stream = dial(index, target.address).await?;
    tally.dial_max.set(tally.dial_max.get().max(began.elapsed()));
    let name = target.channel(channel);
    let caller = Caller { target, index, channel: Some(&name) };
    let request = target.open(transport, caller)?;
    let rest = opening::open(&mut stream, &request, transport, caller).await?;
    let (reader, writer) = stream.into_split();
    let subscriber = Rc::new(Subscriber {
        channel,
        order: RefCell::default(),
        target: Rc::clone(target),
        ready: Cell::new(false),
        writer,
    });
    // Without spare capacity: ten thousand of these are held.
    let rest = rest.into_boxed_slice().into_vec();
    tokio::task::spawn_local(read(reader, rest, transport, subscriber.clone(), tally.clone()));
    Ok(subscriber)
}

async fn dial(index: usize, address: SocketAddr) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    // Choosing the address costs a search for a free port, milliseconds once many were used: only
    // where one address has not ports enough.
    let others = index / CONNECTIONS_PER_ADDRESS;
    if address.ip().is_loopback() && others > 0 {
        let from = SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 1 + others as u8), 0);
        socket.bind(from.into()).context("source address")?;
    }
    // A reset at the end: thousands of ports in TIME_WAIT would slow the next run.
    socket.set_zero_linger()?;
    let stream = socket.connect(address).await.context("connect")?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn read(
    mut reader: OwnedReadHalf,
    mut rest: Vec<u8>,
    transport: Transport,
    subscriber: Rc<Subscriber>,
    tally: Rc<Tally>,
) {
    if !rest.is_empty() {
        let taken = consume(&rest, transport, &subscriber, &tally);
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
                    return std::task::Poll::Ready(std::io::Result::Ok(()));
                }
                add(&tally.bytes, filled as u64);
                let all = &buffer[..kept + filled];
                let Some(taken) = consume(all, transport, &subscriber, &tally) else {
                    return std::task::Poll::Ready(Ok(()));
                };
                rest.clear();
                rest.extend_from_slice(&all[taken..]);
                if rest.len() > BUFFER_BYTES / 2 {
                    return std::task::Poll::Ready(Ok(()));
                }
            }
        })
    });
    let _how = ended.await;
    add(&tally.closed, 1);
}

/// Takes whole messages from `bytes`; returns how many bytes they were, or nothing when the
/// connection is over.
fn consume(
    bytes: &[u8],
    transport: Transport,
    subscriber: &Subscriber,
    tally: &Tally,
) -> Option<usize> {
    let now = tally.now_ns();
    match transport {
        Transport::Sse => Some(consume_stream(bytes, subscriber, tally, now)),
        Transport::Ws => {
            let profile = subscriber.target.kind.profile();
            let mut taken = 0;
            loop {
                match websocket::parse(&bytes[taken..]) {
                    Frame::Whole { opcode, payload, size, .. } => {
                        match opcode {
                            websocket::PING => {
                                let mut pong = Vec::new();
                                websocket::push_client_frame(&mut pong, websocket::PONG, payload);
                                let _full = subscriber.writer.try_write(&pong);
                            }
                            websocket::CLOSE => return None,
                            _ => {
                                hear(payload, subscriber, tally, now);
                                if let Some(text) = profile.answer(&subscriber.target, payload) {
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

/// Reads every mark of a frame: one, or several where a server batches.
fn hear(mut payload: &[u8], subscriber: &Subscriber, tally: &Tally, now: u64) {
    let mut hint = HINT.get();
    while let Some((mark, end)) = Mark::find(payload, &mut hint) {
        HINT.set(hint);
        if !subscriber.ready.replace(true) {
            add(&tally.ready, 1);
        }
        // Zero is warm-up. Another channel's mark would be a wrong delivery: count it as a double.
        if mark.sequence > 0 {
            let sequence = if mark.channel == subscriber.channel { mark.sequence } else { 1 };
            subscriber.order.borrow_mut().hear(sequence);
            tally.deliver(&mark, now);
        }
        payload = &payload[end..];
        hint = 0;
        if payload.len() < 40 {
            break;
        }
    }
}
