//! The outbox in Redis: what has begun is finished by whoever claims it next.
//!
//! An outbox is a sorted set: id -> when the entry is due. A claim moves that moment to the lease's
//! end; an acknowledgement takes the entry out.

use std::sync::LazyLock;
use std::time::Duration;

use super::OutboxEntry;
use super::record::{Document, Record};
use super::redis_layout::Inner;
use super::redis_store::{FINISH_WITHIN, TAKE_OUT, script};
use crate::store::{Moment, Script, ScriptCall, StoreError, decode};

script!(INDEX inbox "index.lua");
script!(INDEXED "indexed.lua");
script!(DELETE "delete.lua");
script!(DELETED "deleted.lua");
script!(CLAIM "claim.lua");
script!(ADVANCE "advance.lua");
script!(ACK "ack.lua");

/// The scripts of this file.
pub(super) fn scripts() -> Vec<&'static Script> {
    vec![&INDEX, &INDEXED, &DELETE, &DELETED, &CLAIM, &ADVANCE, &ACK]
}

/// Inboxes that one script writes where all keys live on one server: a few milliseconds of Redis.
const INDEXED_TOGETHER: usize = 100;

impl Inner {
    /// Writes what is missing of the recipients' entries, and opens the outbox entry for the fan-out.
    pub(super) async fn finish_creation(
        &self,
        document: &Document,
        now: Moment,
    ) -> Result<(), StoreError> {
        let together = if self.commands.one_slot() { INDEXED_TOGETHER } else { 1 };
        let calls = document.body.recipients.chunks(together).map(|users| {
            let keys = users.iter().flat_map(|user| self.inbox_keys(user)).collect();
            self.describe(ScriptCall::new(&INDEX, keys), document, now)
        });
        for answer in self.commands.scripts(calls.collect()).await {
            answer?;
        }
        let id = document.id.as_str();
        if document.is_expired(now) {
            self.ack(id).await?;
            return Ok(());
        }
        let call = ScriptCall::new(&INDEXED, self.record_keys(id)).arg(id).number(now.unix_ms());
        self.commands.script(call).await?;
        Ok(())
    }

    pub(super) async fn delete(&self, id: &str) -> Result<bool, StoreError> {
        let due = self.clock.now().after(FINISH_WITHIN);
        let call = ScriptCall::new(&DELETE, self.record_keys(id)).arg(id).number(due.unix_ms());
        let Some(record) = self.record_of(self.commands.script(call).await?)? else {
            return Ok(false);
        };
        self.finish_deletion(&record.document).await?;
        Ok(true)
    }

    async fn finish_deletion(&self, document: &Document) -> Result<(), StoreError> {
        let (now, id) = (self.clock.now(), document.id.as_str());
        let purge_at = document.purge_at(&self.limits).unix_ms();
        let calls = document
            .body
            .recipients
            .iter()
            .map(|user| self.in_inbox(&TAKE_OUT, user, now).arg(id).number(purge_at));
        for answer in self.commands.scripts(calls.collect()).await {
            answer?;
        }
        self.commands.script(ScriptCall::new(&DELETED, self.record_keys(id)).arg(id)).await?;
        Ok(())
    }

    pub(super) async fn claim(
        &self,
        limit: usize,
        lease: Duration,
    ) -> Result<Vec<OutboxEntry>, StoreError> {
        let now = self.clock.now();
        let partitions = self.partitions();
        let each = limit.div_ceil(partitions as usize).max(1);
        let calls = (0..partitions).map(|partition| {
            ScriptCall::new(&CLAIM, vec![self.outbox_key(partition)])
                .number(now.unix_ms())
                .number(now.after(lease).unix_ms())
                .number(i64::try_from(each).unwrap_or(i64::MAX))
        });
        let mut ids = Vec::new();
        for answer in self.commands.scripts(calls.collect()).await {
            ids.extend(decode::<Vec<String>>(answer?)?);
        }
        let mut entries = Vec::with_capacity(ids.len());
        for (id, answer) in ids.iter().zip(self.records(&ids).await?) {
            match self.record_of(answer)? {
                Some(record) => entries.extend(self.resume(record, now, lease).await?),
                // It outlived its record: there is nothing to tell anybody any more.
                None => drop(self.ack(id).await?),
            }
        }
        Ok(entries)
    }

    /// Finishes what a claimed record still lacks; the entry, if it wants a fan-out.
    async fn resume(
        &self,
        record: Record,
        now: Moment,
        lease: Duration,
    ) -> Result<Option<OutboxEntry>, StoreError> {
        let id = record.document.id.as_str();
        if record.gone {
            self.finish_deletion(&record.document).await?;
            return Ok(None);
        }
        if !record.indexed {
            self.finish_creation(&record.document, now).await?;
        }
        if record.document.is_expired(now) {
            self.ack(id).await?;
            return Ok(None);
        }
        if !record.indexed && !self.advance(id, record.published, lease).await? {
            return Ok(None);
        }
        let published = record.published;
        Ok(Some(OutboxEntry { notification: record.into_notification(now), published }))
    }

    pub(super) async fn advance(
        &self,
        id: &str,
        published: usize,
        lease: Duration,
    ) -> Result<bool, StoreError> {
        let call = ScriptCall::new(&ADVANCE, self.record_keys(id))
            .arg(id)
            .number(self.clock.now().after(lease).unix_ms())
            .arg(published.to_string());
        Ok(decode(self.commands.script(call).await?)?)
    }

    pub(super) async fn ack(&self, id: &str) -> Result<bool, StoreError> {
        let call = ScriptCall::new(&ACK, self.record_keys(id)).arg(id);
        Ok(decode(self.commands.script(call).await?)?)
    }
}
