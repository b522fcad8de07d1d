//! The one error of this crate: each variant is a different act for the caller.

/// Why the broker did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BrokerError {
    /// Redis is out of reach, too slow, or refuses writes (OOM, NOREPLICAS, READONLY). For a publish: it may
    /// or may not have happened; repeating it with the same id is safe. Answer 503, try later.
    #[error("the broker is unavailable: {0}")]
    Unavailable(String),
    /// The request can never succeed as it is. A defect of the caller.
    #[error("the broker refused the request: {0}")]
    Invalid(String),
}

impl BrokerError {
    /// Wraps any error as [`BrokerError::Unavailable`].
    pub fn unavailable(reason: impl std::fmt::Display) -> Self {
        Self::Unavailable(reason.to_string())
    }
}
