//! Subscriptions in Redis: a shelf for each user (`shelf.lua`), and for each id the way to its
//! user. All keys of a user share the slot of the user's bucket, which is part of the id.

use std::fmt;
use std::sync::{Arc, LazyLock};

use async_trait::async_trait;
use carillon_protocol::UserId;
use carillon_protocol::channel::escape_segment;
use redis::Value;

use super::record::{Record, bucket_of};
use super::{
    NewSubscription, Subscription, SubscriptionLimits, SubscriptionPage, SubscriptionPatch,
    SubscriptionStatus, SubscriptionStore, paged,
};
use crate::store::{
    Clock, Moment, Page, RedisCommands, Script, ScriptCall, StoreError, SubscriptionId, decode,
};

macro_rules! script {
    ($name:ident $file:literal) => {
        static $name: LazyLock<Script> =
            LazyLock::new(|| Script::new(concat!(include_str!("shelf.lua"), include_str!($file))));
    };
}

script!(CREATE "create.lua");
script!(REPLACE "replace.lua");
script!(DELETE "delete.lua");
script!(ONE "one.lua");
script!(ALL "all.lua");
static WAY: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("way.lua")));

/// The scripts of this file.
pub(super) fn scripts() -> Vec<&'static Script> {
    vec![&CREATE, &REPLACE, &DELETE, &ONE, &ALL, &WAY]
}

/// Changes that others may make to one subscription while we change it.
const ATTEMPTS_MAX: u32 = 32;

/// [`SubscriptionStore`] in Redis. Cheap to clone.
#[derive(Clone)]
pub struct RedisSubscriptions {
    commands: Arc<dyn RedisCommands>,
    limits: SubscriptionLimits,
    clock: Clock,
}

impl RedisSubscriptions {
    /// Over these connections.
    #[must_use]
    pub fn new(commands: Arc<dyn RedisCommands>, limits: SubscriptionLimits, clock: Clock) -> Self {
        Self { commands, limits, clock }
    }

    fn shelf(&self, user: &UserId) -> [String; 2] {
        let (prefix, bucket) = (self.commands.prefix(), bucket_of(user));
        let user = escape_segment(user.as_str());
        ["all", "ends"].map(|part| format!("{prefix}:{{s{bucket}}}:subscriptions:{user}:{part}"))
    }

    /// `None` where the id is none of ours.
    fn way(&self, id: &SubscriptionId) -> Option<String> {
        let bucket = id.as_str().get(..2)?;
        let is_bucket = bucket.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase());
        is_bucket.then(|| format!("{}:{{s{bucket}}}:subscription:{id}", self.commands.prefix()))
    }

    fn on_shelf(&self, script: &'static Script, user: &UserId, now: Moment) -> ScriptCall {
        ScriptCall::new(script, self.shelf(user).into()).number(now.unix_ms())
    }

    fn on_shelf_and_way(
        &self,
        script: &'static Script,
        user: &UserId,
        id: &SubscriptionId,
        now: Moment,
    ) -> ScriptCall {
        let mut keys = self.shelf(user).to_vec();
        keys.extend(self.way(id));
        ScriptCall::new(script, keys).number(now.unix_ms()).arg(id.as_str())
    }

    fn putting(&self, script: &'static Script, record: &Record, now: Moment) -> ScriptCall {
        let purge_at = record.purge_at(&self.limits);
        self.on_shelf_and_way(script, record.user(), record.id(), now)
            .arg(record.user().as_str())
            .arg(record.json())
            .arg(purge_at.map_or("+inf".to_owned(), |at| at.unix_ms().to_string()))
    }

    async fn user_of(&self, id: &SubscriptionId) -> Result<Option<UserId>, StoreError> {
        let Some(way) = self.way(id) else { return Ok(None) };
        let answer = self.commands.script(ScriptCall::new(&WAY, vec![way])).await?;
        Ok(decode::<Option<String>>(answer)?.and_then(|user| UserId::new(&user).ok()))
    }

    /// The record and its text.
    async fn record(&self, id: &SubscriptionId) -> Result<Option<(Record, String)>, StoreError> {
        let Some(user) = self.user_of(id).await? else { return Ok(None) };
        let call = self.on_shelf(&ONE, &user, self.clock.now()).arg(id.as_str());
        let text: Option<String> = decode(self.commands.script(call).await?)?;
        Ok(text.and_then(|text| Some((read(&text)?, text))))
    }

    async fn change(
        &self,
        id: &SubscriptionId,
        change: impl Fn(&mut Record, Moment) -> Result<(), StoreError> + Send + Sync,
    ) -> Result<Option<Subscription>, StoreError> {
        for _ in 0..ATTEMPTS_MAX {
            let Some((mut record, text)) = self.record(id).await? else { return Ok(None) };
            let now = self.clock.now();
            change(&mut record, now)?;
            let call = self.putting(&REPLACE, &record, now).arg(text);
            if decode(self.commands.script(call).await?)? {
                return Ok(Some(record.at(now)));
            }
        }
        Err(StoreError::Unavailable("others keep changing this subscription".to_owned()))
    }

    async fn all_of(&self, user: &UserId) -> Result<Vec<Subscription>, StoreError> {
        let now = self.clock.now();
        let answer = self.commands.script(self.on_shelf(&ALL, user, now)).await?;
        Self::sorted(answer, now)
    }

    /// The records of a shelf, oldest first.
    fn sorted(answer: Value, now: Moment) -> Result<Vec<Subscription>, StoreError> {
        let texts: Vec<String> = decode(answer)?;
        let mut all: Vec<_> =
            texts.iter().filter_map(|text| read(text)).map(|record| record.at(now)).collect();
        all.sort_unstable_by(|one, other| {
            (one.created_at, &one.id).cmp(&(other.created_at, &other.id))
        });
        Ok(all)
    }
}

fn read(text: &str) -> Option<Record> {
    let read = serde_json::from_str(text);
    if let Err(error) = &read {
        tracing::error!(%error, "a stored subscription is not what this program writes");
    }
    read.ok()
}

impl fmt::Debug for RedisSubscriptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisSubscriptions").field("limits", &self.limits).finish_non_exhaustive()
    }
}

#[async_trait]
impl SubscriptionStore for RedisSubscriptions {
    async fn create(&self, new: NewSubscription) -> Result<Subscription, StoreError> {
        let now = self.clock.now();
        let record = Record::new(new, now, &self.limits)?;
        let kept = i64::try_from(self.limits.ended_kept.as_millis()).unwrap_or(i64::MAX);
        let call = self
            .putting(&CREATE, &record, now)
            .number(i64::from(self.limits.per_user))
            .number(kept);
        let stored: bool = decode(self.commands.script(call).await?)?;
        if !stored {
            return Err(StoreError::LimitReached { limit: u64::from(self.limits.per_user) });
        }
        Ok(record.at(now))
    }

    async fn find(&self, id: &SubscriptionId) -> Result<Option<Subscription>, StoreError> {
        let now = self.clock.now();
        Ok(self.record(id).await?.map(|(record, _)| record.at(now)))
    }

    async fn list(
        &self,
        user: &UserId,
        status: Option<SubscriptionStatus>,
        page: Page,
    ) -> Result<SubscriptionPage, StoreError> {
        Ok(paged(self.all_of(user).await?, status, page))
    }

    async fn set_status(
        &self,
        id: &SubscriptionId,
        status: SubscriptionStatus,
    ) -> Result<Option<Subscription>, StoreError> {
        self.change(id, |record, now| {
            record.set_status(status, now);
            Ok(())
        })
        .await
    }

    async fn update(
        &self,
        id: &SubscriptionId,
        patch: &SubscriptionPatch,
    ) -> Result<Option<Subscription>, StoreError> {
        self.change(id, |record, now| Ok(record.apply(patch, now, &self.limits)?)).await
    }

    async fn delete(&self, id: &SubscriptionId) -> Result<Option<Subscription>, StoreError> {
        let Some(user) = self.user_of(id).await? else { return Ok(None) };
        let now = self.clock.now();
        let call = self.on_shelf_and_way(&DELETE, &user, id, now);
        let text: Option<String> = decode(self.commands.script(call).await?)?;
        Ok(text.and_then(|text| read(&text)).map(|record| record.at(now)))
    }

    async fn active_for(&self, user: &UserId) -> Result<Vec<Subscription>, StoreError> {
        // Asked at every connect: a look without the shelf's sweeping, which whoever changes something does.
        let [all, _] = self.shelf(user);
        let mut look = redis::cmd("HVALS");
        look.arg(&all);
        let answer = self.commands.command(&all, look).await?;
        let mut active = Self::sorted(answer, self.clock.now())?;
        active.retain(|subscription| subscription.status == SubscriptionStatus::Active);
        Ok(active)
    }
}
