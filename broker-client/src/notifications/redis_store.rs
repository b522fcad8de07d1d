//! Notifications in Redis: inboxes and records. The outbox is in `redis_outbox.rs`, keys and
//! records in `redis_layout.rs`, the inside of an inbox in `inbox.lua`.

use std::fmt;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use async_trait::async_trait;
use carillon_protocol::UserId;
use redis::Value;

use super::record::{Document, Record};
use super::redis_layout::Inner;
use super::{
    NewNotification, Notification, NotificationLimits, NotificationPage, NotificationPriority,
    NotificationQuery, NotificationStatus, NotificationStore, NotificationType, OutboxEntry,
};
use crate::store::{
    Clock, Moment, NotificationId, RedisCommands, Script, ScriptCall, StoreError, decode,
};

macro_rules! script {
    ($name:ident $file:literal) => {
        pub(super) static $name: LazyLock<Script> =
            LazyLock::new(|| Script::new(include_str!($file)));
    };
    ($name:ident inbox $file:literal) => {
        pub(super) static $name: LazyLock<Script> =
            LazyLock::new(|| Script::new(concat!(include_str!("inbox.lua"), include_str!($file))));
    };
}
pub(super) use script;

script!(CREATE inbox "create.lua");
script!(RECORD "record.lua");
script!(HOLDS inbox "holds.lua");
script!(LIST inbox "list.lua");
script!(UNREAD_COUNT inbox "unread_count.lua");
script!(UNREAD_IDS inbox "unread_ids.lua");
script!(SETTLE inbox "settle.lua");
script!(READ "read.lua");
script!(DELIVERED "delivered.lua");
script!(PENDING inbox "pending.lua");
script!(TAKE_OUT inbox "take_out.lua");

/// The scripts of this file.
pub(super) fn scripts() -> Vec<&'static Script> {
    vec![
        &CREATE,
        &RECORD,
        &HOLDS,
        &LIST,
        &UNREAD_COUNT,
        &UNREAD_IDS,
        &SETTLE,
        &READ,
        &DELIVERED,
        &PENDING,
        &TAKE_OUT,
    ]
}

/// Ids that one script settles.
const SETTLE_MAX: usize = 1_000;

/// Recipients whose entries are written in the record's own script, where all keys live on one
/// server. It costs Redis about 40 µs each, in which it serves nobody else: 10,000 would stop every
/// publish for half a second, so larger ones go by the outbox.
const AT_ONCE_MAX: usize = 1_000;

/// How long whoever begins a creation or deletion has to finish it before others do.
pub(super) const FINISH_WITHIN: Duration = Duration::from_secs(5);

/// [`NotificationStore`] in Redis. Cheap to clone.
#[derive(Clone)]
pub struct RedisNotifications(Arc<Inner>);

impl RedisNotifications {
    /// Over these connections.
    #[must_use]
    pub fn new(commands: Arc<dyn RedisCommands>, limits: NotificationLimits, clock: Clock) -> Self {
        Self(Arc::new(Inner { commands, limits, clock }))
    }
}

impl fmt::Debug for RedisNotifications {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisNotifications").field("limits", &self.0.limits).finish_non_exhaustive()
    }
}

impl Inner {
    fn visible(&self, answer: Value, now: Moment) -> Result<Option<Notification>, StoreError> {
        let record = self
            .record_of(answer)?
            .filter(|record| !record.gone && record.document.purge_at(&self.limits) > now);
        Ok(record.map(|record| record.into_notification(now)))
    }

    fn record_call(&self, id: &str) -> ScriptCall {
        ScriptCall::new(&RECORD, vec![self.record_key(id)])
    }

    pub(super) async fn records(&self, ids: &[String]) -> Result<Vec<Value>, StoreError> {
        let calls = ids.iter().map(|id| self.record_call(id)).collect();
        Ok(self.commands.scripts(calls).await.into_iter().collect::<Result<_, _>>()?)
    }

    async fn notifications(
        &self,
        ids: &[String],
        now: Moment,
    ) -> Result<Vec<Notification>, StoreError> {
        let mut found = Vec::with_capacity(ids.len());
        for answer in self.records(ids).await? {
            // A record may have gone since its id was read; its inbox entry follows.
            found.extend(self.visible(answer, now)?);
        }
        Ok(found)
    }

    /// How many changed, and which of the ids are in the inbox.
    async fn settle(
        &self,
        user: &UserId,
        ids: &[String],
        what: &str,
        now: Moment,
    ) -> Result<(u64, Vec<String>), StoreError> {
        let (mut changed, mut own) = (0, Vec::new());
        for ids in ids.chunks(SETTLE_MAX) {
            let call = self.in_inbox(&SETTLE, user, now).arg(what);
            let call = ids.iter().fold(call, ScriptCall::arg);
            let (count, ids) = counted(self.commands.script(call).await?)?;
            changed += count;
            own.extend(ids);
        }
        Ok((changed, own))
    }

    async fn create_whole(&self, document: &Document, now: Moment) -> Result<(), StoreError> {
        let recipients = &document.body.recipients;
        let at_once = self.commands.one_slot() && recipients.len() <= AT_ONCE_MAX;
        let mut keys = self.record_keys(document.id.as_str());
        let due = if at_once { now } else { now.after(FINISH_WITHIN) };
        if at_once {
            keys.extend(recipients.iter().flat_map(|user| self.inbox_keys(user)));
        }
        let outboxed = !(at_once && document.is_expired(now));
        let json = serde_json::to_vec(document)
            .map_err(|error| StoreError::Unavailable(format!("writing JSON: {error}")))?;
        let call = ScriptCall::new(&CREATE, keys).arg(json).arg(if outboxed {
            due.unix_ms().to_string()
        } else {
            String::new()
        });
        self.commands.script(self.describe(call, document, now)).await?;
        if !at_once {
            self.finish_creation(document, now).await?;
        }
        Ok(())
    }
}

/// A number and then ids.
fn counted(answer: Value) -> Result<(u64, Vec<String>), StoreError> {
    let mut answer: Vec<Value> = decode(answer)?;
    if answer.is_empty() {
        return Ok((0, Vec::new()));
    }
    let ids = answer.split_off(1);
    let count = answer.pop().map_or(Ok(0), decode)?;
    Ok((count, ids.into_iter().map(decode).collect::<Result<_, _>>()?))
}

#[async_trait]
impl NotificationStore for RedisNotifications {
    async fn create(&self, new: NewNotification) -> Result<Notification, StoreError> {
        let now = self.0.clock.now();
        let document = Document::new(new.checked(&self.0.limits)?, now);
        self.0.create_whole(&document, now).await?;
        Ok(Record::new(document).into_notification(now))
    }

    async fn find(&self, id: &NotificationId) -> Result<Option<Notification>, StoreError> {
        let answer = self.0.commands.script(self.0.record_call(id.as_str())).await?;
        self.0.visible(answer, self.0.clock.now())
    }

    async fn find_for(
        &self,
        user: &UserId,
        id: &NotificationId,
    ) -> Result<Option<Notification>, StoreError> {
        let call = self.0.in_inbox(&HOLDS, user, self.0.clock.now()).arg(id.as_str());
        let holds: bool = decode(self.0.commands.script(call).await?)?;
        if holds { self.find(id).await } else { Ok(None) }
    }

    async fn list(
        &self,
        user: &UserId,
        query: &NotificationQuery,
    ) -> Result<NotificationPage, StoreError> {
        let now = self.0.clock.now();
        let offset = i64::try_from(query.page.offset()).unwrap_or(i64::MAX);
        let call = self
            .0
            .in_inbox(&LIST, user, now)
            .arg(query.as_of.map_or(String::new(), |as_of| as_of.to_string()))
            .number(offset)
            .number(i64::from(query.page.size()))
            .arg(query.status.map_or("", NotificationStatus::as_str))
            .arg(query.kind.as_ref().map_or("", NotificationType::as_str))
            .arg(query.priority.map_or("", NotificationPriority::as_str))
            .arg(if query.unread { "1" } else { "" });
        let (total, mut rest) = counted(self.0.commands.script(call).await?)?;
        let ids = rest.split_off(rest.len().min(1));
        let as_of = rest.pop().and_then(|as_of| as_of.parse().ok()).unwrap_or(0);
        let notifications = self.0.notifications(&ids, now).await?;
        Ok(NotificationPage { notifications, total, as_of })
    }

    async fn unread_count(&self, user: &UserId) -> Result<u64, StoreError> {
        let call = self.0.in_inbox(&UNREAD_COUNT, user, self.0.clock.now());
        Ok(decode(self.0.commands.script(call).await?)?)
    }

    async fn mark_read(
        &self,
        user: &UserId,
        id: &NotificationId,
    ) -> Result<Option<Notification>, StoreError> {
        let now = self.0.clock.now();
        let ids = [id.as_str().to_owned()];
        let (_, own) = self.0.settle(user, &ids, "read", now).await?;
        if own.is_empty() {
            return Ok(None);
        }
        // Also when it was read before: the first call may have died between inbox and record.
        let call = ScriptCall::new(&READ, vec![self.0.record_key(id.as_str())])
            .number(now.unix_ms())
            .arg(user.as_str())
            .arg("1");
        self.0.visible(self.0.commands.script(call).await?, now)
    }

    async fn mark_all_read(&self, user: &UserId) -> Result<u64, StoreError> {
        let now = self.0.clock.now();
        let call = self.0.in_inbox(&UNREAD_IDS, user, now);
        let ids: Vec<String> = decode(self.0.commands.script(call).await?)?;
        // Records first: should this end in between, the ids are still unread, and are tried again.
        let calls = ids.iter().map(|id| {
            ScriptCall::new(&READ, vec![self.0.record_key(id)])
                .number(now.unix_ms())
                .arg(user.as_str())
                .arg("")
        });
        for answer in self.0.commands.scripts(calls.collect()).await {
            answer?;
        }
        Ok(self.0.settle(user, &ids, "read", now).await?.0)
    }

    async fn delete(&self, id: &NotificationId) -> Result<bool, StoreError> {
        self.0.delete(id.as_str()).await
    }

    async fn dismiss(&self, user: &UserId, id: &NotificationId) -> Result<bool, StoreError> {
        let call = self.0.in_inbox(&TAKE_OUT, user, self.0.clock.now()).arg(id.as_str()).arg("");
        Ok(decode(self.0.commands.script(call).await?)?)
    }

    async fn mark_delivered(
        &self,
        user: &UserId,
        ids: &[NotificationId],
    ) -> Result<u64, StoreError> {
        let now = self.0.clock.now();
        let ids: Vec<String> = ids.iter().map(|id| id.as_str().to_owned()).collect();
        let (changed, own) = self.0.settle(user, &ids, "delivered", now).await?;
        let calls = own.iter().map(|id| {
            ScriptCall::new(&DELIVERED, vec![self.0.record_key(id)]).number(now.unix_ms())
        });
        for answer in self.0.commands.scripts(calls.collect()).await {
            answer?;
        }
        Ok(changed)
    }

    async fn pending(&self, user: &UserId, limit: usize) -> Result<Vec<Notification>, StoreError> {
        // Asked at every connect, and mostly nothing waits: then this look is all.
        let pending = self.0.pending_key(user);
        let mut look = redis::cmd("EXISTS");
        look.arg(&pending);
        if !decode::<bool>(self.0.commands.command(&pending, look).await?)? {
            return Ok(Vec::new());
        }
        let now = self.0.clock.now();
        let limit =
            i64::try_from(limit).unwrap_or(i64::MAX).min(i64::from(self.0.limits.entries_max));
        let call = self.0.in_inbox(&PENDING, user, now).number(limit);
        let ids: Vec<String> = decode(self.0.commands.script(call).await?)?;
        self.0.notifications(&ids, now).await
    }

    async fn claim_outbox(
        &self,
        limit: usize,
        lease: Duration,
    ) -> Result<Vec<OutboxEntry>, StoreError> {
        self.0.claim(limit, lease).await
    }

    async fn advance_outbox(
        &self,
        id: &NotificationId,
        published: usize,
        lease: Duration,
    ) -> Result<bool, StoreError> {
        self.0.advance(id.as_str(), published, lease).await
    }

    async fn ack_outbox(&self, id: &NotificationId) -> Result<bool, StoreError> {
        self.0.ack(id.as_str()).await
    }
}
