//! What keeps a message from coming to a connection twice: entity events on two of its channels (R14), notifications both
//! as pending and live. Few connections have any of it.
//!
//! It must not know: sockets.

use std::collections::VecDeque;
use std::task::Waker;

use bytes::Bytes;
use carillon_protocol::Publication;

use super::{Outbox, State};
use crate::dispatch::{Dispatch, Dress};

/// How many notification ids a connection remembers while pending ones are sent, and after.
const TOLD_MAX: usize = 10_000;
/// How many entity event ids a connection remembers to drop twins (R14).
const TWINS_MAX: usize = 1024;

/// What only some connections need.
#[derive(Debug, Default)]
pub(super) struct Rare {
    /// Who pulls, waiting for something to be queued.
    pub(super) reader: Option<Waker>,
    /// There is something to look at that is not queued here.
    pub(super) nudged: bool,
    /// Entity events, newest last, once a connection listens to both of their channels.
    pub(super) twins: Option<VecDeque<u64>>,
    pub(super) told: Option<Told>,
}

/// What keeps a notification from coming both as pending and live.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// Ids heard live since the connection began; `None` once all that is pending was sent.
    pub(super) heard: Option<Vec<u64>>,
    /// Ids sent as pending whose live message may still come.
    pub(super) sent: Vec<u64>,
}

impl State {
    fn told(&mut self) -> Option<&mut Told> {
        self.rare.as_mut()?.told.as_mut()
    }

    pub(super) fn take_reader(&mut self) -> Option<Waker> {
        self.rare.as_mut()?.reader.take()
    }

    pub(super) fn is_nudged(&self) -> bool {
        self.rare.as_ref().is_some_and(|rare| rare.nudged)
    }

    fn forget_told(&mut self) {
        if let Some(rare) = &mut self.rare {
            rare.told = None;
            if rare.twins.is_none() && rare.reader.is_none() && !rare.nudged {
                self.rare = None;
            }
        }
    }

    /// Whether this entity event was heard on its other channel. Remembers it if not.
    pub(super) fn is_twin(&mut self, publication: &Publication) -> bool {
        let Some(twins) = self.rare.as_mut().and_then(|rare| rare.twins.as_mut()) else {
            return false;
        };
        if !publication.kind.starts_with("entity:") {
            return false;
        }
        use std::hash::BuildHasher;
        let id = foldhash::fast::FixedState::default().hash_one(&publication.id);
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
    pub(super) fn was_told(&mut self, dispatch: &Dispatch) -> bool {
        let Some(told) = self.told() else { return false };
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
}

impl Outbox {
    /// From now on live notifications are remembered, until [`Outbox::end_pending`].
    pub fn expect_pending(&self) {
        let told = Told { heard: Some(Vec::new()), sent: Vec::new() };
        self.state.lock().rare.get_or_insert_default().told = Some(told);
    }

    /// Queues a pending notification, unless it came live already; its live message, should it still
    /// come, is dropped. Admitted beyond the bound: the caller waits for room.
    pub fn push_pending(&self, id: &str, bytes: &Bytes, dress: Dress) {
        let mut state = self.state.lock();
        if state.failed {
            return;
        }
        if let Some(told) = state.told() {
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
        let Some(told) = state.told() else { return };
        told.heard = None;
        if told.sent.is_empty() {
            state.forget_told();
        }
    }

    /// Remembers an entity event that the client has from an earlier connection.
    pub fn remember_twin(&self, publication: &Publication) {
        self.state.lock().is_twin(publication);
    }

    /// Begins to remember entity events so that a twin on the other channel is dropped (R14).
    pub fn watch_twins(&self) {
        self.state.lock().rare.get_or_insert_default().twins.get_or_insert_default();
    }
}

fn hash(id: &str) -> u64 {
    use std::hash::BuildHasher;
    foldhash::fast::FixedState::default().hash_one(id)
}
