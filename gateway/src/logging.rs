//! The process's log: text or JSON lines on standard error, whose level may change while it runs.
//! Knows nothing of what is logged. Source: `operations.md` 2 (`log.*`), ruling R44.

use std::io::IsTerminal;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

use crate::config::{self, LogFormat};

/// The running log.
#[derive(Clone, Debug)]
pub struct Log {
    level: reload::Handle<EnvFilter, Registry>,
}

impl Log {
    /// Makes this the log of the whole process.
    ///
    /// # Errors
    /// There is one already.
    pub fn start(settings: &config::Log) -> Result<Self, TryInitError> {
        let (filter, level) = reload::Layer::new(EnvFilter::new(&settings.level));
        let lines = fmt::layer().with_writer(std::io::stderr);
        let lines = match settings.format {
            LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).boxed(),
            LogFormat::Json => lines.json().flatten_event(true).boxed(),
        };
        tracing_subscriber::registry().with(filter).with(lines).try_init()?;
        Ok(Self { level })
    }

    /// Changes what is logged from now on: a level, or directives as in `RUST_LOG`. What is no
    /// directive is left out; a checked configuration has none of those.
    pub fn set_level(&self, level: &str) {
        if let Err(error) = self.level.reload(EnvFilter::new(level)) {
            tracing::error!(%error, "the log level stays as it was");
        }
    }
}
