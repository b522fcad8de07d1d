//! One run against one server (or several nodes of one): what is done to it, by whom, and the figures.
//!
//! A scenario each in its own file; what they share (connecting, warming up, measuring, waiting for stragglers) is in
//! `run`.

mod idle;
mod publish;
mod rooms;
mod run;

use crate::mark::Filling;
use crate::report::Report;
use crate::target::{Kind, Plain, PublishBy, Transport};
use anyhow::Result;
use clap::{Args, ValueEnum};
use run::Run;
use std::time::Duration;
use tokio::time::sleep;

/// What is done to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scenario {
    /// One channel, everybody listens.
    Fanout,
    /// Connections spread over `--channels`.
    Channels,
    /// As `channels`, but the members publish over their own WebSockets.
    Rooms,
    /// Memory of connections that only wait.
    Idle,
    /// Connections as fast as they come.
    Connect,
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
    let memory = run.memory()?;
    let connections = if options.scenario == Scenario::Publish { 0 } else { options.connections };
    let subscribers = run.connect(connections).await?;
    match options.scenario {
        Scenario::Connect => sleep(Duration::from_secs(options.hold)).await,
        Scenario::Idle => run.idle(&subscribers, memory).await?,
        Scenario::Rooms => run.rooms(&subscribers).await?,
        Scenario::Fanout | Scenario::Channels | Scenario::Publish => {
            run.publish(&subscribers).await?;
        }
    }
    Ok(run.finish())
}
