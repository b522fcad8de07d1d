//! A reconnect storm: everybody listens, all connections are cut at once, everybody comes back and asks for what they
//! missed, while messages go on. Nothing may be lost.

use super::run::{Client, Run};
use crate::subscriber::Subscriber;
use crate::target::{Kind, Transport};
use anyhow::{Result, bail};
use rand::Rng as _;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout_at};

/// A storm that lasts longer is reported as it stands.
const STORM_MAX: Duration = Duration::from_secs(120);

impl Run<'_> {
    /// Publishes at `--rate`, cuts everybody after a third of the time, waits until all are back, counts.
    pub(super) async fn reconnect(&mut self) -> Result<()> {
        let options = self.options;
        if options.target != Kind::Carillon || options.transport != Transport::Ws {
            bail!("coming back with positions: only for Carillon's WebSocket");
        }
        let channels = self.channels;
        let opening = self.opening(false);
        let client = |index: usize| {
            let channel = index as u32 % channels;
            Client::on(channel..channel + 1, opening)
        };
        let subscribers = self.open((0..options.connections).map(client).collect()).await?;
        subscribers.iter().for_each(|one| one.resume.wanted.set(true));
        let publishers = self.publishers().await?;
        let mut work = self.work(1);
        if let crate::publisher::Pace::Window(_) = work.pace {
            work.pace = crate::publisher::Pace::Rate(20.0);
        }
        self.wait_until_all_listen(&publishers, &work, subscribers.len()).await?;
        let end = self.end();
        let storm = async {
            sleep(Duration::from_secs_f64(1.0 + options.duration / 3.0)).await;
            self.storm(&subscribers).await
        };
        let (published, stormed) = tokio::join!(publishers.run(&work, end), storm);
        published?;
        let (cpu_us, seconds) = stormed?;
        self.report.seconds = seconds;
        self.report.back_cpu_us = cpu_us as f64 / subscribers.len().max(1) as f64;
        self.report.recovered = self.tally.recovered.get();
        self.report.fresh = self.tally.fresh.get();
        self.note_back();
        self.note_latency();
        let sequences = publishers.sequences();
        self.report.published = publishers.published();
        self.report.delivered = self.tally.delivered.get();
        self.settle(&subscribers, &sequences).await;
        Ok(())
    }

    /// Cuts all and brings them back; returns the server's CPU and the seconds it took.
    async fn storm(&self, subscribers: &[Rc<Subscriber>]) -> Result<(u64, f64)> {
        let before = self.cpu_us()?;
        let (began, cut_at) = (Instant::now(), std::time::Instant::now());
        for one in subscribers {
            one.resume.cut_at.set(Some(cut_at));
            one.cut();
        }
        let places = Arc::new(Semaphore::new(self.options.handshakes));
        let opening = self.opening(true);
        for one in subscribers {
            let (one, places) = (one.clone(), Arc::clone(&places));
            let target = Rc::clone(self.target(one.index));
            let wait = rand::rng().random_range(0.0..=self.options.jitter.max(0.0));
            tokio::task::spawn_local(async move {
                sleep(Duration::from_secs_f64(wait)).await;
                let Ok(_place) = places.acquire_owned().await else { return };
                let due = std::time::Instant::now();
                if one.connect(&target, opening, due).await.is_ok() {
                    one.subscribe(&target.channel(one.channel));
                }
            });
        }
        let all = subscribers.len() as u64;
        let back = async {
            while self.tally.recovered.get() + self.tally.fresh.get() < all {
                sleep(Duration::from_millis(10)).await;
            }
        };
        let _unfinished = timeout_at(began + STORM_MAX, back).await;
        Ok((self.cpu_us()? - before, began.elapsed().as_secs_f64()))
    }

    /// Times of coming back, into the report.
    pub(super) fn note_back(&mut self) {
        self.report.back_p50_ms = self.tally.back_ms(0.5);
        self.report.back_p99_ms = self.tally.back_ms(0.99);
        self.report.back_max_ms = self.tally.back_ms(1.0);
    }
}
