//! Connections that come and go, many at a time, and the looks that are taken for them. Where one server has all keys, those
//! that ask while others are on their way wait for these and leave together, in one round trip (and a script for all who come
//! or go); nobody waits for more to come. Elsewhere each goes its own way, for a server that hangs must not hold up the
//! others' clients.

use std::sync::{Arc, Weak};
use std::time::Duration;

use redis::Value;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::layout::Call;
use super::status::{Settled, Spoken};
use super::{Inner, answer, registry, scripts};
use crate::{Admission, BrokerError, ConnectionRecord};

/// Connections in one round trip: Redis serves others between two of them.
const TOGETHER_MAX: usize = 64;
/// Connections that wait for their turn; the next ones wait for a place here.
const WAITING_MAX: usize = 8_192;

/// A connection that comes or goes, and who waits for it.
pub(super) enum Waiting {
    Arriving(Arriving, oneshot::Sender<Result<Admission, BrokerError>>),
    Departing(Departing, oneshot::Sender<Result<(), BrokerError>>),
}

/// A command that only reads, and who waits for its answer.
pub(super) struct Look {
    call: Call,
    reply: oneshot::Sender<Result<Value, BrokerError>>,
}

/// What waits to be carried.
pub(super) struct Queues {
    connections: mpsc::Sender<Waiting>,
    looks: mpsc::Sender<Look>,
}

/// The other ends of [`Queues`].
pub(super) struct Carried {
    connections: mpsc::Receiver<Waiting>,
    looks: mpsc::Receiver<Look>,
}

pub(super) struct Arriving {
    pub(super) record: ConnectionRecord,
    pub(super) limit: u64,
}

pub(super) struct Departing {
    pub(super) record: ConnectionRecord,
    pub(super) delay: Duration,
}

pub(super) fn queues() -> (Queues, Carried) {
    let (connections, carried) = mpsc::channel(WAITING_MAX);
    let (looks, looked) = mpsc::channel(WAITING_MAX);
    (Queues { connections, looks }, Carried { connections: carried, looks: looked })
}

/// Takes those that wait, and those that are about to. `false` at the end.
async fn gather<T>(
    waiting: &mut mpsc::Receiver<T>,
    batch: &mut Vec<T>,
    stop: &CancellationToken,
) -> bool {
    let received = tokio::select! {
        received = waiting.recv_many(batch, TOGETHER_MAX) => received,
        () = stop.cancelled() => 0,
    };
    if received == 0 {
        return false;
    }
    // Whoever is about to ask on this thread does so before we leave.
    tokio::task::yield_now().await;
    while batch.len() < TOGETHER_MAX
        && let Ok(more) = waiting.try_recv()
    {
        batch.push(more);
    }
    true
}

/// Carries looks to Redis until `stop`, or until nobody has the broker any more.
async fn carry_looks(inner: Weak<Inner>, mut looks: mpsc::Receiver<Look>, stop: CancellationToken) {
    let mut batch = Vec::with_capacity(TOGETHER_MAX);
    while gather(&mut looks, &mut batch, &stop).await {
        let Some(inner) = inner.upgrade() else { return };
        let (calls, replies): (Vec<_>, Vec<_>) =
            batch.drain(..).map(|look| (look.call, look.reply)).unzip();
        for (reply, answer) in replies.into_iter().zip(inner.layout.run_all(calls).await) {
            // Whoever gave up needs no answer.
            let _ = reply.send(answer);
        }
    }
}

/// Carries connections to Redis until `stop`, or until nobody has the broker any more.
async fn carry(inner: Weak<Inner>, mut waiting: mpsc::Receiver<Waiting>, stop: CancellationToken) {
    let mut batch = Vec::with_capacity(TOGETHER_MAX);
    while gather(&mut waiting, &mut batch, &stop).await {
        let Some(inner) = inner.upgrade() else { return };
        let (mut coming, mut going) = ((Vec::new(), Vec::new()), (Vec::new(), Vec::new()));
        for waits in batch.drain(..) {
            match waits {
                // Who is not waited for any more must not be registered after its debt was settled.
                Waiting::Arriving(_, reply) if reply.is_closed() => {}
                Waiting::Arriving(one, reply) => {
                    coming.0.push(one);
                    coming.1.push(reply);
                }
                Waiting::Departing(one, reply) => {
                    going.0.push(one);
                    going.1.push(reply);
                }
            }
        }
        let (departed, arrived) =
            tokio::join!(inner.depart_together(&going.0), inner.arrive_together(&coming.0));
        for reply in going.1 {
            // Whoever gave up owes it; see the registry.
            let _ = reply.send(departed.clone());
        }
        for (reply, arrived) in coming.1.into_iter().zip(arrived) {
            let _ = reply.send(arrived);
        }
    }
}

impl Inner {
    pub(super) async fn arrive(&self, arriving: Arriving) -> Result<Admission, BrokerError> {
        let record = arriving.record.clone();
        let admitting = async {
            if self.layout.is_one_server() {
                return self.wait_for(|reply| Waiting::Arriving(arriving, reply)).await;
            }
            let mut arrived = self.arrive_together(std::slice::from_ref(&arriving)).await;
            arrived.pop().unwrap_or_else(|| Err(missing()))
        };
        let admission = self.registry.admitted(&record, admitting).await?;
        if admission == Admission::Admitted {
            self.registry.seen(&record.user);
        }
        Ok(admission)
    }

    pub(super) async fn depart(&self, departing: Departing) -> Result<(), BrokerError> {
        let record = departing.record.clone();
        self.forget_choice(&record.user);
        self.registry.forget(&record);
        let departed = if self.layout.is_one_server() {
            self.wait_for(|reply| Waiting::Departing(departing, reply)).await
        } else {
            self.depart_together(std::slice::from_ref(&departing)).await
        };
        if departed.is_err() {
            self.registry.owe(&record);
        }
        departed
    }

    async fn wait_for<T>(
        &self,
        waiting: impl FnOnce(oneshot::Sender<Result<T, BrokerError>>) -> Waiting,
    ) -> Result<T, BrokerError> {
        let (reply, answered) = oneshot::channel();
        self.queues.connections.send(waiting(reply)).await.map_err(|_| ended())?;
        answered.await.map_err(|_| ended())?
    }

    /// Runs a command that only reads.
    pub(super) async fn look(&self, call: Call) -> Result<Value, BrokerError> {
        if !self.layout.is_one_server() {
            return self.layout.run(&call.place, &call.command).await;
        }
        let (reply, answered) = oneshot::channel();
        self.queues.looks.send(Look { call, reply }).await.map_err(|_| ended())?;
        answered.await.map_err(|_| ended())?
    }

    async fn arrive_together(&self, coming: &[Arriving]) -> Vec<Result<Admission, BrokerError>> {
        if coming.is_empty() {
            return Vec::new();
        }
        match self.try_arrive(coming).await {
            Ok(arrived) => arrived.into_iter().map(Ok).collect(),
            Err(error) => coming.iter().map(|_| Err(error.clone())).collect(),
        }
    }

    async fn try_arrive(&self, coming: &[Arriving]) -> Result<Vec<Admission>, BrokerError> {
        let (layout, names) = (&self.layout, &self.shared.names);
        let limited = coming.iter().any(|one| one.limit > 0);
        let mut admissions: Vec<Option<Admission>> = coming.iter().map(|_| None).collect();
        let mut exactly = false;
        self.agree_to_look(coming.iter().map(|one| &one.record.user).collect()).await?;
        // At most twice: the second time it is known who lives.
        while admissions.iter().any(Option::is_none) {
            let left: Vec<usize> =
                (0..coming.len()).filter(|at| admissions[*at].is_none()).collect();
            let counting = self.registry.counting(layout, names, limited, exactly).await?;
            let users: Vec<Spoken> =
                left.iter().map(|at| Spoken::of(&coming[*at].record.user)).collect();
            let mut arrive = self.status_call(&scripts::ARRIVE, &users, &counting.nodes);
            arrive.command.arg(self.shared.node.as_str()).arg(u8::from(counting.exact));
            for (at, spoken) in left.iter().zip(&users) {
                let one = &coming[*at];
                arrive.command.arg(one.record.id.as_str()).arg(one.limit);
                spoken.tell(self, &mut arrive.command);
            }
            let records = left.iter().map(|at| &coming[*at].record);
            let index = self.registry.indexed(layout, names, records);
            let [indexed, arrived]: [_; 2] =
                self.layout.run_all(vec![index, arrive]).await.try_into().map_err(|_| missing())?;
            indexed?;
            let mut answers = answer::items(arrived?)?.into_iter();
            let mut settled: Vec<Settled> = Vec::with_capacity(left.len());
            for at in left {
                let mut next = || answers.next().ok_or_else(missing);
                let (admitted, connections): (u8, u64) =
                    (answer::read(next()?)?, answer::read(next()?)?);
                settled.push((
                    answer::read(next()?)?,
                    answer::read(next()?)?,
                    answer::read(next()?)?,
                ));
                admissions[at] = match admitted {
                    1 => Some(Admission::Admitted),
                    2 if !counting.exact => None,
                    _ => Some(Admission::TooMany { connections }),
                };
            }
            self.follow(&users, settled).await?;
            exactly = true;
        }
        let admissions: Vec<Admission> = admissions.into_iter().flatten().collect();
        let refused: Vec<_> = coming
            .iter()
            .zip(&admissions)
            .filter(|(_, admission)| **admission != Admission::Admitted)
            .map(|(one, _)| &one.record.id)
            .collect();
        if !refused.is_empty() {
            let forget = self.registry.unindexed(layout, names, refused);
            layout.run(&forget.place, &forget.command).await?;
        }
        Ok(admissions)
    }

    async fn depart_together(&self, going: &[Departing]) -> Result<(), BrokerError> {
        if going.is_empty() {
            return Ok(());
        }
        let leaving: Vec<_> =
            going.iter().map(|one| (&one.record.user, one.delay, one.record.id.as_str())).collect();
        let (agree, said) = self.departed(&leaving);
        let ids = going.iter().map(|one| &one.record.id);
        let unindexed = self.registry.unindexed(&self.layout, &self.shared.names, ids);
        let mut calls: Vec<Call> = Vec::with_capacity(said.len() + 2);
        if self.layout.is_one_server() {
            calls.push(agree);
        } else {
            self.layout.run(&agree.place, &agree.command).await?;
        }
        calls.extend(said);
        calls.push(unindexed);
        registry::all(&self.layout, calls).await
    }
}

fn ended() -> BrokerError {
    BrokerError::unavailable("the broker is closed")
}

fn missing() -> BrokerError {
    BrokerError::unavailable("an answer is missing")
}

/// Spawned under the broker's tasks; it must not keep the broker alive.
pub(super) fn spawn(inner: &Arc<Inner>, carried: Carried) {
    let Carried { connections, looks } = carried;
    let (weak, tasks) = (Arc::downgrade(inner), &inner.shared.tasks);
    tasks.spawn(carry(Weak::clone(&weak), connections, inner.stop.clone()));
    tasks.spawn(carry_looks(weak, looks, inner.stop.clone()));
}
