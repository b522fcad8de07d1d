//! Who is present where, and how every user is: plain maps, and what follows from the time. Nothing is announced here.
//!
//! It must not know: nodes' shared state, publications, Redis.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use carillon_protocol::{ChannelName, ConnectionId, UserId};
use tokio::time::Instant;

use crate::presence::{self, LAST_SEEN_LIFETIME, STATUS_GAP};
use crate::{Member, NodeId, UserStatus};

/// Between two looks for users whom nobody has seen for long.
const FORGET_EVERY: Duration = Duration::from_secs(60);

/// Who holds a user at a resource.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Holder {
    Connection(ConnectionId, NodeId),
    /// A backend, until then.
    Backend(Option<Instant>),
}

/// Everything that presence keeps.
#[derive(Default)]
pub(in crate::memory) struct Presence {
    pub(super) resources: HashMap<ChannelName, BTreeMap<UserId, Entry>>,
    /// Boxed: as many as there are users, in a table that is half empty.
    pub(super) users: HashMap<UserId, Box<Status>>,
    looks: HashMap<UserId, Instant>,
    pub(super) leases: HashMap<NodeId, Instant>,
    pub(super) swept: HashSet<NodeId>,
    /// When backends' holds end, soonest first.
    ends: BTreeSet<(Instant, ChannelName, UserId)>,
    forgot_at: Option<Instant>,
}

pub(super) struct Entry {
    member: Member,
    holders: Vec<Holder>,
}

#[derive(Default)]
pub(super) struct Status {
    pub(super) announced: Option<UserStatus>,
    pub(super) chosen: Option<UserStatus>,
    announced_at: Option<Instant>,
    pub(super) last_seen_ms: i64,
    pub(super) seen: Option<Instant>,
    /// Not offline before.
    pub(super) grace: Option<Instant>,
}

impl Entry {
    fn shown(&self) -> Member {
        let mut member = self.member.clone();
        if self.holders.iter().any(|holder| matches!(holder, Holder::Connection(..))) {
            member.last_seen_ms = presence::unix_ms();
        }
        member
    }
}

impl Presence {
    /// `true` if the member was not there.
    pub(super) fn hold(&mut self, resource: &ChannelName, member: &Member, holder: Holder) -> bool {
        let entries = self.resources.entry(resource.clone()).or_default();
        let first = !entries.contains_key(&member.id);
        let entry = entries
            .entry(member.id.clone())
            .or_insert_with(|| Entry { member: member.clone(), holders: Vec::new() });
        entry.member = member.clone();
        let before = entry.holders.iter().position(|held| held.is_same(&holder));
        let before = before.map(|at| entry.holders.remove(at));
        if let Some(end) = before.as_ref().and_then(Holder::end) {
            self.ends.remove(&(end, resource.clone(), member.id.clone()));
        }
        if let Some(end) = holder.end() {
            self.ends.insert((end, resource.clone(), member.id.clone()));
        }
        entry.holders.push(holder);
        first
    }

    /// The member that is gone now, if they are.
    pub(super) fn release(
        &mut self,
        resource: &ChannelName,
        user: &UserId,
        releases: impl Fn(&Holder) -> bool,
    ) -> Option<Member> {
        let entries = self.resources.get_mut(resource)?;
        let entry = entries.get_mut(user)?;
        for end in entry
            .holders
            .extract_if(.., |holder| releases(holder))
            .filter_map(|holder| holder.end())
        {
            self.ends.remove(&(end, resource.clone(), user.clone()));
        }
        if !entry.holders.is_empty() {
            return None;
        }
        let gone = entries.remove(user).map(|entry| entry.member);
        if entries.is_empty() {
            self.resources.remove(resource);
        }
        gone
    }

    pub(super) fn release_everywhere(
        &mut self,
        releases: impl Fn(&Holder) -> bool,
    ) -> Vec<(ChannelName, Member)> {
        let held = |entry: &Entry| entry.holders.iter().any(&releases);
        let found: Vec<(ChannelName, UserId)> = self
            .resources
            .iter()
            .flat_map(|(resource, entries)| {
                entries
                    .iter()
                    .filter(|(_, entry)| held(entry))
                    .map(|(user, _)| (resource.clone(), user.clone()))
            })
            .collect();
        found
            .into_iter()
            .filter_map(|(resource, user)| {
                Some((resource.clone(), self.release(&resource, &user, &releases)?))
            })
            .collect()
    }

    /// Ends what backends held until now; who is gone with it.
    pub(super) fn release_over(&mut self, now: Instant) -> Vec<(ChannelName, Member)> {
        let over =
            |holder: &Holder| matches!(holder, Holder::Backend(Some(until)) if *until <= now);
        let mut gone = Vec::new();
        while self.ends.first().is_some_and(|(until, ..)| *until <= now)
            && let Some((_, resource, user)) = self.ends.pop_first()
        {
            let member = self.release(&resource, &user, over);
            gone.extend(member.map(|member| (resource, member)));
        }
        gone
    }

    pub(super) fn everyone(&self, resource: &ChannelName) -> Vec<Member> {
        self.resources
            .get(resource)
            .map(|entries| entries.values().map(Entry::shown).collect())
            .unwrap_or_default()
    }

    pub(super) fn look_at(&mut self, user: &UserId, due: Instant) {
        let look = self.looks.entry(user.clone()).or_insert(due);
        *look = due.min(*look);
    }

    /// What must be announced of a user, if anything; agrees to look again where that is due.
    pub(super) fn settle(
        &mut self,
        user: &UserId,
        connected: bool,
        now: Instant,
    ) -> Option<(UserStatus, i64)> {
        let status = self.users.get_mut(user)?;
        if connected {
            // The farewell was another connection's.
            status.grace = status.grace.filter(|grace| *grace > now);
        }
        let grace = status.grace.filter(|grace| *grace > now && !connected);
        let here = connected || grace.is_some();
        let wanted =
            if here { status.chosen.unwrap_or(UserStatus::Online) } else { UserStatus::Offline };
        let unknown = status.announced.is_none() && wanted == UserStatus::Offline;
        if Some(wanted) == status.announced || unknown {
            if let Some(grace) = grace {
                self.look_at(user, grace);
            }
            return None;
        }
        if let Some(again) =
            status.announced_at.map(|at| at + STATUS_GAP).filter(|again| *again > now)
        {
            self.look_at(user, again);
            return None;
        }
        let unix_ms = presence::unix_ms();
        let mut last_seen_ms = unix_ms;
        if wanted == UserStatus::Offline {
            status.chosen = None;
            match status.grace.take() {
                Some(_) => last_seen_ms = status.last_seen_ms,
                // Nobody said goodbye: the node died.
                None => status.last_seen_ms = unix_ms,
            }
        }
        (status.announced, status.announced_at) = (Some(wanted), Some(now));
        if let Some(grace) = grace {
            self.look_at(user, grace);
        }
        Some((wanted, last_seen_ms))
    }

    pub(super) fn due(&mut self, now: Instant) -> Vec<UserId> {
        let due: Vec<UserId> = self
            .looks
            .iter()
            .filter(|(_, due)| **due <= now)
            .map(|(user, _)| user.clone())
            .collect();
        for user in &due {
            self.looks.remove(user);
        }
        due
    }

    pub(super) fn forget_old(&mut self, now: Instant) {
        let forgot = self.forgot_at.get_or_insert(now);
        if now.saturating_duration_since(*forgot) < FORGET_EVERY {
            return;
        }
        *forgot = now;
        self.users.retain(|_, status| {
            status.announced != Some(UserStatus::Offline)
                || status
                    .seen
                    .is_none_or(|seen| now.saturating_duration_since(seen) < LAST_SEEN_LIFETIME)
        });
    }
}

impl Holder {
    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Connection(one, _), Self::Connection(other, _)) => one == other,
            (Self::Backend(_), Self::Backend(_)) => true,
            _ => false,
        }
    }

    /// When it ends by itself.
    fn end(&self) -> Option<Instant> {
        match self {
            Self::Connection(..) => None,
            Self::Backend(until) => *until,
        }
    }

    pub(super) fn is_of(&self, node: &NodeId) -> bool {
        matches!(self, Self::Connection(_, holder) if holder == node)
    }
}
