//! What waits for one socket: a queue bounded in bytes, written by whoever has something to say.
//!
//! The fan-out pushes frames and flushes without ever waiting: while nothing is queued the bytes go
//! straight to the socket; when the socket is full the rest stays here and the connection's task
//! is woken to wait for room. Everything queued goes out in one vectored write.
//! Source: `channels.md` 7, ruling R15; figures in `docs/benchmarks.md`.

mod burst;
mod event_stream;
mod pulled;
mod queue;
#[cfg(test)]
mod tests;
mod twice;
mod waiting;

use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use carillon_protocol::codec::gzip::Sum;
use carillon_protocol::{CloseCode, Position};
use event_stream::EventStream;
use parking_lot::{Mutex, MutexGuard};
use queue::Queue;
use twice::Rare;

use crate::dispatch::{Dispatch, Dress};
use crate::socket::Socket;

/// Where the bytes go.
#[derive(Debug)]
pub enum Wire {
    /// Straight to a socket, from any thread.
    Socket(Arc<Socket>),
    /// Somebody takes them (long poll, a body without a socket).
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
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    bytes_max: usize,
    queue: Queue,
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
    /// There is a new signal that the connection's task has not seen.
    signalled: bool,
    /// The connection's task, waiting for a signal.
    task: Option<Waker>,
    close: Option<CloseCode>,
    sse: Option<Box<EventStream>>,
    rare: Option<Box<Rare>>,
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
        let state = State { bytes_max, ..State::default() };
        Self { wire, state: Mutex::new(state) }
    }

    /// Changes how many bytes it holds; what is queued stays.
    pub fn bound(&self, bytes_max: usize) {
        self.state.lock().bytes_max = bytes_max;
    }

    /// Makes this an SSE outbox: events carry cursors, HTTP/1.1 chunks where `chunked`, and are part of a
    /// gzip stream where there is a sum of what opened it; held.
    #[must_use]
    pub fn for_sse(self, chunked: bool, gzip: Option<Sum>) -> Self {
        self.state.lock().sse = Some(Box::new(EventStream::new(chunked, gzip)));
        self.held()
    }

    /// Nothing is written before [`Outbox::release`]: somebody else still writes the response's head.
    #[must_use]
    pub fn held(self) -> Self {
        self.state.lock().held = true;
        self
    }

    /// The response head is on the wire: write what is queued, and from now on at once.
    pub fn release(&self) {
        self.state.lock().held = false;
        self.flush();
        // Whoever waits for room has waited for this.
        signal(self.state.lock());
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
        if state.is_twin(&dispatch.publication) || state.was_told(dispatch) {
            state.advance(dispatch);
            return Pushed::Queued;
        }
        if state.queued_bytes + frame.len() > state.bytes_max && !state.queue.is_empty() {
            if conflate == 0 {
                return Pushed::Full;
            }
            state.drop_older(conflate);
            // Many keys, each with its newest message, are too much too.
            if state.queued_bytes + frame.len() > state.bytes_max && !state.queue.is_empty() {
                return Pushed::Full;
            }
        }
        state.advance(dispatch);
        state.enqueue_dressed(frame, dress, conflate);
        if std::mem::replace(&mut state.dirty, true) { Pushed::Queued } else { Pushed::First }
    }

    /// Marks that a subscription fell behind: the task is woken when there is room.
    pub fn mark_behind(&self) {
        let mut state = self.state.lock();
        state.behind = true;
        signal(state);
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
        let room = state.queue.is_empty() || state.queued_bytes + bytes.len() <= state.bytes_max;
        if room && state.close.is_none() && !state.failed {
            state.enqueue_dressed(bytes, dress, 0);
        }
        room
    }

    /// Queues bytes as they are (control frames, comment lines), unless the queue is over its bound.
    pub fn push_raw(&self, bytes: Bytes) {
        let mut state = self.state.lock();
        if !state.failed && state.queued_bytes <= state.bytes_max {
            state.enqueue(bytes, 0);
        }
    }

    /// Queues the last bytes of all, whatever waits before them.
    pub fn push_last(&self, bytes: Bytes) {
        let mut state = self.state.lock();
        if !state.failed {
            state.enqueue(bytes, 0);
        }
    }

    /// Queues an SSE comment line as a chunk of its own.
    pub fn push_sse_text(&self, text: &[u8]) {
        let mut state = self.state.lock();
        if state.failed || state.queued_bytes > state.bytes_max {
            return;
        }
        state.enqueue_text(text);
    }

    /// Sets the position that the next SSE cursor holds for a channel.
    pub fn set_position(&self, channel: &carillon_protocol::ChannelName, position: Position) {
        if let Some(sse) = &mut self.state.lock().sse {
            sse.at(channel, position);
        }
    }

    /// Takes a channel out of the SSE cursor.
    pub fn forget_position(&self, channel: &str) {
        if let Some(sse) = &mut self.state.lock().sse {
            sse.cursor.remove(channel);
        }
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
                if (!state.queue.is_empty() || state.is_nudged())
                    && let Some(reader) = state.take_reader()
                {
                    reader.wake();
                }
            }
            Wire::Socket(socket) => {
                if state.write_to(socket) {
                    signal(state);
                }
            }
        }
    }

    /// Asks the connection's task to close. The first code wins.
    pub fn close(&self, code: CloseCode) {
        let mut state = self.state.lock();
        state.close.get_or_insert(code);
        signal(state);
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
        if let Some(reader) = state.take_reader() {
            reader.wake();
        }
        signal(state);
    }

    /// Waits until there may be a new signal. Cancel safe; for one task at a time.
    pub async fn woken(&self) {
        std::future::poll_fn(|cx| self.poll_woken(cx)).await;
    }

    /// The same for a task that waits for several things in one poll.
    pub fn poll_woken(&self, cx: &Context<'_>) -> Poll<()> {
        let mut state = self.state.lock();
        if std::mem::take(&mut state.signalled) {
            return Poll::Ready(());
        }
        if state.task.as_ref().is_none_or(|task| !task.will_wake(cx.waker())) {
            state.task = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// What the connection's task should do. Taking `behind` clears it.
    pub fn signals(&self) -> Signals {
        let mut state = self.state.lock();
        let room = state.queued_bytes <= state.bytes_max / 2;
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
        if let Some(reader) = state.take_reader() {
            reader.wake();
        }
        state.enqueue_end();
    }

    /// Whether a page of history may be queued now.
    #[must_use]
    pub fn has_room(&self) -> bool {
        let state = self.state.lock();
        state.queued_bytes <= state.bytes_max / 2
    }

    /// Bytes queued.
    #[must_use]
    pub fn queued_bytes(&self) -> usize {
        self.state.lock().queued_bytes
    }
}

/// Wakes the connection's task, after the lock is released.
fn signal(mut state: MutexGuard<'_, State>) {
    state.signalled = true;
    let task = state.task.take();
    drop(state);
    if let Some(task) = task {
        task.wake();
    }
}
