//! The notification of the uno document and its small words. JSON exactly as the document shows.

use std::borrow::Cow;

use carillon_protocol::UserId;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::NewNotification;
use crate::store::{Invalid, Moment, NotificationId};

/// What a notification is about: a lower-case word.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize)]
pub struct NotificationType(Cow<'static, str>);

impl NotificationType {
    /// `info`
    pub const INFO: Self = Self(Cow::Borrowed("info"));
    /// `success`
    pub const SUCCESS: Self = Self(Cow::Borrowed("success"));
    /// `warning`
    pub const WARNING: Self = Self(Cow::Borrowed("warning"));
    /// `error`
    pub const ERROR: Self = Self(Cow::Borrowed("error"));
    /// `message`
    pub const MESSAGE: Self = Self(Cow::Borrowed("message"));
    /// `system`
    pub const SYSTEM: Self = Self(Cow::Borrowed("system"));

    /// Longest word, in bytes.
    pub const BYTES_MAX: usize = 64;

    /// Takes a word of `a–z 0–9 _ -` that begins with a letter.
    ///
    /// # Errors
    /// When it is none.
    pub fn new(word: &str) -> Result<Self, Invalid> {
        let is_word = word.starts_with(|first: char| first.is_ascii_lowercase())
            && word.len() <= Self::BYTES_MAX
            && word
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-".contains(&b));
        if !is_word {
            return Err(Invalid::new("type", "must be a lower-case word of at most 64 bytes"));
        }
        Ok(Self(Cow::Owned(word.to_owned())))
    }

    /// The word.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for NotificationType {
    fn default() -> Self {
        Self::INFO
    }
}

impl<'de> Deserialize<'de> for NotificationType {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let word = <Cow<'de, str>>::deserialize(deserializer)?;
        Self::new(&word).map_err(serde::de::Error::custom)
    }
}

/// How much it matters.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum NotificationPriority {
    /// `low`
    Low,
    /// `normal`
    #[default]
    Normal,
    /// `high`
    High,
    /// `urgent`
    Urgent,
}

impl NotificationPriority {
    /// The word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Normal => "normal",
            Self::High => "high",
            Self::Urgent => "urgent",
        }
    }

    /// The priority of that name.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Low, Self::Normal, Self::High, Self::Urgent].into_iter().find(|p| p.as_str() == word)
    }
}

/// How far it came.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NotificationStatus {
    /// No recipient has it yet.
    #[default]
    Pending,
    /// One recipient at least has it.
    Delivered,
    /// Every recipient has read it.
    Read,
    /// Past `expires_at`, whatever was before.
    Expired,
}

impl NotificationStatus {
    /// The word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Delivered => "delivered",
            Self::Read => "read",
            Self::Expired => "expired",
        }
    }

    /// The status of that name.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Pending, Self::Delivered, Self::Read, Self::Expired]
            .into_iter()
            .find(|status| status.as_str() == word)
    }
}

/// What the reader may do about it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(expecting = "an object of label, action and data")]
pub struct NotificationAction {
    /// What the button says.
    pub label: String,
    /// What the application calls it.
    pub action: String,
    /// Anything the application needs for it.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub data: Value,
}

/// A stored notification. Serializes as the document's answers, which hold no `expires_at`.
///
/// ```
/// use carillon_broker_client::{
///     Clock, NewNotification, Notification, NotificationId, NotificationStatus, NotificationType,
/// };
/// use carillon_protocol::UserId;
///
/// let now = Clock::system().now();
/// let reader = UserId::new("user-456")?;
/// let new = NewNotification::new("New message", "From Jane", [reader.clone()])
///     .kind(NotificationType::MESSAGE)
///     .sender(UserId::new("user-789")?);
/// let mut notification = Notification::new(NotificationId::new("notification-123")?, new, now);
/// assert_eq!(notification.status, NotificationStatus::Pending);
///
/// notification.mark_as_delivered(now);
/// assert_eq!(notification.status, NotificationStatus::Delivered);
/// assert!(notification.mark_as_read(&reader, now));
/// assert!(notification.is_read_by(&reader));
/// assert_eq!(notification.status, NotificationStatus::Read);
/// assert!(!notification.is_expired(now));
/// # Ok::<(), carillon_protocol::ids::InvalidId>(())
/// ```
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Notification {
    /// Its id.
    pub id: NotificationId,
    /// One line.
    pub title: String,
    /// The text.
    pub message: String,
    /// What it is about.
    #[serde(rename = "type")]
    pub kind: NotificationType,
    /// How much it matters.
    pub priority: NotificationPriority,
    /// The aggregate over all recipients (R33), at the moment it was loaded.
    pub status: NotificationStatus,
    /// Whom it is for, each once.
    pub recipients: Vec<UserId>,
    /// Who caused it.
    pub sender_id: Option<UserId>,
    /// When it was stored.
    pub created_at: Moment,
    /// When the first recipient had it.
    pub delivered_at: Option<Moment>,
    /// Recipients who have read it, in the order they did.
    pub read_by: Vec<UserId>,
    /// What the reader may do.
    pub actions: Vec<NotificationAction>,
    /// Kind of the thing it is about.
    pub resource_type: Option<String>,
    /// Which thing.
    pub resource_id: Option<String>,
    /// Anything else.
    pub metadata: Map<String, Value>,
    /// When it stops mattering.
    #[serde(skip)]
    pub expires_at: Option<Moment>,
}

impl Notification {
    /// One that nobody has yet. What is stored gets its id from the store.
    #[must_use]
    pub fn new(id: NotificationId, new: NewNotification, now: Moment) -> Self {
        let mut notification = Self {
            id,
            title: new.title,
            message: new.message,
            kind: new.kind,
            priority: new.priority,
            status: NotificationStatus::Pending,
            recipients: new.recipients,
            sender_id: new.sender_id,
            created_at: now,
            delivered_at: None,
            read_by: Vec::new(),
            actions: new.actions,
            resource_type: new.resource_type,
            resource_id: new.resource_id,
            metadata: new.metadata,
            expires_at: new.expires_at,
        };
        notification.refresh_status(now);
        notification
    }

    /// A recipient has it; the first time counts.
    pub fn mark_as_delivered(&mut self, now: Moment) {
        self.delivered_at.get_or_insert(now);
        self.refresh_status(now);
    }

    /// A user has read it, and so has it. `false`, and nothing changed, when they had already, or are
    /// no recipient.
    pub fn mark_as_read(&mut self, user: &UserId, now: Moment) -> bool {
        if self.is_read_by(user) || !self.recipients.contains(user) {
            return false;
        }
        self.read_by.push(user.clone());
        self.mark_as_delivered(now);
        true
    }

    /// Whether this user has read it.
    #[must_use]
    pub fn is_read_by(&self, user: &UserId) -> bool {
        self.read_by.contains(user)
    }

    /// Whether it is past its expiry.
    #[must_use]
    pub fn is_expired(&self, now: Moment) -> bool {
        self.expires_at.is_some_and(|expires| expires <= now)
    }

    pub(crate) fn refresh_status(&mut self, now: Moment) {
        self.status = if self.is_expired(now) {
            NotificationStatus::Expired
        } else if !self.recipients.is_empty() && self.read_by.len() >= self.recipients.len() {
            NotificationStatus::Read
        } else if self.delivered_at.is_some() {
            NotificationStatus::Delivered
        } else {
            NotificationStatus::Pending
        };
    }

    /// What is pushed to one recipient (R34): the record less `recipients` and `read_by`, plus
    /// `read`.
    #[must_use]
    pub fn pushed_to(&self, user: &UserId) -> Value {
        self.pushed(self.is_read_by(user))
    }

    /// The same for a recipient whose `read` is known.
    #[must_use]
    pub fn pushed(&self, read: bool) -> Value {
        serde_json::json!({
            "id": self.id,
            "title": self.title,
            "message": self.message,
            "type": self.kind,
            "priority": self.priority,
            "status": self.status,
            "sender_id": self.sender_id,
            "created_at": self.created_at,
            "delivered_at": self.delivered_at,
            "actions": self.actions,
            "resource_type": self.resource_type,
            "resource_id": self.resource_id,
            "metadata": self.metadata,
            "read": read,
        })
    }
}
