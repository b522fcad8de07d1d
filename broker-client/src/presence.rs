//! Presence in prose and as a trait: who is at which resource, who is online. `channels.md` 3,
//! rulings R25, R38, R40, R43.
//!
//! * A change and its announcement are one step: whoever replays the announcements of a channel has its list.
//! * A user is at a resource while a connection of theirs holds them there, or a backend does; each change is
//!   announced exactly once, by whoever's step made it.
//! * Everything is kept under the node's lease: what a dead node held is taken back by one survivor's
//!   [`PresenceStore::tend`], each leave and offline once.
//! * `lastSeen` of an entry that a live connection holds is the time of the reading: its node vouches for it.
//!
//! What it must not know: sockets, time-outs of connections, who may see what.

use std::time::Duration;

use async_trait::async_trait;
use carillon_protocol::publication::Exclude;
use carillon_protocol::{ChannelName, ConnectionId, MessageId, Payload, Publication, UserId, time};

use crate::BrokerError;

/// The channel of all users' status changes; a user's own is this, a colon and the user.
pub const STATUS_CHANNEL: &str = "presence";

/// Changes of a user's status are announced at most so often; the last one is always announced.
pub const STATUS_GAP: Duration = Duration::from_secs(1);

/// How long `last_seen` outlives the last connection.
pub const LAST_SEEN_LIFETIME: Duration = Duration::from_secs(30 * 24 * 3600);

/// One user at a resource; on the wire `{id, name, lastSeen, metadata}`.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Member {
    /// The user.
    pub id: UserId,
    /// Display name.
    pub name: Option<String>,
    /// Unix milliseconds.
    #[serde(rename = "lastSeen", default)]
    pub last_seen_ms: i64,
    /// Whatever the application wants listed.
    pub metadata: Option<serde_json::Value>,
}

/// A join was performed.
#[derive(Clone, Debug, PartialEq)]
pub struct Joined {
    /// The user was not there before: it was announced.
    pub first: bool,
    /// Everyone there now, in order of id.
    pub everyone: Vec<Member>,
}

/// A user's status as others see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UserStatus {
    /// Connected.
    Online,
    /// Connected, idle.
    Away,
    /// Connected, not to be disturbed.
    Busy,
    /// Not connected.
    Offline,
}

impl UserStatus {
    /// The name on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Away => "away",
            Self::Busy => "busy",
            Self::Offline => "offline",
        }
    }

    /// The status of a name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Online, Self::Away, Self::Busy, Self::Offline]
            .into_iter()
            .find(|status| status.name() == name)
    }
}

/// What is known of a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserPresence {
    /// The user.
    pub user: UserId,
    /// `Offline` for a user never seen.
    pub status: UserStatus,
    /// Unix milliseconds; now while connected, `None` for a user never seen (R40).
    pub last_seen_ms: Option<i64>,
    /// Live connections over the cluster.
    pub connections: u64,
}

/// See the module.
#[async_trait]
pub trait PresenceStore: Send + Sync + 'static {
    /// A connection of `member.id` holds them at the resource from now on. Announced (not to this connection)
    /// if they were not there; otherwise the entry is replaced in silence. Idempotent.
    async fn join_resource(
        &self,
        resource: &ChannelName,
        connection: &ConnectionId,
        member: &Member,
    ) -> Result<Joined, BrokerError>;

    /// The connection holds the user there no more. `true` if they are gone now: that was announced to the others, with
    /// `last_seen_ms`. Idempotent.
    async fn leave_resource(
        &self,
        resource: &ChannelName,
        connection: &ConnectionId,
        user: &UserId,
        last_seen_ms: i64,
    ) -> Result<bool, BrokerError>;

    /// A backend holds the member there, until [`PresenceStore::remove_member`] or for `ttl`. `true` if they were
    /// not there before.
    async fn put_member(
        &self,
        resource: &ChannelName,
        member: &Member,
        ttl: Option<Duration>,
    ) -> Result<bool, BrokerError>;

    /// Takes a user away from the resource, whoever holds them. `true` if they were there.
    async fn remove_member(
        &self,
        resource: &ChannelName,
        user: &UserId,
    ) -> Result<bool, BrokerError>;

    /// Everyone there, in order of id.
    async fn members(&self, resource: &ChannelName) -> Result<Vec<Member>, BrokerError>;

    /// The user is here: a connection was registered, a poll is held, or (with `status`) they said how they are.
    async fn user_seen(&self, user: &UserId, status: Option<UserStatus>)
    -> Result<(), BrokerError>;

    /// A connection of the user is about to go: unless others are there after `delay`, the user is offline then.
    /// Call it before the connection is deregistered.
    async fn user_departed(&self, user: &UserId, delay: Duration) -> Result<(), BrokerError>;

    /// What is known of users, in the order asked.
    async fn presence_of(&self, users: &[UserId]) -> Result<Vec<UserPresence>, BrokerError>;

    /// To be called about once a second by every node, after its beat: refreshes the lease, takes back what dead nodes
    /// held, announces who went offline, ends entries whose time is over. At rest it costs one command.
    async fn tend(&self) -> Result<(), BrokerError>;
}

/// The announcement of a join or a leave.
pub(crate) fn member_announcement(
    kind: &str,
    resource: &ChannelName,
    member: &Member,
    except: Option<&ConnectionId>,
) -> Publication {
    let payload = serde_json::to_string(member).unwrap_or_else(|_| "null".to_owned());
    let mut publication = announcement(kind, resource.clone(), &member.id, payload);
    publication.exclude =
        Exclude { connections: except.cloned().into_iter().collect(), users: Vec::new() };
    publication
}

/// The channels on which a user's status is announced.
pub(crate) fn status_channels(user: &UserId) -> Vec<ChannelName> {
    let own =
        format!("{STATUS_CHANNEL}:{}", carillon_protocol::channel::escape_segment(user.as_str()));
    // A user id may be too long for a channel's name; then there is no such channel to hear.
    [STATUS_CHANNEL.to_owned(), own].iter().filter_map(|name| ChannelName::new(name).ok()).collect()
}

/// The payload of a status change.
pub(crate) fn status_payload(user: &UserId, status: UserStatus, last_seen_ms: i64) -> String {
    serde_json::json!({
        "user_id": user,
        "status": status,
        "last_seen": time::rfc3339(last_seen_ms),
    })
    .to_string()
}

/// A message of the server's own about a user.
pub(crate) fn announcement(
    kind: &str,
    channel: ChannelName,
    user: &UserId,
    payload: String,
) -> Publication {
    let id = uuid::Uuid::now_v7().to_string();
    Publication {
        channel,
        position: None,
        previous_tag: None,
        stamp: 0,
        id: MessageId::new(&id).expect("36 ASCII characters"),
        kind: kind.into(),
        timestamp_ms: unix_ms(),
        user_id: Some(user.clone()),
        meta: None,
        exclude: Exclude::default(),
        expires_at_ms: None,
        traceparent: None,
        payload: Payload::from_json(payload),
    }
}

/// Unix milliseconds.
pub(crate) fn unix_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
