//! Which keys verify which tokens. A key verifies its own algorithm family and nothing else, so
//! that a public key can never be taken for an HMAC secret.

use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey};

/// The algorithms of a key's family.
const HMAC: &[Algorithm] = &[Algorithm::HS256, Algorithm::HS384, Algorithm::HS512];
const RSA: &[Algorithm] = &[
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
];
const EC: &[Algorithm] = &[Algorithm::ES256, Algorithm::ES384];
const ED: &[Algorithm] = &[Algorithm::EdDSA];

/// A key, whom it is for, and what it may verify.
#[derive(Clone)]
pub(super) struct Key {
    /// `None` verifies tokens of any `kid` that no other key claims, and tokens without one.
    pub(super) kid: Option<String>,
    pub(super) decoding: DecodingKey,
    pub(super) algorithms: Vec<Algorithm>,
}

impl Key {
    pub(super) fn from_secret(kid: Option<String>, secret: &[u8], allowed: &[Algorithm]) -> Self {
        let decoding = DecodingKey::from_secret(secret);
        Self { kid, algorithms: common(HMAC, allowed), decoding }
    }

    /// Takes PEM of an RSA, EC or Ed25519 public key (or a certificate's public key).
    pub(super) fn from_pem(
        kid: Option<String>,
        pem: &str,
        allowed: &[Algorithm],
    ) -> Result<Self, String> {
        if pem.contains("PRIVATE KEY") {
            return Err("holds a private key; verification needs the public one alone".to_owned());
        }
        let bytes = pem.as_bytes();
        let decoding = DecodingKey::from_rsa_pem(bytes)
            .or_else(|_| DecodingKey::from_ec_pem(bytes))
            .or_else(|_| DecodingKey::from_ed_pem(bytes))
            .map_err(|_| "is no PEM of an RSA, EC or Ed25519 public key".to_owned())?;
        let algorithms = common(of_family(decoding.family()), allowed);
        if algorithms.is_empty() {
            return Err("can verify none of the allowed algorithms".to_owned());
        }
        Ok(Self { kid, decoding, algorithms })
    }

    /// Takes a JWK; `None` for those that we cannot use (unknown type, encryption keys, secrets).
    pub(super) fn from_jwk(jwk: &jsonwebtoken::jwk::Jwk, allowed: &[Algorithm]) -> Option<Self> {
        use jsonwebtoken::jwk::PublicKeyUse;
        if matches!(jwk.common.public_key_use, Some(PublicKeyUse::Encryption)) {
            return None;
        }
        let decoding = DecodingKey::from_jwk(jwk).ok()?;
        // A secret in a published set is known to everybody.
        if decoding.family() == AlgorithmFamily::Hmac {
            return None;
        }
        let mut algorithms = common(of_family(decoding.family()), allowed);
        if let Some(own) = jwk.common.key_algorithm {
            let own: Algorithm = own.to_string().parse().ok()?;
            algorithms.retain(|algorithm| *algorithm == own);
        }
        let kid = jwk.common.key_id.clone();
        (!algorithms.is_empty()).then_some(Self { kid, decoding, algorithms })
    }
}

fn of_family(family: AlgorithmFamily) -> &'static [Algorithm] {
    match family {
        AlgorithmFamily::Hmac => HMAC,
        AlgorithmFamily::Rsa => RSA,
        AlgorithmFamily::Ec => EC,
        AlgorithmFamily::Ed => ED,
    }
}

fn common(possible: &[Algorithm], allowed: &[Algorithm]) -> Vec<Algorithm> {
    possible
        .iter()
        .copied()
        .filter(|algorithm| allowed.is_empty() || allowed.contains(algorithm))
        .collect()
}

/// Whether a configured public key can be used with these algorithms (empty: any).
///
/// # Errors
/// A sentence that goes beside the key's name.
pub fn check_public_key(pem: &str, allowed: &[Algorithm]) -> Result<(), String> {
    Key::from_pem(None, pem, allowed).map(|_| ())
}
