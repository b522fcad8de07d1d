//! The configuration: file < environment < flags, every value judged, all mistakes at once.
//! Must not know what the values are used for. Source: contract, `operations.md` 2; ruling R44.

mod check;
mod namespaces;
mod read;
mod reader;
mod secret;
mod settings;
mod sources;
mod units;

use std::sync::{Arc, OnceLock};

use base64::Engine as _;

pub use check::{API_KEY_BYTES_MIN, SECRET_BYTES_MIN};
pub use namespaces::{History, NamespaceSettings, Rule, shipped};
pub use reader::{Mistake, Mistakes};
pub use secret::Secret;
pub use settings::{
    ApiKey, Auth, Authorize, Compression, Config, Console, Cors, Drain, Events, Heartbeat, Inbound,
    Jwt, JwtKey, Limits, Log, LogFormat, Metrics, Mode, Node, Operator, Otel, Presence, Redis,
    RedisFiles, Server, Tls, Webhook,
};
pub use sources::{DEFAULT_FILE, ENVIRONMENT_PREFIX, Sources};
pub use units::{Network, format_duration, parse_duration, parse_size};

use crate::auth::Scope;

/// Name of the API key that development mode makes.
pub const DEVELOPMENT_KEY: &str = "dev";

/// What a configuration was read from. Clones share the secrets that development mode made, so
/// that a reload keeps tokens valid.
#[derive(Clone, Debug, Default)]
pub(crate) struct Loader {
    sources: Arc<Sources>,
    made_secret: Arc<OnceLock<Secret>>,
    made_key: Arc<OnceLock<Secret>>,
}

impl Loader {
    fn load(&self) -> Result<Config, Mistakes> {
        let merged = self.sources.merge().map_err(|mistake| Mistakes(vec![mistake]))?;
        let reader = reader::Reader::new(&self.sources.environment, merged.origins);
        let mut config = read::read(&reader.root(merged.tree), self);
        check::check(&config, &reader);
        let mistakes = reader.finish();
        if !mistakes.is_empty() {
            return Err(Mistakes(mistakes));
        }
        if config.dev {
            self.make_secrets(&mut config.auth);
        }
        Ok(config)
    }

    /// Development mode: a token secret and an API key, where none are configured.
    fn make_secrets(&self, auth: &mut Auth) {
        let jwt = &mut auth.jwt;
        if jwt.secret.is_none()
            && jwt.public_key.is_none()
            && jwt.keys.is_empty()
            && jwt.jwks_url.is_none()
        {
            jwt.secret = Some(self.made_secret.get_or_init(random_secret).clone());
        }
        if auth.api_keys.is_empty() {
            let key = self.made_key.get_or_init(random_secret).clone();
            let key = ApiKey { key: Some(key), key_hash: None, scopes: vec![Scope::Admin] };
            auth.api_keys.insert(DEVELOPMENT_KEY.to_owned(), key);
        }
    }
}

fn random_secret() -> Secret {
    Secret::new(base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(rand::random::<[u8; 33]>()))
}

/// A configuration read again, and what of it only a restart can change.
#[derive(Clone, Debug)]
pub struct Reloaded {
    /// New keys, namespaces, routes, limits and log level; everything else as it was.
    pub config: Config,
    /// Sections that changed and stay as they were until a restart.
    pub needs_restart: Vec<&'static str>,
}

impl Config {
    /// Reads and judges everything.
    ///
    /// # Errors
    /// Every mistake, each with its key and reason.
    pub fn load(sources: Sources) -> Result<Self, Mistakes> {
        Loader { sources: Arc::new(sources), ..Loader::default() }.load()
    }

    /// Development mode with defaults and these settings; the process's environment is not read.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn development(settings: &[(&str, &str)]) -> Result<Self, Mistakes> {
        let flags = std::iter::once(&("dev", "true")).chain(settings);
        let flags = flags.map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Self::load(Sources { flags, ..Sources::default() })
    }

    /// Reads the same sources again (SIGHUP): keys, namespaces, routes, limits and log level change, the rest stays.
    ///
    /// # Errors
    /// Every mistake; the present configuration stays good.
    pub fn reload(&self) -> Result<Reloaded, Mistakes> {
        let fresh = self.loader.load()?;
        let mut needs_restart = Vec::new();
        let mut config = self.clone();
        macro_rules! fixed {
            ($($section:ident)*) => {
                $(if fresh.$section != self.$section { needs_restart.push(stringify!($section)); })*
            };
        }
        fixed!(dev server operator node redis cors heartbeat presence drain inbound authorize
            events compression otel console metrics);
        config.auth = fresh.auth;
        config.routes = fresh.routes;
        config.namespaces = fresh.namespaces;
        config.limits = fresh.limits;
        config.log.level = fresh.log.level;
        if fresh.log.format != self.log.format {
            needs_restart.push("log.format");
        }
        Ok(Reloaded { config, needs_restart })
    }

    /// What is set and is not what one might think, for people: what this version does not serve, what bounds nothing.
    #[must_use]
    pub fn warnings(&self) -> Vec<&'static str> {
        let mut warnings = Vec::new();
        if self.otel.endpoint.is_some() {
            warnings.push("otel.endpoint: this version exports no traces");
        }
        if self.console.enabled && !self.dev {
            warnings.push("console.enabled: this version serves no console");
        }
        if self.limits.queue_bytes == 0 {
            warnings.push(
                "limits.queue_bytes = 0: a reader that stops reading holds memory without a bound",
            );
        }
        warnings
    }

    /// Whether the token secret was made up at start: no other process knows it.
    #[must_use]
    pub fn secret_was_made(&self) -> bool {
        self.auth.jwt.secret.is_some()
            && self.auth.jwt.secret.as_ref() == self.loader.made_secret.get()
    }

    /// The effective configuration as TOML, secrets as `***`.
    ///
    /// # Errors
    /// A route's payload holds a value that TOML cannot write (null).
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string(self)
    }
}

#[cfg(test)]
mod tests;
