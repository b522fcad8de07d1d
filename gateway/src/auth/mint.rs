//! Makes tokens, for development, the command line and tests. A gateway in production makes none.

use std::time::Duration;

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Map, Value};

use crate::config::{Jwt, Secret};

/// What a new token says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NewToken {
    /// `user_id`.
    pub user: String,
    /// `name`.
    pub name: Option<String>,
    /// `scope`, space separated.
    pub scope: Option<String>,
    /// `channels`.
    pub channels: Option<Value>,
    /// From now to `exp`.
    pub ttl: Duration,
}

/// Why there is no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MintError {
    /// There is a public key or nothing at all.
    #[error(
        "the configuration has no HMAC secret to sign with; give one with --secret or auth.jwt.secret"
    )]
    NoSecret,
    /// The algorithms that are allowed need another key.
    #[error("auth.jwt.algorithms allows no HS algorithm")]
    NoAlgorithm,
    /// The library refused.
    #[error("the token could not be signed")]
    Signing,
}

/// Signs a token that a gateway with these settings accepts. `secret` beats the configured one;
/// without both, the first HMAC secret of `auth.jwt.keys` signs.
///
/// # Errors
/// There is nothing to sign with.
pub fn mint(
    jwt: &Jwt,
    secret: Option<&Secret>,
    token: &NewToken,
    now: i64,
) -> Result<String, MintError> {
    let (secret, kid, allowed) = match secret.or(jwt.secret.as_ref()) {
        Some(secret) => (secret, None, jwt.algorithms.as_slice()),
        None => jwt
            .keys
            .iter()
            .find_map(|key| Some((key.secret.as_ref()?, key.kid.clone(), key.allowed(jwt))))
            .ok_or(MintError::NoSecret)?,
    };
    let algorithm = [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512]
        .into_iter()
        .find(|algorithm| allowed.is_empty() || allowed.contains(&(*algorithm).into()))
        .ok_or(MintError::NoAlgorithm)?;
    let mut claims = Map::new();
    claims.insert("user_id".to_owned(), token.user.as_str().into());
    claims.insert("sub".to_owned(), token.user.as_str().into());
    claims.insert("iat".to_owned(), now.into());
    let ttl = i64::try_from(token.ttl.as_secs()).unwrap_or(i64::MAX);
    claims.insert("exp".to_owned(), now.saturating_add(ttl).into());
    claims.insert("jti".to_owned(), uuid::Uuid::now_v7().to_string().into());
    let optional = [
        ("name", token.name.clone().map(Value::from)),
        ("scope", token.scope.clone().map(Value::from)),
        ("channels", token.channels.clone()),
        ("iss", jwt.issuer.first().cloned().map(Value::from)),
        ("aud", jwt.audience.first().cloned().map(Value::from)),
    ];
    claims.extend(optional.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
    let header = Header { kid, ..Header::new(algorithm) };
    let key = EncodingKey::from_secret(secret.expose().as_bytes());
    jsonwebtoken::encode(&header, &claims, &key).map_err(|_| MintError::Signing)
}
