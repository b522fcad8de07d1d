//! The algorithms of tokens by their names. Knows no key: which key can do which is `keys`'.
//! Source: contract, `http-api.md` 1; RFC 7518, 3.1.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// An algorithm that tokens may be signed with. `none` is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenAlgorithm {
    /// One that `jsonwebtoken` knows.
    Library(jsonwebtoken::Algorithm),
    /// ECDSA over P-521 with SHA-512, which it does not.
    Es512,
}

impl TokenAlgorithm {
    /// The names, as a sentence lists them.
    pub const NAMES: &str = "HS256/384/512, RS256/384/512, PS256/384/512, ES256/384/512, EdDSA";

    /// Whether its key is a shared secret.
    #[must_use]
    pub fn needs_secret(self) -> bool {
        matches!(self, Self::Library(algorithm) if algorithm.family() == jsonwebtoken::AlgorithmFamily::Hmac)
    }
}

impl From<jsonwebtoken::Algorithm> for TokenAlgorithm {
    fn from(algorithm: jsonwebtoken::Algorithm) -> Self {
        Self::Library(algorithm)
    }
}

/// Holds no name of an algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is no algorithm; they are {}", TokenAlgorithm::NAMES)]
pub struct UnknownAlgorithm;

impl FromStr for TokenAlgorithm {
    type Err = UnknownAlgorithm;

    fn from_str(name: &str) -> Result<Self, UnknownAlgorithm> {
        match name {
            "ES512" => Ok(Self::Es512),
            other => other.parse().map(Self::Library).map_err(|_| UnknownAlgorithm),
        }
    }
}

impl fmt::Display for TokenAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Library(algorithm) => write!(f, "{algorithm:?}"),
            Self::Es512 => f.write_str("ES512"),
        }
    }
}

impl<'de> Deserialize<'de> for TokenAlgorithm {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl Serialize for TokenAlgorithm {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
