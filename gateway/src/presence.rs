//! Presence of this node's connections: who is held where, who fell silent, who came and went. `channels.md` 3,
//! rulings R4, R20, R25.
//!
//! What the cluster knows is the broker's (`carillon_broker_client::presence`); here is what only this node can
//! know: when a message last came, and when it ended. What the broker could not be told is kept and said later.

mod requests;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Weak};
use std::time::Duration;

use carillon_broker_client::{Broker, BrokerError, ConnectionRecord, Joined, Member, UserStatus};
use carillon_protocol::{ChannelName, ConnectionId, UserId};
use foldhash::HashMap;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock;
use crate::connection::Connection;

pub(crate) use requests::member;

/// How often silence is looked for and the broker tended.
const TICK: Duration = Duration::from_secs(1);
/// What the broker is owed at most.
const DEBTS_MAX: usize = 100_000;

/// One connection's holds. The lock is held while the broker is told, so that it hears of them in order.
type Holds = Arc<tokio::sync::Mutex<HashMap<ChannelName, Hold>>>;

/// A connection holds its user at a resource.
#[derive(Clone, Debug)]
struct Hold {
    member: Member,
    /// Fell silent: taken back until it is heard again.
    lapsed: bool,
}

#[derive(Debug)]
struct Present {
    connection: Weak<Connection>,
    user: UserId,
    holds: Holds,
}

/// What the broker must still be told.
#[derive(Clone, Debug)]
enum Debt {
    Leave { resource: ChannelName, connection: ConnectionId, user: UserId, last_seen_ms: i64 },
    Seen(UserId),
    Departed(UserId),
}

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct Presence {
    inner: Arc<Inner>,
}

struct Inner {
    broker: Arc<dyn Broker>,
    tasks: TaskTracker,
    stop: CancellationToken,
    timeout: Duration,
    offline_delay: Duration,
    present: Mutex<HashMap<ConnectionId, Present>>,
    debts: Mutex<Vec<Debt>>,
}

/// Unix milliseconds of when a message last came.
fn last_spoken_ms(connection: &Connection) -> i64 {
    let silent_ms = clock::monotonic_ms().saturating_sub(connection.spoke_at_ms());
    clock::unix_ms().saturating_sub(i64::try_from(silent_ms).unwrap_or(0))
}

impl Presence {
    /// Nobody is present. `timeout` of zero never takes the silent for gone.
    #[must_use]
    pub fn new(
        broker: Arc<dyn Broker>,
        timeout: Duration,
        offline_delay: Duration,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Self {
        let inner = Inner {
            broker,
            tasks: tasks.clone(),
            stop: stop.clone(),
            timeout,
            offline_delay,
            present: Mutex::default(),
            debts: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// A user has a registered connection (or polls): they are online.
    pub fn arrived(&self, user: &UserId) {
        let (inner, user) = (Arc::clone(&self.inner), user.clone());
        self.inner.tasks.spawn(async move {
            if let Err(error) = inner.broker.user_seen(&user, None).await {
                inner.owe(Debt::Seen(user), &error);
            }
        });
    }

    /// A connection ends: it is deregistered, and its user is offline after the delay, unless they are back.
    pub async fn departed(&self, record: &ConnectionRecord) {
        self.departed_within(record, self.inner.offline_delay).await;
    }

    /// The same with a delay of the caller's.
    pub async fn departed_within(&self, record: &ConnectionRecord, delay: Duration) {
        if let Err(error) = self.inner.broker.depart(record, delay).await {
            self.inner.owe(Debt::Departed(record.user.clone()), &error);
        }
    }

    /// A connection ended: it holds nobody any more.
    pub fn ended(&self, connection: &Connection) {
        let Some(present) = self.inner.present.lock().remove(&connection.id) else { return };
        if self.inner.stop.is_cancelled() {
            // The node retires its whole lease at once.
            return;
        }
        let (inner, id, last_seen_ms) =
            (Arc::clone(&self.inner), connection.id.clone(), last_spoken_ms(connection));
        self.inner.tasks.spawn(async move {
            let holds = std::mem::take(&mut *present.holds.lock().await);
            for (resource, hold) in holds.into_iter().filter(|(_, hold)| !hold.lapsed) {
                inner.leave(resource, &id, hold.member.id, last_seen_ms).await;
            }
        });
    }

    /// A connection joins a resource.
    pub(crate) async fn join(
        &self,
        connection: &Arc<Connection>,
        resource: &ChannelName,
        member: Member,
    ) -> Result<Joined, BrokerError> {
        let holds = self.holds(connection, &member.id);
        let mut holds = holds.lock().await;
        match self.inner.broker.join_resource(resource, &connection.id, &member).await {
            Ok(joined) => {
                holds.insert(resource.clone(), Hold { member, lapsed: false });
                Ok(joined)
            }
            Err(error) => {
                // A hold from before stands. Without one it may have happened; the client was told that it did not.
                if holds.get(resource).is_none_or(|hold| hold.lapsed) {
                    holds.remove(resource);
                    let last_seen_ms = clock::unix_ms();
                    let (resource, connection) = (resource.clone(), connection.id.clone());
                    self.inner.owe(
                        Debt::Leave { resource, connection, user: member.id, last_seen_ms },
                        &error,
                    );
                }
                Err(error)
            }
        }
    }

    /// A connection leaves a resource. `false` when it was not there.
    pub(crate) async fn leave(&self, connection: &Connection, resource: &ChannelName) -> bool {
        let holds =
            self.inner.present.lock().get(&connection.id).map(|present| Arc::clone(&present.holds));
        let Some(holds) = holds else { return false };
        let mut holds = holds.lock().await;
        let Some(hold) = holds.remove(resource) else { return false };
        if !hold.lapsed {
            self.inner
                .leave(resource.clone(), &connection.id, hold.member.id, clock::unix_ms())
                .await;
        }
        true
    }

    /// Whether a connection holds its user at a resource, as far as this node knows.
    pub(crate) async fn is_held(&self, connection: &Connection, resource: &ChannelName) -> bool {
        let holds =
            self.inner.present.lock().get(&connection.id).map(|present| Arc::clone(&present.holds));
        let Some(holds) = holds else { return false };
        let holds = holds.lock().await;
        holds.get(resource).is_some_and(|hold| !hold.lapsed)
    }

    /// The same without waiting; `false` also while it is being changed.
    pub(crate) fn is_surely_held(&self, connection: &Connection, resource: &ChannelName) -> bool {
        let present = self.inner.present.lock();
        let holds = present.get(&connection.id).map(|present| present.holds.try_lock());
        holds.is_some_and(|holds| {
            holds.is_ok_and(|holds| holds.get(resource).is_some_and(|hold| !hold.lapsed))
        })
    }

    /// Whether a connection holds its user at a resource, after one that had lapsed was put back.
    async fn refresh(
        &self,
        connection: &Connection,
        resource: &ChannelName,
    ) -> Result<bool, BrokerError> {
        let holds =
            self.inner.present.lock().get(&connection.id).map(|present| Arc::clone(&present.holds));
        let Some(holds) = holds else { return Ok(false) };
        let mut holds = holds.lock().await;
        let Some(hold) = holds.get_mut(resource) else { return Ok(false) };
        if hold.lapsed {
            hold.member.last_seen_ms = clock::unix_ms();
            self.inner.broker.join_resource(resource, &connection.id, &hold.member).await?;
            hold.lapsed = false;
        }
        Ok(true)
    }

    async fn set_status(&self, user: &UserId, status: UserStatus) -> Result<(), BrokerError> {
        self.inner.broker.user_seen(user, Some(status)).await
    }

    fn holds(&self, connection: &Arc<Connection>, user: &UserId) -> Holds {
        let mut present = self.inner.present.lock();
        let entry = present.entry(connection.id.clone()).or_insert_with(|| Present {
            connection: Arc::downgrade(connection),
            user: user.clone(),
            holds: Holds::default(),
        });
        Arc::clone(&entry.holds)
    }

    /// Looks for the silent, pays debts and tends the broker's presence, once a second until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                () = stop.cancelled() => return,
            }
            self.take_back_the_silent().await;
            let mut debts = std::mem::take(&mut *self.inner.debts.lock()).into_iter();
            // The first that cannot be paid stands for all: a Redis that hangs costs one time-out a second.
            while let Some(debt) = debts.next() {
                if !self.inner.pay(debt).await {
                    self.inner.debts.lock().extend(debts);
                    break;
                }
            }
            if let Err(error) = self.inner.broker.tend().await {
                tracing::debug!(%error, "presence was not tended");
            }
        }
    }

    async fn take_back_the_silent(&self) {
        let timeout_ms = self.inner.timeout.as_millis() as u64;
        if timeout_ms == 0 {
            return;
        }
        let now = clock::monotonic_ms();
        let is_silent =
            |connection: &Connection| now.saturating_sub(connection.spoke_at_ms()) >= timeout_ms;
        let silent: Vec<(Arc<Connection>, UserId, Holds)> = {
            let present = self.inner.present.lock();
            let known = present.values().filter_map(|present| {
                let connection =
                    present.connection.upgrade().filter(|connection| is_silent(connection))?;
                Some((connection, present.user.clone(), Arc::clone(&present.holds)))
            });
            known.collect()
        };
        for (connection, user, holds) in silent {
            let mut holds = holds.lock().await;
            let fresh: Vec<ChannelName> = holds
                .iter()
                .filter(|(_, hold)| !hold.lapsed)
                .map(|(resource, _)| resource.clone())
                .collect();
            for resource in fresh {
                if !is_silent(&connection) {
                    break;
                }
                if let Some(hold) = holds.get_mut(&resource) {
                    hold.lapsed = true;
                }
                self.inner
                    .leave(resource, &connection.id, user.clone(), last_spoken_ms(&connection))
                    .await;
            }
        }
    }
}

impl Inner {
    async fn leave(
        &self,
        resource: ChannelName,
        connection: &ConnectionId,
        user: UserId,
        last_seen_ms: i64,
    ) {
        if let Err(error) =
            self.broker.leave_resource(&resource, connection, &user, last_seen_ms).await
        {
            self.owe(
                Debt::Leave { resource, connection: connection.clone(), user, last_seen_ms },
                &error,
            );
        }
    }

    fn owe(&self, debt: Debt, error: &BrokerError) {
        tracing::debug!(%error, ?debt, "the broker will be told of presence later");
        let mut debts = self.debts.lock();
        // Beyond that the node's lease ends what it holds, and looking corrects what is shown.
        if debts.len() < DEBTS_MAX {
            debts.push(debt);
        }
    }

    /// Tells the broker what it could not be told before, unless that has changed since. `false` when it still cannot be told.
    async fn pay(&self, debt: Debt) -> bool {
        let paid = match &debt {
            Debt::Leave { resource, connection, user, last_seen_ms } => {
                let holds =
                    self.present.lock().get(connection).map(|present| Arc::clone(&present.holds));
                let holds = match &holds {
                    Some(holds) => Some(holds.lock().await),
                    None => None,
                };
                let is_held = holds
                    .as_ref()
                    .is_some_and(|holds| holds.get(resource).is_some_and(|hold| !hold.lapsed));
                if is_held {
                    return true;
                }
                self.broker
                    .leave_resource(resource, connection, user, *last_seen_ms)
                    .await
                    .map(|_| ())
            }
            Debt::Seen(user) => match self.broker.connections_of(user).await {
                // Gone again; their farewell is another debt.
                Ok(connections) if connections.is_empty() => Ok(()),
                Ok(_) => self.broker.user_seen(user, None).await,
                Err(error) => Err(error),
            },
            Debt::Departed(user) => self.broker.user_departed(user, self.offline_delay).await,
        };
        match paid {
            Ok(()) => true,
            Err(error) => {
                self.owe(debt, &error);
                false
            }
        }
    }
}
