//! What contradicts what, and what production mode refuses. Reads settings, changes none.
//! Source: contract, `operations.md` 2; rulings R28.

use std::time::Duration;

use super::namespaces::Rule;
use super::reader::Reader;
use super::secret::Secret;
use super::settings::{Config, Mode};
use crate::application::SigningKeys;
use crate::auth::TokenAlgorithm;

/// The shortest HMAC secret in production, in bytes.
pub const SECRET_BYTES_MIN: usize = 32;

/// The shortest API key in production, in bytes.
pub const API_KEY_BYTES_MIN: usize = 16;

/// The shortest key of a webhook's signatures in production, in bytes.
pub(super) const WEBHOOK_KEY_BYTES_MIN: usize = 16;

const PLACEHOLDER: &str = "is the placeholder of an example, which production mode refuses";

const LEEWAY_MAX: Duration = Duration::from_secs(5);

/// Notes every contradiction.
pub(super) fn check(config: &Config, reader: &Reader<'_>) {
    check_redis(config, reader);
    check_keys(config, reader);
    check_policy(config, reader);
    check_application(config, reader);
    if config.heartbeat.interval.is_zero() {
        reader.mistake("heartbeat.interval", "must be longer than 0");
    }
    if config.heartbeat.timeout <= config.heartbeat.interval {
        reader.mistake("heartbeat.timeout", "must be longer than heartbeat.interval");
    }
    for (key, duration) in [
        ("redis.command_timeout", config.redis.command_timeout),
        ("presence.timeout", config.presence.timeout),
    ] {
        if duration.is_zero() {
            reader.mistake(key, "must be longer than 0");
        }
    }
    if config.server.listen == config.operator.listen && config.server.listen.port() != 0 {
        reader.mistake("operator.listen", "must differ from server.listen");
    }
    if config.cors.origins.iter().any(|origin| origin == "*") && config.auth.cookie.is_some() {
        reader.mistake(
            "cors.origins",
            "`*` is refused together with auth.cookie: any site could act as the user",
        );
    }
}

fn check_redis(config: &Config, reader: &Reader<'_>) {
    let redis = &config.redis;
    let urls = redis.urls.len() + usize::from(redis.url.is_some());
    match redis.mode {
        Mode::Memory if urls > 0 => {
            reader.mistake(
                "redis.mode",
                "memory uses no URL; say standalone, sentinel, cluster or shards",
            );
        }
        Mode::Standalone if urls != 1 => {
            reader.mistake("redis.url", "standalone needs exactly one URL");
        }
        Mode::Sentinel | Mode::Cluster | Mode::Shards if urls == 0 => {
            reader.mistake("redis.urls", "is required by this redis.mode");
        }
        _ => {}
    }
    if redis.mode == Mode::Sentinel && redis.master_name.is_none() {
        reader.mistake("redis.master_name", "is required by redis.mode = \"sentinel\"");
    }
    if redis.tls.cert.is_some() != redis.tls.key.is_some() {
        reader.mistake("redis.tls.cert", "and redis.tls.key go together");
    }
    if redis.tls.insecure && !config.dev {
        reader.mistake("redis.tls.insecure", "is for development mode alone");
    }
}

fn check_keys(config: &Config, reader: &Reader<'_>) {
    let jwt = &config.auth.jwt;
    if jwt.leeway > LEEWAY_MAX {
        reader.mistake("auth.jwt.leeway", "must be 5s at most");
    }
    if jwt.secret.is_some() && jwt.public_key.is_some() {
        reader.mistake(
            "auth.jwt.public_key",
            "stands beside auth.jwt.secret; list both under auth.jwt.keys",
        );
    }
    check_key(
        "auth.jwt",
        jwt.secret.as_ref(),
        jwt.public_key.as_ref(),
        &jwt.algorithms,
        config.dev,
        reader,
    );
    for (index, key) in jwt.keys.iter().enumerate() {
        let path = format!("auth.jwt.keys[{index}]");
        let same = |other: &super::settings::JwtKey| key.kid.is_some() && other.kid == key.kid;
        if jwt.keys[..index].iter().any(same) {
            reader.mistake(format!("{path}.kid"), "is the same as an earlier key's");
        }
        check_key(
            &path,
            key.secret.as_ref(),
            key.public_key.as_ref(),
            key.allowed(jwt),
            config.dev,
            reader,
        );
    }
    let keyless = jwt.secret.is_none()
        && jwt.public_key.is_none()
        && jwt.keys.is_empty()
        && jwt.jwks_url.is_none();
    if keyless && !config.dev && !config.auth.allow_anonymous {
        reader.mistake(
            "auth.jwt",
            "needs `secret`, `public_key`, `keys` or `jwks_url` (or start with --dev, which makes a secret)",
        );
    }
    for (name, key) in &config.auth.api_keys {
        if !config.dev && key.key.as_ref().is_some_and(|key| is_placeholder(key.expose())) {
            reader.mistake(format!("auth.api_keys.{name}.key"), PLACEHOLDER);
        }
        if !config.dev && key.key.as_ref().is_some_and(|key| key.expose().len() < API_KEY_BYTES_MIN)
        {
            reader.mistake(
                format!("auth.api_keys.{name}.key"),
                format!("is shorter than {API_KEY_BYTES_MIN} bytes, which production mode refuses"),
            );
        }
    }
}

fn check_key(
    path: &str,
    secret: Option<&Secret>,
    public_key: Option<&Secret>,
    algorithms: &[TokenAlgorithm],
    dev: bool,
    reader: &Reader<'_>,
) {
    if !dev && secret.is_some_and(|secret| secret.expose().len() < SECRET_BYTES_MIN) {
        reader.mistake(
            format!("{path}.secret"),
            format!("is shorter than {SECRET_BYTES_MIN} bytes, which production mode refuses"),
        );
    }
    if !dev && secret.is_some_and(|secret| is_placeholder(secret.expose())) {
        reader.mistake(format!("{path}.secret"), PLACEHOLDER);
    }
    if let Some(pem) = public_key
        && let Err(reason) = crate::auth::check_public_key(pem.expose(), algorithms)
    {
        reader.mistake(format!("{path}.public_key"), reason);
    }
    if secret.is_some()
        && !algorithms.is_empty()
        && !algorithms.iter().any(|algorithm| algorithm.needs_secret())
    {
        reader.mistake(
            format!("{path}.algorithms"),
            "allows no HS algorithm, which the secret needs",
        );
    }
}

/// Whether a secret was never made, only copied from an example.
fn is_placeholder(secret: &str) -> bool {
    let letters: String =
        secret.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase();
    [
        "changeme",
        "changethis",
        "replaceme",
        "replacethis",
        "yoursecret",
        "your256bitsecret",
        "yourapikey",
    ]
    .iter()
    .any(|word| letters.contains(word))
}

fn check_application(config: &Config, reader: &Reader<'_>) {
    for (path, webhook) in [
        ("inbound.webhook", &config.inbound.webhook),
        ("authorize.webhook", &config.authorize.webhook),
        ("events.webhook", &config.events.webhook),
    ] {
        let Some(webhook) = webhook else { continue };
        if webhook.timeout.is_zero() {
            reader.mistake(format!("{path}.timeout"), "must be longer than 0");
        }
        let secret = || format!("{path}.secret");
        match webhook.secret.as_ref().map(|secret| SigningKeys::length(secret.expose())) {
            None if !config.dev => reader.mistake(
                secret(),
                "is required: calls are signed (or start with --dev, which sends them unsigned)",
            ),
            Some(Err(invalid)) => reader.mistake(secret(), invalid.to_string()),
            Some(Ok(length)) if !config.dev && length < WEBHOOK_KEY_BYTES_MIN => reader.mistake(
                secret(),
                format!(
                    "is shorter than {WEBHOOK_KEY_BYTES_MIN} bytes, which production mode refuses"
                ),
            ),
            _ => {}
        }
    }
    if config.events.attempts == 0 {
        reader.mistake("events.attempts", "must be at least 1");
    }
    if config.inbound.types.iter().any(|kind| kind.trim().is_empty()) {
        reader.mistake("inbound.types", "must hold message types, none of them empty");
    }
}

fn check_policy(config: &Config, reader: &Reader<'_>) {
    for (index, namespace) in config.namespaces.iter().enumerate() {
        let path = format!("namespaces[{index}]");
        if config.namespaces[..index].iter().any(|other| other.pattern == namespace.pattern) {
            reader.mistake(
                format!("{path}.pattern"),
                "stands in the list already; the first match wins",
            );
        }
        let actions = [
            ("subscribe", &namespace.subscribe),
            ("publish", &namespace.publish),
            ("presence", &namespace.presence),
        ];
        for (action, rules) in actions {
            if rules.contains(&Rule::Webhook) && config.authorize.webhook.is_none() {
                reader.mistake(format!("{path}.{action}"), "`webhook` needs authorize.webhook.url");
            }
        }
        if !config.dev && config.auth.allow_anonymous && namespace.publish.contains(&Rule::Anyone) {
            reader.mistake(
                format!("{path}.publish"),
                "`anyone` together with auth.allow_anonymous lets strangers publish, which production mode refuses",
            );
        }
    }
}
