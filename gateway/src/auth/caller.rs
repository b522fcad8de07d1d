//! Who makes a REST call. Source: contract, `http-api.md` 1; rulings R2, R36.

use carillon_protocol::envelope::Refusal;
use carillon_protocol::{ErrorCode, UserId};

use super::{Claims, Scope};

/// A backend by its key, or the holder of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// A backend.
    Key {
        /// The key's name in the configuration.
        name: String,
        /// What it may.
        scopes: Vec<Scope>,
    },
    /// A user, or a backend with a token whose `scope` holds ours.
    User(Box<Claims>),
}

impl Caller {
    /// Whether it holds this scope, or admin.
    #[must_use]
    pub fn holds(&self, scope: Scope) -> bool {
        match self {
            Caller::Key { scopes, .. } => scope.allowed_by(scopes),
            Caller::User(claims) => scope.allowed_by(&claims.scopes),
        }
    }

    /// Passes whoever holds this scope, or admin.
    ///
    /// # Errors
    /// `FORBIDDEN`, with the scope in `details`.
    pub fn require(&self, scope: Scope) -> Result<(), Refusal> {
        if self.holds(scope) {
            return Ok(());
        }
        Err(Refusal::new(ErrorCode::Forbidden, format!("this needs the scope {}", scope.name()))
            .with("scope", scope.name()))
    }

    /// Refuses a backend's key without this scope before anything else is looked at. What a user may depends on what they
    /// ask for.
    ///
    /// # Errors
    /// As [`Self::require`].
    pub fn require_of_keys(&self, scope: Scope) -> Result<(), Refusal> {
        match self {
            Caller::Key { .. } => self.require(scope),
            Caller::User(_) => Ok(()),
        }
    }

    /// The user of a token.
    #[must_use]
    pub fn user(&self) -> Option<&UserId> {
        match self {
            Caller::Key { .. } => None,
            Caller::User(claims) => Some(&claims.user),
        }
    }

    /// The token's claims.
    #[must_use]
    pub fn claims(&self) -> Option<&Claims> {
        match self {
            Caller::Key { .. } => None,
            Caller::User(claims) => Some(claims),
        }
    }

    /// Whose idempotency keys these are: `k:name` or `u:user`, so that the two never meet (R2).
    #[must_use]
    pub fn sender_key(&self) -> String {
        match self {
            Caller::Key { name, .. } => format!("k:{name}"),
            Caller::User(claims) => format!("u:{}", claims.user),
        }
    }
}
