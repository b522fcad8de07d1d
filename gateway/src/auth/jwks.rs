//! A published set of keys: fetched, cached, rotated. While the publisher is out of reach the old keys stay.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http_body_util::Full;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::algorithm::TokenAlgorithm;
use super::keys::Key;
use crate::outbound::Outbound;

/// The shortest time between two fetches, however many unknown `kid`s come.
const REFETCH_AFTER: Duration = Duration::from_secs(10);

/// How often the set is fetched without a reason.
const REFRESH_EVERY: Duration = Duration::from_secs(300);

const FETCH_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) struct Jwks {
    url: http::Uri,
    allowed: Vec<TokenAlgorithm>,
    keys: ArcSwap<Vec<Key>>,
    last_attempt: Mutex<Option<Instant>>,
    outbound: Outbound,
}

impl Jwks {
    pub(super) fn new(
        url: &str,
        allowed: Vec<TokenAlgorithm>,
    ) -> Result<Self, http::uri::InvalidUri> {
        Ok(Self {
            url: url.parse()?,
            allowed,
            keys: ArcSwap::default(),
            last_attempt: Mutex::new(None),
            outbound: Outbound::new(),
        })
    }

    /// The keys as last fetched.
    pub(super) fn keys(&self) -> Arc<Vec<Key>> {
        self.keys.load_full()
    }

    /// Fetches again, unless that was tried a moment ago. Callers that come meanwhile wait for the
    /// one fetch and share it.
    pub(super) async fn refetch(&self) {
        let mut last_attempt = self.last_attempt.lock().await;
        if last_attempt.is_some_and(|at| at.elapsed() < REFETCH_AFTER) {
            return;
        }
        *last_attempt = Some(Instant::now());
        match self.fetch().await {
            Ok(keys) => self.keys.store(Arc::new(keys)),
            Err(reason) => {
                tracing::warn!(%reason, "the JWK set could not be fetched; the old keys stay");
            }
        }
    }

    /// Fetches from time to time, until dropped.
    pub(super) async fn keep_fresh(&self) {
        loop {
            self.refetch().await;
            tokio::time::sleep(REFRESH_EVERY).await;
        }
    }

    async fn fetch(&self) -> Result<Vec<Key>, String> {
        let request = http::Request::get(self.url.clone())
            .header(http::header::ACCEPT, "application/json")
            .body(Full::<Bytes>::default())
            .map_err(|error| error.to_string())?;
        let answer =
            self.outbound.send(request, FETCH_TIMEOUT).await.map_err(|error| error.to_string())?;
        if !answer.status().is_success() {
            return Err(format!("status {}", answer.status()));
        }
        // Key by key, so that one of an unknown kind does not lose the others.
        #[derive(serde::Deserialize)]
        struct Loose {
            keys: Vec<serde_json::Value>,
        }
        let set: Loose =
            serde_json::from_slice(answer.body()).map_err(|error| error.to_string())?;
        let keys: Vec<Key> =
            set.keys.iter().filter_map(|jwk| Key::from_jwk(jwk, &self.allowed)).collect();
        if keys.is_empty() { Err("it holds no usable key".to_owned()) } else { Ok(keys) }
    }
}
