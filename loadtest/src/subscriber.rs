//! The mass of connections that listen: raw sockets, one shared read buffer, messages read in place.
//!
//! Owns connecting, reading, cutting and coming back. Does not publish, and does not know what server it speaks to: what
//! is said is the target's. Everything is on one thread, so the count needs no locks.

mod ears;
mod inflate;
mod poll;
mod read;
mod resume;

use crate::opening;
use crate::tally::Tally;
use crate::target::{Caller, Target, Transport};
use crate::websocket;
use anyhow::{Context as _, Result, bail};
pub(crate) use ears::Ears;
pub(crate) use poll::Ask;
use resume::Resume;
use std::cell::{Cell, RefCell};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::ops::Range;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::net::tcp::OwnedWriteHalf;
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinHandle;

/// So many connections leave from one loopback address: under the ephemeral ports a pair has.
const CONNECTIONS_PER_ADDRESS: usize = 25_000;
/// Attempts to connect before a run fails.
const ATTEMPTS_MAX: u64 = 20;
/// What asks for permessage-deflate.
const DEFLATE: &str = "Sec-WebSocket-Extensions: permessage-deflate; client_no_context_takeover; server_no_context_takeover\r\n";

/// How a connection is opened.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Opening {
    /// By what.
    pub(crate) transport: Transport,
    /// permessage-deflate is asked for, and must be agreed to.
    pub(crate) deflate: bool,
    /// Bare: without a channel in the URL.
    pub(crate) bare: bool,
}

/// One listening client, over all its connections.
pub(crate) struct Subscriber {
    /// Its number, and so its user.
    pub(crate) index: usize,
    /// The channel it listens on first of all; with `count`, those behind it.
    pub(crate) channel: u32,
    count: u32,
    /// What it heard.
    pub(crate) ears: RefCell<Ears>,
    /// Where it was, for coming back.
    pub(crate) resume: Resume,
    /// Acks and errors that answered what it sent.
    pub(crate) answered: Cell<u64>,
    ready: Cell<bool>,
    writer: RefCell<Option<OwnedWriteHalf>>,
    reading: RefCell<Option<JoinHandle<()>>>,
    tally: Rc<Tally>,
}

impl Subscriber {
    /// Not connected yet.
    pub(crate) fn new(
        index: usize,
        channels: Range<u32>,
        ears: Ears,
        tally: &Rc<Tally>,
    ) -> Rc<Self> {
        Rc::new(Self {
            index,
            channel: channels.start,
            count: channels.end - channels.start,
            ears: RefCell::new(ears),
            resume: Resume::default(),
            answered: Cell::new(0),
            ready: Cell::new(false),
            writer: RefCell::default(),
            reading: RefCell::default(),
            tally: tally.clone(),
        })
    }

    /// Connects to `target`, and again after a refusal, as a client would: a node in a storm may answer 503. The time
    /// counts from `due`.
    pub(crate) async fn connect(
        self: &Rc<Self>,
        target: &Rc<Target>,
        opening: Opening,
        due: Instant,
    ) -> Result<()> {
        if opening.transport == Transport::Poll {
            let channel = self.names(target);
            let caller = Caller { target, index: self.index, channel: Some(&channel) };
            let polls = poll::run(target.address, target.poll(caller)?, self.clone());
            self.keep(tokio::task::spawn_local(polls));
            return Ok(());
        }
        let mut attempt = 0;
        loop {
            match self.connect_once(target, opening).await {
                Err(error) if attempt < ATTEMPTS_MAX => {
                    attempt += 1;
                    self.tally.retry(&error.root_cause().to_string());
                    tokio::time::sleep(Duration::from_millis(50 * attempt)).await;
                }
                Ok(()) => {
                    self.tally.connected(due.elapsed());
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Connects, subscribes where it shall, and leaves a task that reads until the end.
    async fn connect_once(self: &Rc<Self>, target: &Rc<Target>, opening: Opening) -> Result<()> {
        let channel = if opening.bare { String::new() } else { self.names(target) };
        let caller = Caller { target, index: self.index, channel: Some(&channel) };
        let mut request = target.open(opening.transport, caller)?;
        if opening.deflate {
            websocket::add_header(&mut request, DEFLATE);
        }
        let began = Instant::now();
        let mut stream = dial(self.index, target.address).await?;
        self.tally.dial_max.set(self.tally.dial_max.get().max(began.elapsed()));
        let opened = opening::open(&mut stream, &request, opening.transport, caller).await?;
        if opening.deflate && !opened.deflate {
            bail!("the server does not compress");
        }
        let (reader, writer) = stream.into_split();
        *self.writer.borrow_mut() = Some(writer);
        // Without spare capacity: ten thousand of these are held.
        let rest = opened.rest.into_boxed_slice().into_vec();
        let reading = read::Reading {
            target: target.clone(),
            transport: opening.transport,
            subscriber: self.clone(),
            tally: self.tally.clone(),
        };
        self.keep(tokio::task::spawn_local(reading.run(reader, rest)));
        Ok(())
    }

    fn names(&self, target: &Target) -> String {
        let names = (self.channel..self.channel + self.count).map(|index| target.channel(index));
        names.collect::<Vec<_>>().join(",")
    }

    fn keep(&self, reading: JoinHandle<()>) {
        *self.reading.borrow_mut() = Some(reading);
    }

    /// Ends the connection with a reset, as a broken network would.
    pub(crate) fn cut(&self) {
        if let Some(reading) = self.reading.take() {
            reading.abort();
        }
        self.writer.take();
    }

    /// Sends a text frame, if the socket takes it at once.
    pub(crate) fn try_send(&self, text: &[u8]) -> bool {
        let mut frame = Vec::with_capacity(text.len() + 14);
        websocket::push_client_frame(&mut frame, websocket::TEXT, text);
        self.try_write(&frame)
    }

    /// Subscribes to the channel of this name, from where it was.
    pub(crate) fn subscribe(&self, channel: &str) -> bool {
        let payload = self.resume.payload();
        self.try_send(
            format!("{{\"type\":\"subscribe\",\"channel\":\"{channel}\",\"payload\":{payload}}}")
                .as_bytes(),
        )
    }

    fn try_write(&self, frame: &[u8]) -> bool {
        let writer = self.writer.borrow();
        let written = writer.as_ref().map(|writer| writer.try_write(frame));
        matches!(written, Some(Ok(written)) if written == frame.len())
    }
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
