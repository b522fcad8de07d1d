//! How many handshakes are under way at once. A storm of them waits a moment, in order; who would wait too long
//! is told to come back, so that nobody hangs and Redis is asked no faster than it answers.

use std::sync::Arc;
use std::time::Duration;

use carillon_protocol::ErrorCode;
use carillon_protocol::envelope::Refusal;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Handshakes under way. Their questions to Redis are pipelined, so that many together are served faster than few: with 512
/// a storm of 18,000 took twice as long as with 4,000, and one in five was sent away (`docs/failures.md`).
const UNDER_WAY_MAX: usize = 4_096;
/// Handshakes that wait for one of those to end.
const WAITING_MAX: usize = 4_096;
/// Longest wait.
const WAIT_MAX: Duration = Duration::from_secs(3);
/// When a client that was sent away should come back.
const COME_BACK_MS: u64 = 2_000;

/// See the module.
#[derive(Debug)]
pub struct Doors {
    open: Arc<Semaphore>,
    waiting: Semaphore,
    wait_max: Duration,
}

/// A handshake's place; given back when dropped.
#[derive(Debug)]
pub struct Doorway {
    _place: OwnedSemaphorePermit,
}

impl Default for Doors {
    fn default() -> Self {
        Self::new(UNDER_WAY_MAX, WAITING_MAX, WAIT_MAX)
    }
}

impl Doors {
    fn new(under_way_max: usize, waiting_max: usize, wait_max: Duration) -> Self {
        let open = Arc::new(Semaphore::new(under_way_max));
        Self { open, waiting: Semaphore::new(waiting_max), wait_max }
    }

    /// A place for one handshake, until its welcome was sent.
    ///
    /// # Errors
    /// `UNAVAILABLE` after three seconds, or at once when too many wait already.
    pub async fn enter(&self) -> Result<Doorway, Refusal> {
        if let Ok(place) = Arc::clone(&self.open).try_acquire_owned() {
            return Ok(Doorway { _place: place });
        }
        let _queue = self.waiting.try_acquire().map_err(|_| full())?;
        let place = tokio::time::timeout(self.wait_max, Arc::clone(&self.open).acquire_owned());
        match place.await {
            Ok(Ok(place)) => Ok(Doorway { _place: place }),
            Ok(Err(_)) | Err(_) => Err(full()),
        }
    }
}

fn full() -> Refusal {
    Refusal::new(ErrorCode::Unavailable, "Too many clients connect at once")
        .with("retry_after_ms", COME_BACK_MS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn handshakes_wait_for_a_place_and_those_beyond_are_sent_away_at_once() {
        let doors = Doors::new(1, 1, Duration::from_secs(60));
        let first = doors.enter().await.expect("a place");
        let mut second = std::pin::pin!(doors.enter());
        assert!(futures_util::poll!(&mut second).is_pending());
        let refusal = doors.enter().await.expect_err("one may wait, not two");
        assert_eq!(refusal.code, ErrorCode::Unavailable);
        assert_eq!(refusal.details["retry_after_ms"], COME_BACK_MS);
        drop(first);
        second.await.expect("a place became free");
    }

    #[tokio::test]
    async fn nobody_waits_for_ever() {
        let doors = Doors::new(1, 1, Duration::from_millis(20));
        let _first = doors.enter().await.expect("a place");
        let refusal = doors.enter().await.expect_err("told after some seconds");
        assert_eq!(refusal.code, ErrorCode::Unavailable);
    }
}
