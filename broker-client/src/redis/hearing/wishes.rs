//! What a link is to hear, whether or not there is a connection just now, and who waits for it to stand.
//!
//! It must not know: sockets, Redis' protocol.

use std::time::{Duration, Instant};

use bytes::Bytes;
use carillon_protocol::ChannelName;
use foldhash::{HashMap, HashMapExt};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

/// What a pub/sub channel is to us.
#[derive(Clone, Debug)]
pub(in crate::redis) enum Wish {
    Channel(ChannelName),
    Told,
}

#[derive(Default)]
struct State {
    wishes: HashMap<Bytes, Wish>,
    /// Not sent yet; `true` to hear. The last word on a channel counts.
    changes: HashMap<Bytes, bool>,
    waiters: Vec<oneshot::Sender<()>>,
    connected: bool,
    /// Somebody wished without being told that it stands: `Restored` is owed.
    owes_audit: bool,
    heard_at: Option<Instant>,
}

/// The wishes of a link.
pub(in crate::redis) struct Hearing {
    state: Mutex<State>,
    pub(super) changed: Notify,
}

impl Hearing {
    pub(in crate::redis) fn new() -> Self {
        Self { state: Mutex::default(), changed: Notify::new() }
    }

    /// Adds wishes; completes when they stand. `None` while disconnected: the wishes are kept, and
    /// `Restored` follows.
    pub(in crate::redis) fn wish(
        &self,
        wishes: Vec<(Bytes, Wish)>,
    ) -> Option<oneshot::Receiver<()>> {
        let mut state = self.state.lock();
        let connected = state.connected;
        for (key, wish) in wishes {
            if connected {
                state.changes.insert(key.clone(), true);
            }
            state.wishes.insert(key, wish);
        }
        if !connected {
            state.owes_audit = true;
            return None;
        }
        let (done, stands) = oneshot::channel();
        state.waiters.push(done);
        drop(state);
        self.changed.notify_one();
        Some(stands)
    }

    /// Takes wishes over that another link had. Nobody waits for them; when channels are among them,
    /// `Restored` follows.
    pub(in crate::redis) fn adopt(&self, wishes: Vec<(Bytes, Wish)>) {
        if wishes.iter().any(|(_, wish)| matches!(wish, Wish::Channel(_))) {
            drop(self.wish(wishes));
            return;
        }
        let mut state = self.state.lock();
        for (key, wish) in wishes {
            if state.connected {
                state.changes.insert(key.clone(), true);
            }
            state.wishes.insert(key, wish);
        }
        drop(state);
        self.changed.notify_one();
    }

    /// A wish without anybody who must be told, for the link's whole life. The link's task runs by then and may have
    /// connected already.
    pub(in crate::redis) fn always(&self, key: Bytes, wish: Wish) {
        self.adopt(vec![(key, wish)]);
    }

    /// Drops wishes. What still arrives of them is not delivered.
    pub(in crate::redis) fn forget(&self, keys: impl Iterator<Item = Bytes>) {
        let mut state = self.state.lock();
        for key in keys {
            if state.wishes.remove(&key).is_some() && state.connected {
                state.changes.insert(key, false);
            }
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Gives away the wishes that do not belong here any more. The server forgot them itself when it
    /// gave the slot away.
    pub(in crate::redis) fn give_away(
        &self,
        mut stays: impl FnMut(&[u8]) -> bool,
    ) -> Vec<(Bytes, Wish)> {
        let mut state = self.state.lock();
        let given: Vec<_> = state.wishes.extract_if(|key, _| !stays(key)).collect();
        for (key, _) in &given {
            state.changes.remove(key);
        }
        given
    }

    /// How long ago the canary was heard.
    pub(in crate::redis) fn canary_age(&self) -> Option<Duration> {
        self.state.lock().heard_at.map(|at| at.elapsed())
    }

    pub(super) fn wish_of(&self, key: &[u8]) -> Option<Wish> {
        self.state.lock().wishes.get(key).cloned()
    }

    /// What changed since it was last asked, and who waits for that to stand.
    pub(super) fn take_changes(&self) -> (HashMap<Bytes, bool>, Vec<oneshot::Sender<()>>) {
        let mut state = self.state.lock();
        (std::mem::take(&mut state.changes), std::mem::take(&mut state.waiters))
    }

    /// The canary was heard.
    pub(super) fn canary_heard(&self) {
        self.state.lock().heard_at = Some(Instant::now());
    }

    /// A connection begins: what it must ask for, and whether `Restored` is owed then.
    pub(super) fn begin(&self) -> (Vec<Bytes>, bool) {
        let mut state = self.state.lock();
        state.connected = true;
        state.changes.clear();
        (state.wishes.keys().cloned().collect(), std::mem::take(&mut state.owes_audit))
    }

    /// The connection ended.
    pub(super) fn end(&self, owes_audit: bool) {
        let mut state = self.state.lock();
        state.connected = false;
        state.changes = HashMap::new();
        state.owes_audit |= owes_audit || !state.waiters.is_empty();
        // Dropping them tells the callers.
        state.waiters.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_always_heard_is_asked_for_also_when_the_connection_was_quicker() {
        let (early, late) = (Bytes::from_static(b"early"), Bytes::from_static(b"late"));
        let hearing = Hearing::new();
        hearing.always(early.clone(), Wish::Told);
        let (begun_with, audit) = hearing.begin();
        assert_eq!((begun_with, audit), (vec![early], false));
        hearing.always(late.clone(), Wish::Told);
        assert_eq!(hearing.state.lock().changes.get(&late), Some(&true));
        assert!(hearing.wish_of(&late).is_some());
    }
}
