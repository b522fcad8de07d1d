//! Users whom an operator disconnected: their event streams are answered 204 for a minute, so that an
//! EventSource stops coming back (R26).

use std::time::{Duration, Instant};

use carillon_protocol::UserId;
use foldhash::HashMap;
use parking_lot::Mutex;

const BANISHMENT: Duration = Duration::from_secs(60);
/// More than that at once is an operator's loop; the oldest entries matter least.
const BANISHED_MAX: usize = 10_000;

/// See the module.
#[derive(Debug, Default)]
pub struct Banished {
    until: Mutex<HashMap<UserId, Instant>>,
}

impl Banished {
    /// Begins a user's minute.
    pub fn banish(&self, user: &UserId) {
        let now = Instant::now();
        let mut until = self.until.lock();
        if until.len() >= BANISHED_MAX {
            until.retain(|_, until| *until > now);
        }
        if until.len() < BANISHED_MAX {
            until.insert(user.clone(), now + BANISHMENT);
        }
    }

    /// Whether the user's minute runs.
    #[must_use]
    pub fn is_banished(&self, user: &UserId) -> bool {
        self.until.lock().get(user).is_some_and(|until| *until > Instant::now())
    }
}
