//! Revoked tokens over Redis: a sorted set of tokens by the time until which they are refused, and a version.

use async_trait::async_trait;

use super::names::NODES;
use super::{RedisBroker, answer, scripts};
use crate::{
    BrokerError, REVOCATION_LIFETIME_MAX, Revocation, RevocationStore, RevocationVersions,
    Revocations, RevokedTokens,
};

/// Revocations read or written in one go.
const PAGE: usize = 2_000;

impl RedisBroker {
    fn revoked(&self) -> [String; 2] {
        ["tokens", "version"].map(|key| self.inner.shared.names.revocations(key))
    }
}

fn lifetime_ms() -> u64 {
    REVOCATION_LIFETIME_MAX.as_millis() as u64
}

#[async_trait]
impl RevocationStore for RedisBroker {
    async fn revoke(&self, revocation: &Revocation) -> Result<RevocationVersions, BrokerError> {
        let [tokens, version] = self.revoked();
        let mut command = scripts::REVOKE.call(&[&tokens, &version]);
        command.arg(revocation.tokens.to_line()).arg(revocation.until_ms).arg(lifetime_ms());
        let place = self.inner.layout.common(NODES);
        let (before, after): (u64, u64) =
            answer::read(self.inner.layout.run(&place, &command).await?)?;
        Ok(RevocationVersions { before, after })
    }

    async fn revocations_version(&self) -> Result<u64, BrokerError> {
        let mut command = redis::cmd("GET");
        command.arg(&self.revoked()[1]);
        let place = self.inner.layout.common(NODES);
        let version: Option<u64> = answer::read(self.inner.layout.run(&place, &command).await?)?;
        Ok(version.unwrap_or(0))
    }

    async fn revocations(&self) -> Result<Revocations, BrokerError> {
        // The version first: what is revoked while we read makes a newer one, and is read again.
        let version = self.revocations_version().await?;
        let [tokens, _] = self.revoked();
        let (mut all, mut cursor) = (Vec::new(), "0".to_owned());
        loop {
            let mut command = redis::cmd("ZSCAN");
            command.arg(&tokens).arg(&cursor).arg("COUNT").arg(PAGE);
            let place = self.inner.layout.common(NODES);
            let (next, page): (String, Vec<(String, f64)>) =
                answer::read(self.inner.layout.run(&place, &command).await?)?;
            all.extend(page.into_iter().filter_map(|(line, until_ms)| {
                let tokens = RevokedTokens::from_line(&line)?;
                // Milliseconds of our time are far below 2^53.
                Some(Revocation { tokens, until_ms: until_ms as i64 })
            }));
            if next == "0" {
                return Ok(Revocations { version, all });
            }
            cursor = next;
        }
    }

    async fn restore_revocations(&self, all: &[Revocation]) -> Result<u64, BrokerError> {
        let [tokens, version] = self.revoked();
        let place = self.inner.layout.common(NODES);
        let mut restored = self.revocations_version().await?;
        for page in all.chunks(PAGE) {
            let mut command = scripts::REVOCATIONS_RESTORE.call(&[&tokens, &version]);
            command.arg(lifetime_ms());
            for revocation in page {
                command.arg(revocation.until_ms).arg(revocation.tokens.to_line());
            }
            restored = answer::read(self.inner.layout.run(&place, &command).await?)?;
        }
        Ok(restored)
    }
}
