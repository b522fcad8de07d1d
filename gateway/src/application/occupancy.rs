//! Which channels have listeners on this node. A listener that is back within [`LINGER`], here or on another node,
//! makes no event, and a long poll between two requests neither. Users' own streams are left out: `user_online` says it.
//!
//! It must not know: who listens, what is done with the news.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use carillon_protocol::ChannelName;
use foldhash::HashMap;
use parking_lot::Mutex;
use tokio::time::Instant;

/// A channel is vacated when nobody listened for so long.
pub(super) const LINGER: Duration = Duration::from_secs(2);

/// See the module. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Occupancy {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    channels: HashMap<ChannelName, Audience>,
    /// Channels that were left, in order of time; some have listeners again.
    left: VecDeque<(Instant, ChannelName)>,
    occupied: Vec<ChannelName>,
}

#[derive(Debug)]
struct Audience {
    listeners: u32,
    left_at: Instant,
}

impl Occupancy {
    /// A listener came. Never waits.
    pub fn joined(&self, channel: &ChannelName) {
        if crate::dispatch::is_user_stream(channel) {
            return;
        }
        let mut state = self.state.lock();
        if let Some(audience) = state.channels.get_mut(channel) {
            audience.listeners += 1;
            return;
        }
        let audience = Audience { listeners: 1, left_at: Instant::now() };
        state.channels.insert(channel.clone(), audience);
        state.occupied.push(channel.clone());
    }

    /// A listener went. Never waits.
    pub fn left(&self, channel: &ChannelName) {
        self.left_at(channel, Instant::now());
    }

    fn left_at(&self, channel: &ChannelName, now: Instant) {
        let mut state = self.state.lock();
        let Some(audience) = state.channels.get_mut(channel) else { return };
        audience.listeners = audience.listeners.saturating_sub(1);
        if audience.listeners == 0 {
            audience.left_at = now;
            state.left.push_back((now, channel.clone()));
        }
    }

    /// Channels that have listeners since this was asked last, and those that have none for [`LINGER`].
    pub(super) fn news(&self, now: Instant) -> (Vec<ChannelName>, Vec<ChannelName>) {
        let mut state = self.state.lock();
        let occupied = std::mem::take(&mut state.occupied);
        let mut vacated = Vec::new();
        while state.left.front().is_some_and(|(at, _)| now.duration_since(*at) >= LINGER) {
            let Some((at, channel)) = state.left.pop_front() else { break };
            let over = state
                .channels
                .get(&channel)
                .is_some_and(|audience| audience.listeners == 0 && audience.left_at == at);
            if over {
                state.channels.remove(&channel);
                vacated.push(channel);
            }
        }
        (occupied, vacated)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn channel(name: &str) -> ChannelName {
        ChannelName::new(name).expect("a channel name")
    }

    #[test]
    fn a_quick_return_is_no_news() {
        let (occupancy, chat, start) = (Occupancy::default(), channel("chat"), Instant::now());
        let nothing = || (Vec::new(), Vec::new());
        occupancy.joined(&chat);
        occupancy.joined(&chat);
        assert_eq!(occupancy.news(start), (vec![chat.clone()], Vec::new()));
        occupancy.left_at(&chat, start);
        occupancy.left_at(&chat, start);
        occupancy.joined(&chat);
        assert_eq!(occupancy.news(start + LINGER), nothing());
        let again = start + LINGER;
        occupancy.left_at(&chat, again);
        assert_eq!(occupancy.news(again + LINGER / 2), nothing());
        assert_eq!(occupancy.news(again + LINGER), (Vec::new(), vec![chat.clone()]));
        occupancy.joined(&chat);
        assert_eq!(occupancy.news(again + LINGER), (vec![chat], Vec::new()));
    }

    #[test]
    fn users_own_streams_are_left_out() {
        let occupancy = Occupancy::default();
        occupancy.joined(&channel("user:ada"));
        assert_eq!(occupancy.news(Instant::now()), (Vec::new(), Vec::new()));
        occupancy.left(&channel("user:ada"));
    }
}
