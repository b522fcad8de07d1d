//! `carillon token`: signs a token with the configured secret, or a given one.

use std::time::Duration;

use anyhow::Context as _;
use carillon_protocol::UserId;
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
    UserId::new(&args.user).context("--user")?;
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
        let claim = serde_json::from_str(text).context("--channels is not JSON")?;
        check(&claim)?;
        return Ok(claim);
    }
    Ok(text.split(',').map(str::trim).filter(|name| !name.is_empty()).map(Value::from).collect())
}

/// A verifier takes what it does not know for no grant: here, where somebody can mend it, it is a mistake.
fn check(claim: &Value) -> anyhow::Result<()> {
    let names =
        |list: &Value| list.as_array().is_some_and(|names| names.iter().all(Value::is_string));
    let actions = ["subscribe", "publish", "presence"];
    let sound = match claim {
        Value::Object(grants) => {
            grants.iter().all(|(action, list)| actions.contains(&action.as_str()) && names(list))
        }
        list => names(list),
    };
    anyhow::ensure!(
        sound,
        "--channels is a list of names and patterns, or an object of such lists by subscribe, publish, presence"
    );
    Ok(())
}
