//! Revoked tokens over two nodes.

use super::*;
use carillon_broker_client::{Revocation, RevokedTokens};

over_both! {
    a_revoked_token_ends_on_every_node_and_is_refused_everywhere
    a_users_tokens_of_before_are_refused_and_later_ones_are_not
}

/// The token's id.
fn id_of(token: &str) -> String {
    let claims = token.split('.').nth(1).expect("claims");
    let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(claims).expect("base64");
    let claims: Value = serde_json::from_slice(&claims).expect("JSON");
    claims["jti"].as_str().expect("a jti").to_owned()
}

/// The client is told and closed.
async fn ends(client: &mut Client) {
    let told = client.until("disconnect").await;
    assert_eq!(
        (&told["payload"]["code"], &told["payload"]["reason"], &told["payload"]["reconnect"]),
        (&json!(4401), &json!("token revoked"), &json!(true))
    );
    let closed = client.next().await;
    assert_eq!(closed["code"], 4401, "{closed}");
}

async fn a_revoked_token_ends_on_every_node_and_is_refused_everywhere(cluster: &Cluster) {
    let (one, two) = (Running::start(cluster, &[]).await, Running::start(cluster, &[]).await);
    let (token, fresh) = (one.token("ada"), one.token("ada"));
    let mut here = one.try_connect(&token, "").await.expect("connected");
    let mut there = two.try_connect(&token, "").await.expect("connected");
    let mut other = two.try_connect(&fresh, "").await.expect("connected");
    let (status, answer) = one.post("/tokens/revoke", json!({"jti": id_of(&token)})).await;
    assert_eq!((status, &answer["disconnected"]), (200, &json!(2)), "{answer}");
    ends(&mut here).await;
    ends(&mut there).await;
    for node in [&one, &two] {
        assert_eq!(node.try_connect(&token, "").await.err(), Some(401));
        let (status, refused) = node.call("GET", "/notifications", &token, None).await;
        assert_eq!((status, &refused["code"]), (401, &json!("INVALID_TOKEN")));
        let poll = "/api/v1/realtime/poll?user_id=ada&timeout=0";
        assert_eq!(node.call("GET", poll, &token, None).await.1["code"], "INVALID_TOKEN");
    }
    // The user's other token is as good as before, and cannot be replaced by the revoked one.
    let auth = json!({"type": "auth", "payload": {"token": token}});
    assert_eq!(other.request(auth).await["payload"]["code"], "INVALID_TOKEN");
    assert_eq!(one.call("GET", "/notifications", &fresh, None).await.0, 200);
    // A node that starts later knows it.
    let late = Running::start(cluster, &[]).await;
    assert_eq!(late.try_connect(&token, "").await.err(), Some(401));
    assert!(late.try_connect(&fresh, "").await.is_ok());
    // Taken back.
    let past = json!({"jti": id_of(&token), "until": "2020-01-01T00:00:00Z"});
    assert_eq!(two.post("/tokens/revoke", past).await.0, 200);
    assert!(two.try_connect(&token, "").await.is_ok());
    for node in [one, two, late] {
        node.stop().await;
    }
}

async fn a_users_tokens_of_before_are_refused_and_later_ones_are_not(cluster: &Cluster) {
    let (one, two) = (Running::start(cluster, &[]).await, Running::start(cluster, &[]).await);
    let token = |user: &str, issued_at: i64| {
        let token = auth::NewToken {
            user: user.to_owned(),
            ttl: Duration::from_secs(3_600),
            ..auth::NewToken::default()
        };
        auth::mint(&one.node.config.load().auth.jwt, None, &token, issued_at).expect("minted")
    };
    let now = clock::unix_ms() / 1_000;
    let (before, after, bobs) =
        (token("ada", now - 60), token("ada", now + 5), token("bob", now - 60));
    let mut ended = two.try_connect(&before, "").await.expect("connected");
    let mut stays = two.try_connect(&bobs, "").await.expect("connected");
    let (status, answer) = one.post("/tokens/revoke", json!({"user_id": "ada"})).await;
    assert_eq!((status, &answer["disconnected"]), (200, &json!(1)), "{answer}");
    ends(&mut ended).await;
    assert_eq!(two.try_connect(&before, "").await.err(), Some(401));
    assert!(two.try_connect(&after, "").await.is_ok());
    stays.say(json!({"type": "ping"})).await;
    stays.until("pong").await;
    // Until a time: nobody comes in as this user, with whatever token.
    let until = carillon_protocol::time::rfc3339(clock::unix_ms() + 3_600_000);
    let ban = json!({"user_id": "bob", "issued_before": until, "until": until});
    assert_eq!(one.post("/tokens/revoke", ban).await.0, 200);
    ends(&mut stays).await;
    assert_eq!(two.try_connect(&token("bob", now + 5), "").await.err(), Some(401));
    for body in [
        json!({}),
        json!({"jti": ""}),
        json!({"jti": "a", "user_id": "b"}),
        json!({"jti": "a", "issued_before": "2026-01-01T00:00:00Z"}),
        json!({"jti": "a", "until": "soon"}),
        json!({"user_id": ""}),
    ] {
        let (status, refused) = one.post("/tokens/revoke", body.clone()).await;
        assert_eq!((status, &refused["code"]), (400, &json!("INVALID_MESSAGE")), "{body}");
    }
    let far = json!({"jti": "a", "until": "2999-01-01T00:00:00Z"});
    let (status, answer) = one.post("/tokens/revoke", far).await;
    assert_eq!(status, 200, "{answer}");
    assert!(answer["until"].as_str().is_some_and(|until| !until.starts_with("2999")), "{answer}");
    let forbidden = one.call("POST", "/tokens/revoke", &after, Some(&json!({"jti": "a"}))).await;
    assert_eq!(forbidden.0, 403);
    one.stop().await;
    two.stop().await;
}

#[tokio::test]
async fn a_node_that_missed_the_message_follows_and_a_store_that_lost_all_is_told() {
    let cluster = MemoryCluster::new();
    let one = Running::start(&Cluster::Memory(cluster.clone()), &[]).await;
    let token = one.token("ada");
    let mut client = one.try_connect(&token, "").await.expect("connected");
    let until_ms = clock::unix_ms() + 60_000;
    let revocation = Revocation { tokens: RevokedTokens::Id(id_of(&token)), until_ms };
    // Straight into the store: nobody is told.
    let began = tokio::time::Instant::now();
    one.node.broker.revoke(&revocation).await.expect("revoked");
    ends(&mut client).await;
    println!("followed after {:?}", began.elapsed());
    cluster.lose_data();
    let restored = async {
        while one.node.broker.revocations().await.expect("read").all != [revocation.clone()] {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, restored).await.expect("written again");
    assert_eq!(one.try_connect(&token, "").await.err(), Some(401));
    one.stop().await;
}
