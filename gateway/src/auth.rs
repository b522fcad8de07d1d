//! Who is calling: tokens, API keys, scopes. Must not know what a channel permits; that is `policy`'s.
//! Source: contract, `protocol.md` 1, `http-api.md` 1; rulings R28, R36.

mod algorithm;
mod api_keys;
mod caller;
mod claims;
mod jwks;
mod keys;
mod mint;
mod scope;
mod token;

pub use algorithm::{TokenAlgorithm, UnknownAlgorithm};
pub use api_keys::{ApiKeys, hash_key};
pub use caller::Caller;
pub use claims::{Action, Claims, Grants};
pub use keys::check_public_key;
pub use mint::{MintError, NewToken, mint};
pub use scope::Scope;
pub use token::{TOKEN_BYTES_MAX, TokenVerifier, UnusableKey};

#[cfg(test)]
mod tests;
