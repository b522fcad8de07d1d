//! How events reach one node: a bounded queue, room before a publish, and the truth about what was
//! dropped. It knows nothing of channels or history.
//!
//! Two places of the queue are kept in reserve, so that `Interrupted` and `Restored` can be queued
//! in the moment of an overflow and the node audits as soon as it has drained what was before them,
//! even if nothing is ever published again. What is dropped later in the same overflow is told by a second pair
//! once half of the queue is free, at the next event or the next beat.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::sync::mpsc::{self, OwnedPermit, Permit, error::TrySendError};
use tokio::time::{Instant, timeout_at};

use crate::{Event, Events};

/// Events that wait for one node at most.
pub(super) const EVENTS_MAX: usize = 8192;

/// Free places from which on a node that overflowed hears again; half, so that one slow node does
/// not audit for every few events.
const RECOVERY_ROOM: usize = EVENTS_MAX / 2;

/// One node's ear, as publishers see it.
pub(super) struct Ear {
    events: mpsc::Sender<Event>,
    /// Interrupted or without reserve; spares the lock on the hot path.
    troubled: AtomicBool,
    state: Mutex<State>,
}

struct State {
    interrupted: bool,
    /// Events were dropped that no queued `Restored` accounts for.
    missed: bool,
    reserve: Option<[OwnedPermit<Event>; 2]>,
}

/// A place for one event.
pub(super) enum Room<'a> {
    /// Taken just now.
    Free(Permit<'a, Event>),
    /// Awaited before.
    Kept(OwnedPermit<Event>),
    /// The node hears nothing at present.
    Deaf,
}

/// The queue is full: await [`Ear::wait_until`], then ask again.
pub(super) struct Full;

/// Places awaited by one publisher.
pub(super) type Kept = Vec<(Arc<Ear>, OwnedPermit<Event>)>;

impl Ear {
    pub(super) fn new() -> (Arc<Self>, Events) {
        let (events, heard) = mpsc::channel(EVENTS_MAX + 2);
        let reserve = places(&events);
        let state = Mutex::new(State { interrupted: false, missed: false, reserve });
        (Arc::new(Self { events, troubled: AtomicBool::new(false), state }), heard)
    }

    /// The node is gone.
    pub(super) fn is_closed(&self) -> bool {
        self.events.is_closed()
    }

    /// The node is there and not cut off.
    pub(super) fn is_listening(&self) -> bool {
        !self.is_closed() && !self.state.lock().interrupted
    }

    /// A place for one event, without waiting.
    pub(super) fn room(self: &Arc<Self>, kept: &mut Kept) -> Result<Room<'_>, Full> {
        if self.troubled.load(Ordering::Acquire) && !self.settle() {
            return Ok(Room::Deaf);
        }
        if let Some(index) = kept.iter().position(|(ear, _)| Arc::ptr_eq(ear, self)) {
            return Ok(Room::Kept(kept.swap_remove(index).1));
        }
        match self.events.try_reserve() {
            Ok(permit) => Ok(Room::Free(permit)),
            Err(TrySendError::Full(())) => Err(Full),
            Err(TrySendError::Closed(())) => Ok(Room::Deaf),
        }
    }

    /// Waits for a place and keeps it; a node that made none until `deadline` is behind from now on.
    pub(super) async fn wait_until(self: &Arc<Self>, deadline: Instant, kept: &mut Kept) {
        match timeout_at(deadline, self.events.clone().reserve_owned()).await {
            Ok(Ok(permit)) => kept.push((self.clone(), permit)),
            Ok(Err(_closed)) => {}
            Err(_elapsed) => self.announce(&mut self.state.lock()),
        }
    }

    /// Queues the event in its place; a deaf node will be told that it missed something.
    pub(super) fn deliver(&self, room: Room<'_>, event: impl FnOnce() -> Event) {
        match room {
            Room::Free(permit) => permit.send(event()),
            Room::Kept(permit) => drop(permit.send(event())),
            Room::Deaf => self.state.lock().missed = true,
        }
    }

    /// Queues the event if there is room now; a node whose queue is full is behind from now on.
    pub(super) fn deliver_or_miss(self: &Arc<Self>, event: impl FnOnce() -> Event) {
        match self.room(&mut Kept::new()) {
            Ok(room) => self.deliver(room, event),
            Err(Full) => self.announce(&mut self.state.lock()),
        }
    }

    /// Whether the node hears (again).
    pub(super) fn settle(&self) -> bool {
        if !self.troubled.load(Ordering::Acquire) {
            return true;
        }
        let mut state = self.state.lock();
        if state.interrupted || self.events.capacity() < RECOVERY_ROOM {
            return false;
        }
        if state.missed {
            let Some(pair) = places(&self.events) else { return false };
            tell_pair(pair);
            state.missed = false;
        }
        if state.reserve.is_none() {
            state.reserve = places(&self.events);
        }
        let settled = state.reserve.is_some();
        self.troubled.store(!settled, Ordering::Release);
        settled
    }

    /// From now on events are dropped.
    pub(super) fn interrupt(&self) {
        self.state.lock().interrupted = true;
        self.troubled.store(true, Ordering::Release);
    }

    /// Events flow again, and the node is told to audit.
    pub(super) fn restore(&self) {
        let mut state = self.state.lock();
        state.interrupted = false;
        self.announce(&mut state);
        drop(state);
        self.settle();
    }

    /// Queues `Interrupted` and `Restored` from the reserve; without one they follow when there is room.
    fn announce(&self, state: &mut State) {
        match state.reserve.take() {
            Some(pair) => {
                tell_pair(pair);
                state.missed = false;
            }
            None => state.missed = true,
        }
        self.troubled.store(true, Ordering::Release);
    }
}

fn places(events: &mpsc::Sender<Event>) -> Option<[OwnedPermit<Event>; 2]> {
    let first = events.clone().try_reserve_owned().ok()?;
    Some([first, events.clone().try_reserve_owned().ok()?])
}

fn tell_pair([first, second]: [OwnedPermit<Event>; 2]) {
    first.send(Event::Interrupted);
    second.send(Event::Restored);
}
