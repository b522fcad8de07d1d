//! Which keys verify which tokens. A key verifies its own algorithm family and nothing else, so
//! that a public key can never be taken for an HMAC secret; an elliptic curve has one algorithm.
//! See `docs/decisions/0006-es512-by-aws-lc.md`.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ECDSA_P521_SHA512_FIXED, ParsedPublicKey,
    VerificationAlgorithm,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, PublicKeyUse};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey};
use serde_json::Value;

use super::algorithm::TokenAlgorithm;

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
const ED: &[Algorithm] = &[Algorithm::EdDSA];

/// A curve, and the one algorithm that goes with it (RFC 7518, 3.4).
type Curve = (EllipticCurve, TokenAlgorithm, &'static dyn VerificationAlgorithm);

fn curves() -> [Curve; 3] {
    [
        (EllipticCurve::P256, Algorithm::ES256.into(), &ECDSA_P256_SHA256_FIXED),
        (EllipticCurve::P384, Algorithm::ES384.into(), &ECDSA_P384_SHA384_FIXED),
        (EllipticCurve::P521, TokenAlgorithm::Es512, &ECDSA_P521_SHA512_FIXED),
    ]
}

/// What verifies.
#[derive(Clone)]
enum Material {
    /// A secret, an RSA or an Ed25519 key.
    Library(DecodingKey),
    /// A point of the curve that the key's one algorithm names.
    Point(ParsedPublicKey),
}

/// A key, whom it is for, and what it may verify.
#[derive(Clone)]
pub(super) struct Key {
    /// `None` verifies tokens of any `kid` that no other key claims, and tokens without one.
    pub(super) kid: Option<String>,
    pub(super) algorithms: Vec<TokenAlgorithm>,
    material: Material,
}

impl Key {
    pub(super) fn from_secret(
        kid: Option<String>,
        secret: &[u8],
        allowed: &[TokenAlgorithm],
    ) -> Self {
        let material = Material::Library(DecodingKey::from_secret(secret));
        Self { kid, algorithms: common(of_family(AlgorithmFamily::Hmac), allowed), material }
    }

    /// Takes a public key as PEM (RSA, EC, Ed25519, or a certificate that holds one) or as a JWK,
    /// whose own `kid` counts where none is given.
    pub(super) fn from_public(
        kid: Option<String>,
        text: &str,
        allowed: &[TokenAlgorithm],
    ) -> Result<Self, String> {
        let (own, material, algorithms) = if text.trim_start().starts_with('{') {
            let jwk = serde_json::from_str(text).map_err(|_| "is no JSON of a JWK".to_owned())?;
            of_jwk(&jwk)?
        } else {
            let (material, algorithms) = of_pem(text)?;
            (None, material, algorithms)
        };
        let algorithms = common(algorithms, allowed);
        if algorithms.is_empty() {
            return Err("can verify none of the allowed algorithms".to_owned());
        }
        Ok(Self { kid: kid.or(own), algorithms, material })
    }

    /// Takes a JWK of a published set; `None` for those that we cannot use (unknown type or curve,
    /// encryption keys, secrets).
    pub(super) fn from_jwk(jwk: &Value, allowed: &[TokenAlgorithm]) -> Option<Self> {
        let (kid, material, algorithms) = of_jwk(jwk).ok()?;
        let algorithms = common(algorithms, allowed);
        (!algorithms.is_empty()).then_some(Self { kid, algorithms, material })
    }

    /// Whether `signature` (base64url) is this key's over `message` by `algorithm`, which the key
    /// must list.
    pub(super) fn verifies(
        &self,
        algorithm: TokenAlgorithm,
        message: &[u8],
        signature: &str,
    ) -> bool {
        if !self.algorithms.contains(&algorithm) {
            return false;
        }
        match (&self.material, algorithm) {
            (Material::Library(key), TokenAlgorithm::Library(algorithm)) => {
                jsonwebtoken::crypto::verify(signature, message, key, algorithm).unwrap_or(false)
            }
            (Material::Library(_), TokenAlgorithm::Es512) => false,
            (Material::Point(key), _) => URL_SAFE_NO_PAD
                .decode(signature)
                .is_ok_and(|signature| key.verify_sig(message, &signature).is_ok()),
        }
    }
}

fn of_pem(pem: &str) -> Result<(Material, Vec<TokenAlgorithm>), String> {
    if pem.contains("PRIVATE KEY") {
        return Err("holds a private key; verification needs the public one alone".to_owned());
    }
    let bytes = pem.as_bytes();
    let key = DecodingKey::from_rsa_pem(bytes)
        .or_else(|_| DecodingKey::from_ec_pem(bytes))
        .or_else(|_| DecodingKey::from_ed_pem(bytes))
        .map_err(|_| "is no PEM or JWK of an RSA, EC or Ed25519 public key".to_owned())?;
    of_key(key, None)
}

/// The key's own `kid`, and what it can do.
fn of_jwk(jwk: &Value) -> Result<(Option<String>, Material, Vec<TokenAlgorithm>), String> {
    const UNUSABLE: &str = "is no JWK of an RSA, EC or Ed25519 public key";
    // A secret in a published set is known to everybody.
    if jwk.get("d").is_some() || jwk.get("k").is_some() {
        return Err("holds a private key; verification needs the public one alone".to_owned());
    }
    // Read by ourselves: the library takes a name that it does not know for none.
    let own: Option<TokenAlgorithm> = match jwk.get("alg") {
        None | Some(Value::Null) => None,
        Some(name) => {
            let name = name.as_str().ok_or(UNUSABLE)?;
            Some(name.parse().map_err(|_| format!("its alg {name:?} is no signature algorithm"))?)
        }
    };
    let jwk: Jwk = serde_json::from_value(jwk.clone()).map_err(|_| UNUSABLE.to_owned())?;
    if matches!(jwk.common.public_key_use, Some(PublicKeyUse::Encryption)) {
        return Err("is a key for encryption".to_owned());
    }
    let key = DecodingKey::from_jwk(&jwk).map_err(|_| UNUSABLE.to_owned())?;
    let curve = match &jwk.algorithm {
        AlgorithmParameters::EllipticCurve(point) => Some(&point.curve),
        _ => None,
    };
    let (material, mut algorithms) = of_key(key, curve)?;
    algorithms.retain(|algorithm| own.is_none_or(|own| own == *algorithm));
    Ok((jwk.common.key_id, material, algorithms))
}

/// What a key can do. A point must be one of the curve that its JWK names; PEM names none, there
/// the point shows it.
fn of_key(
    key: DecodingKey,
    named: Option<&EllipticCurve>,
) -> Result<(Material, Vec<TokenAlgorithm>), String> {
    if key.family() != AlgorithmFamily::Ec {
        let algorithms = of_family(key.family());
        return Ok((Material::Library(key), algorithms));
    }
    let point = key.try_get_as_bytes().map_err(|error| error.to_string())?;
    curves()
        .into_iter()
        .filter(|(curve, ..)| named.is_none_or(|named| named == curve))
        .find_map(|(_, algorithm, verification)| {
            let key = ParsedPublicKey::new(verification, point).ok()?;
            Some((Material::Point(key), vec![algorithm]))
        })
        .ok_or_else(|| "is no point of P-256, P-384 or P-521".to_owned())
}

/// Of an EC key only its curve tells; see `of_key`.
fn of_family(family: AlgorithmFamily) -> Vec<TokenAlgorithm> {
    let algorithms = match family {
        AlgorithmFamily::Hmac => HMAC,
        AlgorithmFamily::Rsa => RSA,
        AlgorithmFamily::Ec => &[],
        AlgorithmFamily::Ed => ED,
    };
    algorithms.iter().copied().map(TokenAlgorithm::from).collect()
}

fn common(mut possible: Vec<TokenAlgorithm>, allowed: &[TokenAlgorithm]) -> Vec<TokenAlgorithm> {
    possible.retain(|algorithm| allowed.is_empty() || allowed.contains(algorithm));
    possible
}

/// Whether a configured public key can be used with these algorithms (empty: any).
///
/// # Errors
/// A sentence that goes beside the key's name.
pub fn check_public_key(text: &str, allowed: &[TokenAlgorithm]) -> Result<(), String> {
    Key::from_public(None, text, allowed).map(|_| ())
}
