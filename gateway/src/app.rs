//! Puts a node together. (A stand-in; the real one takes its place.)

use crate::config::Config;

/// Runs a node until it is told to stop.
///
/// # Errors
/// It could not start.
pub async fn run(config: Config) -> anyhow::Result<()> {
    anyhow::bail!("this build has no gateway to listen on {}", config.server.listen)
}
