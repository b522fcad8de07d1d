//! What the notification and subscription stores share: errors, pages, the clock, the way to Redis.
//!
//! What it must not know: HTTP, connections, what a notification or subscription says.

mod clock;
mod ids;
mod moment;
mod scripts;

pub use clock::Clock;
pub use ids::{NotificationId, SubscriptionId};
pub use moment::{InvalidMoment, Moment};
pub use scripts::{RedisCommands, ScriptCall};

pub(crate) use ids::{bucket_digits, sortable as sortable_id, spread};
pub(crate) use scripts::{Script, decode, pairs};

use serde::Deserialize;

use crate::BrokerError;

/// A value that the contract does not allow.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} {problem}")]
pub struct Invalid {
    /// Name of the field as the documents write it; dotted inside objects.
    pub field: String,
    /// What is wrong with it, to be read after the name.
    pub problem: String,
}

impl Invalid {
    pub(crate) fn new(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { field: field.into(), problem: problem.into() }
    }
}

/// Why a store did not do what was asked. What is missing, or not the user's, is `None` or `false`,
/// never an error (R6).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Redis is out of reach or too slow; a change may or may not have happened. Answer 503.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    /// The request can never succeed as it is. Answer 400 with the field.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// The user has as many subscriptions as one user may have.
    #[error("a user may have at most {limit} subscriptions")]
    LimitReached {
        /// How many.
        limit: u64,
    },
}

impl From<BrokerError> for StoreError {
    fn from(error: BrokerError) -> Self {
        match error {
            BrokerError::Unavailable(reason) => Self::Unavailable(reason),
            BrokerError::Invalid(problem) => Self::Invalid(Invalid::new("request", problem)),
        }
    }
}

/// Which part of a list is asked for (R37).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    number: u32,
    size: u32,
}

impl Page {
    /// Entries on a page when nothing is said.
    pub const SIZE_DEFAULT: u32 = 20;
    /// Most entries on a page; more is clamped.
    pub const SIZE_MAX: u32 = 100;

    /// Page `number` from 1, of `size` entries (clamped to [`Page::SIZE_MAX`]).
    ///
    /// # Errors
    /// When either is below 1.
    pub fn new(number: u32, size: u32) -> Result<Self, Invalid> {
        if number == 0 {
            return Err(Invalid::new("page", "must be at least 1"));
        }
        if size == 0 {
            return Err(Invalid::new("page_size", "must be at least 1"));
        }
        Ok(Self { number, size: size.min(Self::SIZE_MAX) })
    }

    /// From 1.
    #[must_use]
    pub fn number(self) -> u32 {
        self.number
    }

    /// Entries on it, at most.
    #[must_use]
    pub fn size(self) -> u32 {
        self.size
    }

    /// Entries before it.
    #[must_use]
    pub fn offset(self) -> u64 {
        u64::from(self.number - 1) * u64::from(self.size)
    }
}

impl Default for Page {
    fn default() -> Self {
        Self { number: 1, size: Self::SIZE_DEFAULT }
    }
}

/// Every script of the stores, for whoever loads scripts ahead of their use.
pub(crate) fn script_texts() -> impl Iterator<Item = &'static str> {
    let notifications = crate::notifications::scripts().into_iter();
    notifications.chain(crate::subscriptions::scripts()).map(Script::text)
}

/// Reads `null` like an absent field: clients of the document write both.
pub(crate) fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + serde::Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
