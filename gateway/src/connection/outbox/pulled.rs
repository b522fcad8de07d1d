//! An outbox whose bytes somebody takes: a long poll, a body without a socket. What is read from history anyway only nudges
//! whoever takes.

use std::task::{Context, Poll};

use bytes::Bytes;

use super::{Outbox, signal};

impl Outbox {
    /// Wakes who pulls although nothing is queued; whether the pusher must flush.
    pub fn nudge(&self) -> bool {
        let mut state = self.state.lock();
        let rare = state.rare.get_or_insert_default();
        if std::mem::replace(&mut rare.nudged, true) || state.close.is_some() || state.failed {
            return false;
        }
        !std::mem::replace(&mut state.dirty, true)
    }

    /// Whether something came since who pulls looked.
    #[must_use]
    pub fn was_nudged(&self) -> bool {
        self.state.lock().is_nudged()
    }

    /// Who pulls is about to look: only what comes from now on is worth waking for.
    pub fn looks(&self) {
        if let Some(rare) = &mut self.state.lock().rare {
            rare.nudged = false;
        }
    }

    /// For a long poll: takes everything queued.
    pub fn take(&self) -> Vec<Bytes> {
        let mut state = self.state.lock();
        state.dirty = false;
        state.drain()
    }

    /// For a body that carries the events itself: what is queued, or wakes the body when something is;
    /// `None` ends the response.
    pub fn poll_pulled(&self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let mut state = self.state.lock();
        state.held = false;
        if state.queue.is_empty() && !state.is_nudged() {
            if state.failed || state.ended {
                return Poll::Ready(None);
            }
            state.rare.get_or_insert_default().reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        state.dirty = false;
        if let Some(rare) = &mut state.rare {
            rare.nudged = false;
        }
        let bytes = state.drain().concat();
        if state.behind {
            signal(state);
        }
        Poll::Ready(Some(bytes.into()))
    }
}
