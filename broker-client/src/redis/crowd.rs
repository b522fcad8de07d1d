//! What many callers ask at the same moment leaves together: all who are ready to run are heard first. Nobody waits for more
//! to come, nor for what is on its way already. It must not know what they ask.

use std::future::Future;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::gathered::behind_the_ready;
use crate::BrokerError;

/// Callers who wait for their turn; the next ones wait for a place here.
const WAITING_MAX: usize = 1_024;
/// Round trips on their way at once.
const ON_THEIR_WAY_MAX: usize = 64;

/// What one caller asks, and who waits for the answer.
pub(super) struct Asked<Q, A> {
    pub(super) question: Q,
    reply: oneshot::Sender<A>,
}

impl<Q, A> Asked<Q, A> {
    pub(super) fn into_parts(self) -> (Q, oneshot::Sender<A>) {
        (self.question, self.reply)
    }
}

/// Where callers ask.
pub(super) struct Crowd<Q, A> {
    asked: mpsc::Sender<Asked<Q, A>>,
    patience: Duration,
}

/// What was asked there.
pub(super) type Waiting<Q, A> = mpsc::Receiver<Asked<Q, A>>;

impl<Q, A> Crowd<Q, A> {
    /// Nobody waits longer than `patience`, whatever is on its way before them.
    pub(super) fn new(patience: Duration) -> (Self, Waiting<Q, A>) {
        let (asked, waiting) = mpsc::channel(WAITING_MAX);
        (Self { asked, patience }, waiting)
    }

    /// Asks and waits. A caller who gives up does not know whether what they asked for happens.
    pub(super) async fn ask(&self, question: Q) -> Result<A, BrokerError> {
        let (reply, answered) = oneshot::channel();
        let ended = || BrokerError::unavailable("the broker is closed");
        let asking = async {
            self.asked.send(Asked { question, reply }).await.map_err(|_| ended())?;
            answered.await.map_err(|_| ended())
        };
        let late = |_| BrokerError::unavailable("no answer in time");
        timeout(self.patience, asking).await.map_err(late)?
    }
}

/// Carries what waits, at most `together_max` at a time, until `stop`, or until there is nobody to carry it any more.
pub(super) async fn carry<Q, A, F: Future<Output = ()>>(
    stop: CancellationToken,
    mut waiting: Waiting<Q, A>,
    together_max: usize,
    leave: impl Fn(Vec<Asked<Q, A>>) -> Option<F>,
) {
    let mut on_their_way = FuturesUnordered::new();
    let mut together = Vec::new();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            Some(()) = on_their_way.next() => {}
            received = waiting.recv_many(&mut together, together_max), if on_their_way.len() < ON_THEIR_WAY_MAX => {
                if received == 0 {
                    return;
                }
                behind_the_ready().await;
                while together.len() < together_max && let Ok(more) = waiting.try_recv() {
                    together.push(more);
                }
                together.retain(|asked| !asked.reply.is_closed());
                let Some(left) = leave(std::mem::take(&mut together)) else { return };
                on_their_way.push(left);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use futures_util::future::join_all;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn those_who_are_ready_leave_together_and_nobody_waits_for_those_on_their_way() {
        let (crowd, waiting) = Crowd::<u32, u32>::new(Duration::from_secs(1));
        let left = RefCell::new(Vec::new());
        let leave = |together: Vec<Asked<u32, u32>>| {
            left.borrow_mut().push(together.iter().map(|asked| asked.question).collect::<Vec<_>>());
            Some(async move {
                for asked in together {
                    let (question, reply) = asked.into_parts();
                    if question < 10 {
                        // The first ones never come back.
                        std::future::pending::<()>().await;
                    }
                    let _gone = reply.send(question * 2);
                }
            })
        };
        let stop = CancellationToken::new();
        let carried = carry(stop.clone(), waiting, 4, leave);
        let asked = async {
            let first = join_all((0..6).map(|question| crowd.ask(question)));
            let second = async {
                while left.borrow().iter().map(Vec::len).sum::<usize>() < 6 {
                    tokio::task::yield_now().await;
                }
                join_all((10..16).map(|question| crowd.ask(question))).await
            };
            let (first, second) = tokio::join!(first, second);
            stop.cancel();
            (first, second)
        };
        let ((), (first, second)) = tokio::join!(carried, asked);
        assert!(first.iter().all(|answer| matches!(answer, Err(BrokerError::Unavailable(_)))));
        let second: Vec<u32> = second.into_iter().map(|answer| answer.expect("in time")).collect();
        assert_eq!(second, [20, 22, 24, 26, 28, 30]);
        let left = left.into_inner();
        assert_eq!(left.concat(), [0, 1, 2, 3, 4, 5, 10, 11, 12, 13, 14, 15]);
        assert!(left.len() < 12 && left.iter().all(|together| together.len() <= 4), "{left:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_gave_up_before_it_left_is_not_carried() {
        let (crowd, waiting) = Crowd::<u32, u32>::new(Duration::from_secs(1));
        assert!(crowd.ask(1).await.is_err());
        let leave = |together: Vec<Asked<u32, u32>>| {
            assert!(together.iter().all(|asked| asked.question == 2));
            Some(async move {
                for asked in together {
                    let _gone = asked.into_parts().1.send(0);
                }
            })
        };
        let stop = CancellationToken::new();
        let asked = async {
            assert_eq!(crowd.ask(2).await.ok(), Some(0));
            stop.cancel();
        };
        tokio::join!(carry(stop.clone(), waiting, 4, leave), asked);
    }
}
