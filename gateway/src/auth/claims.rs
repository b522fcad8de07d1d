//! What a verified token says. Source: contract, `http-api.md` 1, `channels.md` 2; rulings R18, R28.

use carillon_protocol::{ChannelName, Pattern, UserId};
use serde_json::{Map, Value};

use super::Scope;

/// What a client wants to do on a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Hear it.
    Subscribe,
    /// Publish on it.
    Publish,
    /// Join presence on it.
    Presence,
}

impl Action {
    /// The name in grants and in the authorisation webhook.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Action::Subscribe => "subscribe",
            Action::Publish => "publish",
            Action::Presence => "presence",
        }
    }
}

/// The `channels` claim: patterns an action. It adds permission only where a rule lists `granted`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grants(Option<Box<Patterns>>);

/// Boxed: most tokens grant nothing of their own, and claims stay with the connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Patterns {
    subscribe: Vec<Pattern>,
    publish: Vec<Pattern>,
    presence: Vec<Pattern>,
}

impl Grants {
    /// Reads the claim: a list for all actions, or a list an action. What is no pattern grants nothing.
    #[must_use]
    pub fn from_claim(claim: &Value) -> Self {
        let patterns = match claim {
            Value::Object(actions) => {
                let of =
                    |action: Action| actions.get(action.name()).map(patterns).unwrap_or_default();
                Patterns {
                    subscribe: of(Action::Subscribe),
                    publish: of(Action::Publish),
                    presence: of(Action::Presence),
                }
            }
            list => {
                let all = patterns(list);
                Patterns { subscribe: all.clone(), publish: all.clone(), presence: all }
            }
        };
        let grants_any = patterns != Patterns::default();
        Self(grants_any.then(|| Box::new(patterns)))
    }

    /// Whether a grant covers this.
    #[must_use]
    pub fn cover(&self, action: Action, channel: &ChannelName) -> bool {
        let Some(granted) = &self.0 else { return false };
        let patterns = match action {
            Action::Subscribe => &granted.subscribe,
            Action::Publish => &granted.publish,
            Action::Presence => &granted.presence,
        };
        patterns.iter().any(|pattern| pattern.matches(channel.as_str()).is_some())
    }
}

fn patterns(list: &Value) -> Vec<Pattern> {
    let texts =
        list.as_array().map(Vec::as_slice).unwrap_or_default().iter().filter_map(Value::as_str);
    texts.filter_map(pattern).collect()
}

/// A grant's pattern; a single `*` at the end means the rest, as `**` does.
fn pattern(text: &str) -> Option<Pattern> {
    match text.strip_suffix('*') {
        Some(start) if !start.ends_with('*') => Pattern::new(&format!("{start}**")).ok(),
        _ => Pattern::new(text).ok(),
    }
}

/// A verified token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    /// `user_id`, or `sub`.
    pub user: UserId,
    /// `name`, for presence.
    pub name: Option<Box<str>>,
    /// Those of `scope` that we know.
    pub scopes: Box<[Scope]>,
    /// `channels`.
    pub grants: Grants,
    /// `exp`, Unix seconds. The leeway is not in it.
    pub expires_at: i64,
    /// `jti`.
    pub token_id: Option<Box<str>>,
    /// `iat`, Unix seconds.
    pub issued_at: Option<i64>,
    /// All claims as they stood in the token, for the authorisation webhook.
    pub all: Map<String, Value>,
}

impl Claims {
    /// Reads claims whose signature and times are good; `None` without a usable user or `exp`.
    pub(super) fn read(all: Map<String, Value>) -> Option<Self> {
        let user =
            all.get("user_id").filter(|value| !value.is_null()).or_else(|| all.get("sub"))?;
        let user = match user {
            Value::String(text) => UserId::new(text).ok()?,
            Value::Number(number) => UserId::new(&number.to_string()).ok()?,
            _ => return None,
        };
        let text = |name: &str| all.get(name).and_then(Value::as_str).map(Box::from);
        let scopes = all.get("scope").and_then(Value::as_str).unwrap_or_default();
        Some(Self {
            user,
            name: text("name"),
            scopes: scopes.split_whitespace().filter_map(|scope| scope.parse().ok()).collect(),
            grants: all.get("channels").map(Grants::from_claim).unwrap_or_default(),
            expires_at: seconds(all.get("exp")?)?,
            token_id: text("jti"),
            issued_at: all.get("iat").and_then(seconds),
            all,
        })
    }
}

/// A NumericDate: whole or broken seconds.
pub(super) fn seconds(value: &Value) -> Option<i64> {
    // Beyond 2^53 a broken number says nothing; the cast saturates, which keeps the comparison right.
    value.as_i64().or_else(|| {
        value.as_f64().filter(|number| number.is_finite()).map(|number| number.floor() as i64)
    })
}
