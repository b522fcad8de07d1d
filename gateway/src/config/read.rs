//! Which keys there are, and their defaults. What contradicts what is `check`'s.
//! Source: contract, `operations.md` 2.

use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use carillon_broker_client::RedisSettings;
use carillon_protocol::session::{Route, Routes};
use serde_json::Value;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use super::namespaces;
use super::reader::Section;
use super::secret::Secret;
use super::settings::*;
use super::units::Network;
use crate::auth::{Scope, TokenAlgorithm};

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Reads every section. Wrong values are noted and replaced by the default, so that the rest is judged too.
pub(super) fn read(root: &Section<'_>, loader: &super::Loader) -> Config {
    let dev = root.flag("dev").unwrap_or(false);
    Config {
        dev,
        routes: root.sections("routes").unwrap_or_default().iter().filter_map(route).collect(),
        namespaces: root.sections("namespaces").map_or_else(namespaces::shipped, |sections| {
            sections.iter().map(namespaces::read).collect()
        }),
        server: server(&root.child("server")),
        operator: Operator { listen: address(&root.child("operator"), "127.0.0.1:9082") },
        node: Node { id: root.child("node").filled("id") },
        redis: redis(&root.child("redis")),
        auth: auth(&root.child("auth")),
        cors: Cors { origins: root.child("cors").list("origins", origin).unwrap_or_default() },
        heartbeat: heartbeat(&root.child("heartbeat")),
        presence: presence(&root.child("presence")),
        drain: drain(&root.child("drain")),
        limits: limits(&root.child("limits")),
        inbound: {
            let inbound = root.child("inbound");
            Inbound {
                webhook: webhook(&inbound.child("webhook"), seconds(5)),
                types: inbound.texts("types").unwrap_or_default(),
            }
        },
        authorize: Authorize {
            webhook: webhook(&root.child("authorize").child("webhook"), seconds(2)),
        },
        events: events(&root.child("events")),
        compression: {
            let section = root.child("compression");
            let on = |name: &str| section.flag(name).unwrap_or(true);
            Compression { websocket: on("websocket"), sse: on("sse"), rest: on("rest") }
        },
        log: log(&root.child("log")),
        otel: Otel { endpoint: root.child("otel").read("endpoint", http_url) },
        console: Console { enabled: root.child("console").flag("enabled").unwrap_or(dev) },
        metrics: Metrics {
            websocket_names: root.child("metrics").texts("websocket_names").unwrap_or_default(),
        },
        loader: loader.clone(),
    }
}

fn address(section: &Section<'_>, default: &str) -> SocketAddr {
    let read = section.read("listen", |text| {
        text.parse().map_err(|_| format!("{text:?} is no address; write one like {default:?}"))
    });
    read.unwrap_or_else(|| default.parse().expect("defaults are addresses"))
}

fn server(section: &Section<'_>) -> Server {
    let tls = section.child("tls");
    let tls = match (tls.filled("cert"), tls.filled("key")) {
        (Some(cert), Some(key)) => Some(Tls { cert, key }),
        (None, None) => None,
        (Some(_), None) => {
            tls.mistake("key", "is required beside server.tls.cert");
            None
        }
        (None, Some(_)) => {
            tls.mistake("cert", "is required beside server.tls.key");
            None
        }
    };
    Server {
        listen: address(section, "0.0.0.0:8082"),
        trusted_proxies: section.list("trusted_proxies", Network::from_str).unwrap_or_default(),
        tls,
        io_uring: section.flag("io_uring").unwrap_or(true),
    }
}

fn redis(section: &Section<'_>) -> Redis {
    let url = section.secret("url");
    let urls: Vec<Secret> =
        section.texts("urls").unwrap_or_default().into_iter().map(Secret::new).collect();
    for (name, url) in
        url.iter().map(|url| ("url", url)).chain(urls.iter().map(|url| ("urls", url)))
    {
        let schemes = ["redis://", "rediss://"];
        if !schemes.iter().any(|scheme| url.expose().starts_with(scheme)) {
            section.mistake(name, "must begin with redis:// or rediss://");
        } else if let Err(reason) = RedisSettings::check_url(url.expose()) {
            section.mistake(name, reason);
        }
    }
    let mode = section.read("mode", |text| match text {
        "memory" => Ok(Mode::Memory),
        "standalone" => Ok(Mode::Standalone),
        "sentinel" => Ok(Mode::Sentinel),
        "cluster" => Ok(Mode::Cluster),
        "shards" => Ok(Mode::Shards),
        _ => Err(format!(
            "{text:?} is no mode; modes are memory, standalone, sentinel, cluster, shards"
        )),
    });
    let tls = section.child("tls");
    Redis {
        // A URL without a mode must not run, unnoticed, without Redis.
        mode: mode.unwrap_or(if url.is_some() { Mode::Standalone } else { Mode::Memory }),
        url,
        urls,
        master_name: section.filled("master_name"),
        prefix: section.read("prefix", prefix).unwrap_or_else(|| "carillon".to_owned()),
        tls: RedisFiles {
            ca: tls.filled("ca"),
            cert: tls.filled("cert"),
            key: tls.filled("key"),
            insecure: tls.flag("insecure").unwrap_or(false),
        },
        command_timeout: section.duration("command_timeout").unwrap_or(seconds(1)),
    }
}

/// Braces would decide over a key's slot.
fn prefix(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err("must not be empty".to_owned());
    }
    if text.chars().any(|c| c.is_whitespace() || c.is_control() || "{}*?[]".contains(c)) {
        return Err(format!("{text:?} holds a space, a control character or one of {{ }} * ? [ ]"));
    }
    Ok(text.to_owned())
}

/// A name as RFC 6265 has it.
fn cookie(text: &str) -> Result<String, String> {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    match text.bytes().all(is_token) && !text.is_empty() {
        true => Ok(text.to_owned()),
        false => Err(format!("{text:?} is no name of a cookie")),
    }
}

fn auth(section: &Section<'_>) -> Auth {
    let jwt = section.child("jwt");
    Auth {
        jwt: Jwt {
            secret: jwt.secret("secret"),
            public_key: jwt.secret("public_key"),
            keys: jwt.sections("keys").unwrap_or_default().iter().map(jwt_key).collect(),
            jwks_url: jwt.read("jwks_url", http_url),
            algorithms: jwt.list("algorithms", algorithm).unwrap_or_default(),
            issuer: jwt.texts("issuer").unwrap_or_default(),
            audience: jwt.texts("audience").unwrap_or_default(),
            leeway: jwt.duration("leeway").unwrap_or_default(),
        },
        allow_anonymous: section.flag("allow_anonymous").unwrap_or(false),
        cookie: section.read("cookie", cookie),
        api_keys: section
            .entries("api_keys")
            .iter()
            .map(|(name, key)| (name.clone(), api_key(key)))
            .collect(),
    }
}

fn jwt_key(section: &Section<'_>) -> JwtKey {
    section.either("secret", "public_key");
    JwtKey {
        kid: section.filled("kid"),
        secret: section.secret("secret"),
        public_key: section.secret("public_key"),
        algorithms: section.list("algorithms", algorithm).unwrap_or_default(),
    }
}

fn algorithm(text: &str) -> Result<TokenAlgorithm, String> {
    text.parse().map_err(|unknown| format!("{text:?} {unknown}"))
}

fn api_key(section: &Section<'_>) -> ApiKey {
    section.either("key", "key_hash");
    let scopes = section.list("scopes", Scope::from_str).unwrap_or_default();
    if scopes.is_empty() {
        section.mistake("scopes", "needs at least one scope");
    }
    let key_hash = section.read("key_hash", |text| {
        let hex = text.strip_prefix("sha256:").unwrap_or_default();
        if hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            Ok(text.to_ascii_lowercase())
        } else {
            Err("must be `sha256:` and 64 hexadecimal digits, as `carillon hash-key` prints"
                .to_owned())
        }
    });
    ApiKey { key: section.secret("key"), key_hash, scopes }
}

fn origin(text: &str) -> Result<String, String> {
    let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    if text == "*"
        || host.is_some_and(|host| !host.is_empty() && !host.contains(['/', '?', '#', ' ']))
    {
        Ok(text.to_owned())
    } else {
        Err(format!("{text:?} is no origin; write \"https://host\", \"http://host:port\" or \"*\""))
    }
}

fn http_url(text: &str) -> Result<String, String> {
    let wrong = || format!("{text:?} is no http:// or https:// URL");
    let uri: http::Uri = text.parse().map_err(|_| wrong())?;
    match (uri.scheme_str(), uri.host()) {
        (Some("http" | "https"), Some(host)) if !host.is_empty() => Ok(text.to_owned()),
        _ => Err(wrong()),
    }
}

fn heartbeat(section: &Section<'_>) -> Heartbeat {
    let interval = section.duration("interval").unwrap_or(seconds(30));
    let timeout = section.duration("timeout").unwrap_or(interval.saturating_mul(2) + seconds(10));
    Heartbeat { interval, timeout }
}

fn presence(section: &Section<'_>) -> Presence {
    Presence {
        timeout: section.duration("timeout").unwrap_or(seconds(30)),
        offline_delay: section.duration("offline_delay").unwrap_or(seconds(5)),
    }
}

fn drain(section: &Section<'_>) -> Drain {
    Drain {
        period: section.duration("period").unwrap_or(seconds(20)),
        grace: section.duration("grace").unwrap_or(seconds(5)),
    }
}

fn limits(section: &Section<'_>) -> Limits {
    Limits {
        max_message_size: section.size("max_message_size").unwrap_or(1 << 20),
        messages_per_second: section.number("messages_per_second").unwrap_or(100),
        connections_per_user: section.number("connections_per_user").unwrap_or(10),
        subscriptions_per_connection: section.number("subscriptions_per_connection").unwrap_or(50),
        polls_per_minute: section.number("polls_per_minute").unwrap_or(30),
        publishes_per_second_per_channel: section
            .number("publishes_per_second_per_channel")
            .unwrap_or(1_000),
        queue_bytes: section.size("queue_bytes").unwrap_or(256 << 10),
        connections: section.number("connections").unwrap_or_else(connections_from_file_limit),
    }
}

/// Open files, less what Redis, listeners and backends' calls need. Without a known limit: 10,000.
fn connections_from_file_limit() -> usize {
    const RESERVED: usize = 256;
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let soft = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))
        .and_then(|rest| rest.split_whitespace().next());
    match soft {
        Some("unlimited") => 1_000_000,
        soft => soft
            .and_then(|text| text.parse::<usize>().ok())
            .map_or(10_000, |files| files.saturating_sub(RESERVED).max(files / 2).max(1)),
    }
}

fn webhook(section: &Section<'_>, timeout: Duration) -> Option<Webhook> {
    let url = section.read("url", http_url);
    let secret = section.secret("secret");
    let timeout = section.duration("timeout").unwrap_or(timeout);
    if !section.has("url") && (section.has("secret") || section.has("timeout")) {
        section.mistake("url", "is required where the webhook's secret or timeout is set");
    }
    Some(Webhook { url: url?, secret, timeout })
}

fn events(section: &Section<'_>) -> Events {
    let on = |name: &str| section.flag(name).unwrap_or(false);
    Events {
        channel_occupied: on("channel_occupied"),
        channel_vacated: on("channel_vacated"),
        presence_join: on("presence_join"),
        presence_leave: on("presence_leave"),
        user_online: on("user_online"),
        user_offline: on("user_offline"),
        connection_opened: on("connection_opened"),
        connection_closed: on("connection_closed"),
        attempts: section.number("attempts").unwrap_or(10),
        webhook: webhook(&section.child("webhook"), seconds(10)),
    }
}

fn log(section: &Section<'_>) -> Log {
    let level = section.read("level", |text| {
        // EnvFilter takes any one word for the name of a module.
        let word = text.trim().chars().all(char::is_alphanumeric);
        let level = LevelFilter::from_str(text.trim()).is_ok();
        if EnvFilter::try_new(text).is_err() || (word && !level) {
            return Err(format!(
                "{text:?} is no level; write off, error, warn, info, debug, trace or directives"
            ));
        }
        Ok(text.to_owned())
    });
    let format = section.read("format", |text| match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err(format!("{text:?} is no format; formats are text and json")),
    });
    Log {
        level: level.unwrap_or_else(|| "info".to_owned()),
        format: format.unwrap_or(LogFormat::Text),
    }
}

fn route(section: &Section<'_>) -> Option<Route> {
    let map = |name: &str| match section.value(name) {
        None => Some(serde_json::Map::new()),
        Some(Value::Object(fields)) => Some(fields),
        Some(_) => {
            section.mistake(name, "must be a table");
            None
        }
    };
    let route = Route {
        from: section.text("from").unwrap_or_default(),
        to: section.text("to").unwrap_or_default(),
        payload: map("payload")?,
        overwrite: map("overwrite")?,
        fill: map("fill")?,
        relay: section.flag("relay").unwrap_or(false),
        history: section.flag("history").unwrap_or(true),
    };
    match Routes::with(vec![route.clone()]) {
        Ok(_) => Some(route),
        Err(error) => {
            section.mistake("from", error.problem);
            None
        }
    }
}
