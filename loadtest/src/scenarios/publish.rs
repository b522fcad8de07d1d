//! Fan-out to one channel, to many channels, and publishing without listeners.

use super::run::Run;
use crate::subscriber::Subscriber;
use anyhow::Result;
use std::rc::Rc;

impl Run<'_> {
    /// Publishes on a schedule or with a window, measures, counts.
    pub(super) async fn publish(&mut self, subscribers: &[Rc<Subscriber>]) -> Result<()> {
        let publishers = self.publishers().await?;
        let listened = subscribers.len() * self.options.channels_each.max(1) as usize;
        let work = self.work((listened / self.channels as usize).max(1) as u64);
        self.wait_until_all_listen(&publishers, &work, subscribers.len()).await?;
        let end = self.end();
        let (published, measured) =
            tokio::join!(publishers.run(&work, end), self.measure(end, || publishers.published()));
        published?;
        measured?;
        let sequences = publishers.sequences();
        self.report.published = sequences.iter().map(|last| u64::from(*last)).sum();
        self.settle(subscribers, &sequences).await;
        Ok(())
    }
}
