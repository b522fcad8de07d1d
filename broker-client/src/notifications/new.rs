//! What a caller gives to have a notification stored: the body of `POST /notifications`.

use std::collections::HashSet;

use carillon_protocol::{ChannelName, UserId};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{NotificationAction, NotificationLimits, NotificationPriority, NotificationType};
use crate::store::{Invalid, Moment, null_as_default};

/// A notification to be stored. Deserializes from the document's request body.
///
/// ```
/// use carillon_broker_client::{NewNotification, NotificationPriority, NotificationType};
/// use carillon_protocol::UserId;
///
/// let jane = UserId::new("user-456").expect("an id");
/// let new = NewNotification::new("New message", "You have a new message from Jane", [jane])
///     .kind(NotificationType::MESSAGE)
///     .priority(NotificationPriority::High)
///     .resource("message", "message-789")
///     .metadata("thread_id", "thread-123");
/// assert_eq!(new.recipients.len(), 1);
/// ```
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct NewNotification {
    /// One line, not empty.
    pub title: String,
    /// The text.
    pub message: String,
    /// Whom it is for; repetitions are dropped.
    pub recipients: Vec<UserId>,
    /// What it is about.
    #[serde(rename = "type", default, deserialize_with = "null_as_default")]
    pub kind: NotificationType,
    /// How much it matters.
    #[serde(default, deserialize_with = "null_as_default")]
    pub priority: NotificationPriority,
    /// Who caused it.
    #[serde(default)]
    pub sender_id: Option<UserId>,
    /// Kind of the thing it is about.
    #[serde(default)]
    pub resource_type: Option<String>,
    /// Which thing.
    #[serde(default)]
    pub resource_id: Option<String>,
    /// What the reader may do.
    #[serde(default, deserialize_with = "null_as_default")]
    pub actions: Vec<NotificationAction>,
    /// Anything else.
    #[serde(default, deserialize_with = "null_as_default")]
    pub metadata: Map<String, Value>,
    /// When it stops mattering; in the past is allowed (R33).
    #[serde(default)]
    pub expires_at: Option<Moment>,
}

impl NewNotification {
    /// One of type `info` and priority `normal`.
    pub fn new(
        title: impl Into<String>,
        message: impl Into<String>,
        recipients: impl IntoIterator<Item = UserId>,
    ) -> Self {
        Self {
            title: title.into(),
            message: message.into(),
            recipients: recipients.into_iter().collect(),
            kind: NotificationType::INFO,
            priority: NotificationPriority::Normal,
            sender_id: None,
            resource_type: None,
            resource_id: None,
            actions: Vec::new(),
            metadata: Map::new(),
            expires_at: None,
        }
    }

    /// What it is about.
    #[must_use]
    pub fn kind(mut self, kind: NotificationType) -> Self {
        self.kind = kind;
        self
    }

    /// How much it matters.
    #[must_use]
    pub fn priority(mut self, priority: NotificationPriority) -> Self {
        self.priority = priority;
        self
    }

    /// Who caused it.
    #[must_use]
    pub fn sender(mut self, sender: UserId) -> Self {
        self.sender_id = Some(sender);
        self
    }

    /// The thing it is about.
    #[must_use]
    pub fn resource(mut self, kind: impl Into<String>, id: impl Into<String>) -> Self {
        self.resource_type = Some(kind.into());
        self.resource_id = Some(id.into());
        self
    }

    /// One more thing that the reader may do.
    #[must_use]
    pub fn action(
        mut self,
        label: impl Into<String>,
        action: impl Into<String>,
        data: Value,
    ) -> Self {
        self.actions.push(NotificationAction { label: label.into(), action: action.into(), data });
        self
    }

    /// One more value of the metadata.
    #[must_use]
    pub fn metadata(mut self, key: impl Into<String>, value: impl Into<Value>) -> Self {
        self.metadata.insert(key.into(), value.into());
        self
    }

    /// When it stops mattering.
    #[must_use]
    pub fn expires_at(mut self, expires: Moment) -> Self {
        self.expires_at = Some(expires);
        self
    }

    /// Drops repeated recipients and checks everything against the limits.
    pub(crate) fn checked(mut self, limits: &NotificationLimits) -> Result<Self, Invalid> {
        if self.title.trim().is_empty() {
            return Err(Invalid::new("title", "must not be empty"));
        }
        let mut seen = HashSet::with_capacity(self.recipients.len());
        self.recipients.retain(|user| seen.insert(user.clone()));
        if self.recipients.is_empty() || self.recipients.len() > limits.recipients_max {
            let problem = format!("must name 1 to {} users", limits.recipients_max);
            return Err(Invalid::new("recipients", problem));
        }
        if self.recipients.iter().any(|user| ChannelName::user_stream(user.as_str()).is_none()) {
            return Err(Invalid::new("recipients", "holds a user id too long for a channel name"));
        }
        let recipients = std::mem::take(&mut self.recipients);
        let bytes = serde_json::to_vec(&self).map_or(usize::MAX, |json| json.len());
        self.recipients = recipients;
        if bytes > limits.bytes_max {
            let problem = format!("is larger than {} bytes", limits.bytes_max);
            return Err(Invalid::new("notification", problem));
        }
        Ok(self)
    }
}
