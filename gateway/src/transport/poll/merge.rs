//! One list out of what several ears heard of channels without history: each message once, in the order in which it was
//! published. An ear hears a stretch of that order, perhaps with holes; where two stretches share a message they are laid
//! over each other, where they share none the one that began earlier comes first.

use std::borrow::Cow;

use foldhash::HashMap;
use serde::Deserialize;
use serde_json::value::RawValue;

/// What one ear heard, oldest first.
pub(crate) type Stretch = Vec<Box<RawValue>>;

#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow, default)]
    id: Option<Cow<'a, str>>,
    /// RFC 3339 in UTC, or a number of milliseconds: the profile's, the same for all of them.
    #[serde(borrow, default)]
    timestamp: Option<&'a RawValue>,
}

fn head(document: &RawValue) -> Option<Head<'_>> {
    serde_json::from_str(document.get()).ok()
}

fn id(document: &RawValue) -> Option<String> {
    head(document)?.id.map(Cow::into_owned)
}

/// See the module.
pub(crate) fn merged(mut stretches: Vec<Stretch>) -> Stretch {
    stretches.retain(|stretch| !stretch.is_empty());
    let began = |stretch: &Stretch| {
        stretch.first().and_then(|first| Some(head(first)?.timestamp?.get().to_owned()))
    };
    stretches.sort_by_cached_key(began);
    stretches.into_iter().reduce(laid_over).unwrap_or_default()
}

fn laid_over(one: Stretch, other: Stretch) -> Stretch {
    let place: HashMap<String, usize> =
        other.iter().enumerate().filter_map(|(at, document)| Some((id(document)?, at))).collect();
    let count = one.len() + other.len();
    let mut rest = other.into_iter().enumerate().peekable();
    let mut both = Vec::with_capacity(count);
    for document in one {
        let at = id(&document).and_then(|id| place.get(&id).copied());
        if let Some(at) = at {
            while let Some((_, before)) = rest.next_if(|(here, _)| *here < at) {
                both.push(before);
            }
            // Where it was passed already, it stands there.
            if rest.next_if(|(here, _)| *here == at).is_none() {
                continue;
            }
        }
        both.push(document);
    }
    both.extend(rest.map(|(_, document)| document));
    both
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stretch(ids: &[&str]) -> Stretch {
        let document = |id: &&str| {
            let text = format!(r#"{{"id":"{id}","timestamp":"2026-01-01T00:00:0{id}.000Z"}}"#);
            RawValue::from_string(text).expect("JSON")
        };
        ids.iter().map(document).collect()
    }

    fn order(stretches: &[&[&str]]) -> String {
        let all = merged(stretches.iter().map(|ids| stretch(ids)).collect());
        all.iter().filter_map(|document| id(document)).collect()
    }

    #[test]
    fn each_message_is_there_once_and_in_order_whatever_each_ear_missed() {
        assert_eq!(order(&[]), "");
        assert_eq!(order(&[&["1", "2", "3"], &["2", "3"], &["3", "4"]]), "1234");
        assert_eq!(order(&[&["3", "4"], &["1", "2", "3"]]), "1234");
        assert_eq!(order(&[&["1", "3"], &["2", "3", "4"]]), "1234");
        assert_eq!(order(&[&["3"], &[], &["1", "2"]]), "123");
        assert_eq!(order(&[&["1", "2"], &["1", "2"], &["1", "2"]]), "12");
    }
}
