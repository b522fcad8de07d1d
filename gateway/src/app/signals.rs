//! A node under an operating system: SIGTERM and SIGINT drain, a second one ends at once, SIGHUP reloads.

use std::net::SocketAddr;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::App;
use super::reload::reload;
use crate::config::Config;
use crate::logging::Log;
use crate::socket::burst;

/// Runs a node until it is told to end; a reload may change the level of `log`.
///
/// # Errors
/// When the node cannot start.
pub async fn run(config: Config, log: Log) -> anyhow::Result<()> {
    let app = App::bind(config).await?;
    let node = app.node();
    let shown = |address: Option<SocketAddr>| {
        address.map_or_else(String::new, |address| address.to_string())
    };
    let (client, operator) = (shown(app.client_address()), shown(app.operator_address()));
    let (version, io_uring) = (env!("CARGO_PKG_VERSION"), burst::is_possible());
    tracing::info!(node = %node.name, client, operator, version, io_uring, "listening");
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
    let mut hangup = signal(SignalKind::hangup()).context("SIGHUP")?;
    let (shutdown, hurry) = (CancellationToken::new(), CancellationToken::new());
    let running = app.run(shutdown.clone().cancelled_owned(), hurry.clone());
    let mut running = std::pin::pin!(running);
    loop {
        tokio::select! {
            () = &mut running => return Ok(()),
            _ = terminate.recv() => ask(&shutdown, &hurry),
            _ = interrupt.recv() => ask(&shutdown, &hurry),
            _ = hangup.recv() => reload(&node, &log),
        }
    }
}

fn ask(shutdown: &CancellationToken, hurry: &CancellationToken) {
    if shutdown.is_cancelled() {
        hurry.cancel();
    }
    shutdown.cancel();
}
