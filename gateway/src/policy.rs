//! Who may do what on which channel. Must not know how a caller was recognised, nor ask a webhook:
//! where the application decides, it says so. Source: contract, `channels.md` 1–2; rulings R12, R13, R18.

use carillon_broker_client::Retention;
use carillon_protocol::channel::{Captures, InvalidPattern};
use carillon_protocol::envelope::Refusal;
use carillon_protocol::{ChannelName, ErrorCode, Pattern};

pub use crate::auth::Action;
use crate::auth::Claims;
use crate::config::{Config, NamespaceSettings, Rule};

/// A namespace, ready to match.
#[derive(Clone, Debug)]
pub struct Namespace {
    /// Which channels.
    pub pattern: Pattern,
    /// Who hears it.
    pub subscribe: Vec<Rule>,
    /// Which clients publish on it.
    pub publish: Vec<Rule>,
    /// Who joins presence on it.
    pub presence: Vec<Rule>,
    /// History; `None` keeps nothing.
    pub retention: Option<Retention>,
    /// A slow reader gets the newest message alone (R15).
    pub conflate: bool,
    /// Instead of `limits.publishes_per_second_per_channel`; 0 is no limit.
    pub publishes_per_second: Option<u32>,
}

/// A channel's namespace.
#[derive(Clone, Debug)]
pub struct Match<'p> {
    /// The first that matches.
    pub namespace: &'p Namespace,
    /// What its `{x}` stand for, unescaped.
    pub captures: Captures,
}

/// May they?
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// Yes.
    Allow,
    /// No: `CHANNEL_NOT_FOUND` or `FORBIDDEN`.
    Refuse(Refusal),
    /// No rule allows it but `webhook`: the application says.
    Ask,
}

/// All namespaces, in order.
#[derive(Clone, Debug)]
pub struct Policy {
    namespaces: Vec<Namespace>,
}

impl Policy {
    /// Takes the configured namespaces.
    ///
    /// # Errors
    /// A pattern that is none; a checked configuration has none of those.
    pub fn new(config: &Config) -> Result<Self, InvalidPattern> {
        Self::of(&config.namespaces)
    }

    /// Takes a list of namespaces.
    ///
    /// # Errors
    /// As [`Policy::new`].
    pub fn of(namespaces: &[NamespaceSettings]) -> Result<Self, InvalidPattern> {
        let namespaces: Result<_, _> = namespaces.iter().map(Namespace::new).collect();
        Ok(Self { namespaces: namespaces? })
    }

    /// The first namespace whose pattern matches.
    #[must_use]
    pub fn find(&self, channel: &ChannelName) -> Option<Match<'_>> {
        self.namespaces.iter().find_map(|namespace| {
            let captures = namespace.pattern.matches(channel.as_str())?;
            Some(Match { namespace, captures })
        })
    }

    /// What the rules say. `identity` is `None` for clients without a token.
    #[must_use]
    pub fn decide(
        &self,
        action: Action,
        identity: Option<&Claims>,
        channel: &ChannelName,
    ) -> Decision {
        let Some(found) = self.find(channel) else {
            let refusal = Refusal::new(ErrorCode::ChannelNotFound, "no such channel");
            return Decision::Refuse(refusal.with("channel", channel.as_str()));
        };
        let rules = found.namespace.rules(action);
        if rules.iter().any(|rule| allows(*rule, &found, action, identity, channel)) {
            return Decision::Allow;
        }
        if rules.contains(&Rule::Webhook) {
            return Decision::Ask;
        }
        Decision::Refuse(forbidden(action, channel))
    }
}

/// The refusal of an action, also for when the application's webhook says no.
#[must_use]
pub fn forbidden(action: Action, channel: &ChannelName) -> Refusal {
    let message = match action {
        Action::Subscribe => "not allowed to subscribe to this channel",
        Action::Publish => "not allowed to publish on this channel",
        Action::Presence => "not allowed to join presence on this channel",
    };
    Refusal::new(ErrorCode::Forbidden, message).with("channel", channel.as_str())
}

impl Namespace {
    fn new(settings: &NamespaceSettings) -> Result<Self, InvalidPattern> {
        Ok(Self {
            pattern: Pattern::new(&settings.pattern)?,
            subscribe: settings.subscribe.clone(),
            publish: settings.publish.clone(),
            presence: settings.presence.clone(),
            retention: settings
                .history
                .map(|history| Retention { size: history.size, age: history.age }),
            conflate: settings.conflate,
            publishes_per_second: settings.publishes_per_second,
        })
    }

    /// The rules of an action.
    #[must_use]
    pub fn rules(&self, action: Action) -> &[Rule] {
        match action {
            Action::Subscribe => &self.subscribe,
            Action::Publish => &self.publish,
            Action::Presence => &self.presence,
        }
    }
}

fn allows(
    rule: Rule,
    found: &Match<'_>,
    action: Action,
    identity: Option<&Claims>,
    channel: &ChannelName,
) -> bool {
    match (rule, identity) {
        (Rule::Anyone, _) | (Rule::Authenticated, Some(_)) => true,
        (Rule::Own, Some(claims)) => is_own(found, claims),
        (Rule::Granted, Some(claims)) => claims.grants.cover(action, channel),
        (Rule::Authenticated | Rule::Own | Rule::Granted, None)
        | (Rule::Service | Rule::Webhook | Rule::No, _) => false,
    }
}

/// `{id}` is the user; a pattern without `{id}` is each user's own (`notifications`, R7).
fn is_own(found: &Match<'_>, claims: &Claims) -> bool {
    let id = found.captures.iter().find(|(name, _)| name == "id");
    id.map_or_else(
        || found.namespace.pattern.as_str() == "notifications",
        |(_, id)| id == claims.user.as_str(),
    )
}

#[cfg(test)]
mod tests;
