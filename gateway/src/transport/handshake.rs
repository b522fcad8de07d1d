//! What a client says before it is connected: credentials, profile, channels, cursor.
//! `protocol.md` 1, rulings R5, R22, R28.

use carillon_protocol::envelope::Refusal;
use carillon_protocol::{Cursor, ErrorCode, Profile};
use http::HeaderMap;
use http::header::{AUTHORIZATION, COOKIE, ORIGIN, SEC_WEBSOCKET_PROTOCOL};

use crate::auth::Claims;
use crate::connection::welcome::Resume;
use crate::node::Node;

/// The marker that says the next subprotocol is a token.
pub const BEARER_SUBPROTOCOL: &str = "carillon.bearer";

/// A handshake that was accepted.
#[derive(Debug)]
pub struct Handshake {
    /// Who; `None` for anonymous clients.
    pub claims: Option<Claims>,
    /// Dress of the messages.
    pub profile: Profile,
    /// Channels to subscribe to at once.
    pub channels: Vec<String>,
    /// Where the client stopped.
    pub resume: Resume,
}

/// The query's parameters that concern transports.
#[derive(Debug, Default)]
pub struct Query {
    pairs: Vec<(String, String)>,
}

impl Query {
    /// Reads `a=b&c=d`, percent-decoded.
    #[must_use]
    pub fn parse(query: Option<&str>) -> Self {
        let pairs = query
            .unwrap_or_default()
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                (decode(name), decode(value))
            })
            .collect();
        Self { pairs }
    }

    /// Whether a query is text, percent-decoded: what is not is read as well as it can be.
    #[must_use]
    pub fn is_text(query: &str) -> bool {
        std::str::from_utf8(&decoded(query)).is_ok()
    }

    /// The same query with one value more, which counts first.
    #[must_use]
    pub fn with(&self, name: &str, value: &str) -> Self {
        let first = (name.to_owned(), value.to_owned());
        Self { pairs: std::iter::once(first).chain(self.pairs.iter().cloned()).collect() }
    }

    /// All names and values, in order.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.pairs.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// The first value of a name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.pairs.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// All values of a name, comma-separated ones apart.
    #[must_use]
    pub fn list(&self, name: &str) -> Vec<String> {
        let mut values: Vec<String> = Vec::new();
        for (_, value) in self.pairs.iter().filter(|(key, _)| key == name) {
            for part in value.split(',').map(str::trim).filter(|part| !part.is_empty()) {
                if !values.iter().any(|known| known == part) {
                    values.push(part.to_owned());
                }
            }
        }
        values
    }
}

fn decode(text: &str) -> String {
    if !text.contains(['%', '+']) {
        return text.to_owned();
    }
    String::from_utf8_lossy(&decoded(text)).into_owned()
}

fn decoded(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let hex = (first == b'%').then(|| after.get(..2)).flatten();
        let hex = hex
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (first, hex) {
            (_, Some(byte)) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            (b'+', _) => {
                bytes.push(b' ');
                rest = after;
            }
            _ => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    bytes
}

impl Handshake {
    /// Checks credentials and reads the query.
    ///
    /// # Errors
    /// The refusal to answer before any upgrade.
    pub async fn accept(
        node: &Node,
        headers: &HeaderMap,
        query: &Query,
        default: Profile,
    ) -> Result<Self, Refusal> {
        let claims = authenticate(node, headers, query).await?;
        let profile = match query.get("profile") {
            None => default,
            Some(name) => Profile::parse(name).ok_or_else(|| {
                Refusal::new(
                    ErrorCode::InvalidMessage,
                    "profile is one of social, uno, dnr, excore",
                )
                .with("field", "profile")
            })?,
        };
        let last_event_id = headers.get("last-event-id").and_then(|value| value.to_str().ok());
        let resume = [last_event_id, query.get("since")]
            .into_iter()
            .flatten()
            .find(|text| !text.is_empty())
            .map(|text| Cursor::parse(text).map_err(|_| ()));
        Ok(Self { claims, profile, channels: query.list("channel"), resume })
    }
}

/// Finds the token (header, subprotocol, query, cookie: the first wins) and verifies it.
pub async fn authenticate(
    node: &Node,
    headers: &HeaderMap,
    query: &Query,
) -> Result<Option<Claims>, Refusal> {
    let header = |name| headers.get(name).and_then(|value: &http::HeaderValue| value.to_str().ok());
    if headers.contains_key(AUTHORIZATION) {
        let Some(token) = header(AUTHORIZATION).and_then(bearer) else {
            return Err(Refusal::new(ErrorCode::InvalidToken, "invalid token"));
        };
        return node.verify(token).await.map(Some);
    }
    let offered = subprotocols(headers);
    let after_marker =
        offered.iter().position(|name| name == BEARER_SUBPROTOCOL).map(|at| offered.get(at + 1));
    let token = match (after_marker, query.get("token")) {
        (Some(token), _) => token.map(String::as_str),
        (None, Some(token)) => Some(token),
        (None, None) => None,
    };
    if let Some(token) = token.filter(|token| !token.is_empty()) {
        return node.verify(token).await.map(Some);
    }
    let config = node.config.load_full();
    let cookie = config.auth.cookie.as_deref().and_then(|name| cookie(headers, name));
    if let Some(token) = cookie {
        check_origin(node, headers)?;
        return node.verify(&token).await.map(Some);
    }
    if config.auth.allow_anonymous {
        return Ok(None);
    }
    Err(Refusal::new(ErrorCode::MissingToken, "missing token"))
}

/// A cookie travels by itself, so a foreign page must not be able to use it.
fn check_origin(node: &Node, headers: &HeaderMap) -> Result<(), Refusal> {
    let Some(origin) = headers.get(ORIGIN) else { return Ok(()) };
    let origin = origin.to_str().unwrap_or_default();
    let host =
        headers.get(http::header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let own = origin
        .split_once("://")
        .is_some_and(|(_, authority)| !host.is_empty() && authority == host);
    if own || node.config.load().cors.origins.iter().any(|allowed| allowed == origin) {
        return Ok(());
    }
    Err(Refusal::new(ErrorCode::Forbidden, "This origin may not use the cookie")
        .with("origin", origin))
}

/// The token of `Bearer …`.
#[must_use]
pub fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim()).filter(|token| !token.is_empty())
}

/// Subprotocols that the client offers, in order.
#[must_use]
pub fn subprotocols(headers: &HeaderMap) -> Vec<String> {
    headers
        .get_all(SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .collect()
}

fn cookie(headers: &HeaderMap, name: &str) -> Option<String> {
    headers
        .get_all(COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find(|(key, _)| *key == name)
        .map(|(_, value)| value.trim_matches('"').to_owned())
        .filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_repeat_or_stand_comma_separated() {
        let query = Query::parse(Some("channel=a,b&channel=c%3Ad&channel=a&x=1+2"));
        assert_eq!(query.list("channel"), ["a", "b", "c:d"]);
        assert_eq!(query.get("x"), Some("1 2"));
    }

    #[test]
    fn bearer_needs_scheme_and_token() {
        assert_eq!(bearer("Bearer abc"), Some("abc"));
        assert_eq!(bearer("bearer  abc"), Some("abc"));
        assert_eq!(bearer("Basic abc"), None);
        assert_eq!(bearer("Bearer "), None);
    }
}
