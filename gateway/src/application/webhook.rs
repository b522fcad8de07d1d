//! One address of the application that is called over HTTP: `POST` with a JSON body, signed by Standard Webhooks.
//! Knows neither what is asked nor when to try again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER, USER_AGENT};
use http::{HeaderValue, Request, StatusCode, Uri};
use http_body_util::Full;
use tokio::time::Instant;

use super::sign::{InvalidSecret, SigningKeys};
use crate::clock;
use crate::config;
use crate::metrics::Metrics;
use crate::outbound::{Outbound, OutboundError};

/// The longest answer that is read, bytes.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// The longest `Retry-After` that is obeyed.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);

/// See the module.
pub(super) struct Webhook {
    /// `inbound`, `authorize` or `events`: a label of metrics.
    name: &'static str,
    url: Uri,
    authorization: Option<HeaderValue>,
    keys: Option<SigningKeys>,
    /// Longest wait for the answer.
    pub(super) timeout: Duration,
    outbound: Outbound,
    metrics: Arc<Metrics>,
    failing: AtomicBool,
}

/// Why a webhook cannot be called at all.
#[derive(Debug, thiserror::Error)]
pub enum InvalidWebhook {
    /// The address is none.
    #[error("{0}.webhook.url is no URL")]
    Url(&'static str),
    /// The secret is none.
    #[error("{0}.webhook.secret {1}")]
    Secret(&'static str, InvalidSecret),
}

/// A call was not answered with 2xx. Whether the application acted on it is unknown.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// It said no.
    #[error("status {status}")]
    Status {
        /// Its status.
        status: StatusCode,
        /// When it wants to be asked again.
        retry_after: Option<Duration>,
    },
    /// No answer.
    #[error("{0}")]
    Failed(String),
}

impl Webhook {
    pub(super) fn new(
        name: &'static str,
        settings: &config::Webhook,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, InvalidWebhook> {
        let keys = settings.secret.as_ref().map(|secret| SigningKeys::new(secret.expose()));
        let keys = keys.transpose().map_err(|error| InvalidWebhook::Secret(name, error))?;
        if keys.is_none() {
            tracing::warn!(webhook = name, "calls are not signed: the webhook has no secret");
        }
        let (url, authorization) = address(&settings.url).ok_or(InvalidWebhook::Url(name))?;
        Ok(Self {
            name,
            url,
            authorization,
            keys,
            timeout: settings.timeout,
            outbound: Outbound::new(),
            metrics: Arc::clone(metrics),
            failing: AtomicBool::new(false),
        })
    }

    /// Calls once. `id` is the same for a repetition of the same call. Cancel safe in that nothing leaks; the
    /// application may have acted all the same.
    ///
    /// # Errors
    /// No answer of 2xx within `timeout`.
    pub(super) async fn post(
        &self,
        id: &str,
        body: Bytes,
        timeout: Duration,
    ) -> Result<Bytes, CallError> {
        let called = self.call(id, body, timeout).await;
        let outcome = match &called {
            Ok(_) => "ok",
            Err(CallError::Status { .. }) => "refused",
            Err(CallError::Failed(_)) => "failed",
        };
        self.metrics.webhook_called(self.name, outcome);
        // One line when it begins and one when it is over, not one a call.
        match &called {
            Ok(_) => {
                if self.failing.swap(false, Ordering::Relaxed) {
                    tracing::info!(webhook = self.name, "the application answers again");
                }
            }
            Err(error) => {
                if !self.failing.swap(true, Ordering::Relaxed) {
                    tracing::warn!(webhook = self.name, %error, "the application does not answer");
                }
            }
        }
        called
    }

    async fn call(&self, id: &str, body: Bytes, timeout: Duration) -> Result<Bytes, CallError> {
        let timestamp = clock::unix_ms() / 1_000;
        let mut request = Request::post(self.url.clone())
            .header(CONTENT_TYPE, "application/json")
            .header(USER_AGENT, concat!("carillon/", env!("CARGO_PKG_VERSION")))
            .header("webhook-id", id)
            .header("webhook-timestamp", timestamp);
        if let Some(keys) = &self.keys {
            request = request.header("webhook-signature", keys.sign(id, timestamp, &body));
        }
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let failed = |error: &dyn std::fmt::Display| CallError::Failed(error.to_string());
        let request = request.body(Full::new(body)).map_err(|error| failed(&error))?;
        let deadline = Instant::now() + timeout;
        let mut answer = self.outbound.send_for(request.clone(), timeout, ANSWER_BYTES_MAX).await;
        if matches!(answer, Err(OutboundError::Failed(_))) {
            // Most often a kept connection that the application closed just then. The id makes it a repetition.
            let left = deadline.saturating_duration_since(Instant::now());
            answer = self.outbound.send_for(request, left, ANSWER_BYTES_MAX).await;
        }
        let answer = answer.map_err(|error| failed(&error))?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer.into_body());
        }
        let retry_after = answer.headers().get(RETRY_AFTER).and_then(|seconds| {
            let seconds = seconds.to_str().ok()?.trim().parse().ok()?;
            Some(Duration::from_secs(seconds).min(RETRY_AFTER_MAX))
        });
        Err(CallError::Status { status, retry_after })
    }
}

/// The address without user and password, and those as a header.
fn address(url: &str) -> Option<(Uri, Option<HeaderValue>)> {
    let (scheme, rest) = url.split_once("://")?;
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let Some((user, host)) = authority.rsplit_once('@') else {
        return Some((url.parse().ok()?, None));
    };
    let user = carillon_protocol::channel::unescape_segment(user);
    let encoded = base64::engine::general_purpose::STANDARD.encode(user);
    let mut header = HeaderValue::from_str(&format!("Basic {encoded}")).ok()?;
    header.set_sensitive(true);
    Some((format!("{scheme}://{host}{path}").parse().ok()?, Some(header)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_of_the_address_becomes_a_header() {
        let (url, header) = address("https://ada:s%40crt@a.example:81/h?to=b@c").expect("a URL");
        assert_eq!(url.to_string(), "https://a.example:81/h?to=b@c");
        assert_eq!(header.expect("a header"), "Basic YWRhOnNAY3J0");
        let (url, header) = address("http://a.example/x@y").expect("a URL");
        assert_eq!((url.to_string().as_str(), header), ("http://a.example/x@y", None));
    }
}
