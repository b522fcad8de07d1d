//! The shape of the effective configuration. Data alone: reading is `read`, judging is `check`.
//! Source: contract, `operations.md` 2.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use carillon_broker_client::{RedisMode, RedisSettings, RedisTls};
use carillon_protocol::session::Route;
use serde::Serialize;

use super::namespaces::NamespaceSettings;
use super::secret::Secret;
use super::units::{Network, as_text};
use crate::auth::{Scope, TokenAlgorithm, check_public_key};

/// `server.*`: the port of clients and REST.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Server {
    /// Where clients connect.
    pub listen: SocketAddr,
    /// Peers whose `X-Forwarded-For` or PROXY header is believed.
    pub trusted_proxies: Vec<Network>,
    /// TLS on the client port.
    pub tls: Option<Tls>,
    /// Many sockets are written to by one system call where the kernel lets us.
    pub io_uring: bool,
}

/// `server.tls.*`: PEM files, read again when they change.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Tls {
    /// Certificate chain.
    pub cert: String,
    /// Private key.
    pub key: String,
}

/// `operator.*`: the port of metrics and health.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Operator {
    /// Where operators connect.
    pub listen: SocketAddr,
}

/// `node.*`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Node {
    /// What operators call this node; `None` makes one up.
    pub id: Option<String>,
}

/// How nodes reach each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The embedded broker: one node, nothing outlives it.
    Memory,
    /// One Redis server.
    Standalone,
    /// Sentinels know the master.
    Sentinel,
    /// Redis Cluster.
    Cluster,
    /// Independent servers, channels spread over them.
    Shards,
}

/// `redis.*`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Redis {
    /// Layout. Where only a URL is given, [`Mode::Standalone`].
    pub mode: Mode,
    /// One server.
    #[serde(serialize_with = "url_without_password")]
    pub url: Option<Secret>,
    /// Sentinels, cluster seeds or shards.
    #[serde(serialize_with = "urls_without_password")]
    pub urls: Vec<Secret>,
    /// Sentinel's name of the master.
    pub master_name: Option<String>,
    /// Before every key and channel.
    pub prefix: String,
    /// Files for `rediss://`.
    pub tls: RedisFiles,
    /// Longest wait for an answer.
    #[serde(with = "as_text")]
    pub command_timeout: Duration,
}

/// `redis.tls.*`: PEM files.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RedisFiles {
    /// Authority that signed the server's certificate; the system's when `None`.
    pub ca: Option<String>,
    /// Our certificate.
    pub cert: Option<String>,
    /// Our key.
    pub key: Option<String>,
    /// Accept any certificate (tests only).
    pub insecure: bool,
}

impl Redis {
    /// What the Redis broker takes; `None` for [`Mode::Memory`].
    #[must_use]
    pub fn settings(&self) -> Option<RedisSettings> {
        let mode = match self.mode {
            Mode::Memory => return None,
            Mode::Standalone => RedisMode::Standalone,
            Mode::Sentinel => RedisMode::Sentinel,
            Mode::Cluster => RedisMode::Cluster,
            Mode::Shards => RedisMode::Shards,
        };
        let tls = RedisTls {
            ca: self.tls.ca.clone(),
            cert: self.tls.cert.clone(),
            key: self.tls.key.clone(),
            insecure: self.tls.insecure,
        };
        Some(RedisSettings {
            mode,
            urls: self.url.iter().chain(&self.urls).map(|url| url.expose().to_owned()).collect(),
            master_name: self.master_name.clone(),
            prefix: self.prefix.clone(),
            tls,
            command_timeout: self.command_timeout,
        })
    }
}

/// `auth.*`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Auth {
    /// Tokens.
    pub jwt: Jwt,
    /// Clients without a token are admitted, for what `anyone` may.
    pub allow_anonymous: bool,
    /// Name of the cookie that may carry the token on transports.
    pub cookie: Option<String>,
    /// Backends' keys, by name.
    pub api_keys: BTreeMap<String, ApiKey>,
}

/// `auth.jwt.*`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Jwt {
    /// HMAC secret.
    pub secret: Option<Secret>,
    /// PEM or JWK of an RSA, EC or Ed25519 public key.
    #[serde(serialize_with = "key_if_public")]
    pub public_key: Option<Secret>,
    /// Further keys, chosen by `kid`.
    pub keys: Vec<JwtKey>,
    /// A JWK set, fetched and refreshed.
    #[serde(serialize_with = "link_without_password")]
    pub jwks_url: Option<String>,
    /// Algorithms that are accepted; empty: what each key can do.
    pub algorithms: Vec<TokenAlgorithm>,
    /// Accepted `iss`; empty: not checked.
    pub issuer: Vec<String>,
    /// Accepted `aud`; empty: not checked.
    pub audience: Vec<String>,
    /// Tolerated clock difference, at most 5 s (R28).
    #[serde(with = "as_text")]
    pub leeway: Duration,
}

/// An entry of `auth.jwt.keys`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct JwtKey {
    /// Which tokens it verifies; `None`: also tokens without `kid`.
    pub kid: Option<String>,
    /// HMAC secret.
    pub secret: Option<Secret>,
    /// PEM or JWK.
    #[serde(serialize_with = "key_if_public")]
    pub public_key: Option<Secret>,
    /// Algorithms of this key; empty: `auth.jwt.algorithms`, else what it can do.
    pub algorithms: Vec<TokenAlgorithm>,
}

impl JwtKey {
    /// The algorithms that this key may verify; empty: all that it can.
    #[must_use]
    pub fn allowed<'k>(&'k self, jwt: &'k Jwt) -> &'k [TokenAlgorithm] {
        if self.algorithms.is_empty() { &jwt.algorithms } else { &self.algorithms }
    }
}

/// `auth.api_keys.NAME.*`. Either the key or its hash.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ApiKey {
    /// The key itself.
    pub key: Option<Secret>,
    /// `sha256:<hex>`, as `carillon hash-key` prints it.
    pub key_hash: Option<String>,
    /// What it may.
    pub scopes: Vec<Scope>,
}

/// `cors.*`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cors {
    /// Origins of browsers; `*` is any.
    pub origins: Vec<String>,
}

/// `heartbeat.*`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Heartbeat {
    /// Between pings.
    #[serde(with = "as_text")]
    pub interval: Duration,
    /// Silence that closes a connection; 2 × interval + 10 s where not given.
    #[serde(with = "as_text")]
    pub timeout: Duration,
}

/// `presence.*`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Presence {
    /// Without a heartbeat for so long, a member is gone.
    #[serde(with = "as_text")]
    pub timeout: Duration,
    /// After the last connection went, so long until `offline`.
    #[serde(with = "as_text")]
    pub offline_delay: Duration,
}

/// `drain.*`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Drain {
    /// Connections are closed spread over this time.
    #[serde(with = "as_text")]
    pub period: Duration,
    /// Then so long for what is in flight.
    #[serde(with = "as_text")]
    pub grace: Duration,
}

/// `limits.*`. 0 switches a limit off.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Limits {
    /// Bytes of a message.
    pub max_message_size: usize,
    /// Client messages a second and connection.
    pub messages_per_second: u32,
    /// Over the cluster.
    pub connections_per_user: u32,
    /// Channels a connection asks for.
    pub subscriptions_per_connection: u32,
    /// Polls a minute and user.
    pub polls_per_minute: u32,
    /// Publications a second and channel.
    pub publishes_per_second_per_channel: u32,
    /// Bytes that wait for one slow reader.
    pub queue_bytes: usize,
    /// Connections of this node; where not given, from the limit of open files.
    pub connections: usize,
}

impl Limits {
    /// Bytes that may wait for one slow reader: as many as there are where the limit is switched off.
    #[must_use]
    pub fn queue_bytes_max(&self) -> usize {
        if self.queue_bytes == 0 { usize::MAX } else { self.queue_bytes }
    }
}

/// A webhook of the application, signed by Standard Webhooks.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Webhook {
    /// Where to `POST`.
    #[serde(serialize_with = "address_without_password")]
    pub url: String,
    /// Signs the calls.
    pub secret: Option<Secret>,
    /// Longest wait for the answer.
    #[serde(with = "as_text")]
    pub timeout: Duration,
}

/// `inbound.*`: messages to the application.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Inbound {
    /// `None`: they go to the `inbound` stream.
    pub webhook: Option<Webhook>,
    /// Channel message types that the application wants a copy of.
    pub types: Vec<String>,
}

/// `authorize.*`: the rule `webhook`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Authorize {
    /// Whom to ask.
    pub webhook: Option<Webhook>,
}

/// `events.*`: which lifecycle events go to the `inbound` stream.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Events {
    /// A channel's first subscriber came.
    pub channel_occupied: bool,
    /// Its last one went.
    pub channel_vacated: bool,
    /// A user joined a resource.
    pub presence_join: bool,
    /// A user left one.
    pub presence_leave: bool,
    /// A user's first connection.
    pub user_online: bool,
    /// A user's last connection went.
    pub user_offline: bool,
    /// Any connection opened.
    pub connection_opened: bool,
    /// Any connection closed.
    pub connection_closed: bool,
    /// Times that an entry of the stream is sent before it is a dead letter.
    pub attempts: u32,
    /// Drains the stream for applications that prefer HTTP.
    pub webhook: Option<Webhook>,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

/// `log.*`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Log {
    /// A level, or directives as in `RUST_LOG`.
    pub level: String,
    /// Text or JSON.
    pub format: LogFormat,
}

/// `otel.*`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Otel {
    /// OTLP endpoint; `OTEL_EXPORTER_OTLP_ENDPOINT` where not given.
    pub endpoint: Option<String>,
}

/// `compression.*` (R30). What a client did not ask for is never compressed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Compression {
    /// permessage-deflate.
    pub websocket: bool,
    /// gzip on event streams.
    pub sse: bool,
    /// gzip on answers of REST and long polls.
    pub rest: bool,
}

/// `console.*`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Console {
    /// Serve `/console`; on in development mode.
    pub enabled: bool,
}

/// `metrics.*`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Metrics {
    /// Names of `/ws/{name}` that become a label (R19).
    pub websocket_names: Vec<String>,
}

/// The effective configuration.
#[derive(Clone, Debug, Serialize)]
#[expect(missing_docs, reason = "each field is its type's section")]
pub struct Config {
    /// Development mode: made-up secrets, the console, and a loud word about it.
    pub dev: bool,
    /// In front of the shipped rows: give it to `Routes::with`.
    pub routes: Vec<Route>,
    /// First match wins.
    pub namespaces: Vec<NamespaceSettings>,
    pub server: Server,
    pub operator: Operator,
    pub node: Node,
    pub redis: Redis,
    pub auth: Auth,
    pub cors: Cors,
    pub heartbeat: Heartbeat,
    pub presence: Presence,
    pub drain: Drain,
    pub limits: Limits,
    pub inbound: Inbound,
    pub authorize: Authorize,
    pub events: Events,
    pub compression: Compression,
    pub log: Log,
    pub otel: Otel,
    pub console: Console,
    pub metrics: Metrics,
    /// What it was read from, to read it again.
    #[serde(skip)]
    pub(super) loader: super::Loader,
}

/// A URL as people may see it: no user, no password.
pub(super) fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return "***".to_owned() };
    rest.rsplit_once('@')
        .map_or_else(|| url.to_owned(), |(_, host)| format!("{scheme}://***@{host}"))
}

/// As [`without_password`], for HTTP: an `@` of the path is no password's end.
fn http_without_password(url: &str) -> String {
    let authority_at = url.find("://").map_or(0, |at| at + 3);
    let path_at = url[authority_at..].find('/').map_or(url.len(), |at| authority_at + at);
    format!("{}{}", without_password(&url[..path_at]), &url[path_at..])
}

fn address_without_password<S: serde::Serializer>(url: &str, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(&http_without_password(url))
}

fn link_without_password<S: serde::Serializer>(
    url: &Option<String>,
    s: S,
) -> Result<S::Ok, S::Error> {
    url.as_deref().map(http_without_password).serialize(s)
}

fn url_without_password<S: serde::Serializer>(
    url: &Option<Secret>,
    s: S,
) -> Result<S::Ok, S::Error> {
    url.as_ref().map(|url| without_password(url.expose())).serialize(s)
}

fn urls_without_password<S: serde::Serializer>(urls: &[Secret], s: S) -> Result<S::Ok, S::Error> {
    s.collect_seq(urls.iter().map(|url| without_password(url.expose())))
}

/// A public key is no secret, but what stands there by accident (a private key, a password) may be one.
fn key_if_public<S: serde::Serializer>(key: &Option<Secret>, s: S) -> Result<S::Ok, S::Error> {
    key.as_ref()
        .map(|key| check_public_key(key.expose(), &[]).map_or("***", |()| key.expose()))
        .serialize(s)
}
