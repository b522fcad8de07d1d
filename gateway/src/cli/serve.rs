//! `carillon serve`: reads the configuration, says loudly when it is development mode, runs the node.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;

use super::settings::ServeArgs;
use crate::auth::{NewToken, mint};
use crate::config::{Config, DEVELOPMENT_KEY, Secret};
use crate::logging::Log;

pub(super) async fn run(args: ServeArgs) -> anyhow::Result<ExitCode> {
    let config = Config::load(args.sources())?;
    if config.dev {
        // Standard output, never the log: the banner holds a token (R44).
        super::print(&banner(&config, jiff::Timestamp::now().as_second()))?;
    }
    let log = Log::start(&config.log).context("the log")?;
    config.warnings().iter().for_each(|warning| tracing::warn!("{warning}"));
    crate::app::run(config, log).await?;
    Ok(ExitCode::SUCCESS)
}

/// What a developer needs to begin: a token, a key, calls to copy, the API's page.
pub(super) fn banner(config: &Config, now: i64) -> String {
    let listen = config.server.listen;
    let host =
        if listen.ip().is_unspecified() { "127.0.0.1".to_owned() } else { listen.ip().to_string() };
    let scheme = if config.server.tls.is_some() { "https" } else { "http" };
    let base = format!("{scheme}://{host}:{}", listen.port());
    let mut lines = vec![
        "=".repeat(78),
        " DEVELOPMENT MODE. Secrets are made up and printed. Never run production like this."
            .to_owned(),
        "=".repeat(78),
    ];
    if config.secret_was_made()
        && let Some(secret) = &config.auth.jwt.secret
    {
        lines.push(format!(" secret   {}", secret.expose()));
    }
    let token = NewToken {
        user: "alice".to_owned(),
        ttl: Duration::from_secs(86_400),
        ..NewToken::default()
    };
    let minted = mint(&config.auth.jwt, None, &token, now).ok();
    if let Some(token) = &minted {
        lines.push(format!(" token    {token}"));
        lines.push("          (user alice, one day)".to_owned());
    }
    let key = config.auth.api_keys.get(DEVELOPMENT_KEY).and_then(|key| key.key.as_ref());
    if let Some(key) = key.map(Secret::expose) {
        lines.push(format!(" API key  {key}"));
        lines.push(String::new());
        lines.push(format!(
            " curl -H 'X-API-Key: {key}' -H 'Content-Type: application/json' {base}/api/realtime/publish -d '{{\"channel\":\"general\",\"type\":\"message\",\"payload\":{{\"text\":\"hello\"}}}}'"
        ));
    }
    if let Some(token) = &minted {
        let program = std::env::args().next().unwrap_or_else(|| "carillon".to_owned());
        lines.push(String::new());
        lines.push(format!(" {program} listen --url {base} --channel general --token {token}"));
    }
    lines.push(String::new());
    lines.push(format!(" API      {base}/api/realtime/docs"));
    lines.push("=".repeat(78));
    lines.join("\n")
}
