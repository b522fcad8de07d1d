//! What waits for one socket: a queue bounded in bytes, written by whoever has something to say.
//!
//! The fan-out pushes frames and flushes without ever waiting: while nothing is queued the bytes go
//! straight to the socket; when the socket is full the rest stays here and the connection's task
//! is woken to wait for room. Everything queued goes out in one vectored write.
//! Source: `channels.md` 7, ruling R15; figures in `docs/benchmarks.md`.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use carillon_protocol::{CloseCode, Cursor, Position};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::socket::Socket;
use crate::dispatch::{Dispatch, Dress, Medium};

/// Most slices in one vectored write.
const SLICES_MAX: usize = 64;
/// Bodies up to this many bytes are copied beside their `id:` line instead of being a slice of their own.
const SSE_COPY_BYTES_MAX: usize = 4096;
/// How many notification ids a connection remembers while pending ones are sent, and after.
const TOLD_MAX: usize = 10_000;
/// How many entity event ids a connection remembers to drop twins (R14).
const TWINS_MAX: usize = 1024;

/// Where the bytes go.
#[derive(Debug)]
pub enum Wire {
    /// Straight to a socket, from any thread.
    Socket(Socket),
    /// The connection's task takes them (TLS, long poll).
    Pulled,
}

/// What became of a push.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// Queued; the first one since the last flush, so the pusher must flush.
    First,
    /// Queued behind others that will be flushed.
    Queued,
    /// There is no room: nothing was queued.
    Full,
    /// The connection is closing: nothing was queued.
    Closed,
}

/// See the module.
#[derive(Debug)]
pub struct Outbox {
    wire: Wire,
    bytes_max: usize,
    state: Mutex<State>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Item>,
    queued_bytes: usize,
    /// Bytes of the front item that are written already.
    front_written: usize,
    /// A flush is owed by whoever pushed first.
    dirty: bool,
    /// The response head is not out yet: queue, do not write.
    held: bool,
    /// The socket refused bytes: the task waits for room.
    blocked: bool,
    /// A subscription is behind and waits for room.
    behind: bool,
    /// The socket failed.
    failed: bool,
    /// Nothing will be queued any more.
    ended: bool,
    /// Who pulls, waiting for something to be queued.
    reader: Option<Waker>,
    close: Option<CloseCode>,
    sse: Option<Box<SseState>>,
    twins: Option<VecDeque<u64>>,
    told: Option<Box<Told>>,
}

/// What keeps a notification from coming both as pending and live.
#[derive(Debug, Default)]
struct Told {
    /// Ids heard live since the connection began; `None` once all that is pending was sent.
    heard: Option<Vec<u64>>,
    /// Ids sent as pending whose live message may still come.
    sent: Vec<u64>,
}

#[derive(Debug, Default)]
struct SseState {
    cursor: Cursor,
    chunked: bool,
}

#[derive(Debug)]
struct Item {
    bytes: Bytes,
    /// Hash of channel and conflation key; 0 for messages that are never replaced.
    conflate: u64,
}

/// What the connection's task should do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signals {
    /// Close with this code (a `disconnect` first where the code says so).
    pub close: Option<CloseCode>,
    /// The socket failed: end.
    pub failed: bool,
    /// Wait for the socket to become writable.
    pub blocked: bool,
    /// There is room again for a subscription that is behind.
    pub behind: bool,
}

impl Outbox {
    /// An outbox that writes to `wire` and holds at most `bytes_max` bytes (but always one message).
    #[must_use]
    pub fn new(wire: Wire, bytes_max: usize) -> Self {
        Self { wire, bytes_max, state: Mutex::default(), wake: Notify::new() }
    }

    /// Makes this an SSE outbox: events carry cursors, and HTTP/1.1 chunks where `chunked`. Nothing
    /// is written before [`Outbox::release`].
    #[must_use]
    pub fn for_sse(self, chunked: bool) -> Self {
        {
            let mut state = self.state.lock();
            state.sse = Some(Box::new(SseState { cursor: Cursor::default(), chunked }));
            state.held = true;
        }
        self
    }

    /// The response head is on the wire: write what is queued, and from now on at once.
    pub fn release(&self) {
        self.state.lock().held = false;
        self.flush();
    }

    /// Queues a publication of a channel. `conflate` is a hash of what it replaces, 0 for nothing.
    pub fn push(&self, dispatch: &Dispatch, dress: Dress, conflate: u64) -> Pushed {
        self.push_frame(dispatch, dispatch.frame(dress), dress, conflate)
    }

    /// The same for a listener whose persistent subscriptions these are; without any, the shared bytes.
    pub fn push_for(
        &self,
        dispatch: &Dispatch,
        dress: Dress,
        conflate: u64,
        subscriptions: &[Box<str>],
    ) -> Pushed {
        if subscriptions.is_empty() {
            return self.push(dispatch, dress, conflate);
        }
        self.push_frame(dispatch, &dispatch.frame_for(dress, subscriptions), dress, conflate)
    }

    fn push_frame(
        &self,
        dispatch: &Dispatch,
        frame: &Bytes,
        dress: Dress,
        conflate: u64,
    ) -> Pushed {
        let mut state = self.state.lock();
        if state.close.is_some() || state.failed {
            return Pushed::Closed;
        }
        if state.is_twin(dispatch) || state.was_told(dispatch) {
            state.advance(dispatch);
            return Pushed::Queued;
        }
        if state.queued_bytes + frame.len() > self.bytes_max && !state.queue.is_empty() {
            if conflate == 0 {
                return Pushed::Full;
            }
            state.drop_older(conflate);
        }
        state.advance(dispatch);
        state.enqueue_dressed(frame, dress, conflate);
        if std::mem::replace(&mut state.dirty, true) { Pushed::Queued } else { Pushed::First }
    }

    /// Marks that a subscription fell behind: the task is woken when there is room.
    pub fn mark_behind(&self) {
        self.state.lock().behind = true;
        self.wake.notify_one();
    }

    /// Queues a reply of the server's own. Replies are small and follow requests one by one, so
    /// they are admitted beyond the bound; a peer that never reads stops being read.
    pub fn push_own(&self, bytes: &Bytes, dress: Dress) {
        let mut state = self.state.lock();
        if state.failed {
            return;
        }
        state.enqueue_dressed(bytes, dress, 0);
    }

    /// Queues a message that belongs to no channel; `false` when there is no room.
    pub fn push_message(&self, bytes: &Bytes, dress: Dress) -> bool {
        let mut state = self.state.lock();
        let room = state.queue.is_empty() || state.queued_bytes + bytes.len() <= self.bytes_max;
        if room && state.close.is_none() && !state.failed {
            state.enqueue_dressed(bytes, dress, 0);
        }
        room
    }

    /// Queues bytes as they are (control frames, comment lines), unless the queue is over its bound.
    pub fn push_raw(&self, bytes: Bytes) {
        let mut state = self.state.lock();
        if !state.failed && state.queued_bytes <= self.bytes_max {
            state.enqueue(bytes, 0);
        }
    }

    /// Queues an SSE comment line as a chunk of its own.
    pub fn push_sse_text(&self, text: &[u8]) {
        let mut state = self.state.lock();
        if state.failed || state.queued_bytes > self.bytes_max {
            return;
        }
        let chunked = state.sse.as_ref().is_some_and(|sse| sse.chunked);
        let bytes = if chunked { chunk(text) } else { Bytes::copy_from_slice(text) };
        state.enqueue(bytes, 0);
    }

    /// Sets the position that the next SSE cursor holds for a channel.
    pub fn set_position(&self, channel: &carillon_protocol::ChannelName, position: Position) {
        if let Some(sse) = &mut self.state.lock().sse {
            sse.cursor.set(channel, position);
        }
    }

    /// Takes a channel out of the SSE cursor.
    pub fn forget_position(&self, channel: &str) {
        if let Some(sse) = &mut self.state.lock().sse {
            sse.cursor.remove(channel);
        }
    }

    /// From now on live notifications are remembered, until [`Outbox::end_pending`].
    pub fn expect_pending(&self) {
        self.state.lock().told = Some(Box::new(Told { heard: Some(Vec::new()), sent: Vec::new() }));
    }

    /// Queues a pending notification, unless it came live already; its live message, should it still
    /// come, is dropped. Admitted beyond the bound: the caller waits for room.
    pub fn push_pending(&self, id: &str, bytes: &Bytes, dress: Dress) {
        let mut state = self.state.lock();
        if state.failed {
            return;
        }
        if let Some(told) = &mut state.told {
            let id = hash(id);
            if told.heard.as_ref().is_some_and(|heard| heard.contains(&id))
                || told.sent.contains(&id)
            {
                return;
            }
            if told.sent.len() < TOLD_MAX {
                told.sent.push(id);
            }
        }
        state.enqueue_dressed(bytes, dress, 0);
    }

    /// Everything pending was sent.
    pub fn end_pending(&self) {
        let mut state = self.state.lock();
        let Some(told) = &mut state.told else { return };
        told.heard = None;
        if told.sent.is_empty() {
            state.told = None;
        }
    }

    /// Begins to remember entity events so that a twin on the other channel is dropped (R14).
    pub fn watch_twins(&self) {
        self.state.lock().twins.get_or_insert_default();
    }

    /// Writes as much as the socket takes now. Never waits.
    pub fn flush(&self) {
        let mut state = self.state.lock();
        state.dirty = false;
        if state.held {
            return;
        }
        match &self.wire {
            Wire::Pulled => {
                if !state.queue.is_empty()
                    && let Some(reader) = state.reader.take()
                {
                    reader.wake();
                }
            }
            Wire::Socket(socket) => {
                if let Some(wake) = state.write_to(socket) {
                    drop(state);
                    if wake {
                        self.wake.notify_one();
                    }
                }
            }
        }
    }

    /// For a long poll: takes everything queued.
    pub fn take(&self) -> Vec<Bytes> {
        let mut state = self.state.lock();
        state.queued_bytes = 0;
        state.dirty = false;
        state.queue.drain(..).map(|item| item.bytes).collect()
    }

    /// For a body that carries the events itself: what is queued, or wakes the body when something is;
    /// `None` ends the response.
    pub fn poll_pulled(&self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let mut state = self.state.lock();
        state.held = false;
        if state.queue.is_empty() {
            if state.failed || state.ended {
                return Poll::Ready(None);
            }
            state.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        state.dirty = false;
        state.queued_bytes = 0;
        let mut bytes = Vec::with_capacity(state.queue.iter().map(|item| item.bytes.len()).sum());
        for item in state.queue.drain(..) {
            bytes.extend_from_slice(&item.bytes);
        }
        if state.behind {
            self.wake.notify_one();
        }
        Poll::Ready(Some(bytes.into()))
    }

    /// Asks the connection's task to close. The first code wins.
    pub fn close(&self, code: CloseCode) {
        self.state.lock().close.get_or_insert(code);
        self.wake.notify_one();
    }

    /// Whether a close was asked for.
    #[must_use]
    pub fn is_closing(&self) -> bool {
        let state = self.state.lock();
        state.close.is_some() || state.failed
    }

    /// Marks the peer as gone.
    pub fn fail(&self) {
        let mut state = self.state.lock();
        state.failed = true;
        if let Some(reader) = state.reader.take() {
            reader.wake();
        }
        drop(state);
        self.wake.notify_one();
    }

    /// Waits until there may be a new signal. Cancel safe.
    pub async fn woken(&self) {
        self.wake.notified().await;
    }

    /// What the connection's task should do. Taking `behind` clears it.
    pub fn signals(&self) -> Signals {
        let mut state = self.state.lock();
        let room = state.queued_bytes <= self.bytes_max / 2;
        Signals {
            close: state.close,
            failed: state.failed,
            blocked: state.blocked,
            behind: room && std::mem::take(&mut state.behind),
        }
    }

    /// Whether the socket refused bytes and is waited for.
    #[must_use]
    pub fn signals_blocked(&self) -> bool {
        self.state.lock().blocked
    }

    /// Queues the end of an SSE response.
    pub fn push_sse_end(&self) {
        let mut state = self.state.lock();
        state.ended = true;
        if let Some(reader) = state.reader.take() {
            reader.wake();
        }
        if state.sse.as_ref().is_some_and(|sse| sse.chunked) {
            state.enqueue(Bytes::from_static(LAST_CHUNK), 0);
        }
    }

    /// Whether a page of history may be queued now.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.state.lock().queued_bytes <= self.bytes_max / 2
    }

    /// Bytes queued.
    #[must_use]
    pub fn queued_bytes(&self) -> usize {
        self.state.lock().queued_bytes
    }

    /// Gives back memory that an idle queue does not need.
    pub fn shrink(&self) {
        let mut state = self.state.lock();
        if state.queue.is_empty() && state.queue.capacity() > 0 {
            state.queue = VecDeque::new();
        }
    }
}

impl State {
    fn enqueue(&mut self, bytes: Bytes, conflate: u64) {
        self.queued_bytes += bytes.len();
        self.queue.push_back(Item { bytes, conflate });
    }

    fn enqueue_dressed(&mut self, frame: &Bytes, dress: Dress, conflate: u64) {
        if dress.medium != Medium::Sse {
            self.enqueue(frame.clone(), conflate);
            return;
        }
        let Some(sse) = &self.sse else { return };
        let mut id_line = Vec::with_capacity(96);
        if !sse.cursor.positions().is_empty() {
            id_line.extend_from_slice(b"id: ");
            sse.cursor.write(&mut id_line);
            id_line.push(b'\n');
        }
        id_line.push(b'\n');
        let chunked = sse.chunked;
        let length = frame.len() + id_line.len();
        let head = if chunked { format!("{length:x}\r\n") } else { String::new() };
        let tail: &[u8] = if chunked { b"\r\n" } else { b"" };
        if frame.len() <= SSE_COPY_BYTES_MAX {
            let mut event = Vec::with_capacity(head.len() + length + tail.len());
            event.extend_from_slice(head.as_bytes());
            event.extend_from_slice(frame);
            event.extend_from_slice(&id_line);
            event.extend_from_slice(tail);
            self.enqueue(event.into(), conflate);
        } else {
            // Conflation replaces single items, so large events of conflated channels count as one message
            // only in their parts; they are never dropped half.
            id_line.extend_from_slice(tail);
            self.enqueue(head.into(), 0);
            self.enqueue(frame.clone(), 0);
            self.enqueue(id_line.into(), 0);
        }
    }

    fn advance(&mut self, dispatch: &Dispatch) {
        if let (Some(sse), Some(position)) = (&mut self.sse, dispatch.publication.position) {
            sse.cursor.set(&dispatch.publication.channel, position);
        }
    }

    /// Whether this entity event was heard on its other channel. Remembers it if not.
    fn is_twin(&mut self, dispatch: &Dispatch) -> bool {
        let Some(twins) = &mut self.twins else { return false };
        if !dispatch.publication.kind.starts_with("entity:") {
            return false;
        }
        use std::hash::BuildHasher;
        let id = foldhash::fast::FixedState::default().hash_one(&dispatch.publication.id);
        if twins.contains(&id) {
            return true;
        }
        if twins.len() == TWINS_MAX {
            twins.pop_front();
        }
        twins.push_back(id);
        false
    }

    /// Whether this notification was sent as pending. Remembers it while pending ones are sent.
    fn was_told(&mut self, dispatch: &Dispatch) -> bool {
        let Some(told) = &mut self.told else { return false };
        if !crate::notifications::is_notification(&dispatch.publication) {
            return false;
        }
        let id = hash(dispatch.publication.id.as_str());
        if let Some(at) = told.sent.iter().position(|sent| *sent == id) {
            told.sent.swap_remove(at);
            return true;
        }
        if let Some(heard) = &mut told.heard
            && heard.len() < TOLD_MAX
        {
            heard.push(id);
        }
        false
    }

    fn drop_older(&mut self, conflate: u64) {
        // The front item may be half written; it must stay.
        let keep_front = usize::from(self.front_written > 0);
        let mut index = 0;
        let mut freed = 0;
        self.queue.retain(|item| {
            let keep = index < keep_front || item.conflate != conflate;
            index += 1;
            freed += if keep { 0 } else { item.bytes.len() };
            keep
        });
        self.queued_bytes -= freed;
    }

    /// Writes what the socket takes; `Some(true)` when the task must be woken.
    fn write_to(&mut self, socket: &Socket) -> Option<bool> {
        while !self.queue.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let mut count = 0;
            for (slice, item) in slices.iter_mut().zip(&self.queue) {
                let skip = if count == 0 { self.front_written } else { 0 };
                *slice = IoSlice::new(&item.bytes[skip..]);
                count += 1;
            }
            let written = if count == 1 {
                socket.try_write(&slices[0])
            } else {
                socket.try_write_vectored(&slices[..count])
            };
            match written {
                Ok(bytes) => self.written(bytes),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Some(!std::mem::replace(&mut self.blocked, true));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.failed = true;
                    self.queue.clear();
                    self.queued_bytes = 0;
                    return Some(true);
                }
            }
        }
        self.blocked = false;
        self.behind.then_some(true)
    }

    fn written(&mut self, bytes: usize) {
        self.queued_bytes -= bytes;
        let mut left = self.front_written + bytes;
        while let Some(front) = self.queue.front() {
            if left < front.bytes.len() {
                break;
            }
            left -= front.bytes.len();
            self.queue.pop_front();
        }
        self.front_written = left;
    }
}

fn hash(id: &str) -> u64 {
    use std::hash::BuildHasher;
    foldhash::fast::FixedState::default().hash_one(id)
}

/// An HTTP/1.1 chunk.
fn chunk(text: &[u8]) -> Bytes {
    let mut chunk = format!("{:x}\r\n", text.len()).into_bytes();
    chunk.extend_from_slice(text);
    chunk.extend_from_slice(b"\r\n");
    chunk.into()
}

/// The last chunk of a response.
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";
