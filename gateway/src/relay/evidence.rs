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

/// The newest acknowledged position of each channel.
#[derive(Debug)]
pub(super) struct Evidence {
    shards: Vec<Mutex<HashMap<ChannelName, (Position, Instant)>>>,
}

impl Default for Evidence {
    fn default() -> Self {
        Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect() }
    }
}

impl Evidence {
    /// A publication was acknowledged here.
    pub(super) fn note(&self, channel: &ChannelName, position: Position) {
        use std::hash::BuildHasher;
        let hash = foldhash::fast::FixedState::default().hash_one(channel);
        let mut shard = self.shards[hash as usize % SHARDS].lock();
        let now = Instant::now();
        if let Some(known) = shard.get_mut(channel) {
            // Answers to publishes that were under way together come in any order.
            if known.0.epoch != position.epoch || known.0.offset < position.offset {
                *known = (position, now);
            }
        } else if shard.len() < CHANNELS_MAX {
            shard.insert(channel.clone(), (position, now));
        }
    }

    /// Everything that is remembered.
    pub(super) fn all(&self) -> Vec<(ChannelName, Position)> {
        let mut all = Vec::new();
        for shard in &self.shards {
            let shard = shard.lock();
            all.extend(shard.iter().map(|(channel, (position, _))| (channel.clone(), *position)));
        }
        all
    }

    /// Forgets what is old.
    pub(super) fn forget_old(&self) {
        let now = Instant::now();
        for shard in &self.shards {
            shard.lock().retain(|_, (_, at)| now.saturating_duration_since(*at) < REMEMBERED);
        }
    }
}

#[cfg(test)]
mod tests {
    use carillon_protocol::{Epoch, Tag};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_newest_acknowledgement_is_remembered_for_a_minute() {
        let evidence = Evidence::default();
        let channel = ChannelName::new("room:one").expect("a channel name");
        let epoch = Epoch::from_random(1);
        let at = |offset| Position { epoch, offset, tag: Tag::from_random(offset) };
        evidence.note(&channel, at(2));
        evidence.note(&channel, at(1));
        assert_eq!(evidence.all(), [(channel.clone(), at(2))]);
        let reborn = Position { epoch: Epoch::from_random(2), ..at(1) };
        evidence.note(&channel, reborn);
        assert_eq!(evidence.all(), [(channel, reborn)]);
        tokio::time::advance(REMEMBERED).await;
        evidence.forget_old();
        assert_eq!(evidence.all(), []);
    }
}
