//! What notifications and subscriptions have in common over HTTP: whose they are, numbered pages,
//! and what a store's error is to a caller. `http-api.md` 1, 3, 4; rulings R6, R36, R37.

use axum::Json;
use axum::response::{IntoResponse, Response};
use carillon_broker_client::{BrokerError, Page, StoreError};
use carillon_protocol::envelope::Refusal;
use carillon_protocol::{ErrorCode, UserId};
use http::header::LINK;
use http::{HeaderName, HeaderValue};

use super::body::wrong;
use super::parameter::{self, Search, whole};
use crate::auth::{Caller, Scope};
use crate::node::Node;

/// How many items there are on all pages.
pub(super) const TOTAL: HeaderName = HeaderName::from_static("x-total-count");

/// Whose things a caller may touch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// Everybody's: a backend.
    All,
    /// Their own: a user.
    Own(UserId),
}

impl Reach {
    /// Of a call that only reads.
    ///
    /// # Errors
    /// `FORBIDDEN` for a key without `realtime:read` and `realtime:manage`.
    pub(super) fn reading(caller: &Caller) -> Result<Self, Refusal> {
        Self::of(caller, caller.holds(Scope::Read) || caller.holds(Scope::Manage), Scope::Read)
    }

    /// Of a call that changes something.
    ///
    /// # Errors
    /// `FORBIDDEN` for a key without `realtime:manage`.
    pub(super) fn changing(caller: &Caller) -> Result<Self, Refusal> {
        Self::of(caller, caller.holds(Scope::Manage), Scope::Manage)
    }

    fn of(caller: &Caller, all: bool, scope: Scope) -> Result<Self, Refusal> {
        match caller.user() {
            _ if all => Ok(Self::All),
            Some(user) => Ok(Self::Own(user.clone())),
            None => Err(caller
                .require(scope)
                .err()
                .unwrap_or_else(|| Refusal::new(ErrorCode::Forbidden, "This key may not do this"))),
        }
    }

    /// Whether things of this user are within reach.
    #[must_use]
    pub(super) fn covers(&self, user: &UserId) -> bool {
        match self {
            Self::All => true,
            Self::Own(own) => own == user,
        }
    }

    /// The user whom a call names; without a name, the token's own.
    ///
    /// # Errors
    /// `FORBIDDEN` for another user; `INVALID_MESSAGE` where a backend names nobody, or for no id.
    pub(super) fn user(&self, caller: &Caller, named: Option<&str>) -> Result<UserId, Refusal> {
        let Some(named) = named else {
            let own = caller.user().cloned();
            return own.ok_or_else(|| wrong("user_id", "is required"));
        };
        let user = parameter::user(named)?;
        if self.covers(&user) {
            return Ok(user);
        }
        Err(Refusal::new(ErrorCode::Forbidden, "user_id is not the token's user")
            .with("field", "user_id"))
    }
}

/// `page` and `page_size` (R37).
///
/// # Errors
/// `INVALID_MESSAGE`.
pub(super) fn page(search: &Search) -> Result<Page, Refusal> {
    let number = match search.0.get("page") {
        None => 1,
        Some(text) => match whole(text) {
            Some(number) if number >= 1 => number,
            _ => return Err(wrong("page", "must be a whole number from 1")),
        },
    };
    let size = match search.0.get("page_size") {
        None => i64::from(Page::SIZE_DEFAULT),
        Some(text) => whole(text).ok_or_else(|| wrong("page_size", "must be a whole number"))?,
    };
    let number = u32::try_from(number).unwrap_or(u32::MAX);
    let size = size.clamp(1, i64::from(Page::SIZE_MAX)) as u32;
    Page::new(number, size).map_err(|invalid| wrong(&invalid.field, &invalid.problem))
}

/// A parameter that is one of some words.
///
/// # Errors
/// `INVALID_MESSAGE` for any other word.
pub(super) fn word<T>(
    search: &Search,
    name: &'static str,
    parse: impl FnOnce(&str) -> Option<T>,
) -> Result<Option<T>, Refusal> {
    let Some(text) = search.text(name) else { return Ok(None) };
    parse(&text).map(Some).ok_or_else(|| wrong(name, "is none of the words it may be"))
}

/// A bare array with the total in a header, and a link to the next page where there is one.
/// `as_of` keeps that page from shifting while new items arrive.
pub(super) fn listed(
    items: &impl serde::Serialize,
    total: u64,
    (path, search, page): (&str, &Search, Page),
    as_of: Option<i64>,
) -> Response {
    let mut response = ([(TOTAL, total.to_string())], Json(items)).into_response();
    if page.offset() + u64::from(page.size()) < total {
        let mut query = String::new();
        for (name, value) in search.0.pairs().filter(|(name, _)| !matches!(*name, "page" | "as_of"))
        {
            query.push_str(&format!("{}={}&", escaped(name), escaped(value)));
        }
        let as_of = as_of.map_or(String::new(), |as_of| format!("&as_of={as_of}"));
        let next = page.number() + 1;
        let link = format!("<{}{path}?{query}page={next}{as_of}>; rel=\"next\"", super::BASE);
        if let Ok(link) = HeaderValue::from_str(&link) {
            response.headers_mut().insert(LINK, link);
        }
    }
    response
}

/// For a query: everything but RFC 3986's unreserved characters as `%XX`.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(byte as char);
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

/// What a store's error is to a caller.
pub(crate) fn refusal(node: &Node, error: StoreError) -> Refusal {
    match error {
        StoreError::Unavailable(reason) => node.broker_refusal(&BrokerError::Unavailable(reason)),
        StoreError::Invalid(invalid) => wrong(&invalid.field, &invalid.problem),
        StoreError::LimitReached { limit } => Refusal::new(
            ErrorCode::SubscriptionLimit,
            format!("A user may have at most {limit} subscriptions"),
        )
        .with("limit", limit),
    }
}
