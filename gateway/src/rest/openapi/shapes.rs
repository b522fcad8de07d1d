//! Shapes that the document shows and no handler reads or writes as such: entities that live elsewhere, and
//! bodies whose fields depend on the endpoint. Each must fit the type that it stands for.

use utoipa::ToSchema;

/// A live connection.
#[derive(ToSchema)]
#[schema(as = Connection)]
#[expect(dead_code, reason = "the shape of `cluster::ConnectionView`, for the document alone")]
pub(in crate::rest) struct ConnectionSchema {
    /// Its id.
    id: String,
    /// Its user; null when anonymous.
    user_id: Option<String>,
    /// `websocket`, `sse` or `poll`.
    transport: String,
    /// The profile's name.
    profile: String,
    /// The node's name.
    node: String,
    /// RFC 3339.
    connected_at: String,
    /// Its address, as trusted proxies say it.
    remote: Option<String>,
    /// Channels it is subscribed to.
    channels: Vec<String>,
}

/// A channel and its listeners.
#[derive(ToSchema)]
#[schema(as = Channel)]
#[expect(dead_code, reason = "the shape of `cluster::ChannelCount`, for the document alone")]
pub(in crate::rest) struct ChannelSchema {
    /// The channel.
    channel: String,
    /// Connections that listen.
    subscribers: u64,
}

/// What the reader may do about a notification.
#[derive(ToSchema)]
#[schema(as = NotificationAction)]
#[expect(dead_code, reason = "the shape of `NotificationAction`, for the document alone")]
pub(in crate::rest) struct ActionSchema {
    /// What the button says.
    label: String,
    /// What the application calls it.
    action: String,
    /// Anything the application needs for it.
    data: Option<serde_json::Value>,
}

/// A notification to be stored.
#[derive(ToSchema)]
#[schema(as = NewNotification)]
#[expect(dead_code, reason = "the shape of `NewNotification`, for the document alone")]
pub(in crate::rest) struct NewNotificationSchema {
    /// One line, not empty.
    title: String,
    /// The text.
    message: String,
    /// Whom it is for: 1 to 10,000 users.
    recipients: Vec<String>,
    /// A lower-case word; `info` where not given.
    r#type: Option<String>,
    /// `low`, `normal`, `high` or `urgent`; `normal` where not given.
    priority: Option<String>,
    /// Who caused it.
    sender_id: Option<String>,
    /// Kind of the thing it is about.
    resource_type: Option<String>,
    /// Which thing.
    resource_id: Option<String>,
    /// What the reader may do.
    actions: Option<Vec<ActionSchema>>,
    /// Anything else.
    #[schema(value_type = Option<Object>)]
    metadata: Option<serde_json::Value>,
    /// When it stops mattering, RFC 3339.
    expires_at: Option<String>,
}

/// A stored notification.
#[derive(ToSchema)]
#[schema(as = Notification)]
#[expect(dead_code, reason = "the shape of `Notification`, for the document alone")]
pub(in crate::rest) struct NotificationSchema {
    /// Its id.
    id: String,
    /// One line.
    title: String,
    /// The text.
    message: String,
    /// A lower-case word.
    r#type: String,
    /// `low`, `normal`, `high` or `urgent`.
    priority: String,
    /// `pending`, `delivered`, `read` or `expired`.
    status: String,
    /// Whom it is for.
    recipients: Vec<String>,
    /// Who caused it.
    sender_id: Option<String>,
    /// RFC 3339.
    created_at: String,
    /// When the first recipient had it, RFC 3339.
    delivered_at: Option<String>,
    /// Who has read it.
    read_by: Vec<String>,
    /// What the reader may do.
    actions: Vec<ActionSchema>,
    /// Kind of the thing it is about.
    resource_type: Option<String>,
    /// Which thing.
    resource_id: Option<String>,
    /// Anything else.
    #[schema(value_type = Object)]
    metadata: serde_json::Value,
}

/// A stored subscription.
#[derive(ToSchema)]
#[schema(as = Subscription)]
#[expect(dead_code, reason = "the shape of `Subscription`, for the document alone")]
pub(in crate::rest) struct SubscriptionSchema {
    /// Its id.
    id: String,
    /// Whose it is.
    user_id: String,
    /// `resource`, `topic` or `query`.
    r#type: String,
    /// `active`, `paused`, `expired` or `cancelled`.
    status: String,
    /// RFC 3339.
    created_at: String,
    /// RFC 3339.
    updated_at: String,
    /// RFC 3339.
    expires_at: Option<String>,
    /// Which thing.
    resource_id: Option<String>,
    /// Kind of the thing.
    resource_type: Option<String>,
    /// Which topic.
    topic: Option<String>,
    /// `{"channels": […], "where": {…}}`.
    #[schema(value_type = Option<Object>)]
    query: Option<serde_json::Value>,
    /// The user's own words for it.
    labels: Vec<String>,
    /// Anything else.
    #[schema(value_type = Object)]
    metadata: serde_json::Value,
}

/// A page of history.
#[derive(ToSchema)]
#[schema(as = History)]
#[expect(dead_code, reason = "written by hand so that payloads stay bytes")]
pub(in crate::rest) struct HistorySchema {
    /// Envelopes, oldest first.
    messages: Vec<serde_json::Value>,
    /// The history's epoch; null without history.
    epoch: Option<String>,
    /// Newest offset; null without history.
    offset: Option<u64>,
    /// `since` of the next page; null at the end.
    next: Option<String>,
    /// With `since`: whether nothing is missing after it.
    recovered: Option<bool>,
    /// Why not: `trimmed`, `epoch`, `fork`.
    reason: Option<String>,
}

/// A subscription to one thing.
#[derive(ToSchema)]
#[schema(as = NewResourceSubscription)]
#[expect(dead_code, reason = "the shape of `SubscriptionBody`, for the document alone")]
pub(in crate::rest) struct NewResourceSchema {
    /// Whose it will be. A user may leave it out: it is their own then.
    user_id: String,
    /// Which thing.
    resource_id: String,
    /// Kind of the thing.
    resource_type: String,
    /// The user's own words for it; repetitions are dropped.
    labels: Option<Vec<String>>,
    /// Anything else.
    #[schema(value_type = Option<Object>)]
    metadata: Option<serde_json::Value>,
    /// When it ends, RFC 3339.
    expires_at: Option<String>,
    /// What payloads must satisfy: equality, or `$eq $ne $in $nin $gt $gte $lt $lte $exists $and $or $not` on dotted paths.
    #[schema(value_type = Option<Object>)]
    payload_filter: Option<serde_json::Value>,
}

/// A subscription to a topic.
#[derive(ToSchema)]
#[schema(as = NewTopicSubscription)]
#[expect(dead_code, reason = "the shape of `SubscriptionBody`, for the document alone")]
pub(in crate::rest) struct NewTopicSchema {
    /// Whose it will be. A user may leave it out: it is their own then.
    user_id: String,
    /// Which topic.
    topic: String,
    /// The user's own words for it; repetitions are dropped.
    labels: Option<Vec<String>>,
    /// Anything else.
    #[schema(value_type = Option<Object>)]
    metadata: Option<serde_json::Value>,
    /// When it ends, RFC 3339.
    expires_at: Option<String>,
    /// What payloads must satisfy: equality, or `$eq $ne $in $nin $gt $gte $lt $lte $exists $and $or $not` on dotted paths.
    #[schema(value_type = Option<Object>)]
    payload_filter: Option<serde_json::Value>,
}

/// A subscription to channels, with a condition on payloads.
#[derive(ToSchema)]
#[schema(as = NewQuerySubscription)]
#[expect(dead_code, reason = "the shape of `SubscriptionBody`, for the document alone")]
pub(in crate::rest) struct NewQuerySchema {
    /// Whose it will be. A user may leave it out: it is their own then.
    user_id: String,
    /// What is asked.
    #[schema(inline)]
    query: QuerySchema,
    /// The user's own words for it; repetitions are dropped.
    labels: Option<Vec<String>>,
    /// Anything else.
    #[schema(value_type = Option<Object>)]
    metadata: Option<serde_json::Value>,
    /// When it ends, RFC 3339.
    expires_at: Option<String>,
}

/// What a query subscription asks.
#[derive(ToSchema)]
#[schema(as = SubscriptionQuery)]
#[expect(dead_code, reason = "the shape of `SubscriptionQuery`, for the document alone")]
pub(in crate::rest) struct QuerySchema {
    /// Channels, without wildcards.
    channels: Vec<String>,
    /// What payloads must satisfy, as `payload_filter`.
    #[schema(value_type = Option<Object>)]
    r#where: Option<serde_json::Value>,
}

/// An event for many event streams.
#[derive(ToSchema)]
#[schema(as = BroadcastEvent)]
#[expect(dead_code, reason = "the shape of `EventBody`, for the document alone")]
pub(in crate::rest) struct BroadcastEventSchema {
    /// The event's name; `message` where not given.
    event: Option<String>,
    /// Sent as it is; several lines become several `data:` lines.
    data: String,
    /// A lower-case word; comes back as given; `normal` where not given.
    priority: Option<String>,
    /// The stream's `retry:`, milliseconds.
    retry: Option<u64>,
    /// A comment line on the stream.
    comment: Option<String>,
    /// These event streams, by connection id; all where not given.
    recipients: Option<Vec<String>>,
    /// Not these.
    exclude: Option<Vec<String>>,
}
