//! An entry of a presence list as Redis has it, and what is known of a user from what Redis has.
//!
//! It must not know: keys, scripts, who asks.

use carillon_protocol::UserId;

use crate::{Member, POLLER_PREFIX, UserPresence, UserStatus, presence};

/// `ms json`; what a backend holds has a `p` in front.
pub(super) fn entry(member: &Member) -> String {
    let json =
        serde_json::json!({"id": member.id, "name": member.name, "metadata": member.metadata});
    format!("{} {json}", member.last_seen_ms.max(0))
}

/// Reads an entry; one that a connection holds was seen now.
pub(super) fn member(entry: &str) -> Option<Member> {
    let (at, json) = entry.split_once(' ')?;
    let mut member: Member = serde_json::from_str(json).ok()?;
    member.last_seen_ms = match at.strip_prefix('p') {
        Some(at) => at.parse().ok()?,
        None => presence::unix_ms(),
    };
    Some(member)
}

/// Members of what a list holds, in order of id.
pub(super) fn sorted(entries: &[(String, String)]) -> Vec<Member> {
    let mut members: Vec<Member> = entries.iter().filter_map(|(_, entry)| member(entry)).collect();
    members.sort_by(|one, other| one.id.cmp(&other.id));
    members
}

/// What is known of a user, from the announced status and the live connections.
pub(super) fn known<'a>(
    user: &UserId,
    status: Option<UserStatus>,
    seen_ms: Option<i64>,
    here: impl Iterator<Item = &'a str>,
) -> UserPresence {
    let (pollers, others): (Vec<&str>, Vec<&str>) =
        here.partition(|id| id.starts_with(POLLER_PREFIX));
    let connections = others.len() as u64;
    let is_here = connections > 0 || !pollers.is_empty();
    let unannounced = if is_here { UserStatus::Online } else { UserStatus::Offline };
    let last_seen_ms = if is_here { Some(presence::unix_ms()) } else { seen_ms };
    UserPresence {
        user: user.clone(),
        status: status.unwrap_or(unannounced),
        last_seen_ms,
        connections,
    }
}
