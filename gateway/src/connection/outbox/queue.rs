//! The items that wait for one socket. Knows nothing of bounds, sockets or what the bytes mean.

use std::collections::VecDeque;

use bytes::Bytes;

/// Mostly empty, and mostly of one when it is not: the first item is in place, the others own memory only
/// while there are any.
#[derive(Debug, Default)]
pub(super) struct Queue {
    first: Option<Item>,
    #[expect(clippy::box_collection, reason = "one word where there is none")]
    others: Option<Box<VecDeque<Item>>>,
}

/// Bytes that leave whole.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) bytes: Bytes,
    /// Hash of channel and conflation key; 0 for messages that are never replaced.
    pub(super) conflate: u64,
}

impl Queue {
    pub(super) fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    pub(super) fn push_back(&mut self, item: Item) {
        match (&self.first, &mut self.others) {
            (None, _) => self.first = Some(item),
            (Some(_), Some(others)) => others.push_back(item),
            (Some(_), others @ None) => *others = Some(Box::new(VecDeque::from([item]))),
        }
    }

    pub(super) fn front(&self) -> Option<&Item> {
        self.first.as_ref()
    }

    /// The front, when nothing stands behind it.
    pub(super) fn only(&self) -> Option<&Item> {
        self.first.as_ref().filter(|_| self.others.as_ref().is_none_or(|others| others.is_empty()))
    }

    pub(super) fn pop_front(&mut self) {
        self.first = self.others.as_mut().and_then(|others| others.pop_front());
        if self.first.is_none() {
            self.others = None;
        }
    }

    /// Oldest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Item> {
        self.first.iter().chain(self.others.iter().flat_map(|others| others.iter()))
    }

    /// Everything, oldest first.
    pub(super) fn take(&mut self) -> impl Iterator<Item = Item> + use<> {
        let Self { first, others } = std::mem::take(self);
        first.into_iter().chain(others.into_iter().flat_map(|others| *others))
    }

    /// Keeps what `keep` says, asked oldest first.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(&Item) -> bool) {
        let keeps_first = self.first.as_ref().is_none_or(&mut keep);
        if let Some(others) = &mut self.others {
            others.retain(keep);
        }
        if !keeps_first {
            self.pop_front();
        }
    }
}
