//! Where notifications lie in Redis, and how a record is read.
//!
//! A record and its outbox share a slot, an inbox has its user's. A record is a hash: `document` (what
//! never changes, JSON), `purge_at`, `indexed`, `published`, `delivered_at`, `gone`, `read:{user}`.

use std::sync::Arc;

use carillon_protocol::UserId;
use carillon_protocol::channel::escape_segment;
use redis::Value;

use super::NotificationLimits;
use super::record::{Document, Record};
use crate::store::{Clock, Moment, RedisCommands, Script, ScriptCall, StoreError, pairs, spread};

/// Outboxes where keys live on several servers.
const PARTITIONS: u32 = 16;

pub(super) struct Inner {
    pub(super) commands: Arc<dyn RedisCommands>,
    pub(super) limits: NotificationLimits,
    pub(super) clock: Clock,
}

impl Inner {
    pub(super) fn partitions(&self) -> u32 {
        if self.commands.one_slot() { 1 } else { PARTITIONS }
    }

    pub(super) fn outbox_key(&self, partition: u32) -> String {
        format!("{}:{{n{partition}}}:outbox", self.commands.prefix())
    }

    pub(super) fn record_key(&self, id: &str) -> String {
        let partition = spread(id) % self.partitions();
        format!("{}:{{n{partition}}}:notification:{id}", self.commands.prefix())
    }

    /// The record's key and its outbox's.
    pub(super) fn record_keys(&self, id: &str) -> Vec<String> {
        vec![self.record_key(id), self.outbox_key(spread(id) % self.partitions())]
    }

    pub(super) fn inbox_keys(&self, user: &UserId) -> impl Iterator<Item = String> {
        ["order", "unread", "pending", "purge", "meta"]
            .map(|part| self.inbox_key(user, part))
            .into_iter()
    }

    /// What none of the user's connections has yet.
    pub(super) fn pending_key(&self, user: &UserId) -> String {
        self.inbox_key(user, "pending")
    }

    fn inbox_key(&self, user: &UserId, part: &str) -> String {
        let user = escape_segment(user.as_str());
        format!("{}:{{u:{user}}}:notifications:{part}", self.commands.prefix())
    }

    pub(super) fn in_inbox(
        &self,
        script: &'static Script,
        user: &UserId,
        now: Moment,
    ) -> ScriptCall {
        ScriptCall::new(script, self.inbox_keys(user).collect()).number(now.unix_ms())
    }

    /// Adds the entry as `described` in `inbox.lua` reads it.
    pub(super) fn describe(
        &self,
        call: ScriptCall,
        document: &Document,
        now: Moment,
    ) -> ScriptCall {
        let body = &document.body;
        let expires = body.expires_at.map_or(String::new(), |at| at.unix_ms().to_string());
        call.arg(document.id.as_str())
            .number(now.unix_ms())
            .number(document.created_at.unix_ms())
            .number(document.unread_until(&self.limits).unix_ms())
            .number(document.purge_at(&self.limits).unix_ms())
            .number(i64::from(self.limits.entries_max))
            .arg(format!("{expires};{};{}", body.priority.as_str(), body.kind.as_str()))
    }

    /// The record as HGETALL tells it; `None` where there is none, or none that this program reads.
    pub(super) fn record_of(&self, answer: Value) -> Result<Option<Record>, StoreError> {
        let fields = pairs(answer)?;
        let document = fields.iter().find(|(field, _)| field == b"document");
        let Some((_, document)) = document else { return Ok(None) };
        let document = match serde_json::from_slice(document) {
            Ok(document) => document,
            Err(error) => {
                tracing::error!(%error, "a stored notification is not what this program writes");
                return Ok(None);
            }
        };
        let mut record = Record::new(document);
        for (field, value) in fields {
            let number = || std::str::from_utf8(&value).ok()?.parse::<i64>().ok();
            match &field[..] {
                b"indexed" => record.indexed = true,
                b"gone" => record.gone = true,
                b"published" => {
                    record.published = number().and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
                }
                b"delivered_at" => record.delivered_at = number().map(Moment::from_unix_ms),
                _ => {
                    let user =
                        field.strip_prefix(b"read:").and_then(|u| std::str::from_utf8(u).ok());
                    if let (Some(user), Some(at)) =
                        (user.and_then(|u| UserId::new(u).ok()), number())
                    {
                        record.reads.push((user, Moment::from_unix_ms(at)));
                    }
                }
            }
        }
        Ok(Some(record))
    }
}
