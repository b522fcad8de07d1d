//! `carillon token`: signs a token with the configured secret, or a given one.

use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use serde_json::Value;

use super::settings::SourceArgs;
use crate::auth::{NewToken, mint};
use crate::config::{Config, Jwt, Secret, parse_duration};

#[derive(Clone, Debug, Args)]
pub(super) struct TokenArgs {
    #[command(flatten)]
    source: SourceArgs,
    /// The user.
    #[arg(long)]
    user: String,
    /// How long it is good.
    #[arg(long, default_value = "1h", value_parser = parse_duration)]
    ttl: Duration,
    /// Scopes, separated by spaces or commas.
    #[arg(long)]
    scope: Option<String>,
    /// Grants: names and patterns separated by commas, or JSON.
    #[arg(long)]
    channels: Option<String>,
    /// The name that presence shows.
    #[arg(long)]
    name: Option<String>,
    /// Sign with this secret instead of the configured one.
    #[arg(long, env = "CARILLON_SECRET", hide_env_values = true)]
    secret: Option<String>,
}

/// The token.
pub(super) fn make(args: &TokenArgs, now: i64) -> anyhow::Result<String> {
    let secret = args.secret.as_ref().map(Secret::new);
    let jwt = match (Config::load(args.source.sources()), &secret) {
        (Ok(config), None) => {
            anyhow::ensure!(
                !config.secret_was_made(),
                "development mode makes a new secret at each start; give the one that `carillon serve --dev` printed with --secret"
            );
            config.auth.jwt
        }
        (Ok(config), Some(_)) => config.auth.jwt,
        // A given secret needs no configuration at all.
        (Err(_), Some(_)) => Jwt::default(),
        (Err(mistakes), None) => return Err(mistakes.into()),
    };
    let token = NewToken {
        user: args.user.clone(),
        name: args.name.clone(),
        scope: args.scope.as_ref().map(|scope| scope.replace(',', " ")),
        channels: args.channels.as_deref().map(grants).transpose()?,
        ttl: args.ttl,
    };
    Ok(mint(&jwt, secret.as_ref(), &token, now)?)
}

/// JSON as it is, anything else as a comma-separated list.
fn grants(text: &str) -> anyhow::Result<Value> {
    if text.trim_start().starts_with(['[', '{']) {
        return serde_json::from_str(text).context("--channels is not JSON");
    }
    Ok(text.split(',').map(str::trim).filter(|name| !name.is_empty()).map(Value::from).collect())
}
