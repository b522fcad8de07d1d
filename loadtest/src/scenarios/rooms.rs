//! Chat rooms: members talk over their own WebSockets.

use super::run::Run;
use crate::mark::Mark;
use crate::subscriber::Subscriber;
use anyhow::{Context as _, Result, bail};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

impl Run<'_> {
    /// Members talk in turn; the schedule is open loop over all rooms.
    pub(super) async fn rooms(&mut self, subscribers: &[Rc<Subscriber>]) -> Result<()> {
        let profile = self.options.target.profile();
        if profile.speak("", "").is_none() {
            bail!("rooms are members' own publishes: this target's clients do not publish");
        }
        let rate = self.options.rate.context("rooms need --rate")?;
        let publishers = self.publishers().await?;
        self.wait_until_all_listen(&publishers, &self.work(1), subscribers.len()).await?;
        let end = self.end();
        let sequences = RefCell::new(vec![0_u32; self.channels as usize]);
        let published = Cell::new(0_u64);
        let (target, tally, size) =
            (self.targets[0].clone(), self.tally.clone(), self.options.size);
        // One member speaks for each room, so that the order of a room is that member's.
        let speakers = &subscribers[..self.channels as usize];
        let talk = async {
            let start = Instant::now();
            while Instant::now() < end {
                let k = published.get();
                let due = start + Duration::from_secs_f64(k as f64 / rate);
                sleep_until(due).await;
                let at = (k % speakers.len() as u64) as usize;
                let channel = speakers[at].channel;
                let sequence = {
                    let mut all = sequences.borrow_mut();
                    all[channel as usize] += 1;
                    all[channel as usize]
                };
                let began = Instant::from_std(tally.began);
                let due_ns = due.saturating_duration_since(began).as_nanos() as u64;
                let payload = Mark { channel, sequence, due_ns }.payload(size);
                let text = profile.speak(&target.channel(channel), &payload).unwrap_or_default();
                speakers[at].try_send(text.as_bytes());
                published.set(k + 1);
            }
        };
        let ((), measured) = tokio::join!(talk, self.measure(end, || published.get()));
        measured?;
        self.report.published = published.get();
        let sequences = sequences.take();
        self.settle(subscribers, &sequences).await;
        Ok(())
    }
}
