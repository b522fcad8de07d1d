//! What a caller gives to have a subscription stored or changed: the bodies of the document.

use carillon_protocol::{ChannelName, Filter, UserId};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use super::{SubscriptionQuery, SubscriptionType};
use crate::store::{Invalid, Moment, null_as_default};

/// Most channels of one query.
pub(super) const QUERY_CHANNELS_MAX: usize = 50;
/// Most labels of one subscription.
const LABELS_MAX: usize = 64;
/// Longest label, in bytes.
const LABEL_BYTES_MAX: usize = 256;

/// A subscription to be stored. Deserializes from the document's request bodies; which of them it is
/// the endpoint says with [`NewSubscription::of_kind`].
///
/// ```
/// use carillon_broker_client::NewSubscription;
/// use carillon_protocol::UserId;
///
/// let user = UserId::new("user-456").expect("an id");
/// let new = NewSubscription::resource(user, "post", "post-789")
///     .label("important")
///     .metadata("notification_channel", "email");
/// assert_eq!(new.labels, ["important"]);
/// ```
#[derive(Clone, PartialEq, Debug, Deserialize)]
pub struct NewSubscription {
    /// Whose it will be.
    pub user_id: UserId,
    /// What kind of thing it is for.
    #[serde(skip)]
    pub kind: SubscriptionType,
    /// Which thing.
    #[serde(default)]
    pub resource_id: Option<String>,
    /// Kind of the thing.
    #[serde(default)]
    pub resource_type: Option<String>,
    /// Which topic.
    #[serde(default)]
    pub topic: Option<String>,
    /// Which channels.
    #[serde(default)]
    pub query: Option<SubscriptionQuery>,
    /// The user's own words for it; repetitions are dropped.
    #[serde(default, deserialize_with = "null_as_default")]
    pub labels: Vec<String>,
    /// Anything else.
    #[serde(default, deserialize_with = "null_as_default")]
    pub metadata: Map<String, Value>,
    /// When it ends.
    #[serde(default)]
    pub expires_at: Option<Moment>,
    /// Filter document on payloads; a query has its `where` instead.
    #[serde(default)]
    pub payload_filter: Option<Value>,
}

impl NewSubscription {
    fn of(user: UserId, kind: SubscriptionType) -> Self {
        Self {
            user_id: user,
            kind,
            resource_id: None,
            resource_type: None,
            topic: None,
            query: None,
            labels: Vec::new(),
            metadata: Map::new(),
            expires_at: None,
            payload_filter: None,
        }
    }

    /// To one thing.
    pub fn resource(user: UserId, kind: impl Into<String>, id: impl Into<String>) -> Self {
        Self {
            resource_type: Some(kind.into()),
            resource_id: Some(id.into()),
            ..Self::of(user, SubscriptionType::Resource)
        }
    }

    /// To a topic.
    pub fn topic(user: UserId, topic: impl Into<String>) -> Self {
        Self { topic: Some(topic.into()), ..Self::of(user, SubscriptionType::Topic) }
    }

    /// To channels.
    #[must_use]
    pub fn query(user: UserId, query: SubscriptionQuery) -> Self {
        Self { query: Some(query), ..Self::of(user, SubscriptionType::Query) }
    }

    /// Says which body it was.
    #[must_use]
    pub fn of_kind(mut self, kind: SubscriptionType) -> Self {
        self.kind = kind;
        self
    }

    /// One more label.
    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.labels.push(label.into());
        self
    }

    /// One more value of the metadata.
    #[must_use]
    pub fn metadata(mut self, key: impl Into<String>, value: impl Into<Value>) -> Self {
        self.metadata.insert(key.into(), value.into());
        self
    }

    /// When it ends.
    #[must_use]
    pub fn expires_at(mut self, expires: Moment) -> Self {
        self.expires_at = Some(expires);
        self
    }

    /// What payloads must satisfy.
    #[must_use]
    pub fn payload_filter(mut self, filter: Value) -> Self {
        self.payload_filter = Some(filter);
        self
    }

    /// Keeps what its kind needs, drops the rest, and checks it. What it listens on is checked with
    /// the stored entity.
    pub(super) fn checked(mut self) -> Result<Self, Invalid> {
        let is = |kind| self.kind == kind;
        let (resource, topic, query) = (
            is(SubscriptionType::Resource),
            is(SubscriptionType::Topic),
            is(SubscriptionType::Query),
        );
        if !resource {
            (self.resource_id, self.resource_type) = (None, None);
        } else {
            required("resource_id", self.resource_id.as_deref())?;
            required("resource_type", self.resource_type.as_deref())?;
        }
        if !topic {
            self.topic = None;
        } else {
            required("topic", self.topic.as_deref())?;
        }
        if query {
            self.payload_filter = None;
            let Some(query) = &mut self.query else {
                return Err(Invalid::new("query", "is required"));
            };
            check_query(query)?;
        } else {
            self.query = None;
            check_filter("payload_filter", self.payload_filter.as_ref())?;
        }
        self.labels = checked_labels(self.labels)?;
        Ok(self)
    }
}

/// Changes to a subscription. Deserializes from the body of `PATCH /subscriptions/{id}`: what is
/// absent stays, `"expires_at": null` takes the expiry away.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
pub struct SubscriptionPatch {
    /// All labels from now on.
    #[serde(default)]
    pub labels: Option<Vec<String>>,
    /// All metadata from now on.
    #[serde(default)]
    pub metadata: Option<Map<String, Value>>,
    /// The expiry from now on.
    #[serde(default, deserialize_with = "present")]
    pub expires_at: Option<Option<Moment>>,
}

impl SubscriptionPatch {
    /// Changes nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// These are all labels from now on.
    #[must_use]
    pub fn labels(mut self, labels: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.labels = Some(labels.into_iter().map(Into::into).collect());
        self
    }

    /// This is all metadata from now on.
    #[must_use]
    pub fn metadata(mut self, metadata: Map<String, Value>) -> Self {
        self.metadata = Some(metadata);
        self
    }

    /// It ends then.
    #[must_use]
    pub fn expires_at(mut self, expires: Moment) -> Self {
        self.expires_at = Some(Some(expires));
        self
    }

    /// It has no end any more.
    #[must_use]
    pub fn never_expires(mut self) -> Self {
        self.expires_at = Some(None);
        self
    }
}

/// Tells `null` from absent.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<Moment>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

fn required(field: &'static str, value: Option<&str>) -> Result<(), Invalid> {
    match value {
        None => Err(Invalid::new(field, "is required")),
        Some("") => Err(Invalid::new(field, "must not be empty")),
        Some(_) => Ok(()),
    }
}

fn check_query(query: &mut SubscriptionQuery) -> Result<(), Invalid> {
    if query.channels.is_empty() || query.channels.len() > QUERY_CHANNELS_MAX {
        let problem = format!("must name 1 to {QUERY_CHANNELS_MAX} channels");
        return Err(Invalid::new("query.channels", problem));
    }
    let mut distinct: Vec<ChannelName> = Vec::with_capacity(query.channels.len());
    for channel in query.channels.drain(..) {
        if !distinct.contains(&channel) {
            distinct.push(channel);
        }
    }
    query.channels = distinct;
    check_filter("query.where", query.condition.as_ref())
}

fn check_filter(field: &str, document: Option<&Value>) -> Result<(), Invalid> {
    let Some(Err(invalid)) = document.map(Filter::new) else { return Ok(()) };
    let place =
        if invalid.path.is_empty() { String::new() } else { format!(" at {}", invalid.path) };
    Err(Invalid::new(field, format!("is no filter: {}{place}", invalid.problem)))
}

/// Each once, in the order given.
pub(super) fn checked_labels(labels: Vec<String>) -> Result<Vec<String>, Invalid> {
    if labels.len() > LABELS_MAX {
        return Err(Invalid::new("labels", format!("must be at most {LABELS_MAX}")));
    }
    if labels.iter().any(|label| label.is_empty() || label.len() > LABEL_BYTES_MAX) {
        return Err(Invalid::new(
            "labels",
            format!("must be of 1 to {LABEL_BYTES_MAX} bytes each"),
        ));
    }
    let mut distinct: Vec<String> = Vec::new();
    for label in labels {
        if !distinct.contains(&label) {
            distinct.push(label);
        }
    }
    Ok(distinct)
}
