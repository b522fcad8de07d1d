//! The shipped table, channel by channel, for an anonymous client, for alice, and for who is granted all.

use std::time::Duration;

use serde_json::json;

use super::*;
use crate::auth::Grants;
use crate::config::shipped;

fn claims(user: &str, grants: &serde_json::Value) -> Claims {
    Claims {
        user: carillon_protocol::UserId::new(user).expect("a user"),
        name: None,
        scopes: Box::default(),
        grants: Grants::from_claim(grants),
        expires_at: i64::MAX,
        token_id: None,
        issued_at: None,
        all: serde_json::Map::new(),
    }
}

fn name(text: &str) -> ChannelName {
    ChannelName::new(text).expect("a name")
}

fn policy() -> Policy {
    Policy::of(&shipped()).expect("the shipped patterns")
}

/// Letters of `decide` for subscribe, publish and presence: `+` allowed, `-` forbidden, `?` ask, `0` not found.
fn letters(policy: &Policy, identity: Option<&Claims>, channel: &str) -> String {
    [Action::Subscribe, Action::Publish, Action::Presence]
        .into_iter()
        .map(|action| match policy.decide(action, identity, &name(channel)) {
            Decision::Allow => '+',
            Decision::Ask => '?',
            Decision::Refuse(refusal) if refusal.code == ErrorCode::Forbidden => '-',
            Decision::Refuse(_) => '0',
        })
        .collect()
}

#[test]
fn shipped_namespaces_allow_what_the_contract_says() {
    let (policy, alice) = (policy(), claims("alice", &json!(null)));
    let granted = claims("alice", &json!(["**"]));
    for (channel, anonymous, as_alice, with_grants) in [
        ("notifications", "---", "+--", "+--"),
        ("user:alice", "---", "+--", "+--"),
        ("user:bob", "---", "---", "---"),
        ("user:alice:inbox", "---", "+--", "+--"),
        ("user:bob:inbox", "---", "---", "---"),
        ("user.alice.messages", "---", "++-", "++-"),
        ("user.bob.messages", "---", "-+-", "-+-"),
        ("presence", "---", "+++", "+++"),
        ("presence:doc:1", "---", "+-+", "+-+"),
        ("conversation:42", "---", "+++", "+++"),
        ("chat", "---", "+++", "+++"),
        ("chat.general", "---", "+++", "+++"),
        ("chat:1:2", "---", "+++", "+++"),
        ("document.7", "---", "+++", "+++"),
        ("room:a", "---", "+++", "+++"),
        ("entity:Task", "---", "+--", "+--"),
        ("entity:Task:v1.2", "---", "+--", "+--"),
        ("topic:news", "---", "+--", "+--"),
        ("feed:alice:home", "---", "+--", "+--"),
        ("dashboard", "---", "+--", "+--"),
        ("metrics.cpu", "---", "+--", "+--"),
        ("news", "---", "+--", "+--"),
        ("public:x", "+--", "+--", "+--"),
        ("general", "---", "+++", "+++"),
        ("admin-dashboard", "---", "---", "+--"),
        ("unknown", "000", "000", "000"),
        ("newsy", "000", "000", "000"),
        ("user.alice", "000", "000", "000"),
    ] {
        assert_eq!(letters(&policy, None, channel), anonymous, "{channel}, anonymous");
        assert_eq!(letters(&policy, Some(&alice), channel), as_alice, "{channel}, alice");
        assert_eq!(letters(&policy, Some(&granted), channel), with_grants, "{channel}, granted");
    }
}

#[test]
fn nobody_is_taken_for_another_by_an_odd_user_id() {
    let policy = policy();
    for (user, channel, own) in [
        ("alice:inbox", "user:alice:inbox", false),
        ("alice.messages", "user.alice.messages", false),
        ("a:b", "user:a%3Ab", true),
        ("a", "user:a%3Ab", false),
        ("a.b", "user:a.b", true),
        ("Alice", "user:alice", false),
    ] {
        let decision =
            policy.decide(Action::Subscribe, Some(&claims(user, &json!(null))), &name(channel));
        assert_eq!(decision == Decision::Allow, own, "{user} on {channel}");
    }
}

#[test]
fn shipped_history_and_conflation_are_the_contracts() {
    let policy = policy();
    for (channel, size, hours, conflate) in [
        ("notifications", 1_000, 24, false),
        ("user:alice", 1_000, 24, false),
        ("presence:x", 0, 0, false),
        ("chat.x", 1_000, 24, false),
        ("document.x", 1_000, 1, false),
        ("entity:Task", 1_000, 1, false),
        ("metrics", 100, 1, true),
        ("metrics.x", 100, 1, true),
        ("dashboard.x", 100, 1, true),
        ("dashboard", 100, 1, false),
        ("public:x", 100, 1, false),
    ] {
        let channel_name = name(channel);
        let found = policy.find(&channel_name).expect(channel);
        let expected =
            (size > 0).then(|| Retention { size, age: Duration::from_secs(hours * 3600) });
        assert_eq!(
            (found.namespace.retention, found.namespace.conflate),
            (expected, conflate),
            "{channel}"
        );
    }
}

#[test]
fn first_match_wins_and_any_rule_suffices() {
    let row = |pattern: &str, subscribe: &[Rule]| NamespaceSettings {
        pattern: pattern.to_owned(),
        subscribe: subscribe.to_vec(),
        publish: vec![Rule::Service],
        presence: vec![Rule::No],
        history: None,
        conflate: false,
        publishes_per_second: Some(7),
    };
    let policy = Policy::of(&[
        row("a:closed", &[Rule::No]),
        row("a:{id}", &[Rule::Own, Rule::Webhook]),
        row("b:**", &[Rule::Granted, Rule::Own]),
        row("c", &[Rule::Own]),
    ])
    .expect("patterns");
    let alice = claims("alice", &json!({"subscribe": ["b:1"]}));
    assert_eq!(letters(&policy, Some(&alice), "a:closed"), "---");
    assert_eq!(letters(&policy, Some(&alice), "a:alice"), "+--");
    assert_eq!(letters(&policy, Some(&alice), "a:bob"), "?--");
    assert_eq!(letters(&policy, None, "a:bob"), "?--");
    assert_eq!(letters(&policy, Some(&alice), "b:1"), "+--");
    assert_eq!(letters(&policy, Some(&alice), "b:2"), "---");
    assert_eq!(letters(&policy, Some(&alice), "c"), "---");
    assert_eq!(policy.find(&name("b:1")).expect("b").namespace.publishes_per_second, Some(7));
}
