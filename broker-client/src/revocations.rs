//! Tokens that are refused before they expire: one by its id, or all of a user that were issued before a time.
//!
//! * A revocation holds until a time, then it is forgotten.
//! * Every change makes a new version, greater than all before. A node that knows the present version knows all.
//! * A broker that lost its data has a lower version: whoever knows more writes it again.
//!
//! What it must not know: what a token looks like, who may revoke.

use std::time::Duration;

use async_trait::async_trait;
use carillon_protocol::UserId;

use crate::BrokerError;

/// The longest time that a revocation can hold.
pub const REVOCATION_LIFETIME_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

/// Which tokens are refused.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RevokedTokens {
    /// The one with this `jti`.
    Id(String),
    /// All of a user whose `iat` is before a time, and those without `iat`.
    User {
        /// The user.
        user: UserId,
        /// Unix seconds.
        issued_before: i64,
    },
}

/// Tokens are refused until a time.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Revocation {
    /// Which.
    pub tokens: RevokedTokens,
    /// Unix milliseconds. A time that has passed takes the revocation back.
    pub until_ms: i64,
}

/// What a change did to the version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RevocationVersions {
    /// Before it.
    pub before: u64,
    /// After it.
    pub after: u64,
}

/// Everything that is revoked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revocations {
    /// At least this is known.
    pub version: u64,
    /// In no order.
    pub all: Vec<Revocation>,
}

/// See the module. Part of [`crate::Broker`].
#[async_trait]
pub trait RevocationStore: Send + Sync + 'static {
    /// Revokes tokens, or takes a revocation back. The same tokens once more replaces the time.
    async fn revoke(&self, revocation: &Revocation) -> Result<RevocationVersions, BrokerError>;

    /// The present version; 0 when nothing was ever revoked.
    async fn revocations_version(&self) -> Result<u64, BrokerError>;

    /// Everything that is revoked now.
    async fn revocations(&self) -> Result<Revocations, BrokerError>;

    /// Writes again what the broker lost; the version after it.
    async fn restore_revocations(&self, all: &[Revocation]) -> Result<u64, BrokerError>;
}

impl RevokedTokens {
    /// As one line that is the same for the same tokens.
    pub(crate) fn to_line(&self) -> String {
        match self {
            Self::Id(id) => format!("t {id}"),
            Self::User { user, issued_before } => format!("u {issued_before} {user}"),
        }
    }

    pub(crate) fn from_line(line: &str) -> Option<Self> {
        if let Some(id) = line.strip_prefix("t ") {
            return Some(Self::Id(id.to_owned()));
        }
        let (issued_before, user) = line.strip_prefix("u ")?.split_once(' ')?;
        Some(Self::User {
            user: UserId::new(user).ok()?,
            issued_before: issued_before.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_hold_whatever_ids_hold() {
        let user = UserId::new("ada lovelace").expect("a user id");
        for tokens in [
            RevokedTokens::Id("u 5 ada".to_owned()),
            RevokedTokens::Id(String::new()),
            RevokedTokens::User { user, issued_before: -3 },
        ] {
            assert_eq!(RevokedTokens::from_line(&tokens.to_line()), Some(tokens));
        }
        assert_eq!(RevokedTokens::from_line("u x"), None);
    }
}
