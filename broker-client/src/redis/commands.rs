//! The command link: one multiplexed connection under our own supervision.
//!
//! Without a connection every call fails at once; a hanging Redis costs a caller the command
//! time-out and trips the link, so that the callers behind it fail at once too. The supervisor pings,
//! reconnects with jitter, and asks again where the master is.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Cmd, ConnectionInfo, FromRedisValue, Pipeline, RedisError,
    ServerErrorKind,
};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::address;
use super::scripts::Source;
use super::settings::RedisSettings;
use crate::{BrokerError, Health};

const PING: Duration = Duration::from_millis(500);
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(1);

pub(super) struct Commands {
    settings: Arc<RedisSettings>,
    live: ArcSwapOption<MultiplexedConnection>,
    broken: Notify,
    hearing: AtomicBool,
    health: watch::Sender<Health>,
    /// Told when the link came to another server than before.
    moved: Notify,
}

impl Commands {
    pub(super) fn start(
        settings: Arc<RedisSettings>,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Arc<Self> {
        let commands = Arc::new(Self {
            settings,
            live: ArcSwapOption::empty(),
            broken: Notify::new(),
            hearing: AtomicBool::new(false),
            health: watch::Sender::new(Health::Starting),
            moved: Notify::new(),
        });
        tasks.spawn(supervise(Arc::clone(&commands), stop.clone()));
        commands
    }

    pub(super) fn health(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    /// Completes when the command link went to another server.
    pub(super) async fn moved(&self) {
        self.moved.notified().await;
    }

    /// The other link says whether it hears.
    pub(super) fn set_hearing(&self, hears: bool, reason: &str) {
        self.hearing.store(hears, Ordering::Relaxed);
        self.judge(reason);
    }

    /// Whether commands can be sent now.
    pub(super) fn is_live(&self) -> bool {
        self.live.load().is_some()
    }

    fn judge(&self, reason: &str) {
        let up = self.is_live() && self.hearing.load(Ordering::Relaxed);
        self.health.send_if_modified(|health| {
            let next = match (up, &*health) {
                (true, _) => Health::Up,
                (false, Health::Starting) => Health::Starting,
                (false, _) => Health::Down(reason.to_owned()),
            };
            let changed = *health != next;
            if changed {
                tracing::info!(health = ?next, "redis");
            }
            *health = next;
            changed
        });
    }

    /// Sends one command.
    pub(super) async fn run<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, BrokerError> {
        let mut connection = self.connection()?;
        command
            .query_async(&mut *Arc::make_mut(&mut connection))
            .await
            .map_err(|error| self.judged(&error))
    }

    /// Runs a script by its digest; loads it where the server does not know it.
    pub(super) async fn script<T: FromRedisValue>(
        &self,
        source: &Source,
        arguments: impl for<'a> Fn(&'a mut Cmd) -> &'a mut Cmd,
    ) -> Result<T, BrokerError> {
        let mut connection = self.connection()?;
        let connection = Arc::make_mut(&mut connection);
        let mut command = redis::cmd("EVALSHA");
        command.arg(&source.digest);
        arguments(&mut command);
        match command.query_async(connection).await {
            Err(error) if is_unknown_script(&error) => {
                let mut command = redis::cmd("EVAL");
                command.arg(source.text);
                arguments(&mut command);
                command.query_async(connection).await.map_err(|error| self.judged(&error))
            }
            other => other.map_err(|error| self.judged(&error)),
        }
    }

    /// Sends a pipeline; single failures stay single.
    pub(super) async fn pipeline(
        &self,
        pipeline: &Pipeline,
    ) -> Result<Vec<redis::Value>, BrokerError> {
        let mut connection = self.connection()?;
        let connection = Arc::make_mut(&mut connection);
        pipeline.query_async(connection).await.map_err(|error| self.judged(&error))
    }

    fn connection(&self) -> Result<Arc<MultiplexedConnection>, BrokerError> {
        self.live.load_full().ok_or_else(|| BrokerError::unavailable("not connected to Redis"))
    }

    /// What an error means to the caller, and to the link.
    pub(super) fn judged(&self, error: &RedisError) -> BrokerError {
        let server = match error.kind() {
            redis::ErrorKind::Server(kind) => Some(kind),
            _ => None,
        };
        let gone = error.is_timeout() || error.is_io_error() || error.is_connection_dropped();
        if gone || matches!(server, Some(ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown)) {
            self.live.store(None);
            self.judge("commands fail");
            self.broken.notify_one();
        }
        BrokerError::unavailable(error)
    }
}

/// Whether the server answered that it does not know the script.
pub(super) fn is_unknown_script(error: &RedisError) -> bool {
    matches!(error.kind(), redis::ErrorKind::Server(ServerErrorKind::NoScript))
}

async fn supervise(commands: Arc<Commands>, stop: CancellationToken) {
    let mut backoff = BACKOFF_MIN;
    let mut last_address = None;
    loop {
        let connected = tokio::select! {
            connected = connect(&commands.settings) => connected,
            () = stop.cancelled() => return,
        };
        match connected {
            Ok((connection, info)) => {
                backoff = BACKOFF_MIN;
                let address = info.addr().clone();
                if last_address.as_ref().is_some_and(|last| *last != address) {
                    commands.moved.notify_one();
                }
                last_address = Some(address);
                commands.live.store(Some(Arc::new(connection.clone())));
                commands.judge("not hearing yet");
                let reason = tokio::select! {
                    reason = watch_over(&commands, connection) => reason,
                    () = stop.cancelled() => return,
                };
                commands.live.store(None);
                commands.judge(&reason);
                tracing::warn!(%reason, "the command connection to Redis is lost");
            }
            Err(error) => {
                commands.judge(&error);
                tracing::debug!(%error, "Redis cannot be reached; waiting");
            }
        }
        let jittered = backoff.mul_f64(0.5 + rand::random::<f64>() / 2.0);
        tokio::select! {
            () = tokio::time::sleep(jittered) => {}
            () = stop.cancelled() => return,
        }
        backoff = (backoff * 2).min(BACKOFF_MAX);
    }
}

async fn connect(
    settings: &RedisSettings,
) -> Result<(MultiplexedConnection, ConnectionInfo), String> {
    let info = address::resolve(settings).await?;
    let tcp = info.tcp_settings().clone().set_nodelay(true);
    let client = redis::Client::open(info.clone().set_tcp_settings(tcp))
        .map_err(|error| error.to_string())?;
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(settings.command_timeout))
        .set_response_timeout(Some(settings.command_timeout));
    let connecting = client.get_multiplexed_async_connection_with_config(&config);
    let mut connection = tokio::time::timeout(settings.command_timeout * 2, connecting)
        .await
        .map_err(|_| "connecting took too long".to_owned())?
        .map_err(|error| error.to_string())?;
    let pong: Result<String, RedisError> = redis::cmd("PING").query_async(&mut connection).await;
    pong.map_err(|error| error.to_string())?;
    Ok((connection, info))
}

/// Pings until the connection does not answer or somebody found it broken; why.
async fn watch_over(commands: &Commands, mut connection: MultiplexedConnection) -> String {
    loop {
        tokio::select! {
            () = tokio::time::sleep(PING) => {}
            () = commands.broken.notified() => {
                if !commands.is_live() {
                    return "commands fail".to_owned();
                }
            }
        }
        let pong: Result<String, RedisError> =
            redis::cmd("PING").query_async(&mut connection).await;
        match pong {
            Ok(_) if commands.is_live() => {}
            Ok(_) => return "commands fail".to_owned(),
            Err(error) => return error.to_string(),
        }
    }
}
