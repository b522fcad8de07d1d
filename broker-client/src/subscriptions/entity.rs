//! The subscription of the uno document and what it listens to. JSON exactly as the document shows.

use carillon_protocol::channel::escape_segment;
use carillon_protocol::{ChannelName, Filter, UserId};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::NewSubscription;
use crate::store::{Moment, SubscriptionId};

/// What kind of thing is subscribed to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SubscriptionType {
    /// One thing: `entity:{type}:{id}`.
    #[default]
    Resource,
    /// A topic: `topic:{topic}`.
    Topic,
    /// Channels by name, with a condition on payloads.
    Query,
}

/// Whether it acts.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SubscriptionStatus {
    /// It does.
    #[default]
    Active,
    /// Not now.
    Paused,
    /// Past `expires_at`, or ended by hand.
    Expired,
    /// No longer wanted.
    Cancelled,
}

impl SubscriptionStatus {
    /// The word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Paused => "paused",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
        }
    }

    /// The status of that name.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Active, Self::Paused, Self::Expired, Self::Cancelled]
            .into_iter()
            .find(|status| status.as_str() == word)
    }
}

/// What a query subscription asks.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct SubscriptionQuery {
    /// Channels, without wildcards.
    pub channels: Vec<ChannelName>,
    /// Filter document on payloads.
    #[serde(rename = "where", default, skip_serializing_if = "Option::is_none")]
    pub condition: Option<Value>,
}

/// A stored subscription. Serializes as the document's answers, which hold no `payload_filter`.
///
/// ```
/// use carillon_broker_client::{
///     Clock, NewSubscription, Subscription, SubscriptionId, SubscriptionStatus,
/// };
/// use carillon_protocol::UserId;
///
/// let now = Clock::system().now();
/// let new = NewSubscription::resource(UserId::new("user-456")?, "post", "post-789");
/// let mut subscription = Subscription::new(SubscriptionId::new("subscription-123")?, new, now);
/// assert!(subscription.add_label("important"));
///
/// let event = serde_json::json!({"resource_id": "post-789", "action": "update"});
/// assert!(subscription.is_active(now) && subscription.matches_event(&event, now));
/// subscription.update_status(SubscriptionStatus::Paused, now);
/// assert!(!subscription.is_active(now) && !subscription.matches_event(&event, now));
/// # Ok::<(), carillon_protocol::ids::InvalidId>(())
/// ```
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Subscription {
    /// Its id.
    pub id: SubscriptionId,
    /// Whose it is.
    pub user_id: UserId,
    /// What kind of thing it is for.
    #[serde(rename = "type")]
    pub kind: SubscriptionType,
    /// Whether it acted at the moment it was loaded.
    pub status: SubscriptionStatus,
    /// When it was stored.
    pub created_at: Moment,
    /// When it was changed last.
    pub updated_at: Moment,
    /// When it ends.
    pub expires_at: Option<Moment>,
    /// Which thing.
    pub resource_id: Option<String>,
    /// Kind of the thing.
    pub resource_type: Option<String>,
    /// Which topic.
    pub topic: Option<String>,
    /// Which channels.
    pub query: Option<SubscriptionQuery>,
    /// The user's own words for it, each once.
    pub labels: Vec<String>,
    /// Anything else.
    pub metadata: Map<String, Value>,
    /// Filter document on payloads.
    #[serde(skip)]
    pub payload_filter: Option<Value>,
}

impl Subscription {
    /// One that acts from now on. What is stored gets its id from the store.
    #[must_use]
    pub fn new(id: SubscriptionId, new: NewSubscription, now: Moment) -> Self {
        Self {
            id,
            user_id: new.user_id,
            kind: new.kind,
            status: SubscriptionStatus::Active,
            created_at: now,
            updated_at: now,
            expires_at: new.expires_at,
            resource_id: new.resource_id,
            resource_type: new.resource_type,
            topic: new.topic,
            query: new.query,
            labels: new.labels,
            metadata: new.metadata,
            payload_filter: new.payload_filter,
        }
    }

    /// Changes the status.
    pub fn update_status(&mut self, status: SubscriptionStatus, now: Moment) {
        self.status = status;
        self.updated_at = now;
    }

    /// Adds a label; `false` when it was there.
    pub fn add_label(&mut self, label: impl Into<String>) -> bool {
        let label = label.into();
        let is_new = !self.labels.contains(&label);
        if is_new {
            self.labels.push(label);
        }
        is_new
    }

    /// Takes a label away; `false` when it was not there.
    pub fn remove_label(&mut self, label: &str) -> bool {
        let before = self.labels.len();
        self.labels.retain(|own| own != label);
        self.labels.len() < before
    }

    /// Whether it is past its expiry.
    #[must_use]
    pub fn is_expired(&self, now: Moment) -> bool {
        self.status == SubscriptionStatus::Expired
            || self.expires_at.is_some_and(|expires| expires <= now)
    }

    /// Whether it acts.
    #[must_use]
    pub fn is_active(&self, now: Moment) -> bool {
        self.status == SubscriptionStatus::Active && !self.is_expired(now)
    }

    /// Whether an event as the document writes it is one for this subscription: `resource_id` (and
    /// `resource_type`, where the event has one), `topic`, or `channel` fit, and its `payload` (the
    /// event itself where it has none) passes the filter.
    #[must_use]
    pub fn matches_event(&self, event: &Value, now: Moment) -> bool {
        let text = |field: &str| event.get(field).and_then(Value::as_str);
        let fits = match self.kind {
            SubscriptionType::Resource => {
                text("resource_id").is_some_and(|id| self.resource_id.as_deref() == Some(id))
                    && text("resource_type")
                        .is_none_or(|kind| self.resource_type.as_deref() == Some(kind))
            }
            SubscriptionType::Topic => {
                text("topic").is_some_and(|topic| self.topic.as_deref() == Some(topic))
            }
            SubscriptionType::Query => text("channel")
                .is_some_and(|channel| self.channels().iter().any(|own| own.as_str() == channel)),
        };
        let payload = event.get("payload").unwrap_or(event);
        self.is_active(now) && fits && self.filter().is_none_or(|filter| filter.matches(payload))
    }

    /// Channels it listens on; none that a channel name cannot hold.
    #[must_use]
    pub fn channels(&self) -> Vec<ChannelName> {
        let named = match self.kind {
            SubscriptionType::Resource => {
                self.resource_type.as_deref().zip(self.resource_id.as_deref()).map(|(kind, id)| {
                    format!("entity:{}:{}", escape_segment(kind), escape_rest(id))
                })
            }
            SubscriptionType::Topic => {
                self.topic.as_deref().map(|topic| format!("topic:{}", escape_rest(topic)))
            }
            SubscriptionType::Query => {
                return self.query.as_ref().map_or(Vec::new(), |query| query.channels.clone());
            }
        };
        named.and_then(|name| ChannelName::new(&name).ok()).into_iter().collect()
    }

    /// What payloads must satisfy: `payload_filter`, or the query's `where`.
    #[must_use]
    pub fn filter(&self) -> Option<Filter> {
        let condition = || self.query.as_ref().and_then(|query| query.condition.as_ref());
        // Compiled once when it was stored: here it cannot fail.
        Filter::new(self.payload_filter.as_ref().or_else(condition)?).ok()
    }
}

/// The last part of a name takes the rest (`channels.md` 1), so that only what no channel name may
/// hold is written as `%XX`, and `%` itself.
fn escape_rest(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        if matches!(character, '.' | ':' | '/' | ';') {
            escaped.push(character);
        } else {
            escaped.push_str(&escape_segment(character.encode_utf8(&mut [0; 4])));
        }
    }
    escaped
}
