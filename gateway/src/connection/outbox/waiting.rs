//! How items get into an outbox's queue and out of it: bounds are the caller's, the socket takes what it can.

use std::collections::VecDeque;
use std::io::{self, IoSlice};

use bytes::Bytes;
use carillon_protocol::codec::gzip::Sum;
use smallvec::SmallVec;

use super::State;
use super::queue::{Item, Queue};
use crate::dispatch::{Dispatch, Dress, Medium};
use crate::socket::Socket;

/// Most slices in one vectored write.
const SLICES_MAX: usize = 64;

impl State {
    pub(super) fn enqueue(&mut self, bytes: Bytes, conflate: u64) {
        self.enqueue_summed(bytes, conflate, Sum::default());
    }

    pub(super) fn enqueue_summed(&mut self, bytes: Bytes, conflate: u64, sum: Sum) {
        self.queued_bytes += bytes.len();
        self.queue.push_back(Item { bytes, conflate });
        if let Some(gzip) = self.gzip() {
            gzip.queued.push_back(sum);
        }
    }

    /// Takes everything queued.
    pub(super) fn drain(&mut self) -> Vec<Bytes> {
        self.queued_bytes = 0;
        let items: Vec<Item> = self.queue.take().collect();
        items.iter().for_each(|_| self.left());
        items.into_iter().map(|item| item.bytes).collect()
    }

    pub(super) fn enqueue_dressed(&mut self, frame: &Bytes, dress: Dress, conflate: u64) {
        if dress.medium == Medium::Sse {
            self.enqueue_event(frame, conflate);
        } else {
            self.enqueue(frame.clone(), conflate);
        }
    }

    pub(super) fn advance(&mut self, dispatch: &Dispatch) {
        if let (Some(sse), Some(position)) = (&mut self.sse, dispatch.publication.position) {
            sse.at(&dispatch.publication.channel, position);
        }
    }

    pub(super) fn drop_older(&mut self, conflate: u64) {
        // The front item may be half written; it must stay.
        let keep_front = usize::from(self.front_written > 0);
        let mut index = 0;
        let mut freed = 0;
        let sums = self.gzip().map(|gzip| std::mem::take(&mut gzip.queued)).unwrap_or_default();
        let (mut sums, mut kept) = (sums.into_iter(), VecDeque::new());
        self.queue.retain(|item| {
            let keep = index < keep_front || item.conflate != conflate;
            index += 1;
            freed += if keep { 0 } else { item.bytes.len() };
            kept.extend(sums.next().filter(|_| keep));
            keep
        });
        self.queued_bytes -= freed;
        if let Some(gzip) = self.gzip() {
            gzip.queued = kept;
        }
    }

    /// Writes what the socket takes; whether the task must be woken.
    pub(super) fn write_to(&mut self, socket: &Socket) -> bool {
        while !self.queue.is_empty() {
            let written = match self.queue.only() {
                // Mostly it stands alone, and mostly there is room.
                Some(only) if !self.blocked => socket.try_send(&only.bytes[self.front_written..]),
                _ => {
                    let mut skip = self.front_written;
                    let rest = self.queue.iter().take(SLICES_MAX);
                    let rest =
                        rest.map(|item| IoSlice::new(&item.bytes[std::mem::take(&mut skip)..]));
                    socket.try_write_vectored(&rest.collect::<SmallVec<[_; SLICES_MAX]>>())
                }
            };
            match written {
                Ok(bytes) => self.written(bytes),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return self.refused(&error),
            }
        }
        // Under TLS bytes may have left the queue and wait, encrypted, for room.
        if let Err(error) = socket.try_flush() {
            return self.refused(&error);
        }
        self.blocked = false;
        self.behind
    }

    /// The socket took no more, or is no more; as [`State::write_to`].
    fn refused(&mut self, error: &io::Error) -> bool {
        if error.kind() == io::ErrorKind::WouldBlock {
            return !std::mem::replace(&mut self.blocked, true);
        }
        self.failed = true;
        self.queue = Queue::default();
        self.queued_bytes = 0;
        true
    }

    pub(super) fn written(&mut self, bytes: usize) {
        self.queued_bytes -= bytes;
        let mut left = self.front_written + bytes;
        while let Some(front) = self.queue.front() {
            if left < front.bytes.len() {
                break;
            }
            left -= front.bytes.len();
            self.queue.pop_front();
            self.left();
        }
        self.front_written = left;
    }
}
