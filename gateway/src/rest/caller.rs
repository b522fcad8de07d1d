//! Who calls REST: a backend by its API key or a token with scopes, or a user by their token.
//! `http-api.md` 1, rulings R5 (no cookies), R28, R36. Must not know what a call does.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use carillon_protocol::envelope::Refusal;
use carillon_protocol::{ErrorCode, UserId};
use http::header::AUTHORIZATION;
use http::request::Parts;
use http::{HeaderMap, HeaderName};

use super::error::ApiError;
use crate::auth::{Claims, Scope};
use crate::node::Node;
use crate::transport::handshake::bearer;

/// The header of backends' keys.
pub(super) const API_KEY_HEADER: HeaderName = HeaderName::from_static("x-api-key");

/// An authenticated caller.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    identity: Identity,
    scopes: Vec<Scope>,
}

#[derive(Clone, Debug)]
enum Identity {
    /// An API key, by its name in the configuration.
    Key(String),
    /// A token: a user, and a backend as far as the token's scopes go.
    Token(Box<Claims>),
}

impl Caller {
    /// Whether the caller may act as a backend with this scope.
    #[must_use]
    pub(super) fn holds(&self, scope: Scope) -> bool {
        scope.allowed_by(&self.scopes)
    }

    /// Refuses callers without this scope.
    ///
    /// # Errors
    /// `FORBIDDEN`; `details.scope` names what is missing.
    pub(super) fn require(&self, scope: Scope) -> Result<(), Refusal> {
        if self.holds(scope) {
            return Ok(());
        }
        Err(Refusal::new(ErrorCode::Forbidden, "This call needs a scope that the caller does not have")
            .with("scope", scope.name()))
    }

    /// The token's claims; `None` for API keys.
    #[must_use]
    pub(super) fn claims(&self) -> Option<&Claims> {
        match &self.identity {
            Identity::Key(_) => None,
            Identity::Token(claims) => Some(claims),
        }
    }

    /// The token's user; `None` for API keys.
    #[must_use]
    pub(super) fn user(&self) -> Option<&UserId> {
        self.claims().map(|claims| &claims.user)
    }

    /// Whom idempotency is scoped to (R2); a key and a user cannot collide.
    #[must_use]
    pub(super) fn sender(&self) -> String {
        match &self.identity {
            Identity::Key(name) => format!("k:{name}"),
            Identity::Token(claims) => format!("u:{}", claims.user),
        }
    }

    async fn authenticate(node: &Node, headers: &HeaderMap) -> Result<Self, Refusal> {
        if let Some(key) = headers.get(API_KEY_HEADER) {
            let known = key.to_str().ok().and_then(|key| {
                let keys = node.api_keys.load();
                keys.verify(key).map(|key| (key.name.clone(), key.scopes.clone()))
            });
            let Some((name, scopes)) = known else {
                return Err(Refusal::new(ErrorCode::InvalidToken, "invalid API key"));
            };
            return Ok(Self { identity: Identity::Key(name), scopes });
        }
        let Some(authorization) = headers.get(AUTHORIZATION) else {
            return Err(Refusal::new(ErrorCode::MissingToken, "missing token"));
        };
        let Some(token) = authorization.to_str().ok().and_then(bearer) else {
            return Err(Refusal::new(ErrorCode::InvalidToken, "invalid token"));
        };
        let claims = node.verifier.load_full().verify(token).await?;
        let scopes = claims.scopes.clone();
        Ok(Self { identity: Identity::Token(Box::new(claims)), scopes })
    }
}

impl FromRequestParts<Arc<Node>> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, node: &Arc<Node>) -> Result<Self, ApiError> {
        Self::authenticate(node, &parts.headers).await.map_err(ApiError)
    }
}
