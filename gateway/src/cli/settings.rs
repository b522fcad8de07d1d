//! Flags that name or override settings.

use std::path::PathBuf;

use clap::Args;

use crate::config::Sources;

/// Where the configuration comes from.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct SourceArgs {
    /// The configuration file [default: $CARILLON_CONFIG, else carillon.toml where it exists].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Development mode: secrets are made up and printed.
    #[arg(long)]
    dev: bool,
    /// Override any setting, lists and maps as JSON (repeatable).
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
}

/// What `serve` takes.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct ServeArgs {
    #[command(flatten)]
    source: SourceArgs,
    /// Where clients connect (server.listen).
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// Where operators connect (operator.listen).
    #[arg(long, value_name = "ADDRESS")]
    operator_listen: Option<String>,
    /// Redis (redis.url).
    #[arg(long, value_name = "URL")]
    redis_url: Option<String>,
}

impl SourceArgs {
    /// The sources, flags and process environment included.
    pub(super) fn sources(&self) -> Sources {
        self.with(Vec::new())
    }

    fn with(&self, mut flags: Vec<(String, String)>) -> Sources {
        if self.dev {
            flags.push(("dev".to_owned(), "true".to_owned()));
        }
        flags.extend(self.set.iter().cloned());
        Sources::of_process(self.config.clone(), flags)
    }
}

impl ServeArgs {
    /// The sources, flags and process environment included.
    pub(super) fn sources(&self) -> Sources {
        let named = [
            ("server.listen", &self.listen),
            ("operator.listen", &self.operator_listen),
            ("redis.url", &self.redis_url),
        ];
        let given =
            named.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value.clone()?)));
        self.source.with(given.collect())
    }
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => {
            Ok((key.trim().to_owned(), value.to_owned()))
        }
        _ => Err("write KEY=VALUE, for example limits.connections=50000".to_owned()),
    }
}
