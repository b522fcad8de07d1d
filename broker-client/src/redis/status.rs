//! Users' announced status over Redis: who tells `status.lua` what, and what is left to do after it answered.
//! Many users go into one call where one server has all keys, and into a call each elsewhere.
//!
//! It must not know: connections' registrations, resources.

use std::time::Duration;

use carillon_protocol::{ChannelName, UserId, time};
use futures_util::stream::{self, TryStreamExt as _};
use redis::Cmd;

use super::layout::{Call, stable_hash};
use super::names::{NODES, Names};
use super::presence::PARALLEL;
use super::scripts::{self, Source};
use super::{Inner, answer};
use crate::application::INBOUND_MAX;
use crate::presence::{self, LAST_SEEN_LIFETIME, STATUS_GAP};
use crate::{BrokerError, EventKind, UserStatus};

/// When others look whether a change was announced, where that takes a second step.
const TOLD_BY: Duration = Duration::from_secs(5);
/// Users in one call: Redis serves others between two of them.
const USERS_MAX: usize = 64;

/// What a status script is told.
#[derive(Clone, Copy)]
pub(super) enum Happening {
    Seen(Option<UserStatus>),
    Look,
    Restore(Option<UserStatus>),
}

/// A user in the words of `status.lua`.
pub(super) struct Spoken {
    user: UserId,
    /// Where it is announced.
    channels: Vec<ChannelName>,
    /// A message without its payload.
    head: Vec<u8>,
}

/// What a status script answers of a user: ms after which to look again or 0, the payload announced or nothing, the event
/// or nothing.
pub(super) type Settled = (u64, String, String);

fn status_key(names: &Names, user: &UserId) -> String {
    names.presence(&format!("us:{{{}}}", Names::user_tag(user)))
}

/// A question for what is known of a user's status: announced, last seen.
pub(super) fn look_up(names: &Names, user: &UserId) -> Cmd {
    let mut command = redis::cmd("HMGET");
    command.arg(status_key(names, user)).arg("v").arg("l");
    command
}

/// Remembers to look at users after a while.
pub(super) fn look_later<'u>(
    names: &Names,
    users: impl IntoIterator<Item = (&'u str, Duration)>,
) -> Cmd {
    let mut look = scripts::PRESENCE_LOOK.call(&[&names.presence(&format!("{{{NODES}}}:pl"))]);
    for (user, wait) in users {
        look.arg(wait.as_millis() as u64).arg(user);
    }
    look
}

impl Spoken {
    pub(super) fn of(user: &UserId) -> Self {
        let channels = presence::status_channels(user);
        let head = channels.first().map_or_else(Vec::new, |first| {
            presence::announcement("presence", first.clone(), user, String::new()).to_body()
        });
        Self { user: user.clone(), channels, head }
    }

    /// User, message, own pub/sub channel, as arguments.
    pub(super) fn tell(&self, inner: &Inner, command: &mut Cmd) {
        let own = self.channels.get(1).filter(|_| inner.layout.is_one_server());
        let own = own.map_or_else(String::new, |own| inner.shared.names.publications(own));
        let json = serde_json::Value::from(self.user.as_str()).to_string();
        command.arg(json).arg(&self.head[..]).arg(own);
    }
}

impl Inner {
    /// How many users one call may hold.
    pub(super) fn users_together(&self) -> usize {
        if self.layout.is_one_server() { USERS_MAX } else { 1 }
    }

    /// A call of a script that begins with `status.lua`: everything but the users' own arguments.
    pub(super) fn status_call(&self, script: &Source, users: &[Spoken], living: &[String]) -> Call {
        let names = &self.shared.names;
        let mut keys = Vec::with_capacity(2 * users.len() + 2);
        for spoken in users {
            keys.push(status_key(names, &spoken.user));
            keys.push(names.user_connections(&spoken.user));
        }
        keys.extend(self.in_step().into_iter().flat_map(|step| step.keys));
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        // One server announces in the same step; several cannot, for the channels live elsewhere.
        let everybody = users.first().and_then(|spoken| spoken.channels.first());
        let everybody = everybody.filter(|_| self.layout.is_one_server());
        let now = presence::unix_ms();
        let mut command = script.call(&keys);
        command
            .arg(users.len())
            .arg(STATUS_GAP.as_millis() as u64)
            .arg(LAST_SEEN_LIFETIME.as_millis() as u64)
            .arg(now)
            .arg(time::rfc3339(now))
            .arg(self.layout.publish_verb())
            .arg(everybody.map_or_else(String::new, |all| names.publications(all)))
            .arg(self.told(EventKind::UserOnline))
            .arg(self.told(EventKind::UserOffline))
            .arg(INBOUND_MAX)
            .arg(living.len())
            .arg(living);
        let tag = users.first().map_or_else(String::new, |spoken| Names::user_tag(&spoken.user));
        Call { place: self.layout.place(&tag), command }
    }

    /// Says what happened to users. `living` is looked at by [`Happening::Look`] alone.
    pub(super) async fn settle(
        &self,
        happened: &[(UserId, Happening)],
        living: &[String],
    ) -> Result<(), BrokerError> {
        stream::iter(happened.chunks(self.users_together()).map(Ok::<_, BrokerError>))
            .try_for_each_concurrent(PARALLEL, |some| self.settle_some(some, living))
            .await
    }

    async fn settle_some(
        &self,
        happened: &[(UserId, Happening)],
        living: &[String],
    ) -> Result<(), BrokerError> {
        let seen = happened.iter().filter(|(_, what)| matches!(what, Happening::Seen(_)));
        self.agree_to_look(seen.map(|(user, _)| user).collect()).await?;
        let users: Vec<Spoken> = happened.iter().map(|(user, _)| Spoken::of(user)).collect();
        let mut call = self.status_call(&scripts::PRESENCE_SETTLE, &users, living);
        for (spoken, (_, happening)) in users.iter().zip(happened) {
            let (what, chosen) = match happening {
                Happening::Seen(status) => ("seen", *status),
                Happening::Look => ("look", None),
                Happening::Restore(status) => ("restore", *status),
            };
            call.command.arg(what).arg(chosen.map_or("", UserStatus::name));
            spoken.tell(self, &mut call.command);
        }
        let mut answers =
            answer::items(self.layout.run(&call.place, &call.command).await?)?.into_iter();
        let mut settled = Vec::with_capacity(users.len());
        while let (Some(wait), Some(payload), Some(event)) =
            (answers.next(), answers.next(), answers.next())
        {
            settled.push((answer::read(wait)?, answer::read(payload)?, answer::read(event)?));
        }
        self.follow(&users, settled).await
    }

    /// Before users are said to be there. Where the announcement is another step, others make it should this node end in
    /// between.
    pub(super) async fn agree_to_look(&self, users: Vec<&UserId>) -> Result<(), BrokerError> {
        if users.is_empty() || self.layout.is_one_server() {
            return Ok(());
        }
        let look = {
            let users = users.iter().map(|user| (user.as_str(), TOLD_BY));
            look_later(&self.shared.names, users)
        };
        self.layout.run(&self.layout.common(NODES), &look).await.map(drop)
    }

    /// What scripts cannot do themselves: announcing and telling where that lies on other servers, and looking again.
    pub(super) async fn follow(
        &self,
        users: &[Spoken],
        settled: Vec<Settled>,
    ) -> Result<(), BrokerError> {
        let (layout, names) = (&self.layout, &self.shared.names);
        let mut again = Vec::new();
        for (spoken, (wait, payload, event)) in users.iter().zip(settled) {
            if !layout.is_one_server() {
                if !event.is_empty() {
                    let (user, at) = (&spoken.user, time::rfc3339(presence::unix_ms()));
                    // A payload holds its time: it is another one with each change.
                    let id =
                        format!("{}:{:x}", Names::user_tag(user), stable_hash(payload.as_bytes()));
                    self.tell_once(&[format!("{id} {event} {at} {payload}")]).await?;
                }
                let channels = spoken.channels.iter().filter(|_| !payload.is_empty());
                for channel in channels {
                    let heard = names.publications(channel);
                    let mut publish = scripts::PUBLISH_PASSING.call(&[&heard]);
                    publish.arg(layout.publish_verb());
                    publish.arg([&spoken.head[..], payload.as_bytes()].concat());
                    layout.run(&layout.place(channel.as_str()), &publish).await?;
                }
                if !payload.is_empty() {
                    let mut told = scripts::PRESENCE_TOLD.call(&[&status_key(names, &spoken.user)]);
                    told.arg(format!("{event} {payload}"));
                    layout.run(&layout.place(&Names::user_tag(&spoken.user)), &told).await?;
                }
            }
            if wait > 0 {
                again.push((spoken.user.as_str(), Duration::from_millis(wait)));
            }
        }
        if again.is_empty() {
            return Ok(());
        }
        layout.run(&layout.common(NODES), &look_later(names, again)).await.map(drop)
    }

    /// Notes that users leave, and takes a connection of each back where one is named. That they are looked at is agreed in
    /// `agree`, which comes first: should this node end in between, others look.
    pub(super) fn departed(&self, leaving: &[(&UserId, Duration, &str)]) -> (Call, Vec<Call>) {
        let (layout, names) = (&self.layout, &self.shared.names);
        let agree =
            look_later(names, leaving.iter().map(|(user, delay, _)| (user.as_str(), *delay)));
        let agree = Call { place: layout.common(NODES), command: agree };
        let now = presence::unix_ms();
        let said = leaving.chunks(self.users_together()).map(|some| {
            let keys = some
                .iter()
                .flat_map(|(user, ..)| [status_key(names, user), names.user_connections(user)]);
            let keys: Vec<String> = keys.collect();
            let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
            let mut command = scripts::PRESENCE_DEPARTED.call(&keys);
            command.arg(LAST_SEEN_LIFETIME.as_millis() as u64).arg(now).arg(time::rfc3339(now));
            for (_, delay, connection) in some {
                command.arg(delay.as_millis() as u64).arg(connection);
            }
            Call { place: layout.place(&Names::user_tag(some[0].0)), command }
        });
        (agree, said.collect())
    }
}
