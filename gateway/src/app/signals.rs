//! A node under an operating system: SIGTERM and SIGINT drain, a second one ends at once, SIGHUP reloads.

use std::sync::Arc;

use anyhow::Context;
use carillon_protocol::session::Routes;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::App;
use crate::auth::{ApiKeys, TokenVerifier};
use crate::config::Config;
use crate::node::Node;
use crate::policy::Policy;

/// Runs a node until it is told to end.
///
/// # Errors
/// When the node cannot start.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let app = App::bind(config).await?;
    let node = app.node();
    let (client, operator) = (app.client_address(), app.operator_address());
    tracing::info!(node = %node.name, ?client, ?operator, version = env!("CARGO_PKG_VERSION"), "listening");
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
            _ = hangup.recv() => reload(&node),
        }
    }
}

fn ask(shutdown: &CancellationToken, hurry: &CancellationToken) {
    if shutdown.is_cancelled() {
        hurry.cancel();
    }
    shutdown.cancel();
}

/// Replaces keys, namespaces and routes; what is wrong leaves everything as it was.
fn reload(node: &Arc<Node>) {
    let reloaded = match node.config.reload() {
        Ok(reloaded) => reloaded,
        Err(mistakes) => {
            tracing::error!(%mistakes, "the configuration was not reloaded");
            return;
        }
    };
    let config = &reloaded.config;
    let parts = || -> Result<_, String> {
        Ok((
            Policy::new(config).map_err(|error| error.to_string())?,
            TokenVerifier::new(&config.auth.jwt).map_err(|error| error.to_string())?,
            ApiKeys::new(&config.auth.api_keys),
            Routes::with(config.routes.clone()).map_err(|error| error.to_string())?,
        ))
    };
    match parts() {
        Ok((policy, verifier, api_keys, routes)) => {
            node.policy.store(Arc::new(policy));
            node.verifier.store(Arc::new(verifier));
            node.api_keys.store(Arc::new(api_keys));
            node.routes.store(Arc::new(routes));
            tracing::info!(needs_restart = ?reloaded.needs_restart, "configuration reloaded");
        }
        Err(error) => tracing::error!(%error, "the configuration was not reloaded"),
    }
}
