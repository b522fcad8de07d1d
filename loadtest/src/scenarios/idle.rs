//! Memory of connections that only wait, and of those that once had something to do.

use super::run::Run;
use crate::publisher::{Pace, Work};
use crate::target::{Kind, Transport};
use anyhow::Result;

/// What every connection hears and says once.
const EXERCISE_BYTES: usize = 16 * 1_024;

impl Run<'_> {
    /// Connects everybody and looks; then all hear and say something once, and it looks again.
    pub(super) async fn idle(&mut self) -> Result<()> {
        let before = self.memory()?;
        let subscribers = self.connect().await?;
        let count = subscribers.len().max(1) as f64;
        self.report.idle_bytes = (self.settled_memory().await? - before) / count;
        let publishers = self.publishers().await?;
        let work = Work { size: EXERCISE_BYTES, pace: Pace::Unanswered(1), ..self.work(1) };
        publishers.warm_up(&work).await?;
        if self.options.target == Kind::Carillon && self.options.transport == Transport::Ws {
            let pad = "x".repeat(EXERCISE_BYTES);
            let ping = format!("{{\"type\":\"ping\",\"payload\":\"{pad}\"}}");
            for subscriber in &subscribers {
                subscriber.try_send(ping.as_bytes());
                tokio::task::yield_now().await;
            }
        }
        self.report.exercised_bytes = (self.settled_memory().await? - before) / count;
        Ok(())
    }
}
