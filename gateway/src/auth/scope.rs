//! What a backend may. Source: contract, ruling R36.

use std::str::FromStr;

/// A permission of an API key or of a backend's token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// Publishing calls.
    Publish,
    /// Reads.
    Read,
    /// Notifications, subscriptions, presence writes.
    Manage,
    /// Connections, disconnects, history deletion, stats; includes all others.
    Admin,
}

impl Scope {
    /// Every scope.
    pub const ALL: [Scope; 4] = [Scope::Publish, Scope::Read, Scope::Manage, Scope::Admin];

    /// The name in configurations and tokens.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Scope::Publish => "realtime:publish",
            Scope::Read => "realtime:read",
            Scope::Manage => "realtime:manage",
            Scope::Admin => "realtime:admin",
        }
    }

    /// Whether `held` allows what `self` asks for.
    #[must_use]
    pub fn allowed_by(self, held: &[Scope]) -> bool {
        held.iter().any(|scope| *scope == self || *scope == Scope::Admin)
    }
}

impl FromStr for Scope {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|scope| scope.name() == text).ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|scope| scope.name()).collect();
            format!("{text:?} is no scope; scopes are {}", names.join(", "))
        })
    }
}

impl serde::Serialize for Scope {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(self.name())
    }
}
