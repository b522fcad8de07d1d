//! Performing what other nodes ask, on this node's own connections. Never waits.

use std::sync::Arc;

use bytes::Bytes;
use carillon_broker_client::RevocationVersions;
use carillon_protocol::{CloseCode, ConnectionId, Envelope, Payload, UserId};
use serde_json::Value;

use super::{Announcement, Audience, ChannelCount, ConnectionFilter, ConnectionView, Question};
use crate::connection::{Connection, Transport};
use crate::dispatch::{Dress, encode};
use crate::node::Node;
use crate::transport::poll::{Heard, Stretch};

pub(super) fn perform(node: &Node, question: Question) -> Value {
    match question {
        Question::Announce(announcement, audience) => {
            announce(node, &announcement, &audience).into()
        }
        Question::Disconnect { connection, user } => {
            disconnect(node, connection.as_ref(), user.as_ref()).into()
        }
        Question::Banish(user) => {
            node.banished.banish(&user);
            Value::Null
        }
        Question::TakeLinger { user, id } => {
            let stretches = node.pollers.take_linger(&user, id);
            let text = |stretch: &Stretch| stretch.iter().map(Heard::to_text).collect::<Vec<_>>();
            value(&stretches.iter().map(text).collect::<Vec<_>>())
        }
        Question::PollerLeaves { user, resource } => {
            node.pollers.leave(node, &user, resource);
            Value::Null
        }
        Question::Channels { prefix, after, limit } => {
            let counts: Vec<ChannelCount> = node
                .hub
                .channels(&prefix)
                .into_iter()
                .filter(|(name, _)| after.as_deref().is_none_or(|after| name.as_str() > after))
                .take(limit)
                .map(|(name, subscribers)| ChannelCount {
                    channel: name.as_str().to_owned(),
                    subscribers,
                })
                .collect();
            value(&counts)
        }
        Question::Listeners(channel) => (node.hub.listeners(&channel).len() as u64).into(),
        Question::Connections(filter) => value(&connections(node, &filter)),
        Question::SubscriptionsChanging(user) => {
            node.interest_news.expect(user);
            Value::Null
        }
        Question::SubscriptionsChanged(user) => {
            crate::interests::refresh(node, &user);
            Value::Null
        }
        Question::Revoked(revocation, before, after) => {
            let versions = RevocationVersions { before, after };
            crate::revocations::heard(node, &revocation, versions).into()
        }
        Question::OutboxFilled => {
            node.courier.kick();
            Value::Null
        }
        Question::Connection(id) => {
            value(&node.hub.find(id.as_str()).map(|connection| view(node, &connection)))
        }
    }
}

fn value(answer: &impl serde::Serialize) -> Value {
    serde_json::to_value(answer).unwrap_or(Value::Null)
}

fn announce(node: &Node, announcement: &Announcement, audience: &Audience) -> u64 {
    let listeners: Vec<Arc<Connection>> = match &audience.connections {
        Some(ids) => ids.iter().filter_map(|id| node.hub.find(id.as_str())).collect(),
        None => node.hub.connections(),
    };
    let payload = Payload::from_json(announcement.payload.clone());
    let envelope = Envelope {
        id: &announcement.id,
        kind: &announcement.kind,
        payload: &payload,
        timestamp_ms: announcement.timestamp_ms,
        meta: announcement.meta.as_deref(),
        ..Envelope::EMPTY
    };
    // One encoding a dress, shared by all its listeners.
    let mut encoded: Vec<(Dress, Bytes)> = Vec::new();
    let mut reached = 0;
    for connection in listeners {
        let excluded = audience.exclude_connections.contains(&connection.id)
            || connection.user.as_ref().is_some_and(|user| audience.exclude_users.contains(user))
            || (audience.sse_only && connection.transport != Transport::Sse)
            || connection.outbox.is_closing();
        if excluded {
            continue;
        }
        let known = encoded
            .iter()
            .find(|(dress, _)| *dress == connection.dress)
            .map(|(_, bytes)| bytes.clone());
        let bytes = known.unwrap_or_else(|| {
            let bytes = encode(&envelope, connection.dress);
            encoded.push((connection.dress, bytes.clone()));
            bytes
        });
        if connection.outbox.push_message(&bytes, connection.dress) {
            reached += 1;
        } else {
            connection.outbox.close(CloseCode::SlowConsumer);
        }
        connection.outbox.flush();
    }
    reached
}

fn disconnect(node: &Node, connection: Option<&ConnectionId>, user: Option<&UserId>) -> u64 {
    let found: Vec<Arc<Connection>> = match (connection, user) {
        (Some(id), _) => node.hub.find(id.as_str()).into_iter().collect(),
        (None, Some(user)) => {
            node.banished.banish(user);
            node.hub
                .connections()
                .into_iter()
                .filter(|connection| connection.user.as_ref() == Some(user))
                .collect()
        }
        (None, None) => Vec::new(),
    };
    for connection in &found {
        if connection.transport == Transport::Sse
            && let Some(user) = &connection.user
        {
            node.banished.banish(user);
        }
        connection.outbox.close(CloseCode::Disconnected);
    }
    found.len() as u64
}

fn connections(node: &Node, filter: &ConnectionFilter) -> Vec<ConnectionView> {
    if filter.node.as_deref().is_some_and(|name| name != node.name) {
        return Vec::new();
    }
    let mut found = match &filter.channel {
        Some(channel) => node.hub.listeners(channel),
        None => node.hub.connections(),
    };
    found.retain(|connection| {
        filter
            .user
            .as_deref()
            .is_none_or(|user| connection.user.as_ref().is_some_and(|id| id.as_str() == user))
            && filter
                .transport
                .as_deref()
                .is_none_or(|transport| connection.transport.name() == transport)
            && filter
                .profile
                .as_deref()
                .is_none_or(|profile| connection.dress.profile.name() == profile)
            && filter.after.as_deref().is_none_or(|after| connection.id.as_str() > after)
    });
    found.sort_by(|one, other| one.id.cmp(&other.id));
    found.truncate(filter.limit);
    found.iter().map(|connection| view(node, connection)).collect()
}

fn view(node: &Node, connection: &Connection) -> ConnectionView {
    ConnectionView {
        id: connection.id.as_str().to_owned(),
        user_id: connection.user.as_ref().map(|user| user.as_str().to_owned()),
        transport: connection.transport.name().to_owned(),
        profile: connection.dress.profile.name().to_owned(),
        node: node.name.clone(),
        connected_at: carillon_protocol::time::rfc3339(connection.connected_at_ms),
        remote: connection.remote.map(|remote| remote.to_string()),
        channels: node.hub.channels_of(&connection.id),
    }
}
