//! SIGHUP: keys, namespaces, routes, limits and log level are read again and replace what the node
//! uses, without dropping a connection; a live subscription that no namespace allows any more ends with an `error`. All or nothing: what is wrong is said in the log and
//! leaves everything as it was. Source: `operations.md` 2.

use std::sync::Arc;

use carillon_protocol::session::Routes;

use crate::auth::{ApiKeys, TokenVerifier};
use crate::config::{Config, Reloaded};
use crate::logging::Log;
use crate::node::Node;
use crate::policy::Policy;

/// Everything a reload replaces, made before anything is replaced.
struct Fresh {
    config: Config,
    needs_restart: Vec<&'static str>,
    policy: Policy,
    /// `None`: the keys are the same, and fetched ones need not be fetched again.
    verifier: Option<TokenVerifier>,
    api_keys: ApiKeys,
    routes: Routes,
}

impl Fresh {
    /// Reads and builds.
    ///
    /// # Errors
    /// Every mistake, for people.
    fn read(present: &Config) -> Result<Self, String> {
        let said = |error: &dyn std::fmt::Display| error.to_string();
        let Reloaded { config, needs_restart } = present.reload().map_err(|error| said(&error))?;
        let verifier = (config.auth.jwt != present.auth.jwt)
            .then(|| TokenVerifier::new(&config.auth.jwt))
            .transpose()
            .map_err(|error| said(&error))?;
        Ok(Self {
            policy: Policy::new(&config).map_err(|error| said(&error))?,
            verifier,
            api_keys: ApiKeys::new(&config.auth.api_keys),
            routes: Routes::with(config.routes.clone()).map_err(|error| said(&error))?,
            needs_restart,
            config,
        })
    }

    fn apply(self, node: &Node, log: &Log) {
        node.policy.store(Arc::new(self.policy));
        if let Some(verifier) = self.verifier {
            node.verifier.store(Arc::new(verifier));
        }
        node.api_keys.store(Arc::new(self.api_keys));
        node.routes.store(Arc::new(self.routes));
        log.set_level(&self.config.log.level);
        let queue_bytes = self.config.limits.queue_bytes_max();
        let other_namespaces = self.config.namespaces != node.config.load().namespaces;
        node.config.store(Arc::new(self.config));
        // The other limits are looked up where they are used; an outbox holds its own.
        for connection in node.hub.connections() {
            connection.outbox.bound(queue_bytes);
            if other_namespaces {
                connection.doubt_policy();
            }
        }
        tracing::info!(needs_restart = ?self.needs_restart, "configuration reloaded");
    }
}

/// Reads the configuration again and applies what may change; the certificate too, which stands by itself.
pub(super) fn reload(node: &Node, log: &Log) {
    if let Some(tls) = &node.tls {
        tls.certificates.refresh();
    }
    match Fresh::read(&node.config.load_full()) {
        Ok(fresh) => fresh.apply(node, log),
        Err(mistakes) => {
            tracing::error!(%mistakes, "the configuration was not reloaded: nothing changed");
        }
    }
}
