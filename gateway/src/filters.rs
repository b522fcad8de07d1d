//! Payload filters on a node: equal ones are kept once, and each is asked once about a publication,
//! however many connections and subscriptions share it. `channels.md` 5.
//!
//! It must not know: who filters what, and what follows from a verdict.

use std::sync::{Arc, Weak};

use carillon_protocol::{Filter, Payload};
use foldhash::HashMap;
use parking_lot::Mutex;
use serde_json::Value;

/// Filters that nobody uses any more are looked for when the table has grown to this.
const SWEEP_MIN: usize = 1_024;

/// Compiled filters by their canonical text, for as long as somebody holds them.
#[derive(Debug, Default)]
pub struct Filters {
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    by_source: HashMap<Box<str>, Weak<Filter>>,
    sweep_at: usize,
}

impl Filters {
    /// The one filter of that text on this node.
    #[must_use]
    pub fn share(&self, filter: Filter) -> Arc<Filter> {
        let mut known = self.known.lock();
        if let Some(shared) = known.by_source.get(filter.source()).and_then(Weak::upgrade) {
            return shared;
        }
        if known.by_source.len() >= known.sweep_at.max(SWEEP_MIN) {
            known.by_source.retain(|_, filter| filter.strong_count() > 0);
            known.sweep_at = known.by_source.len() * 2;
        }
        let shared = Arc::new(filter);
        known.by_source.insert(shared.source().into(), Arc::downgrade(&shared));
        shared
    }
}

/// What filters say about one publication. Its payload is read at most once, and only for a filter.
#[derive(Debug)]
pub struct Verdicts<'a> {
    payload: &'a Payload,
    value: Option<Value>,
    /// By the filter's address: see [`Filters::share`].
    known: HashMap<usize, bool>,
}

impl<'a> Verdicts<'a> {
    /// Nothing is asked yet.
    #[must_use]
    pub fn on(payload: &'a Payload) -> Self {
        Self { payload, value: None, known: HashMap::default() }
    }

    /// Whether the publication passes.
    pub fn passes(&mut self, filter: &Arc<Filter>) -> bool {
        let Self { payload, value, known } = self;
        *known
            .entry(Arc::as_ptr(filter).addr())
            .or_insert_with(|| filter.matches(value.get_or_insert_with(|| payload.to_value())))
    }

    /// How many filters were evaluated.
    #[must_use]
    pub fn evaluated(&self) -> usize {
        self.known.len()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn filter(document: &Value) -> Filter {
        Filter::new(document).expect("a filter")
    }

    #[test]
    fn equal_filters_are_one_and_asked_once_a_publication() {
        let filters = Filters::default();
        let one = filters.share(filter(&json!({"a": 1, "b": {"$gt": 2}})));
        let same = filters.share(filter(&json!({"b": {"$gt": 2}, "a": 1})));
        let other = filters.share(filter(&json!({"a": 2})));
        assert!(Arc::ptr_eq(&one, &same) && !Arc::ptr_eq(&one, &other));
        let payload = Payload::of(&json!({"a": 1, "b": 3}));
        let mut verdicts = Verdicts::on(&payload);
        for _ in 0..10_000 {
            assert!(verdicts.passes(&one) && verdicts.passes(&same) && !verdicts.passes(&other));
        }
        assert_eq!(verdicts.evaluated(), 2);
    }

    #[test]
    fn filters_that_nobody_holds_are_forgotten() {
        let filters = Filters::default();
        let kept = filters.share(filter(&json!({"kept": true})));
        for n in 0..10 * SWEEP_MIN {
            drop(filters.share(filter(&json!({"n": n}))));
        }
        assert!(filters.known.lock().by_source.len() <= 2 * SWEEP_MIN);
        assert!(Arc::ptr_eq(&kept, &filters.share(filter(&json!({"kept": true})))));
    }
}
