//! One run against one server (or several nodes of one): what is done to it, by whom, and the figures.
//!
//! A scenario each in its own file; what they share (connecting, warming up, measuring, waiting for stragglers) is in
//! `run`.

mod idle;
mod mixed;
mod presence;
mod publish;
mod reconnect;
mod rooms;
mod run;

use crate::mark::Filling;
use crate::report::Report;
use crate::target::{Kind, Plain, PublishBy, Transport};
use anyhow::Result;
use clap::{Args, ValueEnum};
use run::Run;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::time::sleep;

/// What is done to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scenario {
    /// One channel, everybody listens.
    Fanout,
    /// Connections spread over `--channels`.
    Channels,
    /// Chat: members of `--channels` rooms talk over their own WebSockets; `--churn` of them a second leave and come back.
    Rooms,
    /// Notifications through REST, each to `--recipients` users who are connected.
    Notifications,
    /// Memory of connections that only wait.
    Idle,
    /// A connect storm: connections as fast as they come, or `--arrivals` a second.
    Connect,
    /// A reconnect storm: while messages come, all connections are cut at once and come back to where they were.
    Reconnect,
    /// WebSockets, event streams and polls on channels of all sizes, published through REST and WebSockets, presence.
    Mixed,
    /// Everybody present in `--channels` rooms, and nothing happens: CPU and Redis commands at rest.
    Presence,
    /// Publishing through REST without listeners.
    Publish,
}

/// `loadtest run`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    #[arg(long, value_enum)]
    pub(crate) scenario: Scenario,
    #[arg(long, value_enum, default_value = "carillon")]
    pub(crate) target: Kind,
    #[arg(long, value_enum, default_value = "ws")]
    pub(crate) transport: Transport,
    /// Address of the server, `127.0.0.1:8082` or `ws://…` (paths are the target's own); of several nodes, to which connections go in turn.
    #[arg(long, value_delimiter = ',', default_value = "127.0.0.1:8082")]
    pub(crate) url: Vec<String>,
    /// Where messages are published, if on other nodes than `--url`.
    #[arg(long, value_delimiter = ',')]
    pub(crate) publish_url: Vec<String>,
    /// Connections that publish, each its own channels; without it 8, or 1 where one channel must keep its order.
    #[arg(long)]
    pub(crate) publishers: Option<usize>,
    /// How Carillon is published to.
    #[arg(long, value_enum, default_value = "rest")]
    pub(crate) publish_by: PublishBy,
    /// Processes whose CPU and memory count.
    #[arg(long, value_delimiter = ',')]
    pub(crate) server_pid: Vec<u32>,
    /// The server's Redis, whose CPU counts too.
    #[arg(long)]
    pub(crate) redis_pid: Option<u32>,
    #[arg(long, default_value_t = 1_000)]
    pub(crate) connections: usize,
    #[arg(long, default_value_t = 1)]
    pub(crate) channels: u32,
    /// Channels that each connection listens on (scenario `channels`): neighbours, so that `--channels` is their sum over
    /// the connections.
    #[arg(long, default_value_t = 1)]
    pub(crate) channels_each: u32,
    /// Messages a second over all channels; without it the server is saturated.
    #[arg(long)]
    pub(crate) rate: Option<f64>,
    /// Saturate with `--window` messages in flight (the default without `--rate`).
    #[arg(long, conflicts_with = "rate")]
    pub(crate) saturate: bool,
    #[arg(long, default_value_t = 8)]
    pub(crate) window: u64,
    /// Most messages in one request.
    #[arg(long, default_value_t = 100)]
    pub(crate) batch: usize,
    /// Bytes of a payload.
    #[arg(long, default_value_t = 128)]
    pub(crate) size: usize,
    /// What fills it.
    #[arg(long, value_enum, default_value = "letter")]
    pub(crate) filling: Filling,
    /// Measured seconds.
    #[arg(long, default_value_t = 5.0)]
    pub(crate) duration: f64,
    /// Ask for permessage-deflate; a server that does not agree fails the run.
    #[arg(long)]
    pub(crate) deflate: bool,
    /// Connections that are due a second, counted from when they were due; without it as fast as they come.
    #[arg(long)]
    pub(crate) arrivals: Option<f64>,
    /// Members a second who leave their room for half a second.
    #[arg(long, default_value_t = 0.0)]
    pub(crate) churn: f64,
    /// Users that each notification goes to.
    #[arg(long, default_value_t = 1)]
    pub(crate) recipients: usize,
    /// Seconds over which clients that were cut come back.
    #[arg(long, default_value_t = 0.0)]
    pub(crate) jitter: f64,
    /// Seconds between two heartbeats of a present user.
    #[arg(long, default_value_t = 25.0)]
    pub(crate) heartbeat: f64,
    /// The server's Redis, for its own counts.
    #[arg(long)]
    pub(crate) redis: Option<SocketAddr>,
    /// Handshakes in flight.
    #[arg(long, default_value_t = 128)]
    pub(crate) handshakes: usize,
    /// Seconds that the scenario `connect` holds its connections.
    #[arg(long, default_value_t = 0)]
    pub(crate) hold: u64,
    /// Beginning of the users' names: one user a connection.
    #[arg(long, default_value = "load")]
    pub(crate) user: String,
    #[arg(long, env = "LOADTEST_JWT_SECRET", default_value = "", hide_env_values = true)]
    pub(crate) jwt_secret: String,
    #[arg(long, env = "LOADTEST_API_KEY", default_value = "", hide_env_values = true)]
    pub(crate) api_key: String,
    #[command(flatten)]
    pub(crate) plain: Plain,
    /// Print JSON only.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Runs on a thread of its own and returns the figures.
pub(crate) fn run(options: &Options) -> Result<Report> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().event_interval(31).build()?;
    tokio::task::LocalSet::new().block_on(&runtime, drive(options))
}

async fn drive(options: &Options) -> Result<Report> {
    let mut run = Run::new(options)?;
    let sampler = run.sampler();
    match options.scenario {
        Scenario::Connect => {
            let _held = run.connect().await?;
            sleep(Duration::from_secs(options.hold)).await;
        }
        Scenario::Idle => run.idle().await?,
        Scenario::Rooms => run.rooms().await?,
        Scenario::Fanout | Scenario::Channels | Scenario::Publish | Scenario::Notifications => {
            let subscribers = run.connect().await?;
            run.publish(&subscribers).await?;
        }
        Scenario::Reconnect => run.reconnect().await?,
        Scenario::Mixed => run.mixed().await?,
        Scenario::Presence => run.presence().await?,
    }
    Ok(Report { samples: sampler.finish(), ..run.finish()? })
}
