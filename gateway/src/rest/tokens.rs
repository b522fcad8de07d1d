//! `POST /tokens/revoke`: tokens that are refused before they expire. The contract asks for revocation and names no call;
//! this is it.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use carillon_broker_client::{REVOCATION_LIFETIME_MAX, Revocation, RevokedTokens};
use carillon_protocol::envelope::Refusal;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::body::{JsonBody, wrong};
use super::error::{ApiError, ErrorBody};
use super::parameter;
use crate::auth::{Caller, Scope};
use crate::clock;
use crate::node::Node;

/// How long a revocation holds where the caller does not say.
const LIFETIME_DEFAULT_MS: i64 = 30 * 24 * 3_600_000;
/// Longest token id, bytes.
const TOKEN_ID_BYTES_MAX: usize = 1_024;

/// Which tokens to refuse. Either `jti` or `user_id`.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = RevokeTokens)]
pub(super) struct RevokeBody {
    /// The token with this id.
    #[serde(default)]
    pub jti: Option<String>,
    /// Tokens of this user.
    #[serde(default)]
    pub user_id: Option<String>,
    /// With `user_id`: only those issued (`iat`) before this time, RFC 3339; now where not given. A time to come shuts
    /// the user out until then, fresh tokens included. A token without `iat` counts as issued before.
    #[serde(default)]
    pub issued_before: Option<String>,
    /// The revocation is forgotten then, RFC 3339: choose the latest time at which such a token expires. 30 days where
    /// not given; later than in 366 days is in 366 days. A time that has passed takes the revocation of the same `jti`, or of the same `user_id`
    /// and `issued_before`, back.
    #[serde(default)]
    pub until: Option<String>,
}

/// Tokens are refused.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RevokedView {
    /// Until when, RFC 3339.
    pub until: String,
    /// With `user_id`: tokens issued before this, RFC 3339.
    pub issued_before: Option<String>,
    /// Live connections that were closed at once, with 4401. A node that was not reached follows within seconds.
    pub disconnected: u64,
}

fn time(text: Option<&str>, field: &str) -> Result<Option<jiff::Timestamp>, Refusal> {
    let read = |text: &str| {
        text.parse().map_err(|_| wrong(field, "must be a time like 2026-01-31T12:00:00Z"))
    };
    text.map(read).transpose()
}

impl RevokeBody {
    fn revocation(&self, now_ms: i64) -> Result<Revocation, Refusal> {
        let until = time(self.until.as_deref(), "until")?;
        let until_ms = until.map_or(now_ms + LIFETIME_DEFAULT_MS, jiff::Timestamp::as_millisecond);
        let until_ms = until_ms.min(now_ms + REVOCATION_LIFETIME_MAX.as_millis() as i64);
        let issued_before = time(self.issued_before.as_deref(), "issued_before")?;
        let tokens = match (&self.jti, &self.user_id) {
            (Some(_), None) if issued_before.is_some() => {
                return Err(wrong("issued_before", "goes with user_id"));
            }
            (Some(id), None) if id.is_empty() || id.len() > TOKEN_ID_BYTES_MAX => {
                return Err(wrong("jti", "must be 1 to 1,024 bytes"));
            }
            (Some(id), None) => RevokedTokens::Id(id.clone()),
            (None, Some(user)) => RevokedTokens::User {
                user: parameter::user(user)?,
                // `iat` has whole seconds: a token of this very second is meant too.
                issued_before: issued_before
                    .map_or(now_ms.div_euclid(1_000) + 1, jiff::Timestamp::as_second),
            },
            (Some(_), Some(_)) => return Err(wrong("user_id", "and jti exclude each other")),
            (None, None) => return Err(wrong("jti", "or user_id is required")),
        };
        Ok(Revocation { tokens, until_ms })
    }
}

/// Refuses tokens before they expire, on every node, and closes the connections that they opened.
#[utoipa::path(
    post, path = "/tokens/revoke", tag = "Tokens", request_body = RevokeBody,
    responses((status = 200, description = "Refused from now on", body = RevokedView), (status = "default", description = "Refused", body = ErrorBody)),
)]
pub(super) async fn revoke(
    State(node): State<Arc<Node>>,
    caller: Caller,
    body: JsonBody,
) -> Result<Json<RevokedView>, ApiError> {
    caller.require(Scope::Admin)?;
    let revocation = body.read::<RevokeBody>()?.revocation(clock::unix_ms())?;
    let rfc3339 = carillon_protocol::time::rfc3339;
    let issued_before = match &revocation.tokens {
        RevokedTokens::Id(_) => None,
        RevokedTokens::User { issued_before, .. } => {
            Some(rfc3339(issued_before.saturating_mul(1_000)))
        }
    };
    let until = rfc3339(revocation.until_ms);
    let disconnected = crate::revocations::revoke(&node, revocation).await;
    let disconnected = disconnected.map_err(|error| node.broker_refusal(&error))?;
    Ok(Json(RevokedView { until, issued_before, disconnected }))
}
