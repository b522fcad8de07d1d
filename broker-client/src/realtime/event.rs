//! The server-sent event of the uno document.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{MessageType, RealtimeError, message_id};
use crate::Clock;
use crate::questions::Announcement;

/// How much an event matters; it comes back as given, and changes no order.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum EventPriority {
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

/// An event to be made.
///
/// ```
/// use std::time::Duration;
///
/// use carillon_broker_client::realtime::{EventPriority, NewEvent};
///
/// let new = NewEvent::new("update", r#"{"resource_id":"post-789","action":"update"}"#)
///     .priority(EventPriority::Normal)
///     .retry(Duration::from_secs(3))
///     .comment("Resource update event");
/// # let _ = new;
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
#[must_use]
pub struct NewEvent {
    event: String,
    data: String,
    priority: EventPriority,
    retry: Option<Duration>,
    comment: Option<String>,
}

impl NewEvent {
    /// One of this name; `data` is sent as it is, several lines as several `data:` lines.
    pub fn new(event: impl Into<String>, data: impl Into<String>) -> Self {
        Self {
            event: event.into(),
            data: data.into(),
            priority: EventPriority::Normal,
            retry: None,
            comment: None,
        }
    }

    /// How much it matters.
    pub fn priority(mut self, priority: EventPriority) -> Self {
        self.priority = priority;
        self
    }

    /// What an EventSource waits before it comes back; whole milliseconds.
    pub fn retry(mut self, retry: Duration) -> Self {
        self.retry = Some(retry);
        self
    }

    /// A comment line on the stream.
    pub fn comment(mut self, comment: impl Into<String>) -> Self {
        self.comment = Some(comment.into());
        self
    }

    /// The event, with an id.
    pub(super) fn made(self) -> Result<Event, RealtimeError> {
        let kind = MessageType::new(&self.event)
            .map_err(|_| RealtimeError::invalid("event", "is no name that an event may have"))?;
        Ok(Event {
            id: message_id().as_str().to_owned(),
            event: kind.as_str().to_owned(),
            data: self.data,
            priority: self.priority,
            retry: self.retry.map(|retry| u64::try_from(retry.as_millis()).unwrap_or(u64::MAX)),
            comment: self.comment,
        })
    }
}

/// An event. Serializes as the document's answers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Event {
    /// Its id, the same on every stream.
    pub id: String,
    /// Its name.
    pub event: String,
    /// Its data.
    pub data: String,
    /// How much it matters.
    pub priority: EventPriority,
    /// The stream's `retry:`, milliseconds.
    pub retry: Option<u64>,
    /// A comment line.
    pub comment: Option<String>,
}

impl Event {
    /// `{"retry","comment"}` as `meta`, for the event streams; `None` where there is neither.
    pub(super) fn meta(&self) -> Option<String> {
        let mut meta = serde_json::Map::new();
        if let Some(retry) = self.retry {
            meta.insert("retry".to_owned(), retry.into());
        }
        if let Some(comment) = &self.comment {
            meta.insert("comment".to_owned(), comment.as_str().into());
        }
        (!meta.is_empty()).then(|| serde_json::Value::Object(meta).to_string())
    }

    pub(super) fn announcement(&self) -> Announcement {
        Announcement {
            id: self.id.clone(),
            kind: self.event.clone(),
            payload: serde_json::Value::from(self.data.as_str()).to_string(),
            timestamp_ms: Clock::system().now().unix_ms(),
            meta: self.meta(),
        }
    }
}
