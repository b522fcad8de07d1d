//! Chat rooms: members talk in turn over their own WebSockets, and some leave their room and come back.
//!
//! A stream is one member's words: with several speakers in a room, that is the order that can be judged. Who comes back
//! asks for what was said meanwhile, so that nobody may miss anything.

use super::run::{Client, Run};
use crate::mark::Mark;
use crate::subscriber::{Ears, Subscriber};
use crate::tally::Tally;
use crate::target::{Kind, Target, Transport};
use anyhow::{Context as _, Result, bail};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;
use tokio::time::{Instant, sleep, sleep_until};

/// How long a member is away.
const AWAY: Duration = Duration::from_millis(500);

impl Run<'_> {
    /// Connects everybody, talks at `--rate` (open loop, over all rooms), counts.
    pub(super) async fn rooms(&mut self) -> Result<()> {
        let options = self.options;
        if options.target.profile().speak("", "").is_none() || options.transport != Transport::Ws {
            bail!("rooms are members' own publishes: this target's clients do not publish");
        }
        if options.churn > 0.0 && options.target != Kind::Carillon {
            bail!("leaving and coming back is asked of Carillon only");
        }
        let rate = options.rate.context("rooms need --rate")?;
        let (count, rooms) = (options.connections, self.channels as usize);
        let opening = self.opening(false);
        let client = |index: usize| {
            let room = index % rooms;
            let members = (room..count).step_by(rooms).map(|member| member as u32);
            Client { channels: room as u32..room as u32 + 1, ears: Ears::new(members), opening }
        };
        let members = self.open((0..count).map(client).collect()).await?;
        members.iter().for_each(|member| member.resume.wanted.set(options.churn > 0.0));
        let publishers = self.publishers().await?;
        self.wait_until_all_listen(&publishers, &self.work(1), count).await?;
        let end = self.end();
        let sequences = RefCell::new(vec![0_u32; count]);
        let said = || sequences.borrow().iter().map(|last| u64::from(*last)).sum();
        let words = Words {
            target: Rc::clone(&self.targets[0]),
            tally: self.tally.clone(),
            size: options.size,
            members: &members,
            sequences: &sequences,
        };
        let ((), (), measured) = tokio::join!(
            words.talk(rate, end),
            words.churn(options.churn, end),
            self.measure(end, said)
        );
        measured?;
        self.report.published = said();
        let sequences = sequences.take();
        self.settle(&members, &sequences).await;
        self.report.recovered = self.tally.recovered.get();
        self.report.fresh = self.tally.fresh.get();
        self.note_back();
        Ok(())
    }
}

struct Words<'a> {
    target: Rc<Target>,
    tally: Rc<Tally>,
    size: usize,
    members: &'a [Rc<Subscriber>],
    sequences: &'a RefCell<Vec<u32>>,
}

impl Words<'_> {
    async fn talk(&self, rate: f64, end: Instant) {
        let start = Instant::now();
        for k in 0_u64.. {
            let due = start + Duration::from_secs_f64(k as f64 / rate);
            if due >= end {
                break;
            }
            sleep_until(due).await;
            let speaker = (k % self.members.len() as u64) as usize;
            let sequence = self.sequences.borrow()[speaker] + 1;
            let due_ns = due.saturating_duration_since(Instant::from_std(self.tally.began));
            let mark = Mark { channel: speaker as u32, sequence, due_ns: due_ns.as_nanos() as u64 };
            let room = self.target.channel(self.members[speaker].channel);
            let payload = mark.payload(self.size);
            let text = self.target.kind.profile().speak(&room, &payload).unwrap_or_default();
            // What the socket does not take was not said.
            if self.members[speaker].try_send(text.as_bytes()) {
                self.sequences.borrow_mut()[speaker] = sequence;
            }
        }
    }

    async fn churn(&self, a_second: f64, end: Instant) {
        if a_second <= 0.0 {
            return;
        }
        let start = Instant::now();
        let last = end - AWAY * 2;
        for k in 0_u64.. {
            let due = start + Duration::from_secs_f64(k as f64 / a_second);
            if due >= last {
                break;
            }
            sleep_until(due).await;
            let member = self.members[k as usize % self.members.len()].clone();
            // Nobody leaves who is away: with few members and much churn that would be a second leaving at once.
            if member.resume.cut_at.get().is_some() {
                continue;
            }
            let room = self.target.channel(member.channel);
            member.resume.cut_at.set(Some(std::time::Instant::now()));
            let leave = format!("{{\"type\":\"unsubscribe\",\"channel\":\"{room}\"}}");
            if !member.try_send(leave.as_bytes()) {
                continue;
            }
            tokio::task::spawn_local(async move {
                sleep(AWAY).await;
                member.resume.cut_at.set(Some(std::time::Instant::now()));
                member.subscribe(&room);
            });
        }
    }
}
