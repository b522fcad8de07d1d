//! What many callers ask at the same moment leaves together: all who are ready to run are heard first. Nobody waits for more
//! to come, nor for what is on its way already. It must not know what they ask.

use std::future::Future;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::gathered::behind_the_ready;

/// Callers who wait for their turn; the next ones wait for a place here.
const WAITING_MAX: usize = 1_024;
/// Round trips on their way at once.
const ON_THEIR_WAY_MAX: usize = 64;

pub(super) fn crowd<T>() -> (mpsc::Sender<T>, mpsc::Receiver<T>) {
    mpsc::channel(WAITING_MAX)
}

/// Carries what waits, at most `together_max` at a time, until `stop`, or until there is nobody to carry it any more.
pub(super) async fn carry<T, F: Future<Output = ()>>(
    stop: CancellationToken,
    mut waiting: mpsc::Receiver<T>,
    together_max: usize,
    leave: impl Fn(Vec<T>) -> Option<F>,
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
                let Some(left) = leave(std::mem::take(&mut together)) else { return };
                on_their_way.push(left);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[tokio::test]
    async fn those_who_are_ready_leave_together_and_nobody_waits_for_those_on_their_way() {
        let (sender, waiting) = crowd::<u32>();
        let left = RefCell::new(Vec::new());
        let leave = |together: Vec<u32>| {
            left.borrow_mut().push(together);
            // Never comes back.
            Some(std::future::pending())
        };
        let stop = CancellationToken::new();
        let carried = carry(stop.clone(), waiting, 4, leave);
        let asked = async {
            for round in [0, 10] {
                for caller in round..round + 6 {
                    sender.send(caller).await.expect("it is carried");
                }
                while left.borrow().iter().map(Vec::len).sum::<usize>()
                    < 6 + round as usize * 6 / 10
                {
                    tokio::task::yield_now().await;
                }
            }
            stop.cancel();
        };
        tokio::join!(carried, asked);
        let left = left.into_inner();
        assert_eq!(left.concat(), [0, 1, 2, 3, 4, 5, 10, 11, 12, 13, 14, 15]);
        assert!(left.len() < 12 && left.iter().all(|together| together.len() <= 4), "{left:?}");
    }
}
