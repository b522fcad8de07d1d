//! The connection behind a chain of polls on this node: it sends a poll's messages, and while the poll is
//! held it listens. What has a history only wakes it; what has none is taken from the outbox. It lives on for a while
//! (`seat`, `pollers`), so that what is said between two polls is heard, and the next one need not ask what this one knew.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use carillon_protocol::envelope::Refusal;
use carillon_protocol::{ChannelName, Cursor, Profile, UserId};
use futures_util::future::join_all;
use parking_lot::Mutex;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use tokio::time::Instant;

use super::gather::{Event, Listened};
use super::merge::{Heard, Stretch, merged, passed};
use super::page::{Page, Step};
use crate::auth::Claims;
use crate::connection::driver::Driver;
use crate::connection::outbox::{Outbox, Wire};
use crate::connection::{Connection, Transport};
use crate::dispatch::{Dress, Medium, NOTIFICATIONS};
use crate::hub::{Labels, Subscription, SubscriptionKey};
use crate::node::Node;
use crate::relay::ChannelTraits;

/// See the module. Everything it took is given back when it is dropped, also in the middle of a wait.
pub(crate) struct Held {
    pub(super) driver: Driver,
    node: Arc<Node>,
    joined: Mutex<Vec<ChannelName>>,
    keys: Vec<(ChannelName, SubscriptionKey)>,
    /// Where a message of this poll joined: who joins gets the list, the others hear of it.
    pub(super) own_joins: Vec<ChannelName>,
    /// What was heard on channels without history and is not known to be answered.
    heard: Stretch,
}

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Woken {
    /// Something arrived.
    Arrived,
    /// Time is up.
    Late,
    /// The node drains, or somebody closed the connection.
    Ended,
}

/// What is looked at in a document from the outbox.
#[derive(Deserialize)]
struct Head<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    channel: Option<Cow<'a, str>>,
    offset: Option<IgnoredAny>,
}

impl Held {
    /// A connection of the token's user.
    ///
    /// # Errors
    /// `UNAVAILABLE` when the node is full or draining.
    pub(super) fn open(
        node: &Arc<Node>,
        claims: &Claims,
        profile: Profile,
        remote: Option<IpAddr>,
    ) -> Result<Self, Refusal> {
        let admitted = node.admit_poll()?;
        let outbox = Outbox::new(Wire::Pulled, node.config.load().limits.queue_bytes_max());
        let dress = Dress { medium: Medium::Poll, profile, compressed: false };
        let connection = Connection::new(
            admitted.id.clone(),
            Some(claims.user.clone()),
            Transport::Poll,
            dress,
            remote,
            outbox,
        );
        let driver =
            Driver::brief(Arc::clone(node), connection, Some(claims.clone()), admitted, None);
        Ok(Self {
            driver,
            node: Arc::clone(node),
            joined: Mutex::default(),
            keys: Vec::new(),
            own_joins: Vec::new(),
            heard: Vec::new(),
        })
    }

    /// The connection.
    pub(super) fn connection(&self) -> &Arc<Connection> {
        &self.driver.connection
    }

    /// Begins to hear the channels. What is published after this returned wakes the poll.
    ///
    /// # Errors
    /// `UNAVAILABLE`.
    pub(super) async fn listen(&mut self, channels: &[Listened]) -> Result<(), Refusal> {
        if !self.keys.is_empty() {
            return Ok(());
        }
        let (node, noted) = (&self.node, &self.joined);
        let joins = channels.iter().map(|listened| async move {
            let traits = ChannelTraits { history_age: listened.age };
            // Noted in the same breath as the join counts, so that dropping this gives back exactly that.
            noted.lock().push(listened.channel.clone());
            node.relay.join(&listened.channel, traits).await
        });
        for joined in join_all(joins).await {
            joined.map_err(|error| self.node.broker_refusal(&error))?;
        }
        for listened in channels {
            let subscription = Subscription {
                connection: Arc::clone(self.connection()),
                behind: None,
                labels: Labels::ALL,
                filter: listened.filter.clone(),
                conflate: listened.conflate,
                asked: listened.asked,
                wakes: listened.age.is_some(),
                interests: listened.interests.clone(),
            };
            let position = || self.node.relay.position(&listened.channel);
            let key = self.node.hub.subscribe(&listened.channel, subscription, position, |_| {});
            self.keys.push((listened.channel.clone(), key));
        }
        Ok(())
    }

    /// Waits until something arrives. Cancel safe.
    pub(super) async fn wait(&mut self, until: Instant) -> Woken {
        let connection = Arc::clone(self.connection());
        let outbox = &connection.outbox;
        loop {
            if outbox.is_closing() {
                return Woken::Ended;
            }
            let pulled = std::future::poll_fn(|cx| outbox.poll_pulled(cx));
            tokio::select! {
                biased;
                documents = pulled => match documents {
                    Some(documents) => {
                        self.take(&documents);
                        return Woken::Arrived;
                    }
                    None => return Woken::Ended,
                },
                () = outbox.woken() => {
                    // Live delivery to a listener that fell behind stops: answer with what there is.
                    if outbox.signals().behind {
                        return Woken::Ended;
                    }
                }
                () = tokio::time::sleep_until(until) => return Woken::Late,
                () = self.node.stop.cancelled() => return Woken::Ended,
            }
        }
    }

    /// Nothing more will be heard.
    pub(super) fn is_deaf(&self) -> bool {
        self.keys.is_empty() || self.connection().outbox.is_closing()
    }

    /// Whether something came since the last look.
    pub(super) fn was_nudged(&self) -> bool {
        self.connection().outbox.was_nudged()
    }

    /// Only what comes from now on is worth waking for.
    pub(super) fn looks(&self) {
        self.connection().outbox.looks();
    }

    /// Takes in what arrived so far.
    pub(super) fn absorb(&mut self) {
        for documents in self.connection().outbox.take() {
            self.take(&documents);
        }
    }

    /// Whether events of channels without history wait; what is not later than the cursor goes.
    pub(super) fn is_waiting(&mut self, cursor: &Cursor) -> bool {
        self.absorb();
        self.heard.retain(|heard| heard.follows(cursor));
        !self.heard.is_empty()
    }

    /// Joins what another node or a former poll heard to what this one did; each once.
    pub(super) fn hear_first(&mut self, mut former: Vec<Stretch>, channels: &[Listened]) {
        self.absorb();
        let wanted = |heard: &Heard| {
            heard.place().is_none_or(|(name, _)| {
                name.as_str() == NOTIFICATIONS
                    || channels.iter().any(|listened| listened.channel == *name)
            })
        };
        former.iter_mut().for_each(|stretch| stretch.retain(wanted));
        former.push(std::mem::take(&mut self.heard));
        self.heard = merged(former);
    }

    /// Another poll goes on with it.
    pub(super) fn go_on(&mut self) {
        self.absorb();
        self.own_joins.clear();
    }

    /// Everything that was heard on channels without history and not answered.
    pub(crate) fn into_heard(mut self) -> Stretch {
        self.absorb();
        std::mem::take(&mut self.heard)
    }

    /// Events of channels without history, at most so many, each later than those before it: they move the cursor. They stay
    /// until they are [`answered`](Self::answered); how many of what waits they stand for, and whether that is all.
    pub(super) fn heard(
        &mut self,
        cursor: &mut Cursor,
        events_max: usize,
    ) -> (Vec<Event>, usize, bool) {
        self.absorb();
        let (mut events, mut looked_at) = (Vec::new(), 0);
        for heard in &self.heard {
            if events.len() == events_max {
                break;
            }
            looked_at += 1;
            if !heard.follows(cursor) {
                continue;
            }
            let document = heard.document();
            let step = match heard.place() {
                Some((channel, stamp)) => {
                    cursor.set(channel, passed(stamp));
                    Step::Passing(channel.clone(), stamp, document.to_owned())
                }
                None => Step::Heard(document.to_owned()),
            };
            events
                .push(Event { document: Bytes::copy_from_slice(document.get().as_bytes()), step });
        }
        (events, looked_at, looked_at == self.heard.len())
    }

    /// The first so many of what waits were answered.
    pub(super) fn answered(&mut self, looked_at: usize) {
        self.heard.drain(..looked_at);
    }

    /// What a page holds was answered although nobody said so; the rest is known by its cursor.
    pub(super) fn was_answered(&mut self, page: &Page) {
        self.heard.retain(|heard| {
            let same = |step: &Step| matches!(step, Step::Heard(document) if document.get() == heard.document().get());
            heard.place().is_some() || !page.steps.iter().any(same)
        });
    }

    fn is_own_join(&self, head: &Head<'_>, document: &RawValue) -> bool {
        #[derive(Deserialize)]
        struct Joined {
            payload: Member,
        }
        #[derive(Deserialize)]
        struct Member {
            id: UserId,
        }
        let here = head.channel.as_deref();
        head.kind == "presence:join"
            && self.own_joins.iter().any(|resource| Some(resource.as_str()) == here)
            && serde_json::from_str::<Joined>(document.get())
                .is_ok_and(|joined| Some(&joined.payload.id) == self.connection().user.as_ref())
    }

    fn take(&mut self, documents: &[u8]) {
        let bytes_max = self.node.config.load().limits.queue_bytes_max();
        let length = |heard: &Heard| heard.document().get().len();
        let mut bytes: usize = self.heard.iter().map(length).sum();
        for heard in Heard::read(documents) {
            let Ok(head) = serde_json::from_str::<Head<'_>>(heard.document().get()) else {
                continue;
            };
            // With a position it is in history and will be read there, whole and in order.
            let passes = head.offset.is_none() && head.kind != "resync";
            if passes && bytes < bytes_max && !self.is_own_join(&head, heard.document()) {
                bytes += length(&heard);
                self.heard.push(heard);
            }
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        for (channel, key) in self.keys.drain(..) {
            self.node.hub.unsubscribe(&self.driver.connection.id, &channel, key);
        }
        for channel in self.joined.lock().drain(..) {
            self.node.relay.leave(&channel);
        }
        self.driver.end_brief();
    }
}
