//! The one error of the services: each variant is a different act for the caller.

use carillon_protocol::ids::InvalidId;

use crate::{BrokerError, Invalid, StoreError};

/// What was not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NotFound {
    /// A notification, or it is not this user's (R6).
    Notification,
    /// A subscription.
    Subscription,
    /// A live connection.
    Connection,
}

impl std::fmt::Display for NotFound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Notification => "notification",
            Self::Subscription => "subscription",
            Self::Connection => "connection",
        })
    }
}

/// Why a service did not do what was asked.
///
/// ```
/// use carillon_broker_client::realtime::RealtimeError;
///
/// fn try_again_later(error: &RealtimeError) -> bool {
///     matches!(error, RealtimeError::Unavailable(_))
/// }
/// assert!(try_again_later(&RealtimeError::Unavailable("Redis is out of reach".to_owned())));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RealtimeError {
    /// Redis is out of reach or too slow; a change may or may not have happened. Try later.
    #[error("unavailable: {0}")]
    Unavailable(String),
    /// The request can never succeed as it is: mend the field.
    #[error(transparent)]
    Invalid(Invalid),
    /// There is none: nothing to do.
    #[error("no such {0}")]
    NotFound(NotFound),
    /// The user has as many subscriptions as one user may have: end one first.
    #[error("a user may have at most {limit} subscriptions")]
    LimitReached {
        /// How many.
        limit: u64,
    },
}

impl RealtimeError {
    pub(super) fn invalid(field: &str, problem: &str) -> Self {
        Self::Invalid(Invalid::new(field, problem))
    }
}

impl From<StoreError> for RealtimeError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable(reason) => Self::Unavailable(reason),
            StoreError::Invalid(invalid) => Self::Invalid(invalid),
            StoreError::LimitReached { limit } => Self::LimitReached { limit },
        }
    }
}

impl From<BrokerError> for RealtimeError {
    fn from(error: BrokerError) -> Self {
        StoreError::from(error).into()
    }
}

impl From<InvalidId> for RealtimeError {
    fn from(error: InvalidId) -> Self {
        Self::Invalid(Invalid::new("id", error.to_string()))
    }
}
