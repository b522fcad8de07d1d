//! One server as this node uses it: a supervised command connection, and the hearing beside it.
//!
//! Without a connection every call fails at once. A call that times out trips the link, so that a
//! hanging Redis costs the callers of one moment the time-out and those behind them nothing. The supervisor pings,
//! reconnects with jitter and, with sentinels, asks again where the master is. The hearing follows
//! the commands' address, never the other way round.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Cmd, Pipeline, RedisConnectionInfo, ServerError, Value};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::dial::{DialError, SharedDialer};
use super::endpoint::Endpoint;
use super::gathered::gathered;
use super::health::{Board, Ears, LinkId};
use super::hearing::{self, Hearing};
use super::names::Names;
use super::scripts;
use super::sentinel::Source;
use crate::{BrokerError, NodeId};

const PING_EVERY: Duration = Duration::from_millis(500);
/// Two missed answers in a row mean a dead connection.
const PING_MISSES_MAX: u32 = 2;
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// Requests that wait for the connection's writer.
const PIPELINE_MAX: usize = 1024;

/// The dialer logged in already.
pub(super) static LOGGED_IN: LazyLock<RedisConnectionInfo> =
    LazyLock::new(|| RedisConnectionInfo::default().set_skip_set_lib_name());

/// What all links of a broker share.
pub(super) struct Shared {
    pub(super) node: NodeId,
    pub(super) names: Names,
    pub(super) dialer: SharedDialer,
    pub(super) timeout: Duration,
    /// Redis Cluster: `SSUBSCRIBE`, one channel a command.
    pub(super) sharded: bool,
    /// A backend is none: what all nodes are told is not for it.
    pub(super) is_node: bool,
    pub(super) board: Board,
    pub(super) ears: Ears,
    pub(super) counters: Counters,
    pub(super) tasks: TaskTracker,
    /// Told when a link saw that the cluster is laid out otherwise than we think.
    pub(super) layout_doubted: Notify,
}

impl Shared {
    /// Channels on which others tell us things.
    pub(super) fn told_on(&self) -> Vec<String> {
        let all = self.is_node.then(|| self.names.all_channel());
        std::iter::once(self.names.own_channel()).chain(all).collect()
    }
}

#[derive(Default)]
pub(super) struct Counters {
    pub(super) command_connects: AtomicU64,
    pub(super) command_reconnects: AtomicU64,
    pub(super) losses: AtomicU64,
    pub(super) hearing_reconnects: AtomicU64,
    pub(super) round_trips: AtomicU64,
    pub(super) round_trip_ns: AtomicU64,
}

impl Counters {
    /// Grows whenever a server may not hold any more what was written there: a connection was made anew, or its data
    /// was seen to be gone.
    pub(super) fn generation(&self) -> u64 {
        self.command_connects.load(Ordering::Acquire) + self.losses.load(Ordering::Acquire)
    }
}

struct Live {
    connection: MultiplexedConnection,
    tripped: CancellationToken,
}

/// See the module. Shared by handle; its tasks end when it is stopped.
pub(super) struct Link {
    pub(super) id: LinkId,
    pub(super) shared: Arc<Shared>,
    pub(super) hearing: Hearing,
    source: Source,
    live: ArcSwapOption<Live>,
    address: watch::Sender<Option<Endpoint>>,
    stop: CancellationToken,
}

impl Link {
    /// Begins to connect.
    pub(super) fn start(
        id: LinkId,
        source: Source,
        shared: &Arc<Shared>,
        stop: &CancellationToken,
    ) -> Arc<Self> {
        let link = Arc::new(Self {
            id,
            shared: Arc::clone(shared),
            hearing: Hearing::new(),
            source,
            live: ArcSwapOption::empty(),
            address: watch::Sender::new(None),
            stop: stop.child_token(),
        });
        shared.board.add(id);
        for task in [Task::Commands, Task::Hearing] {
            let (link, stop) = (Arc::clone(&link), link.stop.clone());
            shared.tasks.spawn(async move {
                let work = async {
                    match task {
                        Task::Commands => link.supervise().await,
                        Task::Hearing => hearing::run(&link).await,
                    }
                };
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = work => {}
                }
            });
        }
        link
    }

    /// Ends both connections.
    pub(super) fn stop(&self) {
        self.stop.cancel();
        self.live.store(None);
        self.shared.board.remove(self.id);
    }

    /// Where the commands go, as it changes; `None` before the first connection.
    pub(super) fn address(&self) -> watch::Receiver<Option<Endpoint>> {
        self.address.subscribe()
    }

    /// Sends one command. Errors of the server are values here: the layout may know better.
    pub(super) async fn send(&self, command: &Cmd) -> Result<Value, BrokerError> {
        let live = self.live()?;
        let started = Instant::now();
        match live.connection.clone().send_packed_command(command).await {
            Ok(value) => {
                self.count(started);
                self.heed(&live, &value);
                Ok(value)
            }
            Err(error) => Err(self.trip(&live, &error.to_string())),
        }
    }

    /// Sends many commands at once; answers in their order.
    pub(super) async fn send_all(
        &self,
        commands: &Pipeline,
        count: usize,
    ) -> Result<Vec<Value>, BrokerError> {
        let live = self.live()?;
        let started = Instant::now();
        match live.connection.clone().send_packed_commands(commands, 0, count).await {
            Ok(values) if values.len() == count => {
                self.count(started);
                values.iter().for_each(|value| self.heed(&live, value));
                Ok(values)
            }
            Ok(_) => Err(self.trip(&live, "an answer is missing")),
            Err(error) => Err(self.trip(&live, &error.to_string())),
        }
    }

    fn live(&self) -> Result<Arc<Live>, BrokerError> {
        self.live
            .load_full()
            .ok_or_else(|| BrokerError::unavailable(self.shared.board.problem(self.id)))
    }

    fn count(&self, started: Instant) {
        let counters = &self.shared.counters;
        counters.round_trips.fetch_add(1, Ordering::Relaxed);
        let ns = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        counters.round_trip_ns.fetch_add(ns, Ordering::Relaxed);
    }

    /// A server that is no master (any more) will not become one by asking again.
    fn heed(&self, live: &Arc<Live>, value: &Value) {
        if let Value::ServerError(error) = value
            && matches!(
                error.code(),
                "READONLY" | "MASTERDOWN" | "LOADING" | "NOAUTH" | "UNBLOCKED"
            )
        {
            self.trip(live, &sentence(error));
        }
    }

    /// Opens the circuit: callers fail at once until the supervisor has a new connection.
    fn trip(&self, live: &Arc<Live>, reason: &str) -> BrokerError {
        let previous = self.live.compare_and_swap(live, None);
        if previous.as_ref().is_some_and(|previous| Arc::ptr_eq(previous, live)) {
            self.shared.board.commands(self.id, Some(&DialError::Unreachable(reason.to_owned())));
        }
        live.tripped.cancel();
        self.shared.layout_doubted.notify_one();
        BrokerError::unavailable(reason)
    }

    async fn supervise(self: &Arc<Self>) {
        let mut backoff = BACKOFF_MIN;
        let mut connected_before = false;
        loop {
            match self.connect().await {
                Ok((live, endpoint, driver)) => {
                    backoff = BACKOFF_MIN;
                    let counters = &self.shared.counters;
                    counters.command_connects.fetch_add(1, Ordering::Relaxed);
                    if std::mem::replace(&mut connected_before, true) {
                        counters.command_reconnects.fetch_add(1, Ordering::Relaxed);
                    }
                    let reason = self.attend(live, endpoint, driver).await;
                    tracing::debug!(%reason, "the command connection to Redis ended");
                    self.live.store(None);
                    self.shared.board.commands(self.id, Some(&DialError::Unreachable(reason)));
                }
                Err(error) => self.shared.board.commands(self.id, Some(&error)),
            }
            self.shared.layout_doubted.notify_one();
            tokio::time::sleep(jittered(backoff)).await;
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    /// Connects, and teaches the server our scripts, so that publishing never meets an unknown one
    /// but after a SCRIPT FLUSH.
    async fn connect(
        &self,
    ) -> Result<(Arc<Live>, Endpoint, impl Future<Output = ()> + use<>), DialError> {
        let endpoint = self.source.resolve(&self.shared.dialer).await?;
        let name = format!("carillon-{}-commands", self.shared.node);
        let line = self.shared.dialer.dial(&endpoint, &name).await?;
        if self.source.wants_master() && !line.is_master {
            return Err(DialError::Unreachable(format!(
                "Redis {endpoint} is not the master any more"
            )));
        }
        let config = AsyncConnectionConfig::new()
            .set_response_timeout(Some(self.shared.timeout))
            .set_pipeline_buffer_size(PIPELINE_MAX);
        let patience = self.shared.timeout;
        let made = MultiplexedConnection::new_with_config(&LOGGED_IN, line.socket, config);
        let refused = |reason: String| DialError::Refused(format!("Redis {endpoint}: {reason}"));
        let (connection, driver) = tokio::time::timeout(patience, made)
            .await
            .map_err(|_| DialError::Unreachable(format!("Redis {endpoint}: no answer")))?
            .map_err(|error| refused(error.to_string()))?;
        let mut driver = Box::pin(driver);
        let mut teacher = connection.clone();
        let (load, count) = scripts::load_all();
        let taught = tokio::select! {
            taught = teacher.send_packed_commands(&load, 0, count) => taught,
            () = &mut driver => Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset).into()),
        };
        let taught =
            taught.map_err(|error| DialError::Unreachable(format!("Redis {endpoint}: {error}")))?;
        if let Some(Value::ServerError(error)) =
            taught.iter().find(|value| matches!(value, Value::ServerError(_)))
        {
            return Err(refused(sentence(error)));
        }
        Ok((Arc::new(Live { connection, tripped: CancellationToken::new() }), endpoint, driver))
    }

    /// Drives the connection and watches over it; why it ended.
    async fn attend(
        &self,
        live: Arc<Live>,
        endpoint: Endpoint,
        driver: impl Future<Output = ()>,
    ) -> String {
        let (mut pinging, tripped) = (live.connection.clone(), live.tripped.clone());
        let here = endpoint.clone();
        self.live.store(Some(live));
        self.address.send_if_modified(|address| {
            address.replace(endpoint.clone()).as_ref() != Some(&endpoint)
        });
        self.shared.board.commands(self.id, None);
        let pings = async {
            let mut misses = 0;
            loop {
                tokio::time::sleep(PING_EVERY).await;
                let ping = redis::cmd("PING");
                let answer =
                    tokio::time::timeout(PING_EVERY, pinging.send_packed_command(&ping)).await;
                misses = if matches!(answer, Ok(Ok(_))) { 0 } else { misses + 1 };
                if misses >= PING_MISSES_MAX {
                    return format!("Redis {here} does not answer");
                }
            }
        };
        tokio::select! {
            () = gathered(driver) => format!("Redis {endpoint} closed the connection"),
            reason = pings => reason,
            () = tripped.cancelled() => self.shared.board.problem(self.id),
            reason = self.source.moved(&self.shared.dialer, &endpoint) => reason,
        }
    }
}

enum Task {
    Commands,
    Hearing,
}

/// A pause between half of it and all of it, so that nodes do not return in step.
pub(super) fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(0.5 + rand::random::<f64>() / 2.0)
}

/// An error of the server as one sentence.
pub(super) fn sentence(error: &ServerError) -> String {
    match error.details() {
        Some(details) => format!("{} {details}", error.code()),
        None => error.code().to_owned(),
    }
}
