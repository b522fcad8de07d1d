//! The broker in prose and as a trait. Source: `cluster.md` 1–2.
//!
//! * Append and publish are one step for a channel: what history does not hold is never delivered,
//!   what is acknowledged is in history.
//! * Offsets of a channel grow by one; each publication carries a random tag and its predecessor's.
//! * What storage acknowledged and then lost (a replica promoted without the last writes) cannot be known to it.
//!   Whoever has a position from before tells it with [`Broker::fence`]; from then on everybody knows.
//! * A node hears a channel only between `subscribe` and `unsubscribe`.
//! * Deliveries may be lost while a connection is interrupted; the broker says so with
//!   [`Event::Interrupted`] and [`Event::Restored`], and the node audits. The broker never refills.
//! * Every call ends within the command time-out (1 s by default), without Redis at once.
//! * Every future may be dropped at any await: a publish then may or may not have happened.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use carillon_protocol::{ChannelName, ConnectionId, MessageId, Position, Publication, Tag, UserId};
use tokio::sync::{mpsc, watch};

use crate::polls::PollStore;
use crate::{BrokerError, NodeId, NodeRecord};

/// How long and how much history a channel keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Publications kept.
    pub size: u32,
    /// How long each is kept.
    pub age: Duration,
}

/// Repeating a publish with the same key on the same channel by the same sender within five
/// minutes publishes nothing (R2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Idempotency {
    /// Who: a user, or an API key's name, in a form that cannot collide between the two.
    pub sender: String,
    /// `id` or `idempotency_key`.
    pub key: String,
    /// The other of the two, where a message has both and they differ: either of them makes it a repetition.
    pub other_key: Option<String>,
}

impl Idempotency {
    /// Of one key.
    #[must_use]
    pub fn new(sender: impl Into<String>, key: impl Into<String>) -> Self {
        Self { sender: sender.into(), key: key.into(), other_key: None }
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.key.as_str()).chain(self.other_key.as_deref())
    }
}

/// How long a repeated key is recognised.
pub const IDEMPOTENCY_WINDOW: Duration = Duration::from_secs(300);

/// How long an epoch outlives its history (R17).
pub const EPOCH_LIFETIME: Duration = Duration::from_secs(30 * 24 * 3600);

/// A publish.
#[derive(Clone, Debug)]
pub struct Publish {
    /// What; `position` and `previous_tag` are ignored and set by the broker.
    pub publication: Publication,
    /// History of the channel; `None` delivers at most once and keeps nothing.
    pub retention: Option<Retention>,
    /// Recognise repetitions.
    pub idempotency: Option<Idempotency>,
}

/// A publish was accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// Id of the publication (the first one's when this is a duplicate).
    pub id: MessageId,
    /// Its place; `None` without history.
    pub position: Option<Position>,
    /// Nothing was published: the key was seen before.
    pub duplicate: bool,
}

/// Where a history read begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Publications with a greater offset.
    After(u64),
    /// The newest `limit` publications.
    Last,
}

/// A history read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistoryQuery {
    /// Where it begins.
    pub start: Start,
    /// At most so many publications; 0 reads the top alone.
    pub limit: u32,
    /// Older publications are treated as trimmed.
    pub age: Duration,
}

/// One page of history.
#[derive(Clone, Debug, PartialEq)]
pub struct HistoryPage {
    /// The newest position at the moment of the read (offset 0 and [`Position::START_TAG`] when
    /// nothing was ever published). Reading creates the channel's epoch where there is none.
    pub top: Position,
    /// For [`Start::After`]: the tag that history knows for that offset, if it still can tell
    /// (from the entry itself, its successor, or the top).
    pub tag_at_start: Option<Tag>,
    /// Oldest first, offsets without holes. With [`Start::After`] the first has the next offset unless the
    /// publications between were trimmed.
    pub publications: Vec<Publication>,
}

/// What a node hears.
#[expect(
    clippy::large_enum_variant,
    reason = "nearly every event is a publication; boxing it would cost an allocation each"
)]
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A publication on a channel that the node hears.
    Publication(Publication),
    /// A channel that the node hears began a new epoch: compare with its top now.
    Renewed(ChannelName),
    /// A message from a node (or a backend) to this node.
    Told(Bytes),
    /// Deliveries may be missing from now on.
    Interrupted,
    /// All interest stands again: audit every channel now.
    Restored,
}

/// A node's ear: bounded; when the node does not drain it, the broker stops reading (and audits later).
pub type Events = mpsc::Receiver<Event>;

/// Whether the broker can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// Never reached yet.
    Starting,
    /// Commands and deliveries work.
    Up,
    /// Not now, and why.
    Down(String),
}

/// Whom a node-to-node message is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// One node.
    Node(NodeId),
    /// Every node, the sender too.
    All,
}

/// Ids that begin so stand for a user who polls on a node: it makes them online, and is no connection (R31).
pub const POLLER_PREFIX: &str = "poll:";

/// A connection as the registry keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionRecord {
    /// The connection; its id begins with its node's.
    pub id: ConnectionId,
    /// Its user.
    pub user: UserId,
}

/// Whether a connection may live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It is registered.
    Admitted,
    /// The user has `connections` already on live nodes (R41).
    TooMany {
        /// How many.
        connections: u64,
    },
}

/// Whether a connection may live, and whether its user is known to be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Whether it is registered.
    pub admission: Admission,
    /// The user is known to be there; otherwise [`crate::PresenceStore::user_seen`] is due.
    pub seen: bool,
}

/// A client's message for the `inbound` stream ([`crate::InboundMessage`] once it is there).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InboundEntry {
    /// Message type.
    pub kind: String,
    /// Fields as JSON text: `{user_id, connection_id, channel, payload, …}`.
    pub json: String,
}

/// Result of counting against a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateCount {
    /// Calls in the present window, this one included.
    pub count: u64,
    /// When the window ends.
    pub reset_in: Duration,
}

/// See the module. Implementations are cheap handles.
#[async_trait]
pub trait Broker:
    crate::PresenceStore
    + PollStore
    + crate::ApplicationStore
    + crate::RevocationStore
    + Send
    + Sync
    + 'static
{
    /// Publishes one message. Two calls one after the other keep their order.
    async fn publish(&self, request: Publish) -> Result<Receipt, BrokerError>;

    /// Publishes many, pipelined; results in order of the requests, order kept a channel.
    async fn publish_batch(&self, requests: Vec<Publish>) -> Vec<Result<Receipt, BrokerError>>;

    /// Begins to hear channels; what is published after this returned is delivered. Idempotent. The
    /// broker keeps the wish through reconnects until `unsubscribe`.
    async fn subscribe(&self, channels: &[ChannelName]) -> Result<(), BrokerError>;

    /// Hears channels no more. Idempotent.
    async fn unsubscribe(&self, channels: &[ChannelName]) -> Result<(), BrokerError>;

    /// Newest positions, in the order asked; creates epochs where there are none.
    async fn tops(&self, channels: &[ChannelName]) -> Result<Vec<Position>, BrokerError>;

    /// Reads history.
    async fn history(
        &self,
        channel: &ChannelName,
        query: HistoryQuery,
    ) -> Result<HistoryPage, BrokerError>;

    /// Compares positions that were acknowledged or heard with what history holds. Where it has lost or replaced
    /// one, the channel begins a new epoch (its publications stay, under their offsets): no position of the old one is
    /// continued by anybody, and who hears the channel hears [`Event::Renewed`]. `true` for each position that was lost.
    /// What was trimmed, cleared or belongs to another epoch already is not: those who had it find out by themselves.
    ///
    /// Positions must come from this product's own words, never from a client.
    async fn fence(&self, known: &[(ChannelName, Position)]) -> Result<Vec<bool>, BrokerError>;

    /// Forgets a channel's history and begins a new epoch (R17); the new top. Who hears it hears [`Event::Renewed`].
    async fn clear_history(&self, channel: &ChannelName) -> Result<Position, BrokerError>;

    /// Registers a connection, unless the user has `limit` connections on live nodes (0: no limit). What begins
    /// with [`POLLER_PREFIX`] counts for nobody's limit.
    async fn register(
        &self,
        record: &ConnectionRecord,
        limit: u64,
    ) -> Result<Admission, BrokerError>;

    /// As [`Broker::register`], and says where that is the same step that the connection's user is there
    /// ([`crate::PresenceStore::user_seen`]); [`Arrival::seen`] tells whether it did.
    async fn arrive(&self, record: &ConnectionRecord, limit: u64) -> Result<Arrival, BrokerError> {
        Ok(Arrival { admission: self.register(record, limit).await?, seen: false })
    }

    /// A connection goes: [`crate::PresenceStore::user_departed`], then [`Broker::deregister`]. After a failure the
    /// registration is taken back later, and the departure must be said again. Idempotent.
    async fn depart(&self, record: &ConnectionRecord, delay: Duration) -> Result<(), BrokerError> {
        let departed = self.user_departed(&record.user, delay).await;
        departed.and(self.deregister(record).await)
    }

    /// Keeps a connection that was admitted while the broker was away (R42): the next beat that succeeds
    /// registers it, whatever its user's limit. Until then [`Broker::deregister`] takes it back.
    fn register_later(&self, record: &ConnectionRecord);

    /// Takes a registration back. Idempotent.
    async fn deregister(&self, record: &ConnectionRecord) -> Result<(), BrokerError>;

    /// The user's connections on live nodes.
    async fn connections_of(&self, user: &UserId) -> Result<Vec<ConnectionId>, BrokerError>;

    /// Refreshes this node's lease and says which nodes are alive (this one included, by id). Sweeps what dead
    /// nodes left: each dead node is swept by exactly one surviving node.
    async fn beat(&self, record: &NodeRecord) -> Result<Vec<NodeRecord>, BrokerError>;

    /// Gives up this node's lease and everything registered under it.
    async fn retire(&self) -> Result<(), BrokerError>;

    /// Sends bytes to a node or to all; the number of nodes that were listening.
    async fn tell(&self, target: &Target, message: Bytes) -> Result<u64, BrokerError>;

    /// Appends to the `inbound` stream (trimmed to about 100,000 entries); the entry's id.
    async fn append_inbound(&self, entry: &InboundEntry) -> Result<String, BrokerError>;

    /// Counts one call under `key` in a fixed window that begins with the first call.
    async fn count(&self, key: &str, window: Duration) -> Result<RateCount, BrokerError>;

    /// Grows whenever commands may have found another server, or another life of it. What was acknowledged before
    /// is worth a [`Broker::fence`] then.
    fn generation(&self) -> u64;

    /// This node.
    fn node(&self) -> &NodeId;

    /// The broker's health, as it changes.
    fn health(&self) -> watch::Receiver<Health>;
}
