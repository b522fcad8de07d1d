//! Payload filters of subscriptions: equality by default, `$eq $ne $in $nin $gt $gte $lt $lte
//! $exists $and $or $not` on dotted paths. Source: `channels.md` 5, ruling R16.
//!
//! A path reads objects by key and arrays by index. Several keys are all required. A value that is no
//! object of operators is compared whole; numbers compare by value, so 1 equals 1.0. A missing field
//! equals nothing, not even `null`: hence `$ne`, `$nin` and `$not` match it.

mod compile;
#[cfg(test)]
mod tests;

use std::cmp::Ordering;

use serde_json::{Number, Value};

/// A compiled filter. Compare by [`Filter::source`] to share one evaluation among subscribers.
#[derive(Clone, Debug)]
pub struct Filter {
    source: Box<str>,
    condition: Condition,
}

impl PartialEq for Filter {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

/// The filter's document is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem} at {path}")]
pub struct InvalidFilter {
    /// Dotted path into the filter document.
    pub path: String,
    /// What is wrong there.
    pub problem: &'static str,
}

impl Filter {
    /// Compiles a filter document. At most 16 levels deep, 256 conditions and 1,024 values in lists.
    ///
    /// # Errors
    /// Where in the document an operator is unknown or its operand has the wrong shape.
    pub fn new(document: &Value) -> Result<Self, InvalidFilter> {
        let condition = compile::document(document)?;
        Ok(Self { source: compile::canonical(document).into(), condition })
    }

    /// Canonical text (keys sorted): equal texts mean equal filters.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether a payload passes.
    #[must_use]
    pub fn matches(&self, payload: &Value) -> bool {
        self.condition.holds(payload)
    }
}

#[derive(Clone, Debug)]
enum Condition {
    All(Vec<Condition>),
    Any(Vec<Condition>),
    Not(Box<Condition>),
    Field { path: Box<[Box<str>]>, tests: Vec<Test> },
}

/// What one field must satisfy.
#[derive(Clone, Debug)]
enum Test {
    Equal(Value),
    OneOf(Vec<Value>),
    Compare(Comparison, Value),
    Exists(bool),
    Not(Vec<Test>),
}

#[derive(Clone, Copy, Debug)]
enum Comparison {
    Greater,
    GreaterOrEqual,
    Less,
    LessOrEqual,
}

impl Condition {
    fn holds(&self, payload: &Value) -> bool {
        match self {
            Condition::All(all) => all.iter().all(|condition| condition.holds(payload)),
            Condition::Any(any) => any.iter().any(|condition| condition.holds(payload)),
            Condition::Not(condition) => !condition.holds(payload),
            Condition::Field { path, tests } => {
                let field = find(payload, path);
                tests.iter().all(|test| test.passes(field))
            }
        }
    }
}

impl Test {
    fn passes(&self, field: Option<&Value>) -> bool {
        match self {
            Test::Equal(value) => field.is_some_and(|field| equal(field, value)),
            Test::OneOf(values) => {
                field.is_some_and(|field| values.iter().any(|value| equal(field, value)))
            }
            Test::Compare(comparison, value) => {
                let ordering = field.and_then(|field| order(field, value));
                ordering.is_some_and(|ordering| match comparison {
                    Comparison::Greater => ordering.is_gt(),
                    Comparison::GreaterOrEqual => ordering.is_ge(),
                    Comparison::Less => ordering.is_lt(),
                    Comparison::LessOrEqual => ordering.is_le(),
                })
            }
            Test::Exists(exists) => field.is_some() == *exists,
            Test::Not(tests) => !tests.iter().all(|test| test.passes(field)),
        }
    }
}

fn find<'a>(payload: &'a Value, path: &[Box<str>]) -> Option<&'a Value> {
    path.iter().try_fold(payload, |value, segment| match value {
        Value::Object(fields) => fields.get(&**segment),
        Value::Array(items) => items.get(segment.parse::<usize>().ok()?),
        _ => None,
    })
}

fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => order_numbers(a, b) == Some(Ordering::Equal),
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| equal(a, b)))
        }
        _ => a == b,
    }
}

/// Only numbers with numbers and strings with strings have an order.
fn order(a: &Value, b: &Value) -> Option<Ordering> {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => order_numbers(a, b),
        (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
        _ => None,
    }
}

/// Integers exactly (a float would blur ids over 2⁵³), anything else as floats.
fn order_numbers(a: &Number, b: &Number) -> Option<Ordering> {
    match (a.as_i128(), b.as_i128()) {
        (Some(a), Some(b)) => Some(a.cmp(&b)),
        _ => a.as_f64()?.partial_cmp(&b.as_f64()?),
    }
}
