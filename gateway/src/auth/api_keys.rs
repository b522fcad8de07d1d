//! Backends' keys: known by hash, compared in constant time over all of them.

use std::collections::BTreeMap;

use carillon_protocol::ErrorCode;
use carillon_protocol::envelope::Refusal;
use sha2::{Digest, Sha256};

use super::{Caller, Scope};
use crate::config::ApiKey;

/// The configured keys.
#[derive(Clone)]
pub struct ApiKeys {
    rows: Vec<Row>,
}

#[derive(Clone)]
struct Row {
    name: String,
    hash: [u8; 32],
    scopes: Vec<Scope>,
}

/// `sha256:<hex>` of a key, for `auth.api_keys.NAME.key_hash`. Keys are random and long, so that a
/// slow hash would protect nothing more.
#[must_use]
pub fn hash_key(key: &str) -> String {
    let hex: String = hash(key).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn hash(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

fn from_hex(text: &str) -> Option<[u8; 32]> {
    let hex = text.strip_prefix("sha256:").filter(|hex| hex.len() == 64 && hex.is_ascii())?;
    let mut hash = [0; 32];
    for (index, byte) in hash.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&hex[2 * index..2 * index + 2], 16).ok()?;
    }
    Some(hash)
}

impl std::fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.rows.iter().map(|row| &row.name)).finish()
    }
}

impl ApiKeys {
    /// Takes `auth.api_keys`. A key without key and hash (a checked configuration has none) opens nothing.
    #[must_use]
    pub fn new(keys: &BTreeMap<String, ApiKey>) -> Self {
        let rows = keys.iter().filter_map(|(name, key)| {
            let hash = match (&key.key, &key.key_hash) {
                (Some(key), _) => hash(key.expose()),
                (None, Some(text)) => from_hex(text)?,
                (None, None) => return None,
            };
            Some(Row { name: name.clone(), hash, scopes: key.scopes.clone() })
        });
        Self { rows: rows.collect() }
    }

    /// Whose key this is.
    ///
    /// # Errors
    /// `INVALID_TOKEN` (R28).
    pub fn verify(&self, key: &str) -> Result<Caller, Refusal> {
        let given = hash(key);
        let mut found = None;
        // Every row and every byte is looked at, so that the time says nothing about them.
        for row in &self.rows {
            let difference =
                row.hash.iter().zip(&given).fold(0, |sum, (ours, theirs)| sum | (ours ^ theirs));
            if std::hint::black_box(difference) == 0 {
                found = Some(row);
            }
        }
        found
            .map(|row| Caller::Key { name: row.name.clone(), scopes: row.scopes.clone() })
            .ok_or_else(|| Refusal::new(ErrorCode::InvalidToken, "invalid API key"))
    }
}
