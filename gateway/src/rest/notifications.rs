//! `/notifications`: bodies and answers as the uno document has them. `http-api.md` 3, rulings R6,
//! R33, R36, R37. What creating and reading set in motion is `crate::notifications`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use carillon_broker_client::{
    NewNotification, Notification, NotificationId, NotificationPriority, NotificationQuery,
    NotificationStatus, NotificationType,
};
use carillon_protocol::ErrorCode;
use carillon_protocol::envelope::Refusal;
use carillon_protocol::publication::Exclude;
use http::{HeaderName, StatusCode};
use serde::Serialize;
use utoipa::ToSchema;

use super::body::{BatchBody, wrong};
use super::error::{ApiError, ErrorBody};
use super::openapi::{NewNotificationSchema, NotificationSchema};
use super::owned::{self, Reach, refusal};
use super::parameter::{Parameters, Search};
use crate::auth::{Caller, Scope};
use crate::node::Node;
use crate::notifications::{Mark, carry_now, tell_devices};

/// A list's moment: given back as `as_of`, later pages do not shift while new ones arrive.
const AS_OF: HeaderName = HeaderName::from_static("x-as-of");

/// Notifications were marked.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Marked {
    /// How many this call marked.
    pub marked: u64,
}

fn missing() -> Refusal {
    Refusal::new(ErrorCode::NotFound, "No such notification")
}

fn id_of(text: &str) -> Result<NotificationId, Refusal> {
    NotificationId::new(text).map_err(|_| missing())
}

/// Creates a notification for one or more users.
#[utoipa::path(
    post, path = "/notifications", tag = "Notifications", request_body = NewNotificationSchema,
    responses((status = 201, description = "Stored for all recipients; it is on its way to them", body = NotificationSchema), (status = "default", description = "Refused", body = ErrorBody)),
)]
pub(super) async fn create(
    State(node): State<Arc<Node>>,
    caller: Caller,
    body: BatchBody,
) -> Result<(StatusCode, Json<Notification>), ApiError> {
    caller.require(Scope::Manage)?;
    let new: NewNotification = body.read()?;
    let stored = node.notifications.create(new).await.map_err(|error| refusal(&node, error))?;
    carry_now(&node, &stored).await;
    Ok((StatusCode::CREATED, Json(stored)))
}

/// Lists a user's notifications, newest first.
#[utoipa::path(
    get, path = "/notifications", tag = "Notifications",
    params(
        ("user_id" = String, Query, description = "Whose; a user may leave it out: their own"),
        ("status" = Option<String>, Query, description = "pending, delivered, read or expired, for this user"),
        ("type" = Option<String>, Query, description = "Of this type"),
        ("priority" = Option<String>, Query, description = "low, normal, high or urgent"),
        ("unread" = Option<bool>, Query, description = "true: only those that count as unread"),
        ("page" = Option<u64>, Query, description = "From 1"),
        ("page_size" = Option<u64>, Query, description = "20 where not given, at most 100"),
        ("as_of" = Option<i64>, Query, description = "`X-As-Of` of the first page: leaves out what arrived since"),
    ),
    responses((status = 200, description = "A page; the total in `X-Total-Count`", body = Vec<NotificationSchema>), (status = "default", description = "Refused", body = ErrorBody)),
)]
pub(super) async fn list(
    State(node): State<Arc<Node>>,
    caller: Caller,
    search: Search,
) -> Result<Response, ApiError> {
    let user = Reach::reading(&caller)?.user(&caller, search.text("user_id").as_deref())?;
    let flag = |text: &str| match text {
        "true" => Some(true),
        "false" => Some(false),
        _ => None,
    };
    let query = NotificationQuery {
        status: owned::word(&search, "status", NotificationStatus::parse)?,
        kind: owned::word(&search, "type", |word| NotificationType::new(word).ok())?,
        priority: owned::word(&search, "priority", NotificationPriority::parse)?,
        unread: owned::word(&search, "unread", flag)?.unwrap_or_default(),
        as_of: match search.text("as_of") {
            None => None,
            Some(text) => {
                Some(text.parse().map_err(|_| wrong("as_of", "must be the `X-As-Of` of a page"))?)
            }
        },
        page: owned::page(&search)?,
    };
    let at = ("/notifications", &search, query.page);
    let found =
        node.notifications.list(&user, &query).await.map_err(|error| refusal(&node, error))?;
    let page = owned::listed(&found.notifications, found.total, at, Some(found.as_of));
    Ok(([(AS_OF, found.as_of.to_string())], page).into_response())
}

/// Shows one notification.
#[utoipa::path(
    get, path = "/notifications/{notification_id}", tag = "Notifications",
    params(("notification_id" = String, Path, description = "The notification")),
    responses((status = 200, description = "The notification", body = NotificationSchema), (status = "default", description = "Refused, or no such notification", body = ErrorBody)),
)]
pub(super) async fn show(
    State(node): State<Arc<Node>>,
    caller: Caller,
    Parameters(id): Parameters<String>,
) -> Result<Json<Notification>, ApiError> {
    let reach = Reach::reading(&caller)?;
    let id = id_of(&id)?;
    let found = match &reach {
        Reach::All => node.notifications.find(&id).await,
        Reach::Own(user) => node.notifications.find_for(user, &id).await,
    };
    Ok(Json(found.map_err(|error| refusal(&node, error))?.ok_or_else(missing)?))
}

/// Marks one read by a user; the user's devices are told.
#[utoipa::path(
    post, path = "/notifications/{notification_id}/mark-read", tag = "Notifications",
    params(
        ("notification_id" = String, Path, description = "The notification"),
        ("user_id" = String, Query, description = "By whom; a user may leave it out: they themself"),
    ),
    responses((status = 200, description = "As it is now", body = NotificationSchema), (status = "default", description = "Refused, or not one of theirs", body = ErrorBody)),
)]
pub(super) async fn mark_read(
    State(node): State<Arc<Node>>,
    caller: Caller,
    Parameters(id): Parameters<String>,
    search: Search,
) -> Result<Json<Notification>, ApiError> {
    let user = Reach::changing(&caller)?.user(&caller, search.text("user_id").as_deref())?;
    let id = id_of(&id)?;
    let marked =
        node.notifications.mark_read(&user, &id).await.map_err(|error| refusal(&node, error))?;
    let notification = marked.ok_or_else(missing)?;
    tell_devices(&node, &user, &Mark::one(&id), Exclude::default()).await;
    Ok(Json(notification))
}

/// Marks all of a user's notifications read; the user's devices are told.
#[utoipa::path(
    post, path = "/notifications/mark-all-read", tag = "Notifications",
    params(("user_id" = String, Query, description = "By whom; a user may leave it out: they themself")),
    responses((status = 200, description = "How many were marked", body = Marked), (status = "default", description = "Refused", body = ErrorBody)),
)]
pub(super) async fn mark_all_read(
    State(node): State<Arc<Node>>,
    caller: Caller,
    search: Search,
) -> Result<Json<Marked>, ApiError> {
    let user = Reach::changing(&caller)?.user(&caller, search.text("user_id").as_deref())?;
    let marked =
        node.notifications.mark_all_read(&user).await.map_err(|error| refusal(&node, error))?;
    if marked > 0 {
        tell_devices(&node, &user, &Mark::all(), Exclude::default()).await;
    }
    Ok(Json(Marked { marked }))
}

/// Counts what a user has not read.
#[utoipa::path(
    get, path = "/notifications/unread-count/{user_id}", tag = "Notifications",
    params(("user_id" = String, Path, description = "The user")),
    responses((status = 200, description = "The number, expired ones not counted", body = u64, content_type = "application/json"), (status = "default", description = "Refused", body = ErrorBody)),
)]
pub(super) async fn unread_count(
    State(node): State<Arc<Node>>,
    caller: Caller,
    Parameters(user): Parameters<String>,
) -> Result<Json<u64>, ApiError> {
    let user = Reach::reading(&caller)?.user(&caller, Some(&user))?;
    Ok(Json(node.notifications.unread_count(&user).await.map_err(|error| refusal(&node, error))?))
}

/// Deletes one: for everybody when a backend asks, out of their own list when a user does.
#[utoipa::path(
    delete, path = "/notifications/{notification_id}", tag = "Notifications",
    params(("notification_id" = String, Path, description = "The notification")),
    responses((status = 204, description = "Gone"), (status = "default", description = "Refused, or no such notification", body = ErrorBody)),
)]
pub(super) async fn delete(
    State(node): State<Arc<Node>>,
    caller: Caller,
    Parameters(id): Parameters<String>,
) -> Result<StatusCode, ApiError> {
    let reach = Reach::changing(&caller)?;
    let id = id_of(&id)?;
    let gone = match &reach {
        Reach::All => node.notifications.delete(&id).await,
        Reach::Own(user) => node.notifications.dismiss(user, &id).await,
    };
    if gone.map_err(|error| refusal(&node, error))? {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(missing().into())
    }
}
