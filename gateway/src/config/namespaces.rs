//! Namespaces as they are written, and the list that ships. Who matches what is `policy`'s.
//! Source: contract, `channels.md` 1–2.

use std::str::FromStr;
use std::time::Duration;

use carillon_protocol::Pattern;

use super::reader::Section;
use super::units::{as_text, parse_duration};

/// Who may. A list of rules allows whom any one of them allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// Everybody, also without a token.
    Anyone,
    /// Everybody with a token.
    Authenticated,
    /// The user that the pattern's `{id}` names; on `notifications` each user for their own.
    Own,
    /// Whose token's `channels` claim has a pattern that matches.
    Granted,
    /// Backends alone. Backends may in any case; the word says it to the reader.
    Service,
    /// Whom the application's webhook allows.
    Webhook,
    /// Nobody.
    No,
}

impl Rule {
    /// Every rule and its name in the configuration.
    pub const ALL: [(Rule, &'static str); 7] = [
        (Rule::Anyone, "anyone"),
        (Rule::Authenticated, "authenticated"),
        (Rule::Own, "self"),
        (Rule::Granted, "granted"),
        (Rule::Service, "service"),
        (Rule::Webhook, "webhook"),
        (Rule::No, "no"),
    ];

    /// The name in the configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(rule, _)| *rule == self).map_or("no", |(_, name)| name)
    }
}

impl FromStr for Rule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.iter().find(|(_, name)| *name == text).map(|(rule, _)| *rule).ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|(_, name)| *name).collect();
            format!("{text:?} is no rule; rules are {}", names.join(", "))
        })
    }
}

impl serde::Serialize for Rule {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(self.name())
    }
}

/// What a channel keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct History {
    /// Publications.
    pub size: u32,
    /// How long each.
    #[serde(with = "as_text")]
    pub age: Duration,
}

/// One namespace of the configuration. An action without a rule is nobody's.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct NamespaceSettings {
    /// The pattern as written; it is known to be a [`Pattern`].
    pub pattern: String,
    /// Who hears it.
    pub subscribe: Vec<Rule>,
    /// Which clients publish on it.
    pub publish: Vec<Rule>,
    /// Who joins presence on it.
    pub presence: Vec<Rule>,
    /// `None` keeps nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub history: Option<History>,
    /// A slow reader gets the newest message alone (R15).
    pub conflate: bool,
    /// Overrides `limits.publishes_per_second_per_channel`; 0 is no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub publishes_per_second: Option<u32>,
}

const HOUR: u64 = 3_600;

/// Pattern, subscribe, publish, presence, history (size, hours; 0 is none), conflate.
type Row = (&'static str, Rule, Rule, Rule, (u32, u64), bool);

/// The table of `channels.md` 1. First match wins, so the longer of two patterns that overlap comes first.
#[rustfmt::skip]
const SHIPPED: &[Row] = &[
    ("notifications",        Rule::Own,           Rule::No,            Rule::No,            (1_000, 24), false),
    ("user:{id}:**",         Rule::Own,           Rule::No,            Rule::No,            (1_000, 24), false),
    ("user:{id}",            Rule::Own,           Rule::No,            Rule::No,            (1_000, 24), false),
    ("user.{id}.**",         Rule::Own,           Rule::Authenticated, Rule::No,            (1_000, 24), false),
    ("presence",             Rule::Authenticated, Rule::Authenticated, Rule::Authenticated, (0, 0),      false),
    ("presence:**",          Rule::Authenticated, Rule::No,            Rule::Authenticated, (0, 0),      false),
    ("conversation:{id}",    Rule::Authenticated, Rule::Authenticated, Rule::Authenticated, (1_000, 24), false),
    ("chat",                 Rule::Authenticated, Rule::Authenticated, Rule::Authenticated, (1_000, 24), false),
    ("chat.**",              Rule::Authenticated, Rule::Authenticated, Rule::Authenticated, (1_000, 24), false),
    ("chat:**",              Rule::Authenticated, Rule::Authenticated, Rule::Authenticated, (1_000, 24), false),
    ("document.**",          Rule::Authenticated, Rule::Authenticated, Rule::Authenticated, (1_000, 1),  false),
    ("room:**",              Rule::Authenticated, Rule::Authenticated, Rule::Authenticated, (1_000, 1),  false),
    ("entity:{name}:{id}",   Rule::Authenticated, Rule::No,            Rule::No,            (1_000, 1),  false),
    ("entity:{name}",        Rule::Authenticated, Rule::No,            Rule::No,            (1_000, 1),  false),
    ("topic:{name}",         Rule::Authenticated, Rule::No,            Rule::No,            (100, 1),    false),
    ("feed:**",              Rule::Authenticated, Rule::No,            Rule::No,            (100, 1),    false),
    ("dashboard",            Rule::Authenticated, Rule::No,            Rule::No,            (100, 1),    false),
    ("dashboard.**",         Rule::Authenticated, Rule::No,            Rule::No,            (100, 1),    true),
    ("metrics",              Rule::Authenticated, Rule::No,            Rule::No,            (100, 1),    true),
    ("metrics.**",           Rule::Authenticated, Rule::No,            Rule::No,            (100, 1),    true),
    ("news",                 Rule::Authenticated, Rule::No,            Rule::No,            (100, 1),    false),
    ("public:**",            Rule::Anyone,        Rule::No,            Rule::No,            (100, 1),    false),
    ("general",              Rule::Authenticated, Rule::Authenticated, Rule::Authenticated, (100, 1),    false),
    ("admin-dashboard",      Rule::Granted,       Rule::No,            Rule::No,            (100, 1),    false),
];

/// The namespaces that ship with the product.
#[must_use]
pub fn shipped() -> Vec<NamespaceSettings> {
    SHIPPED
        .iter()
        .map(|&(pattern, subscribe, publish, presence, (size, hours), conflate)| {
            NamespaceSettings {
                pattern: pattern.to_owned(),
                subscribe: vec![subscribe],
                publish: vec![publish],
                presence: vec![presence],
                history: (size > 0)
                    .then(|| History { size, age: Duration::from_secs(hours * HOUR) }),
                conflate,
                publishes_per_second: None,
            }
        })
        .collect()
}

/// Reads one namespace and notes what is wrong with it.
pub(super) fn read(section: &Section<'_>) -> NamespaceSettings {
    let pattern = section.filled("pattern").unwrap_or_else(|| {
        if !section.has("pattern") {
            section.mistake("pattern", "is required");
        }
        String::new()
    });
    if !pattern.is_empty()
        && let Err(error) = Pattern::new(&pattern)
    {
        section.mistake("pattern", error.problem);
    }
    let rules = |name: &str| {
        let rules = section.list(name, Rule::from_str).unwrap_or_default();
        if rules.contains(&Rule::Own) && !pattern.contains("{id}") && pattern != "notifications" {
            section.mistake(name, "`self` needs `{id}` in the pattern");
        }
        if rules.is_empty() { vec![Rule::No] } else { rules }
    };
    NamespaceSettings {
        subscribe: rules("subscribe"),
        publish: rules("publish"),
        presence: rules("presence"),
        history: history(section),
        conflate: section.flag("conflate").unwrap_or(false),
        publishes_per_second: section.number("publishes_per_second"),
        pattern,
    }
}

fn history(section: &Section<'_>) -> Option<History> {
    let given = section.value("history").is_some();
    let history = section.child("history");
    let size: Option<u32> = history.number("size");
    let age = history.read("age", |text| match parse_duration(text)? {
        Duration::ZERO => {
            Err("must be longer than 0; leave `history` out to keep nothing".to_owned())
        }
        age => Ok(age),
    });
    match (given, size) {
        (false, _) | (_, Some(0)) => None,
        (true, None) => {
            if !history.has("size") {
                history.mistake("size", "is required");
            }
            None
        }
        (true, Some(size)) => Some(History { size, age: age.unwrap_or(Duration::from_secs(HOUR)) }),
    }
}
