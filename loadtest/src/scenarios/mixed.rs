//! Everything at once: seven of ten clients on WebSockets, two on event streams, one polling; a few large channels and many
//! small ones; publishes through REST and over WebSockets; every tenth client present and beating.

use super::run::{Client, Run};
use crate::publisher::Pace;
use crate::subscriber::Subscriber;
use crate::target::{Kind, Transport};
use anyhow::{Context as _, Result, bail};
use std::rc::Rc;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

impl Run<'_> {
    /// Publishes at `--rate` over all channels in turn, measures, counts.
    pub(super) async fn mixed(&mut self) -> Result<()> {
        let options = self.options;
        if options.target != Kind::Carillon {
            bail!("mixed is for --target carillon");
        }
        let rate = options.rate.context("mixed needs --rate")?;
        let (count, channels) = (options.connections, self.channels);
        let opening = self.opening(false);
        let client = |index: usize| {
            let transport = match index % 10 {
                0..=6 => Transport::Ws,
                7 | 8 => Transport::Sse,
                _ => Transport::Poll,
            };
            let channel = channel_of(index, count, channels);
            let opening = crate::subscriber::Opening { transport, ..opening };
            Client::on(channel..channel + 1, opening)
        };
        let subscribers = self.open((0..count).map(client).collect()).await?;
        let publishers = self.publishers().await?;
        let mut work = self.work(1);
        work.pace = Pace::Rate(rate);
        self.wait_until_all_listen(&publishers, &work, count).await?;
        let end = self.end();
        let (published, (), measured) = tokio::join!(
            publishers.run(&work, end),
            beat(&subscribers, options.heartbeat, end),
            self.measure(end, || publishers.published())
        );
        published?;
        measured?;
        self.report.published = publishers.published();
        self.settle(&subscribers, &publishers.sequences()).await;
        Ok(())
    }
}

/// Sizes fall as 1/rank: the first channel has most, every one has somebody where there are enough.
fn channel_of(index: usize, count: usize, channels: u32) -> u32 {
    let channels = channels.min(count.max(1) as u32);
    if (index as u32) < channels {
        return index as u32;
    }
    // The inverse of ln: where a place in the rest falls among ranks weighted 1/rank.
    let place = (index as f64 - f64::from(channels) + 0.5) / (count as f64 - f64::from(channels));
    (f64::from(channels).powf(place) as u32 - 1).min(channels - 1)
}

/// Every tenth client joins a resource and shows that it is there.
async fn beat(subscribers: &[Rc<Subscriber>], every: f64, end: Instant) {
    let start = Instant::now();
    let present: Vec<_> = subscribers.iter().filter(|one| one.index % 10 == 0).collect();
    for one in &present {
        let _full =
            one.try_send(br#"{"type":"presence:join","channel":"presence:mixed","payload":{}}"#);
        tokio::task::yield_now().await;
    }
    for k in 0_u64.. {
        let due = start + Duration::from_secs_f64(k as f64 * every / present.len().max(1) as f64);
        if due >= end {
            break;
        }
        sleep_until(due).await;
        let _full = present[k as usize % present.len()]
            .try_send(br#"{"type":"presence:heartbeat","channel":"presence:mixed"}"#);
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn few_channels_are_large_and_none_is_empty() {
        let mut sizes = vec![0; 100];
        (0..10_000).for_each(|index| sizes[super::channel_of(index, 10_000, 100) as usize] += 1);
        assert!(sizes.iter().all(|size| *size > 0));
        assert!(sizes[0] > 1_000 && sizes[99] < 100, "{} {}", sizes[0], sizes[99]);
    }
}
