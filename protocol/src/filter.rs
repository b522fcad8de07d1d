//! Payload filters of subscriptions: equality by default, `$eq $ne $in $nin $gt $gte $lt $lte
//! $exists $and $or $not` on dotted paths. Source: `channels.md` 5, ruling R16.

use serde_json::Value;

/// A compiled filter. Compare by [`Filter::source`] to share one evaluation among subscribers.
#[derive(Clone, Debug, PartialEq)]
pub struct Filter {
    source: Box<str>,
}

/// The filter's document is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem} at {path}")]
pub struct InvalidFilter {
    /// Dotted path into the filter document.
    pub path: String,
    /// What is wrong there.
    pub problem: &'static str,
}

impl Filter {
    /// Compiles a filter document. At most 16 levels deep and 256 conditions.
    pub fn new(_document: &Value) -> Result<Self, InvalidFilter> {
        todo!()
    }

    /// Canonical text (keys sorted): equal texts mean equal filters.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether a payload passes.
    #[must_use]
    pub fn matches(&self, _payload: &Value) -> bool {
        todo!()
    }
}
