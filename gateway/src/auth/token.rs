//! From a token to its claims, or a refusal. Source: contract, `protocol.md` 1, `http-api.md` 1; ruling R28.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use carillon_protocol::ErrorCode;
use carillon_protocol::envelope::Refusal;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use super::algorithm::TokenAlgorithm;
use super::claims::{Claims, seconds};
use super::jwks::Jwks;
use super::keys::Key;
use crate::config::Jwt;

/// The longest token that is looked at, in bytes.
pub const TOKEN_BYTES_MAX: usize = 16 << 10;

/// Verifies tokens by the configured keys.
pub struct TokenVerifier {
    keys: Vec<Key>,
    jwks: Option<Jwks>,
    issuers: Vec<String>,
    audiences: Vec<String>,
    leeway_seconds: i64,
}

/// The settings hold a key that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {reason}")]
pub struct UnusableKey {
    /// The setting.
    pub key: String,
    /// What is wrong.
    pub reason: String,
}

fn missing() -> Refusal {
    Refusal::new(ErrorCode::MissingToken, "missing token")
}

fn invalid() -> Refusal {
    Refusal::new(ErrorCode::InvalidToken, "invalid token")
}

fn expired() -> Refusal {
    Refusal::new(ErrorCode::TokenExpired, "token expired")
}

impl std::fmt::Debug for TokenVerifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenVerifier").field("keys", &self.keys.len()).finish_non_exhaustive()
    }
}

impl TokenVerifier {
    /// Takes the keys of `auth.jwt`. A JWK set is fetched when the first token needs it, or by
    /// [`TokenVerifier::keep_fresh`].
    ///
    /// # Errors
    /// A key that cannot be used; a checked configuration has none.
    pub fn new(jwt: &Jwt) -> Result<Self, UnusableKey> {
        let mut keys = Vec::new();
        if let Some(secret) = &jwt.secret {
            keys.push(Key::from_secret(None, secret.expose().as_bytes(), &jwt.algorithms));
        }
        if let Some(pem) = &jwt.public_key {
            let key = Key::from_public(None, pem.expose(), &jwt.algorithms);
            keys.push(
                key.map_err(|reason| UnusableKey {
                    key: "auth.jwt.public_key".to_owned(),
                    reason,
                })?,
            );
        }
        for (index, key) in jwt.keys.iter().enumerate() {
            let allowed = key.allowed(jwt);
            if let Some(secret) = &key.secret {
                keys.push(Key::from_secret(key.kid.clone(), secret.expose().as_bytes(), allowed));
            }
            if let Some(pem) = &key.public_key {
                let read = Key::from_public(key.kid.clone(), pem.expose(), allowed);
                let name = || format!("auth.jwt.keys[{index}].public_key");
                keys.push(read.map_err(|reason| UnusableKey { key: name(), reason })?);
            }
        }
        let jwks =
            jwt.jwks_url.as_ref().map(|url| Jwks::new(url, jwt.algorithms.clone())).transpose();
        let jwks = jwks.map_err(|error| UnusableKey {
            key: "auth.jwt.jwks_url".to_owned(),
            reason: error.to_string(),
        })?;
        Ok(Self {
            keys,
            jwks,
            issuers: jwt.issuer.clone(),
            audiences: jwt.audience.clone(),
            leeway_seconds: i64::try_from(jwt.leeway.as_secs()).unwrap_or(0),
        })
    }

    /// Keeps a configured JWK set fresh, until dropped. Without one it waits for ever.
    pub async fn keep_fresh(&self) {
        match &self.jwks {
            Some(jwks) => jwks.keep_fresh().await,
            None => std::future::pending().await,
        }
    }

    /// The claims of a good token, now.
    ///
    /// # Errors
    /// `MISSING_TOKEN`, `INVALID_TOKEN` or `TOKEN_EXPIRED`; nothing of the token is in them.
    pub async fn verify(&self, token: &str) -> Result<Claims, Refusal> {
        self.verify_at(token, jiff::Timestamp::now().as_second()).await
    }

    /// As [`TokenVerifier::verify`], at a given Unix second.
    ///
    /// # Errors
    /// As [`TokenVerifier::verify`].
    pub async fn verify_at(&self, token: &str, now: i64) -> Result<Claims, Refusal> {
        if token.is_empty() {
            return Err(missing());
        }
        if token.len() > TOKEN_BYTES_MAX {
            return Err(invalid());
        }
        let token = Parts::read(token).ok_or_else(invalid)?;
        if let Some(all) = verified_by(&self.keys, &token) {
            return self.judge(all, now);
        }
        let jwks = self.jwks.as_ref().ok_or_else(invalid)?;
        if candidates(&jwks.keys(), &token.header).next().is_none() {
            jwks.refetch().await;
        }
        let all = verified_by(&jwks.keys(), &token).ok_or_else(invalid)?;
        self.judge(all, now)
    }

    /// Whom the token is from and for, and when it is good. The signature is.
    fn judge(&self, all: Map<String, Value>, now: i64) -> Result<Claims, Refusal> {
        let issuer = all.get("iss").and_then(Value::as_str);
        if !self.issuers.is_empty()
            && !issuer.is_some_and(|issuer| self.issuers.iter().any(|ours| ours == issuer))
        {
            return Err(invalid());
        }
        let ours = |value: &Value| {
            value.as_str().is_some_and(|text| self.audiences.iter().any(|ours| ours == text))
        };
        let for_us = match all.get("aud") {
            Some(Value::Array(audiences)) => audiences.iter().any(ours),
            Some(audience) => ours(audience),
            None => false,
        };
        if !self.audiences.is_empty() && !for_us {
            return Err(invalid());
        }
        if let Some(not_before) = all.get("nbf").filter(|value| !value.is_null()) {
            let not_before = seconds(not_before).ok_or_else(invalid)?;
            if not_before > now.saturating_add(self.leeway_seconds) {
                return Err(invalid());
            }
        }
        let claims = Claims::read(all).ok_or_else(invalid)?;
        if claims.expires_at.saturating_add(self.leeway_seconds) <= now {
            return Err(expired());
        }
        Ok(claims)
    }
}

/// What of a token's header means something to us. `none` is no algorithm, so such a header cannot be read.
#[derive(Deserialize)]
struct Header {
    alg: TokenAlgorithm,
    #[serde(default)]
    kid: Option<String>,
    #[serde(default)]
    crit: Option<IgnoredAny>,
}

/// A token taken apart, nothing of it verified but its form.
struct Parts<'t> {
    header: Header,
    /// Header and claims as they stand in the token: what is signed.
    message: &'t str,
    claims: &'t str,
    signature: &'t str,
}

impl<'t> Parts<'t> {
    fn read(token: &'t str) -> Option<Self> {
        let (message, signature) = token.rsplit_once('.')?;
        let (header, claims) = message.split_once('.')?;
        if claims.contains('.') {
            return None;
        }
        let header: Header = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header).ok()?).ok()?;
        // Extensions that must be understood are understood by nobody here (RFC 7515, 4.1.11).
        header.crit.is_none().then_some(Self { header, message, claims, signature })
    }
}

/// The keys that may verify such a token. A key of that `kid` shuts out those without one.
fn candidates<'k>(keys: &'k [Key], header: &'k Header) -> impl Iterator<Item = &'k Key> {
    let kid = header.kid.as_deref();
    let claimed = kid.is_some() && keys.iter().any(|key| key.kid.as_deref() == kid);
    keys.iter().filter(move |key| {
        let named = match (kid, &key.kid) {
            (None, _) => true,
            (Some(_), None) => !claimed,
            (Some(kid), Some(own)) => own == kid,
        };
        named && key.algorithms.contains(&header.alg)
    })
}

/// The claims, if one of the keys signed them. Times, issuer and audience are judged by us, with
/// our clock and codes.
fn verified_by(keys: &[Key], token: &Parts<'_>) -> Option<Map<String, Value>> {
    candidates(keys, &token.header)
        .any(|key| key.verifies(token.header.alg, token.message.as_bytes(), token.signature))
        .then_some(())?;
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token.claims).ok()?).ok()
}
