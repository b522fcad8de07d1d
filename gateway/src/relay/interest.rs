//! The table of channels that the node hears: how many listen, and the last position handed over.
//! Plain state behind short locks; never awaits.

use std::time::Duration;

use carillon_broker_client::BrokerError;
use carillon_protocol::{ChannelName, Position, Publication};
use foldhash::HashMap;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::ChannelTraits;

const SHARDS: usize = 32;

pub(super) type Opened = oneshot::Receiver<Result<(), BrokerError>>;

/// What a join found.
pub(super) enum Wanted {
    /// The channel is heard already.
    Open,
    /// Somebody asked already.
    Wait(Opened),
    /// The caller must ask.
    Request(Opened),
}

/// What to do with a publication.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admitted {
    Deliver,
    Drop,
    Repair,
}

/// What repairing found when it tried to advance.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Advance {
    /// The channel is whole again.
    Whole,
    /// Newer publications were heard meanwhile: read on.
    Again,
}

#[derive(Debug)]
struct Entry {
    listeners: u32,
    /// A listener stays although the broker is away: tell `resync` when it is back.
    told_unavailable: bool,
    history_age: Option<Duration>,
    phase: Phase,
    position: Option<Position>,
    waiting: Option<Box<Waiting>>,
}

/// What only a channel has that opens, or that nobody listens to. Boxed: a node has as many channels as users.
#[derive(Debug, Default)]
struct Waiting {
    idle_since: Option<Instant>,
    waiters: Vec<oneshot::Sender<Result<(), BrokerError>>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Not heard yet, or not any more. What was heard while it opens may be newer than the top that is read.
    Closed { heard_offset: u64 },
    /// Heard, order guarded.
    Open,
    /// A gap is being read; what is heard meanwhile is dropped, since history holds it.
    Repairing { heard_offset: u64 },
}

const CLOSED: Phase = Phase::Closed { heard_offset: 0 };

/// Boxed: as many entries as there are users, in tables that are half empty.
type Table = HashMap<ChannelName, Box<Entry>>;

#[derive(Debug)]
pub(super) struct Interest {
    shards: Vec<Mutex<Table>>,
}

impl Default for Interest {
    fn default() -> Self {
        Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect() }
    }
}

impl Interest {
    fn shard(&self, channel: &ChannelName) -> &Mutex<Table> {
        use std::hash::BuildHasher;
        &self.shards[foldhash::fast::FixedState::default().hash_one(channel) as usize % SHARDS]
    }

    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }

    pub(super) fn join(&self, channel: &ChannelName, traits: ChannelTraits) -> Wanted {
        let mut shard = self.shard(channel).lock();
        let mut new = false;
        let entry = shard.entry(channel.clone()).or_insert_with(|| {
            new = true;
            Box::new(Entry {
                listeners: 0,
                history_age: traits.history_age,
                phase: CLOSED,
                position: None,
                waiting: None,
                told_unavailable: false,
            })
        });
        entry.listeners += 1;
        if let Some(waiting) = &mut entry.waiting {
            waiting.idle_since = None;
        }
        if !matches!(entry.phase, Phase::Closed { .. }) {
            entry.waiting = None;
            return Wanted::Open;
        }
        let (sender, receiver) = oneshot::channel();
        let waiters = &mut entry.waiting.get_or_insert_default().waiters;
        let first = waiters.is_empty();
        waiters.push(sender);
        if new || first { Wanted::Request(receiver) } else { Wanted::Wait(receiver) }
    }

    pub(super) fn leave(&self, channel: &ChannelName) {
        let mut shard = self.shard(channel).lock();
        if let Some(entry) = shard.get_mut(channel) {
            entry.listeners = entry.listeners.saturating_sub(1);
            if entry.listeners == 0 {
                entry.waiting.get_or_insert_default().idle_since = Some(Instant::now());
                // Who was told went away with it; a later listener begins with its own look at history.
                entry.told_unavailable = false;
            }
        }
    }

    pub(super) fn position(&self, channel: &ChannelName) -> Option<Position> {
        self.shard(channel).lock().get(channel)?.position
    }

    pub(super) fn is_open(&self, channel: &ChannelName) -> bool {
        let shard = self.shard(channel).lock();
        shard.get(channel).is_some_and(|entry| !matches!(entry.phase, Phase::Closed { .. }))
    }

    pub(super) fn history_age(&self, channel: &ChannelName) -> Option<Duration> {
        self.shard(channel).lock().get(channel)?.history_age
    }

    /// Judges a publication by offset and predecessor's tag, and advances when it is the next one.
    pub(super) fn admit(&self, publication: &Publication) -> Admitted {
        let mut shard = self.shard(&publication.channel).lock();
        let Some(entry) = shard.get_mut(&publication.channel) else { return Admitted::Drop };
        let Some(here) = publication.position else {
            let closed = matches!(entry.phase, Phase::Closed { .. });
            return if closed { Admitted::Drop } else { Admitted::Deliver };
        };
        match (&mut entry.phase, entry.position) {
            // Not open: the top that is being read holds it, or a repair will be due.
            (Phase::Closed { heard_offset } | Phase::Repairing { heard_offset }, _) => {
                *heard_offset = (*heard_offset).max(here.offset);
                Admitted::Drop
            }
            (phase @ Phase::Open, Some(last)) => {
                let same_epoch = here.epoch == last.epoch;
                if same_epoch
                    && here.offset == last.offset + 1
                    && publication.previous_tag == Some(last.tag)
                {
                    entry.position = Some(here);
                    return Admitted::Deliver;
                }
                // Heard again, or before the top that was read at opening. An equal offset with another tag
                // is a fork, as is a lower one of another epoch.
                if same_epoch && (here.offset < last.offset || here == last) {
                    return Admitted::Drop;
                }
                *phase = Phase::Repairing { heard_offset: here.offset };
                Admitted::Repair
            }
            // The namespace had no history when the channel was opened.
            (Phase::Open, None) => Admitted::Deliver,
        }
    }

    /// A repair could not be asked for; let the next publication ask again.
    pub(super) fn forget_repair(&self, channel: &ChannelName) {
        if let Some(entry) = self.shard(channel).lock().get_mut(channel)
            && matches!(entry.phase, Phase::Repairing { .. })
        {
            entry.phase = Phase::Open;
        }
    }

    /// One channel must be looked at before it goes on. `false` when it is not heard, or being looked at.
    pub(super) fn doubt(&self, channel: &ChannelName) -> bool {
        let mut shard = self.shard(channel).lock();
        let open = shard
            .get_mut(channel)
            .filter(|entry| entry.phase == Phase::Open && entry.position.is_some());
        let Some(entry) = open else { return false };
        entry.phase = Phase::Repairing { heard_offset: 0 };
        true
    }

    /// Deliveries may be missing: every channel with history must be looked at before it goes on.
    pub(super) fn mark_interrupted(&self) {
        for shard in &self.shards {
            for entry in shard.lock().values_mut() {
                if entry.phase == Phase::Open && entry.position.is_some() {
                    entry.phase = Phase::Repairing { heard_offset: 0 };
                }
            }
        }
    }

    /// Channels with history and the position that each was left at; they are repairing from now on.
    pub(super) fn begin_audit(&self) -> Vec<(ChannelName, Position)> {
        let mut affected = Vec::new();
        for shard in &self.shards {
            for (channel, entry) in shard.lock().iter_mut() {
                if let (Phase::Open | Phase::Repairing { .. }, Some(position)) =
                    (entry.phase, entry.position)
                {
                    if entry.phase == Phase::Open {
                        entry.phase = Phase::Repairing { heard_offset: 0 };
                    }
                    affected.push((channel.clone(), position));
                }
            }
        }
        affected
    }

    /// Channels that are repairing: the tick asks for them again, in case a read failed.
    pub(super) fn damaged(&self) -> Vec<ChannelName> {
        let mut damaged = Vec::new();
        for shard in &self.shards {
            for (channel, entry) in shard.lock().iter() {
                if matches!(entry.phase, Phase::Repairing { .. }) {
                    damaged.push(channel.clone());
                }
            }
        }
        damaged
    }

    /// Position of a channel under repair.
    pub(super) fn repairing_from(&self, channel: &ChannelName) -> Option<(Position, Duration)> {
        let shard = self.shard(channel).lock();
        let entry = shard.get(channel)?;
        match entry.phase {
            Phase::Repairing { .. } => Some((entry.position?, entry.history_age?)),
            _ => None,
        }
    }

    /// Repair handed over everything up to `position`; `caught_up` says that history held no more.
    pub(super) fn advance(
        &self,
        channel: &ChannelName,
        position: Position,
        caught_up: bool,
    ) -> Advance {
        let mut shard = self.shard(channel).lock();
        let Some(entry) = shard.get_mut(channel) else { return Advance::Whole };
        entry.position = Some(position);
        let heard = match entry.phase {
            Phase::Repairing { heard_offset } => heard_offset,
            _ => 0,
        };
        // What was heard after the read is in history by now; what was heard before it is below.
        if caught_up && heard <= position.offset {
            entry.phase = Phase::Open;
            Advance::Whole
        } else {
            if caught_up {
                entry.phase = Phase::Repairing { heard_offset: 0 };
            }
            Advance::Again
        }
    }

    /// Channels that listeners wait for and nobody has opened.
    pub(super) fn unopened(&self) -> Vec<ChannelName> {
        let mut waiting = Vec::new();
        for shard in &self.shards {
            for (channel, entry) in shard.lock().iter() {
                if matches!(entry.phase, Phase::Closed { .. }) && entry.listeners > 0 {
                    waiting.push(channel.clone());
                }
            }
        }
        waiting
    }

    /// A listener whose join failed stays and wants to be told when the channel opens. One that has opened
    /// meanwhile is a position to begin at.
    pub(super) fn expect_resync(&self, channel: &ChannelName) {
        if let Some(entry) = self.shard(channel).lock().get_mut(channel) {
            entry.told_unavailable |= matches!(entry.phase, Phase::Closed { .. });
        }
    }

    /// The broker answered: wakes who waits. Returns channels with listeners that stayed while the broker was
    /// away, and their position now; and channels that must be repaired.
    pub(super) fn opened(
        &self,
        channels: &[ChannelName],
        outcome: &Result<Vec<Option<Position>>, BrokerError>,
    ) -> (Vec<(ChannelName, Option<Position>)>, Vec<ChannelName>) {
        let (mut late, mut damaged) = (Vec::new(), Vec::new());
        for (index, channel) in channels.iter().enumerate() {
            let mut shard = self.shard(channel).lock();
            let Some(entry) = shard.get_mut(channel) else { continue };
            let told = match outcome {
                Ok(positions) => {
                    if let Phase::Closed { heard_offset } = entry.phase {
                        entry.position = positions.get(index).copied().flatten();
                        // What was published after the top was read, and heard before it was known here, is missing.
                        let missed = entry.position.is_some_and(|top| top.offset < heard_offset);
                        entry.phase = if missed {
                            damaged.push(channel.clone());
                            Phase::Repairing { heard_offset }
                        } else {
                            Phase::Open
                        };
                    }
                    if std::mem::take(&mut entry.told_unavailable) {
                        late.push((channel.clone(), entry.position));
                    }
                    Ok(())
                }
                Err(error) => Err(error.clone()),
            };
            let waiters =
                entry.waiting.as_mut().map(|waiting| std::mem::take(&mut waiting.waiters));
            if entry.waiting.as_ref().is_some_and(|waiting| waiting.idle_since.is_none()) {
                entry.waiting = None;
            }
            for waiter in waiters.into_iter().flatten() {
                // A waiter may have gone away; its listener count is taken back by its owner.
                let _ = waiter.send(told.clone());
            }
        }
        (late, damaged)
    }

    /// Closes channels that nobody has listened to for `linger`.
    pub(super) fn close_idle(&self, linger: Duration) -> Vec<ChannelName> {
        let mut idle = Vec::new();
        for shard in &self.shards {
            for (channel, entry) in shard.lock().iter_mut() {
                let idle_since = entry.waiting.as_ref().and_then(|waiting| waiting.idle_since);
                if entry.listeners == 0 && idle_since.is_some_and(|since| since.elapsed() >= linger)
                {
                    entry.phase = CLOSED;
                    entry.position = None;
                    idle.push(channel.clone());
                }
            }
        }
        idle
    }

    /// The broker was told; forgets the channels, and returns those that are wanted again.
    pub(super) fn closed(&self, channels: &[ChannelName]) -> Vec<ChannelName> {
        let mut wanted = Vec::new();
        for channel in channels {
            let mut shard = self.shard(channel).lock();
            match shard.get(channel) {
                Some(entry) if entry.listeners > 0 => wanted.push(channel.clone()),
                Some(_) => {
                    shard.remove(channel);
                }
                None => {}
            }
        }
        wanted
    }
}

#[cfg(test)]
mod tests;
