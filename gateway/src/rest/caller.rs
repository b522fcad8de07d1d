//! Who calls REST: a backend by its API key or a token with scopes, or a user by their token.
//! `http-api.md` 1, rulings R5 (no cookies, no tokens in the query), R28, R36.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use carillon_protocol::ErrorCode;
use carillon_protocol::envelope::Refusal;
use http::header::AUTHORIZATION;
use http::request::Parts;
use http::{HeaderMap, HeaderName};

use super::error::ApiError;
use crate::auth::Caller;
use crate::node::Node;
use crate::transport::handshake::bearer;

/// The header of backends' keys.
const API_KEY_HEADER: HeaderName = HeaderName::from_static("x-api-key");

impl FromRequestParts<Arc<Node>> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, node: &Arc<Node>) -> Result<Self, ApiError> {
        authenticate(node, &parts.headers).await.map_err(ApiError)
    }
}

async fn authenticate(node: &Node, headers: &HeaderMap) -> Result<Caller, Refusal> {
    let invalid = |what: &'static str| Refusal::new(ErrorCode::InvalidToken, what);
    if let Some(key) = headers.get(API_KEY_HEADER) {
        let key = key.to_str().map_err(|_| invalid("invalid API key"))?;
        return node.api_keys.load().verify(key);
    }
    let Some(authorization) = headers.get(AUTHORIZATION) else {
        return Err(Refusal::new(ErrorCode::MissingToken, "missing token"));
    };
    let token =
        authorization.to_str().ok().and_then(bearer).ok_or_else(|| invalid("invalid token"))?;
    let claims = node.verify(token).await?;
    Ok(Caller::User(Box::new(claims)))
}
