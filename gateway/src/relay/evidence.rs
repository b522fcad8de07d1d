//! What this node knows to have been acknowledged a moment ago. After an interruption it is held against history: what
//! storage acknowledged and then lost (a promoted replica, a restart from an older file) shows only there, where
//! nobody on this node may be listening. Plain state behind short locks; never awaits.

use std::time::Duration;

use carillon_protocol::{ChannelName, Position};
use foldhash::HashMap;
use parking_lot::Mutex;
use tokio::time::Instant;

/// How long an acknowledgement is remembered: longer than a replica lags, and than a failover takes to be seen.
const REMEMBERED: Duration = Duration::from_secs(60);
const SHARDS: usize = 32;
/// Channels remembered a shard. Beyond that the newest are not: a flood of channels costs evidence, not memory.
const CHANNELS_MAX: usize = 2_048;

/// Generations of the broker that a channel's evidence spans at most until somebody looks.
const GENERATIONS_MAX: usize = 4;

/// The newest acknowledged position of each channel in each generation of the broker: what took over from a
/// server has a beginning of what that server had, so the newest speaks for all before it.
#[derive(Debug)]
pub(super) struct Evidence {
    shards: Vec<Mutex<HashMap<ChannelName, Known>>>,
}

#[derive(Debug)]
struct Known {
    newest: Position,
    generation: u64,
    at: Instant,
    /// Of generations that are over.
    older: Vec<Position>,
}

impl Default for Evidence {
    fn default() -> Self {
        Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect() }
    }
}

impl Evidence {
    /// A publication was acknowledged here. `generation` is the broker's from before it was sent.
    pub(super) fn note(&self, channel: &ChannelName, newest: Position, generation: u64) {
        use std::hash::BuildHasher;
        let hash = foldhash::fast::FixedState::default().hash_one(channel);
        let mut shard = self.shards[hash as usize % SHARDS].lock();
        let at = Instant::now();
        let Some(known) = shard.get_mut(channel) else {
            if shard.len() < CHANNELS_MAX {
                let known = Known { newest, generation, at, older: Vec::new() };
                shard.insert(channel.clone(), known);
            }
            return;
        };
        let follows = known.newest.epoch != newest.epoch || known.newest.offset < newest.offset;
        if known.generation < generation {
            if known.older.len() < GENERATIONS_MAX {
                known.older.push(known.newest);
            }
            (known.newest, known.generation, known.at) = (newest, generation, at);
        } else if follows {
            // Answers to publishes that were under way together come in any order.
            (known.newest, known.at) = (newest, at);
        }
    }

    /// Everything that is remembered.
    pub(super) fn all(&self) -> Vec<(ChannelName, Position)> {
        let mut all = Vec::new();
        for shard in &self.shards {
            for (channel, known) in shard.lock().iter() {
                let positions = known.older.iter().chain([&known.newest]);
                all.extend(positions.map(|position| (channel.clone(), *position)));
            }
        }
        all
    }

    /// These were held against history: of generations that are over there is nothing left to find out.
    pub(super) fn settled(&self, held: &[(ChannelName, Position)]) {
        use std::hash::BuildHasher;
        for (channel, position) in held {
            let hash = foldhash::fast::FixedState::default().hash_one(channel);
            if let Some(known) = self.shards[hash as usize % SHARDS].lock().get_mut(channel) {
                known.older.retain(|older| older != position);
            }
        }
    }

    /// Forgets what is old.
    pub(super) fn forget_old(&self) {
        let now = Instant::now();
        for shard in &self.shards {
            shard.lock().retain(|_, known| now.saturating_duration_since(known.at) < REMEMBERED);
        }
    }
}

#[cfg(test)]
mod tests {
    use carillon_protocol::{Epoch, Tag};

    use super::*;

    fn at(epoch: u64, offset: u64) -> Position {
        Position { epoch: Epoch::from_random(epoch), offset, tag: Tag::from_random(offset) }
    }

    #[tokio::test(start_paused = true)]
    async fn the_newest_acknowledgement_is_remembered_for_a_minute() {
        let evidence = Evidence::default();
        let channel = ChannelName::new("room:one").expect("a channel name");
        evidence.note(&channel, at(1, 2), 0);
        evidence.note(&channel, at(1, 1), 0);
        assert_eq!(evidence.all(), [(channel.clone(), at(1, 2))]);
        evidence.note(&channel, at(2, 1), 0);
        assert_eq!(evidence.all(), [(channel, at(2, 1))]);
        tokio::time::advance(REMEMBERED).await;
        evidence.forget_old();
        assert_eq!(evidence.all(), []);
    }

    #[test]
    fn what_a_new_server_acknowledges_does_not_cover_what_the_old_one_did() {
        let evidence = Evidence::default();
        let channel = ChannelName::new("room:one").expect("a channel name");
        evidence.note(&channel, at(1, 5), 1);
        evidence.note(&channel, at(1, 6), 2);
        evidence.note(&channel, at(1, 7), 2);
        let all = evidence.all();
        assert_eq!(all, [(channel.clone(), at(1, 5)), (channel.clone(), at(1, 7))]);
        evidence.settled(&all);
        assert_eq!(evidence.all(), [(channel, at(1, 7))]);
    }
}
