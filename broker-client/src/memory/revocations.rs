//! Revoked tokens within one process. Words: `crate::revocations`.

use std::collections::HashMap;

use async_trait::async_trait;

use super::MemoryBroker;
use crate::presence::unix_ms;
use crate::{
    BrokerError, Revocation, RevocationStore, RevocationVersions, Revocations, RevokedTokens,
};

/// What is refused until when, and the version.
#[derive(Default)]
pub(super) struct Revoked {
    version: u64,
    until_ms: HashMap<RevokedTokens, i64>,
}

impl Revoked {
    /// As in Redis: microseconds, so that no version comes twice whatever is lost.
    fn advance(&mut self) -> u64 {
        let now_us = u64::try_from(unix_ms()).unwrap_or(0).saturating_mul(1_000);
        self.version = now_us.max(self.version + 1);
        self.version
    }
}

#[async_trait]
impl RevocationStore for MemoryBroker {
    async fn revoke(&self, revocation: &Revocation) -> Result<RevocationVersions, BrokerError> {
        let mut revoked = self.0.available()?.revoked.lock();
        let now = unix_ms();
        revoked.until_ms.retain(|_, until_ms| *until_ms > now);
        if revocation.until_ms > now {
            revoked.until_ms.insert(revocation.tokens.clone(), revocation.until_ms);
        } else {
            revoked.until_ms.remove(&revocation.tokens);
        }
        let before = revoked.version;
        Ok(RevocationVersions { before, after: revoked.advance() })
    }

    async fn revocations_version(&self) -> Result<u64, BrokerError> {
        Ok(self.0.available()?.revoked.lock().version)
    }

    async fn revocations(&self) -> Result<Revocations, BrokerError> {
        let revoked = self.0.available()?.revoked.lock();
        let all = revoked
            .until_ms
            .iter()
            .map(|(tokens, until_ms)| Revocation { tokens: tokens.clone(), until_ms: *until_ms })
            .collect();
        Ok(Revocations { version: revoked.version, all })
    }

    async fn restore_revocations(&self, all: &[Revocation]) -> Result<u64, BrokerError> {
        let mut revoked = self.0.available()?.revoked.lock();
        for revocation in all {
            revoked.until_ms.entry(revocation.tokens.clone()).or_insert(revocation.until_ms);
        }
        Ok(revoked.advance())
    }
}
