//! One write for what many callers ask at the same moment.
//!
//! tokio runs whom a task has just woken next: the command connection's driver would write each caller's command by itself,
//! a system call here, a wake-up and another pair in Redis, for every publish. Woken, it first lets everybody run who is ready,
//! and then writes what they all asked. Nobody waits for a clock: at rest this is one pass of the scheduler.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::{Poll, Waker};

/// `driver`, polled only after those who are ready to run have run. Cancel safe as `driver` is.
pub(super) async fn gathered<T>(driver: impl Future<Output = T>) -> T {
    let mut driver = pin!(driver);
    loop {
        if let Poll::Ready(done) =
            poll_fn(|context| Poll::Ready(driver.as_mut().poll(context))).await
        {
            return done;
        }
        // Once until somebody wakes this task, which the driver has asked for; once more to the end of the queue of those who
        // are ready. `yield_now` would go behind the next look at all sockets, too, and a fan-out at full load holds that up.
        pending(|_| {}).await;
        behind_the_ready().await;
    }
}

/// Ready again when all who are ready to run have run. Cancel safe.
pub(super) async fn behind_the_ready() {
    pending(Waker::wake_by_ref).await;
}

/// Pending once.
async fn pending(before: impl Fn(&Waker)) {
    let mut waited = false;
    poll_fn(|context| {
        if std::mem::replace(&mut waited, true) {
            return Poll::Ready(());
        }
        before(context.waker());
        Poll::Pending
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc;

    /// A driver that takes what there is at each of its polls; ends with the channel.
    async fn polls(mut received: mpsc::UnboundedReceiver<u32>) -> Vec<usize> {
        let (mut counts, mut batch) = (Vec::new(), Vec::new());
        loop {
            let count = received.recv_many(&mut batch, 100).await;
            if count == 0 {
                return counts;
            }
            counts.push(count);
            batch.clear();
        }
    }

    /// What each poll of a driver takes when ten callers ask in one turn of a worker thread: only those have the slot for whom
    /// a task has just woken.
    async fn taken(
        driver: impl Future<Output = Vec<usize>> + Send + 'static,
        sender: mpsc::UnboundedSender<u32>,
    ) -> Vec<usize> {
        let driver = tokio::spawn(driver);
        let callers = tokio::spawn(async move {
            tokio::task::yield_now().await;
            let callers: Vec<_> = (0..10)
                .map(|caller| {
                    let sender = sender.clone();
                    tokio::spawn(async move { sender.send(caller) })
                })
                .collect();
            for caller in callers {
                caller.await.expect("no panic").expect("the driver listens");
            }
        });
        callers.await.expect("no panic");
        driver.await.expect("no panic")
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn what_many_ask_in_one_turn_is_taken_at_once() {
        let (sender, receiver) = mpsc::unbounded_channel();
        let alone = taken(polls(receiver), sender).await;
        assert!(alone.len() > 1, "nothing to gather: {alone:?}");
        let (sender, receiver) = mpsc::unbounded_channel();
        let together = taken(gathered(polls(receiver)), sender).await;
        assert!(together.len() < alone.len(), "{together:?}, alone {alone:?}");
    }

    #[tokio::test]
    async fn a_driver_that_is_ready_ends_at_once() {
        assert_eq!(gathered(async { 7 }).await, 7);
    }
}
