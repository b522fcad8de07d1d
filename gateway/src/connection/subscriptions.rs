//! A connection's own subscriptions by the channel that the hub knows: a sorted list, because most
//! connections have two and a hash map's smallest table costs more than all of them.

use std::sync::Arc;

use carillon_protocol::{ChannelName, Filter};

use crate::hub::{Labels, SubscriptionKey};
use crate::interests::Interests;
use crate::relay::ChannelTraits;

/// Up to so many entries the list grows one by one.
const EXACT_MAX: usize = 4;

/// One of a connection's own subscriptions.
#[derive(Clone, Debug)]
pub struct Own {
    /// Its place in the hub.
    pub key: SubscriptionKey,
    /// Labels heard.
    pub labels: Labels,
    /// Payload filter.
    pub filter: Option<Arc<Filter>>,
    /// Namespace traits.
    pub traits: ChannelTraits,
    /// Made by the server (R16): not counted against the client's limit.
    pub automatic: bool,
    /// The client itself subscribed (or the server for every user).
    pub asked: bool,
    /// The user's persistent subscriptions on this channel.
    pub interests: Option<Interests>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Subscriptions {
    sorted: Vec<(ChannelName, Own)>,
}

impl Subscriptions {
    fn place(&self, channel: &ChannelName) -> Result<usize, usize> {
        self.sorted.binary_search_by(|(name, _)| name.cmp(channel))
    }

    /// The subscription on a channel.
    #[must_use]
    pub fn get(&self, channel: &ChannelName) -> Option<&Own> {
        self.place(channel).ok().map(|at| &self.sorted[at].1)
    }

    /// The same, to change it.
    pub fn get_mut(&mut self, channel: &ChannelName) -> Option<&mut Own> {
        self.place(channel).ok().map(|at| &mut self.sorted[at].1)
    }

    /// Whether there is one on a channel.
    #[must_use]
    pub fn contains_key(&self, channel: &ChannelName) -> bool {
        self.place(channel).is_ok()
    }

    /// Adds or replaces one.
    pub fn insert(&mut self, channel: ChannelName, own: Own) {
        match self.place(&channel) {
            Ok(at) => self.sorted[at].1 = own,
            Err(at) => {
                if self.sorted.len() < EXACT_MAX {
                    self.sorted.reserve_exact(1);
                }
                self.sorted.insert(at, (channel, own));
            }
        }
    }

    /// Takes one out.
    pub fn remove(&mut self, channel: &ChannelName) -> Option<Own> {
        self.place(channel).ok().map(|at| self.sorted.remove(at).1)
    }

    /// All of them, in order of name.
    pub fn iter(&self) -> impl Iterator<Item = (&ChannelName, &Own)> {
        self.sorted.iter().map(|(channel, own)| (channel, own))
    }

    /// Their channels, in order of name.
    pub fn keys(&self) -> impl Iterator<Item = &ChannelName> {
        self.iter().map(|(channel, _)| channel)
    }

    /// Themselves, in order of name.
    pub fn values(&self) -> impl Iterator<Item = &Own> {
        self.iter().map(|(_, own)| own)
    }
}
