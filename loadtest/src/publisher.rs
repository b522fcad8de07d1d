//! Those who publish: a schedule or a window, pipelined over several connections.
//!
//! Each channel belongs to one publisher, and a publisher's connection keeps its order, so the order of a channel can be
//! judged. Open loop: message k is due at k/rate and its latency counts from then, however late it was
//! sent (no coordinated omission). Saturation: messages in flight, refilled as deliveries come.

mod answers;

use crate::mark::{Filling, Mark};
use crate::opening;
use crate::tally::{Progress, Tally};
use crate::target::{Caller, Target, Transport};
use answers::Answers;
use anyhow::{Context as _, Result};
use futures_util::future::try_join_all;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::time::{Instant, sleep_until, timeout};

/// When the next message goes out.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Pace {
    /// So many messages a second over all channels, whatever happens.
    Rate(f64),
    /// So many messages in flight, counted by deliveries.
    Window(u64),
    /// So many requests unanswered, for runs without listeners.
    Unanswered(u64),
}

/// What is published.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Work {
    /// Listeners on each channel.
    pub(crate) members: u64,
    /// Bytes of a payload.
    pub(crate) size: usize,
    /// What fills it.
    pub(crate) filling: Filling,
    /// Messages in one request at most.
    pub(crate) batch: usize,
    /// See [`Pace`]; shared out between the publishers.
    pub(crate) pace: Pace,
}

/// All publishers of a run.
pub(crate) struct Publishers {
    members: Vec<Publisher>,
    channels: u32,
}

impl Publishers {
    /// Connects `count` publishers (at most one a channel) to `targets` in turn; a task each counts the answers.
    pub(crate) async fn connect(
        targets: &[Rc<Target>],
        count: usize,
        channels: u32,
        tally: &Rc<Tally>,
    ) -> Result<Self> {
        let count = count.clamp(1, channels.max(1) as usize);
        let progress = tally.divide(count);
        let connecting = progress.into_iter().enumerate().map(|(index, progress)| {
            let target = Rc::clone(&targets[index % targets.len()]);
            let lane = Lane { index: index as u32, count: count as u32, channels };
            Publisher::connect(target, lane, progress, tally.clone())
        });
        Ok(Self { members: try_join_all(connecting).await?, channels })
    }

    /// Sends one message to every channel that does not count.
    pub(crate) async fn warm_up(&self, work: &Work) -> Result<()> {
        try_join_all(self.members.iter().map(|one| one.warm_up(work))).await.map(|_| ())
    }

    /// Publishes until `end`.
    pub(crate) async fn run(&self, work: &Work, end: Instant) -> Result<()> {
        try_join_all(self.members.iter().map(|one| one.run(work, end))).await.map(|_| ())
    }

    /// Messages sent, the warm-up apart.
    pub(crate) fn published(&self) -> u64 {
        self.members.iter().map(|one| one.published.get()).sum()
    }

    /// Answers that did not come yet.
    pub(crate) fn owed(&self) -> u64 {
        self.members.iter().map(|one| one.answers.owed()).sum()
    }

    /// Last sequence of each channel.
    pub(crate) fn sequences(&self) -> Vec<u32> {
        let mut all = vec![0; self.channels as usize];
        for one in &self.members {
            for (place, sequence) in one.sequences.borrow().iter().enumerate() {
                all[one.lane.channel(place as u64) as usize] = *sequence;
            }
        }
        all
    }
}

/// Which channels are a publisher's: every `count`-th from `index`.
#[derive(Debug, Clone, Copy)]
struct Lane {
    index: u32,
    count: u32,
    channels: u32,
}

impl Lane {
    /// How many they are.
    fn size(self) -> u64 {
        u64::from((self.channels - self.index).div_ceil(self.count))
    }

    /// The channel of message `k`, taken in turn.
    fn channel(self, k: u64) -> u32 {
        self.index + self.count * (k % self.size()) as u32
    }
}

/// One publisher on its own connection.
struct Publisher {
    target: Rc<Target>,
    lane: Lane,
    writer: RefCell<OwnedWriteHalf>,
    progress: Rc<Progress>,
    answers: Rc<Answers>,
    tally: Rc<Tally>,
    sequences: RefCell<Vec<u32>>,
    published: Cell<u64>,
    /// Messages that are not waited for any more.
    given_up: Cell<u64>,
}

impl Publisher {
    async fn connect(
        target: Rc<Target>,
        lane: Lane,
        progress: Rc<Progress>,
        tally: Rc<Tally>,
    ) -> Result<Self> {
        let mut stream = TcpStream::connect(target.address).await?;
        stream.set_nodelay(true)?;
        let answers = Rc::new(Answers::new(target.clone(), progress.clone(), tally.clone()));
        let index = lane.index as usize;
        let writer = if let Some(request) = target.open_publisher(index) {
            let caller = Caller { target: &target, index, channel: None };
            let opened = opening::open(&mut stream, &request, Transport::Ws, caller)
                .await
                .context("a publisher")?;
            let (reader, writer) = stream.into_split();
            tokio::task::spawn_local(answers.clone().count_frames(reader, opened.rest));
            writer
        } else {
            let (reader, writer) = stream.into_split();
            tokio::task::spawn_local(answers.clone().count_responses(reader));
            writer
        };
        Ok(Self {
            target,
            lane,
            writer: RefCell::new(writer),
            progress,
            answers,
            tally,
            sequences: RefCell::new(vec![0; lane.size() as usize]),
            published: Cell::new(0),
            given_up: Cell::new(0),
        })
    }

    async fn warm_up(&self, work: &Work) -> Result<()> {
        let channels: Vec<u32> = (0..self.lane.size()).map(|k| self.lane.channel(k)).collect();
        for some in channels.chunks(100) {
            let silent = |channel: &u32| {
                let mark = Mark { channel: *channel, sequence: 0, due_ns: 0 };
                (*channel, mark.filled(work.size, work.filling))
            };
            let some: Vec<_> = some.iter().map(silent).collect();
            self.send(&some, Instant::now()).await?;
        }
        Ok(())
    }

    /// This publisher's part of `whole`, at least one.
    fn share(&self, whole: u64) -> u64 {
        (whole / u64::from(self.lane.count)).max(1)
    }

    async fn run(&self, work: &Work, end: Instant) -> Result<()> {
        let start = Instant::now();
        while Instant::now() < end {
            match work.pace {
                Pace::Rate(rate) => {
                    // The publishers' schedules are shifted against each other: together they are even.
                    let own = rate * self.lane.size() as f64 / f64::from(self.lane.channels);
                    let shift = f64::from(self.lane.index) / f64::from(self.lane.count);
                    let due = |k: u64| start + Duration::from_secs_f64((k as f64 + shift) / own);
                    let first = self.published.get();
                    sleep_until(due(first).min(end)).await;
                    let late = Instant::now().duration_since(start).as_secs_f64() * own - shift;
                    let count = (late as u64 + 1).saturating_sub(first).min(work.batch as u64);
                    if Instant::now() < end {
                        self.publish(work, count, |k| due(first + k)).await?;
                    }
                }
                Pace::Window(window) => {
                    let window = self.share(window);
                    let done = self.progress.delivered.get() / work.members.max(1);
                    let waited_for = self.published.get() - self.given_up.get();
                    let free = window.saturating_sub(waited_for.saturating_sub(done));
                    if free == 0 {
                        self.wait_for_deliveries(window, work.members).await;
                        continue;
                    }
                    let now = Instant::now();
                    self.publish(work, free.min(work.batch as u64), |_| now).await?;
                }
                Pace::Unanswered(most) => {
                    if self.answers.owed() >= self.share(most) {
                        let _late =
                            timeout(Duration::from_secs(2), self.progress.changed.notified()).await;
                        continue;
                    }
                    let now = Instant::now();
                    self.publish(work, work.batch as u64, |_| now).await?;
                }
            }
        }
        Ok(())
    }

    async fn wait_for_deliveries(&self, window: u64, members: u64) {
        // One slot free, not all: the window stays full as long as the server keeps up.
        let waited_for = self.published.get() - self.given_up.get();
        let wanted = (waited_for + 1).saturating_sub(window) * members;
        self.progress.wake_at.set(wanted);
        let wait = timeout(Duration::from_secs(2), self.progress.changed.notified()).await;
        if wait.is_err() {
            // Lost messages would hold the window shut for ever; the loss itself is counted elsewhere.
            let missing = wanted.saturating_sub(self.progress.delivered.get()).div_ceil(members);
            self.given_up.set((self.given_up.get() + missing).min(self.published.get()));
        }
    }

    async fn publish(&self, work: &Work, count: u64, due: impl Fn(u64) -> Instant) -> Result<()> {
        let began = Instant::from_std(self.tally.began);
        let mut messages = Vec::with_capacity(count as usize);
        for k in 0..count {
            let published = self.published.get();
            let channel = self.lane.channel(published);
            let sequence = {
                let mut sequences = self.sequences.borrow_mut();
                let last = &mut sequences[(published % self.lane.size()) as usize];
                *last += 1;
                *last
            };
            let due_ns = due(k).saturating_duration_since(began).as_nanos() as u64;
            let mark = Mark { channel, sequence, due_ns };
            messages.push((channel, mark.filled(work.size, work.filling)));
            self.published.set(published + 1);
        }
        self.send(&messages, due(0)).await
    }

    #[expect(clippy::await_holding_refcell_ref, reason = "one task writes, nobody else borrows")]
    async fn send(&self, messages: &[(u32, String)], due: Instant) -> Result<()> {
        if messages.is_empty() {
            return Ok(());
        }
        let mut bytes = self.answers.take_due();
        bytes.reserve(messages.len() * 300);
        let answers = self.target.push_publish(&mut bytes, messages);
        self.answers.expect(answers, due);
        self.writer.borrow_mut().write_all(&bytes).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_channel_has_one_publisher() {
        for (count, channels) in [(1, 1), (3, 10), (8, 8), (8, 1_000)] {
            let mut owners = vec![0; channels as usize];
            for index in 0..count {
                let lane = Lane { index, count, channels };
                (0..lane.size()).for_each(|k| owners[lane.channel(k) as usize] += 1);
            }
            assert!(owners.iter().all(|owners| *owners == 1), "{count} {channels}: {owners:?}");
        }
    }
}
