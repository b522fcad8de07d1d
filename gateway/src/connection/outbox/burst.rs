//! Flushing many outboxes: where one frame waits for a plain socket, as it mostly does in a fan-out, all of them leave by one
//! system call.
//!
//! Several locks are held meanwhile, so none is waited for: an outbox that somebody else is at is flushed afterwards, alone.

use std::sync::Arc;

use parking_lot::MutexGuard;
use smallvec::SmallVec;

use super::{Outbox, State, Wire, signal};
use crate::socket::{Socket, burst};

/// Fewer cost as much together as alone.
const WORTH_IT: usize = 4;

type Ready<'a> = (MutexGuard<'a, State>, &'a Arc<Socket>);

impl Outbox {
    /// [`Outbox::flush`] for many, in any order; one may be there twice.
    pub fn flush_all(outboxes: &[&Self]) {
        if outboxes.len() < WORTH_IT || !burst::is_possible() {
            outboxes.iter().for_each(|outbox| outbox.flush());
            return;
        }
        for outboxes in outboxes.chunks(burst::BURST_MAX) {
            let mut ready: SmallVec<[Ready<'_>; burst::BURST_MAX]> = SmallVec::new();
            let mut alone: SmallVec<[&Self; burst::BURST_MAX]> = SmallVec::new();
            for outbox in outboxes {
                match outbox.ready_for_burst() {
                    Some(one) => ready.push(one),
                    None => alone.push(outbox),
                }
            }
            let taken = {
                let frames: SmallVec<[(&Socket, &[u8]); burst::BURST_MAX]> =
                    ready.iter().map(|(state, socket)| (&***socket, state.front_rest())).collect();
                burst::send_all(&frames)
            };
            for ((mut state, socket), taken) in ready.into_iter().zip(taken) {
                if taken > 0 {
                    state.written(taken);
                }
                // What it did not take is tried as ever, which also says why.
                if state.write_to(socket) {
                    signal(state);
                }
            }
            alone.into_iter().for_each(Self::flush);
        }
    }

    fn ready_for_burst(&self) -> Option<Ready<'_>> {
        let Wire::Socket(socket) = &self.wire else { return None };
        if !matches!(**socket, Socket::Plain(_)) {
            return None;
        }
        let mut state = self.state.try_lock()?;
        if state.held || state.blocked || state.queue.only().is_none() {
            return None;
        }
        state.dirty = false;
        Some((state, socket))
    }
}

impl State {
    /// What of the front item is still to be written.
    fn front_rest(&self) -> &[u8] {
        self.queue.front().map_or(&[], |front| &front.bytes[self.front_written..])
    }
}

#[cfg(test)]
mod tests;
