//! Reads settings out of the merged tree, key by key, and collects every mistake on the way.
//! The asking is the schema: a key that nobody asked for is unknown. Knows no key itself.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde_json::{Map, Value};

use super::secret::Secret;
use super::units::{parse_duration, parse_size};

/// One thing that is wrong with the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The key, dotted; or the file, when it could not be read.
    pub key: String,
    /// What is wrong, and what would be right.
    pub reason: String,
    /// The environment variable or flag that it came from, if not the file.
    pub origin: Option<String>,
}

/// Everything that is wrong, at once.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Mistakes(pub Vec<Mistake>);

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.0.len();
        write!(f, "{count} mistake{} in the configuration:", if count == 1 { "" } else { "s" })?;
        for mistake in &self.0 {
            write!(f, "\n  {}: {}", mistake.key, mistake.reason)?;
            if let Some(origin) = &mistake.origin {
                write!(f, " (from {origin})")?;
            }
        }
        Ok(())
    }
}

/// The merged tree while it is read.
pub(super) struct Reader<'e> {
    environment: &'e BTreeMap<String, String>,
    origins: BTreeMap<String, String>,
    known: RefCell<BTreeSet<String>>,
    unknown: RefCell<Vec<String>>,
    mistakes: RefCell<Vec<Mistake>>,
}

impl<'e> Reader<'e> {
    /// `origins` says which keys came from a variable or flag, and which.
    pub(super) fn new(
        environment: &'e BTreeMap<String, String>,
        origins: BTreeMap<String, String>,
    ) -> Self {
        Self {
            environment,
            origins,
            known: RefCell::default(),
            unknown: RefCell::default(),
            mistakes: RefCell::default(),
        }
    }

    /// The whole tree as a section.
    pub(super) fn root(&self, tree: Map<String, Value>) -> Section<'_> {
        Section { reader: self, path: String::new(), fields: tree, asked: RefCell::default() }
    }

    /// Notes a mistake.
    pub(super) fn mistake(&self, key: impl Into<String>, reason: impl Into<String>) {
        self.mistakes.borrow_mut().push(Mistake {
            key: key.into(),
            reason: reason.into(),
            origin: None,
        });
    }

    /// All mistakes, unknown keys among them, after every section was read and dropped.
    pub(super) fn finish(self) -> Vec<Mistake> {
        let known = self.known.into_inner();
        let mut mistakes = self.mistakes.into_inner();
        for key in self.unknown.into_inner() {
            let reason = match nearest(&key, &known) {
                Some(near) => format!("unknown key; did you mean `{near}`?"),
                None => "unknown key".to_owned(),
            };
            mistakes.push(Mistake { key, reason, origin: None });
        }
        for mistake in &mut mistakes {
            let key = mistake.key.as_str();
            mistake.origin = self
                .origins
                .iter()
                .find(|(from, _)| {
                    key.strip_prefix(from.as_str())
                        .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
                })
                .map(|(_, origin)| origin.clone());
        }
        mistakes
    }
}

/// The known key that looks most like `key`; sections count as keys too.
fn nearest<'k>(key: &str, known: &'k BTreeSet<String>) -> Option<&'k str> {
    // A right name in the wrong section beats a similar text: `url` means `redis.url`.
    let last = key.rsplit('.').next().unwrap_or(key);
    known
        .iter()
        .map(|candidate| {
            let same_name = candidate.rsplit('.').next() == Some(last);
            let score = strsim::normalized_damerau_levenshtein(key, candidate);
            (score + if same_name { 0.3 } else { 0.0 }, candidate.as_str())
        })
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

/// A table of the configuration. Dropping it reports the keys that nobody asked for.
pub(super) struct Section<'r> {
    reader: &'r Reader<'r>,
    path: String,
    fields: Map<String, Value>,
    asked: RefCell<BTreeSet<String>>,
}

impl<'r> Section<'r> {
    /// The full dotted key of a field here.
    pub(super) fn key(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// Notes a mistake about a field here.
    pub(super) fn mistake(&self, name: &str, reason: impl Into<String>) {
        self.reader.mistake(self.key(name), reason);
    }

    /// Notes a mistake unless exactly one of two fields was given.
    pub(super) fn either(&self, one: &str, other: &str) {
        if self.has(one) == self.has(other) {
            self.reader.mistake(&self.path, format!("needs either `{one}` or `{other}`"));
        }
    }

    /// Whether the field was given.
    pub(super) fn has(&self, name: &str) -> bool {
        self.fields.contains_key(name)
    }

    /// The raw value.
    pub(super) fn value(&self, name: &str) -> Option<Value> {
        self.asked.borrow_mut().insert(name.to_owned());
        self.reader.known.borrow_mut().insert(self.key(name));
        self.fields.get(name).filter(|value| !value.is_null()).cloned()
    }

    /// A text; numbers and booleans are texts too (an id may look like a number).
    pub(super) fn text(&self, name: &str) -> Option<String> {
        match self.value(name)? {
            Value::String(text) => Some(text),
            Value::Number(number) => Some(number.to_string()),
            Value::Bool(flag) => Some(flag.to_string()),
            _ => {
                self.mistake(name, "must be a text");
                None
            }
        }
    }

    /// A text that is not empty.
    pub(super) fn filled(&self, name: &str) -> Option<String> {
        let text = self.text(name)?;
        if text.trim().is_empty() {
            self.mistake(name, "must not be empty");
            return None;
        }
        Some(text)
    }

    /// A text that `read` understands.
    pub(super) fn read<T>(
        &self,
        name: &str,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        let text = self.text(name)?;
        read(&text).map_err(|reason| self.mistake(name, reason)).ok()
    }

    /// A duration.
    pub(super) fn duration(&self, name: &str) -> Option<Duration> {
        self.read(name, parse_duration)
    }

    /// A size in bytes.
    pub(super) fn size(&self, name: &str) -> Option<usize> {
        self.read(name, parse_size)
    }

    /// A whole number from 0.
    pub(super) fn number<T: FromStr>(&self, name: &str) -> Option<T> {
        self.read(name, |text| {
            text.parse().map_err(|_| format!("{text:?} is no whole number from 0 in range"))
        })
    }

    /// `true` or `false`.
    pub(super) fn flag(&self, name: &str) -> Option<bool> {
        self.read(name, |text| match text {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err(format!("{text:?} is neither true nor false")),
        })
    }

    /// A secret: the text itself, `file:/path` or `env:NAME`.
    pub(super) fn secret(&self, name: &str) -> Option<Secret> {
        let text = self.filled(name)?;
        let resolved = if let Some(path) = text.strip_prefix("file:") {
            std::fs::read_to_string(path)
                .map(|content| content.trim_end_matches(['\n', '\r']).to_owned())
                .map_err(|error| format!("cannot read {path}: {error}"))
        } else if let Some(variable) = text.strip_prefix("env:") {
            let value = self.reader.environment.get(variable).cloned();
            value.ok_or_else(|| format!("the environment has no {variable}"))
        } else {
            Ok(text)
        };
        match resolved {
            Ok(secret) if secret.is_empty() => {
                self.mistake(name, "is empty where it points to");
                None
            }
            Ok(secret) => Some(Secret(secret)),
            Err(reason) => {
                self.mistake(name, reason);
                None
            }
        }
    }

    /// A list of texts; a single text that is no JSON list counts as a list of one.
    pub(super) fn texts(&self, name: &str) -> Option<Vec<String>> {
        let list = match self.value(name)? {
            Value::Array(list) => list,
            Value::String(text) if text.trim_start().starts_with('[') => self.json(name, &text)?,
            Value::String(text) => vec![Value::String(text)],
            _ => {
                self.mistake(name, "must be a list of texts");
                return None;
            }
        };
        let mut texts = Vec::with_capacity(list.len());
        for item in list {
            match item {
                Value::String(text) => texts.push(text),
                other => self.mistake(name, format!("holds {other}, which is no text")),
            }
        }
        Some(texts)
    }

    /// A list of texts, each understood by `read`; wrong ones are reported and left out.
    pub(super) fn list<T>(
        &self,
        name: &str,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Vec<T>> {
        let texts = self.texts(name)?;
        Some(
            texts
                .iter()
                .filter_map(|text| read(text).map_err(|reason| self.mistake(name, reason)).ok())
                .collect(),
        )
    }

    /// A list of tables.
    pub(super) fn sections(&self, name: &str) -> Option<Vec<Section<'r>>> {
        let list = match self.value(name)? {
            Value::Array(list) => list,
            Value::String(text) => self.json(name, &text)?,
            _ => {
                self.mistake(name, "must be a list of tables");
                return None;
            }
        };
        let mut sections = Vec::with_capacity(list.len());
        for (index, item) in list.into_iter().enumerate() {
            let path = format!("{}[{index}]", self.key(name));
            match item {
                Value::Object(fields) => sections.push(self.section(path, fields)),
                _ => self.reader.mistake(path, "must be a table"),
            }
        }
        Some(sections)
    }

    /// A table of tables, by name.
    pub(super) fn entries(&self, name: &str) -> Vec<(String, Section<'r>)> {
        let inner = self.child(name);
        let names: Vec<String> = inner.fields.keys().cloned().collect();
        names.into_iter().map(|name| (name.clone(), inner.child(&name))).collect()
    }

    /// A table; empty when it was not given.
    pub(super) fn child(&self, name: &str) -> Section<'r> {
        let fields = match self.value(name) {
            None => Map::new(),
            Some(Value::Object(fields)) => fields,
            Some(Value::String(text)) => self.json(name, &text).unwrap_or_default(),
            Some(_) => {
                self.mistake(name, "must be a table");
                Map::new()
            }
        };
        self.section(self.key(name), fields)
    }

    fn section(&self, path: String, fields: Map<String, Value>) -> Section<'r> {
        Section { reader: self.reader, path, fields, asked: RefCell::default() }
    }

    fn json<T: serde::de::DeserializeOwned>(&self, name: &str, text: &str) -> Option<T> {
        serde_json::from_str(text)
            .map_err(|error| {
                self.mistake(name, format!("must be a table or a list, or JSON of one: {error}"));
            })
            .ok()
    }
}

impl Drop for Section<'_> {
    fn drop(&mut self) {
        let asked = self.asked.borrow();
        for (name, value) in &self.fields {
            if !asked.contains(name) {
                self.reader.unknown.borrow_mut().extend(leaves(&self.key(name), value));
            }
        }
    }
}

/// The dotted keys of all values under an unknown one, so that each is named.
fn leaves(path: &str, value: &Value) -> Vec<String> {
    match value {
        Value::Object(fields) if !fields.is_empty() => fields
            .iter()
            .flat_map(|(name, value)| leaves(&format!("{path}.{name}"), value))
            .collect(),
        _ => vec![path.to_owned()],
    }
}
