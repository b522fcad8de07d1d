//! Filters by table: document, payload, verdict.

use serde_json::{Value, json};

use super::*;

fn passes(filter: &Value, payload: &Value) -> bool {
    Filter::new(filter).expect("a filter").matches(payload)
}

#[test]
fn operators_select_as_the_contract_says() {
    let payload = json!({"n": 5, "s": "b", "nil": null, "o": {"a": [{"x": 1}, 2]}, "t": true});
    for (filter, expected) in [
        (json!({}), true),
        (json!({"n": 5, "s": "b"}), true),
        (json!({"n": 5, "s": "c"}), false),
        (json!({"n": 5.0}), true),
        (json!({"n": "5"}), false),
        (json!({"o": {"a": [{"x": 1.0}, 2]}}), true),
        (json!({"o": {}}), false),
        (json!({"o.a.0.x": 1}), true),
        (json!({"o.a.1": 2}), true),
        (json!({"o.a.2": {"$exists": false}}), true),
        (json!({"n.x": 5}), false),
        (json!({"n": {"$gt": 4, "$lte": 5}}), true),
        (json!({"n": {"$gte": 6}}), false),
        (json!({"n": {"$lt": 5.5}}), true),
        (json!({"n": {"$gt": "4"}}), false),
        (json!({"n": {"$lt": "4"}}), false),
        (json!({"s": {"$gt": "a"}}), true),
        (json!({"t": {"$gte": 0}}), false),
        (json!({"n": {"$in": [1, 5]}}), true),
        (json!({"n": {"$in": []}}), false),
        (json!({"n": {"$nin": [1, 5]}}), false),
        (json!({"n": {"$ne": 4}}), true),
        (json!({"n": {"$not": {"$gt": 9}}}), true),
        (json!({"nil": null}), true),
        (json!({"nil": {"$exists": true}}), true),
        (json!({"gone": null}), false),
        (json!({"gone": {"$ne": 1}}), true),
        (json!({"gone": {"$nin": [1]}}), true),
        (json!({"gone": {"$not": {"$gt": 1}}}), true),
        (json!({"gone": {"$gt": 1}}), false),
        (json!({"$or": [{"n": 1}, {"s": "b"}]}), true),
        (json!({"$and": [{"n": 5}, {"s": "c"}]}), false),
        (json!({"$not": {"n": 5}}), false),
        (json!({"$not": {"gone": 5}}), true),
    ] {
        assert_eq!(passes(&filter, &payload), expected, "{filter}");
    }
    assert!(!passes(&json!({"n": 1}), &json!("no object")));
    assert!(!passes(
        &json!({"id": 9_007_199_254_740_993_u64}),
        &json!({"id": 9_007_199_254_740_992_u64})
    ));
}

#[test]
fn a_wrong_document_is_refused_with_its_place() {
    let mut deep = json!({"a": 1});
    for _ in 0..16 {
        deep = json!({"$not": deep});
    }
    let many: Vec<Value> = (0..257).map(|n| json!({"a": n})).collect();
    for (filter, path) in [
        (json!([1]), "the top"),
        (json!({"$nor": []}), "$nor"),
        (json!({"a": {"$regex": "x"}}), "a.$regex"),
        (json!({"a": {"$gt": 1, "b": 2}}), "a.b"),
        (json!({"a": {"$in": 1}}), "a.$in"),
        (json!({"a": {"$gt": null}}), "a.$gt"),
        (json!({"a": {"$exists": 1}}), "a.$exists"),
        (json!({"$or": []}), "$or"),
        (json!({"$or": [1]}), "$or.0"),
    ] {
        assert_eq!(Filter::new(&filter).expect_err("wrong").path, path, "{filter}");
    }
    assert!(Filter::new(&deep).is_err());
    assert!(Filter::new(&json!({"$or": many})).is_err());
}

#[test]
fn the_source_does_not_depend_on_the_order_of_keys() {
    let filter =
        |text: &str| Filter::new(&serde_json::from_str(text).expect("JSON")).expect("a filter");
    let one = filter(r#"{"b": 1, "a": {"$in": [2, 1]}}"#);
    let two = filter(r#"{"a": {"$in": [2, 1]}, "b": 1}"#);
    assert_eq!(one.source(), two.source());
    assert_eq!(one, two);
    assert_eq!(one.source(), r#"{"a":{"$in":[2,1]},"b":1}"#);
}
