//! Which tokens and keys open what. Key pairs are made for each run.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use carillon_protocol::{ChannelName, ErrorCode};
use jsonwebtoken::jwk::{Jwk, JwkSet};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};

use super::*;
use crate::config::{ApiKey, Jwt, JwtKey, Secret};

mod es512;

const SECRET: &str = "0123456789abcdef0123456789abcdef";
const NOW: i64 = 1_800_000_000;

/// A private and a public PEM.
struct Pair {
    private: String,
    public: String,
}

fn pair(algorithm: &'static rcgen::SignatureAlgorithm) -> Pair {
    let pair = rcgen::KeyPair::generate_for(algorithm).expect("a key pair");
    Pair { private: pair.serialize_pem(), public: pair.public_key_pem() }
}

fn encoding(algorithm: Algorithm, private: &str) -> EncodingKey {
    let pem = private.as_bytes();
    match algorithm {
        Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512 => EncodingKey::from_secret(pem),
        Algorithm::ES256 | Algorithm::ES384 => EncodingKey::from_ec_pem(pem).expect("EC"),
        Algorithm::EdDSA => EncodingKey::from_ed_pem(pem).expect("Ed25519"),
        _ => EncodingKey::from_rsa_pem(pem).expect("RSA"),
    }
}

fn sign(algorithm: Algorithm, private: &str, kid: Option<&str>, claims: &Value) -> String {
    let header = Header { kid: kid.map(str::to_owned), ..Header::new(algorithm) };
    jsonwebtoken::encode(&header, claims, &encoding(algorithm, private)).expect("a token")
}

fn alice() -> Value {
    json!({"user_id": "alice", "exp": NOW + 60})
}

fn with_secret() -> Jwt {
    Jwt { secret: Some(Secret::new(SECRET)), ..Jwt::default() }
}

fn with_public(public: &str) -> Jwt {
    Jwt { public_key: Some(Secret::new(public)), ..Jwt::default() }
}

async fn code(jwt: &Jwt, token: &str) -> Result<String, ErrorCode> {
    let verifier = TokenVerifier::new(jwt).expect("settings");
    verifier
        .verify_at(token, NOW)
        .await
        .map(|claims| claims.user.to_string())
        .map_err(|refusal| refusal.code)
}

#[tokio::test]
async fn every_algorithm_family_is_verified_by_its_key_alone() {
    let rsa = pair(&rcgen::PKCS_RSA_SHA256);
    let p256 = pair(&rcgen::PKCS_ECDSA_P256_SHA256);
    let p384 = pair(&rcgen::PKCS_ECDSA_P384_SHA384);
    let ed = pair(&rcgen::PKCS_ED25519);
    let hmac = Pair { private: SECRET.to_owned(), public: String::new() };
    let families: [(&Pair, &[Algorithm]); 5] = [
        (&hmac, &[Algorithm::HS256, Algorithm::HS384, Algorithm::HS512]),
        (
            &rsa,
            &[
                Algorithm::RS256,
                Algorithm::RS384,
                Algorithm::RS512,
                Algorithm::PS256,
                Algorithm::PS384,
                Algorithm::PS512,
            ],
        ),
        (&p256, &[Algorithm::ES256]),
        (&p384, &[Algorithm::ES384]),
        (&ed, &[Algorithm::EdDSA]),
    ];
    let settings = |pair: &Pair| {
        if pair.public.is_empty() { with_secret() } else { with_public(&pair.public) }
    };
    for (signer, (signing, algorithms)) in families.iter().enumerate() {
        for algorithm in *algorithms {
            let token = sign(*algorithm, &signing.private, None, &alice());
            for (verifier, (verifying, _)) in families.iter().enumerate() {
                let expected = if signer == verifier {
                    Ok("alice".to_owned())
                } else {
                    Err(ErrorCode::InvalidToken)
                };
                assert_eq!(
                    code(&settings(verifying), &token).await,
                    expected,
                    "{algorithm:?} by {verifier}"
                );
            }
        }
    }
}

#[tokio::test]
async fn a_public_key_is_no_hmac_secret() {
    let rsa = pair(&rcgen::PKCS_RSA_SHA256);
    let forged = sign(Algorithm::HS256, &rsa.public, None, &alice());
    assert_eq!(code(&with_public(&rsa.public), &forged).await, Err(ErrorCode::InvalidToken));
}

#[tokio::test]
async fn unsigned_and_mangled_tokens_are_invalid() {
    use base64::Engine as _;
    let encode = |text: String| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text);
    let body = encode(alice().to_string());
    let good = sign(Algorithm::HS256, SECRET, None, &alice());
    let critical = Header { crit: Some(vec!["x".into()]), ..Header::new(Algorithm::HS256) };
    let critical = jsonwebtoken::encode(&critical, &alice(), &encoding(Algorithm::HS256, SECRET))
        .expect("a token");
    assert_eq!(code(&with_secret(), "").await, Err(ErrorCode::MissingToken));
    for bad in [
        "x".to_owned(),
        "a.b.c".to_owned(),
        "..".to_owned(),
        format!("{}.{body}.", encode(r#"{"alg":"none"}"#.into())),
        format!("{}.{body}.", encode(r#"{"alg":"None","typ":"JWT"}"#.into())),
        format!("{}.{body}.", encode(r#"{"alg":"HS256"}"#.into())),
        good[..good.len() - 2].to_owned(),
        format!("{good}.x"),
        critical,
        sign(Algorithm::HS256, "another secret", None, &alice()),
        "x".repeat(TOKEN_BYTES_MAX + 1),
    ] {
        assert_eq!(code(&with_secret(), &bad).await, Err(ErrorCode::InvalidToken), "{bad}");
    }
}

#[tokio::test]
async fn allowed_algorithms_are_the_configured_ones() {
    let jwt = Jwt { algorithms: vec![Algorithm::HS512.into()], ..with_secret() };
    let token = |algorithm| sign(algorithm, SECRET, None, &alice());
    assert_eq!(code(&jwt, &token(Algorithm::HS512)).await, Ok("alice".into()));
    assert_eq!(code(&jwt, &token(Algorithm::HS256)).await, Err(ErrorCode::InvalidToken));
}

#[tokio::test]
async fn keys_are_chosen_by_kid() {
    let key = |kid: Option<&str>, secret: &str| JwtKey {
        kid: kid.map(str::to_owned),
        secret: Some(Secret::new(secret)),
        public_key: None,
        algorithms: Vec::new(),
    };
    let jwt = Jwt {
        keys: vec![key(Some("old"), "one"), key(Some("new"), "two"), key(None, "any")],
        ..Jwt::default()
    };
    let token = |secret, kid| sign(Algorithm::HS256, secret, kid, &alice());
    for (secret, kid, good) in [
        ("one", Some("old"), true),
        ("two", Some("new"), true),
        ("one", Some("new"), false),
        ("any", Some("new"), false),
        ("any", Some("unknown"), true),
        ("one", Some("unknown"), false),
        ("one", None, true),
        ("two", None, true),
    ] {
        assert_eq!(code(&jwt, &token(secret, kid)).await.is_ok(), good, "{secret} {kid:?}");
    }
}

#[tokio::test]
async fn times_issuer_and_audience_are_judged() {
    let jwt = Jwt {
        issuer: vec!["us".into()],
        audience: vec!["chat".into(), "app".into()],
        leeway: Duration::from_secs(5),
        ..with_secret()
    };
    let base = json!({"sub": "bob", "iss": "us", "aud": "app", "exp": NOW + 60});
    let with = |name: &str, value: Value| {
        let mut claims = base.clone();
        claims[name] = value;
        claims
    };
    let mut without_exp = base.clone();
    without_exp.as_object_mut().expect("an object").remove("exp");
    let invalid = Err(ErrorCode::InvalidToken);
    for (claims, expected) in [
        (base.clone(), Ok("bob".to_owned())),
        (with("user_id", "alice".into()), Ok("alice".into())),
        (with("user_id", 42.into()), Ok("42".into())),
        (with("user_id", Value::Null), Ok("bob".into())),
        (with("user_id", "".into()), invalid.clone()),
        (with("user_id", json!({"a": 1})), invalid.clone()),
        (with("sub", Value::Null), invalid.clone()),
        (with("exp", (NOW - 4).into()), Ok("bob".into())),
        (with("exp", (NOW - 5).into()), Err(ErrorCode::TokenExpired)),
        (with("exp", (NOW as f64 + 0.5).into()), Ok("bob".into())),
        (with("exp", i64::MAX.into()), Ok("bob".into())),
        (with("exp", "tomorrow".into()), invalid.clone()),
        (without_exp, invalid.clone()),
        (with("nbf", (NOW + 5).into()), Ok("bob".into())),
        (with("nbf", (NOW + 6).into()), invalid.clone()),
        (with("nbf", "soon".into()), invalid.clone()),
        (with("iss", "them".into()), invalid.clone()),
        (with("iss", Value::Null), invalid.clone()),
        (with("aud", json!(["x", "chat"])), Ok("bob".into())),
        (with("aud", json!(["x"])), invalid.clone()),
        (with("aud", Value::Null), invalid.clone()),
    ] {
        let token = sign(Algorithm::HS256, SECRET, None, &claims);
        assert_eq!(code(&jwt, &token).await, expected, "{claims}");
    }
}

#[tokio::test]
async fn refusals_say_what_and_nothing_of_the_token() {
    let verifier = TokenVerifier::new(&with_secret()).expect("settings");
    let expired = sign(Algorithm::HS256, SECRET, None, &json!({"sub": "a", "exp": NOW - 1}));
    for (token, message) in
        [("", "missing token"), ("x.y.z", "invalid token"), (&expired, "token expired")]
    {
        let refusal = verifier.verify_at(token, NOW).await.expect_err(message);
        assert_eq!((refusal.message.as_ref(), refusal.details.len()), (message, 0));
    }
}

#[tokio::test]
async fn claims_hold_name_scopes_grants_and_times() {
    let claims = json!({
        "sub": "alice", "exp": NOW + 60, "iat": NOW, "jti": "t1", "name": "Alice",
        "scope": "openid realtime:publish realtime:admin", "channels": ["admin-dashboard"],
    });
    let verifier = TokenVerifier::new(&with_secret()).expect("settings");
    let read = verifier
        .verify_at(&sign(Algorithm::HS256, SECRET, None, &claims), NOW)
        .await
        .expect("good");
    assert_eq!((read.name.as_deref(), read.token_id.as_deref()), (Some("Alice"), Some("t1")));
    assert_eq!(*read.scopes, [Scope::Publish, Scope::Admin]);
    assert_eq!((read.expires_at, read.issued_at), (NOW + 60, Some(NOW)));
    assert!(
        read.grants.cover(Action::Publish, &ChannelName::new("admin-dashboard").expect("a name"))
    );
    assert_eq!(Value::Object(read.all), claims);
}

#[test]
fn grants_cover_what_their_patterns_match() {
    let covers = |claim: &Value, action, channel: &str| {
        Grants::from_claim(claim).cover(action, &ChannelName::new(channel).expect("a name"))
    };
    let list = json!(["conversation:42", "chat.*", "room:**", "team:{x}", 7, "bad**pattern"]);
    for (channel, expected) in [
        ("conversation:42", true),
        ("conversation:421", false),
        ("chat.a.b", true),
        ("chat.", false),
        ("chat", false),
        ("room:1:2", true),
        ("team:red", true),
        ("other", false),
    ] {
        assert_eq!(covers(&list, Action::Subscribe, channel), expected, "{channel}");
        assert_eq!(covers(&list, Action::Presence, channel), expected, "{channel}");
    }
    let by_action = json!({"subscribe": ["a"], "publish": ["*"]});
    assert!(
        covers(&by_action, Action::Subscribe, "a") && !covers(&by_action, Action::Subscribe, "b")
    );
    assert!(covers(&by_action, Action::Publish, "anything"));
    assert!(!covers(&by_action, Action::Presence, "a"));
    for nothing in [json!(null), json!("a"), json!(1), json!({"subscribe": "a"})] {
        assert!(!covers(&nothing, Action::Subscribe, "a"), "{nothing}");
    }
}

/// Serves a JWK set that the test may change; counts the fetches.
async fn serve_jwks(
    set: Arc<parking_lot::Mutex<String>>,
    fetches: Arc<AtomicUsize>,
) -> (String, tokio::task::JoinHandle<()>) {
    let answer = move || {
        fetches.fetch_add(1, Ordering::SeqCst);
        let body = set.lock().clone();
        async move { body }
    };
    let router = axum::Router::new().route("/keys", axum::routing::get(answer));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/keys", listener.local_addr().expect("an address"));
    let server = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let service = hyper_util::service::TowerToHyperService::new(router.clone());
            connections.spawn(async move {
                let io = hyper_util::rt::TokioIo::new(stream);
                hyper::server::conn::http1::Builder::new().serve_connection(io, service).await
            });
        }
    });
    (url, server)
}

fn jwk_set(keys: &[(&str, Algorithm, &Pair)]) -> String {
    let keys = keys.iter().map(|(kid, algorithm, pair)| {
        let key = encoding(*algorithm, &pair.private);
        let mut jwk = Jwk::from_encoding_key(&key, *algorithm).expect("a JWK");
        jwk.common.key_id = Some((*kid).to_owned());
        jwk
    });
    let set = JwkSet { keys: keys.collect() };
    let mut set = serde_json::to_value(set).expect("JSON");
    set["keys"].as_array_mut().expect("a list").push(json!({"kty": "strange", "kid": "s"}));
    set.to_string()
}

#[tokio::test]
async fn a_jwk_set_is_fetched_once_for_an_unknown_kid_and_rotates() {
    let (first, second) = (pair(&rcgen::PKCS_ECDSA_P256_SHA256), pair(&rcgen::PKCS_RSA_SHA256));
    let set = Arc::new(parking_lot::Mutex::new(jwk_set(&[("one", Algorithm::ES256, &first)])));
    let fetches = Arc::new(AtomicUsize::new(0));
    let (url, server) = serve_jwks(set.clone(), fetches.clone()).await;
    let jwt = Jwt { jwks_url: Some(url), ..Jwt::default() };
    let verifier = TokenVerifier::new(&jwt).expect("settings");
    let good = sign(Algorithm::ES256, &first.private, Some("one"), &alice());
    for _ in 0..3 {
        assert!(verifier.verify_at(&good, NOW).await.is_ok());
    }
    let foreign = sign(Algorithm::ES256, &first.private, Some("two"), &alice());
    let hmac = sign(Algorithm::HS256, &first.public, Some("one"), &alice());
    assert!(verifier.verify_at(&foreign, NOW).await.is_err());
    assert!(verifier.verify_at(&hmac, NOW).await.is_err());
    assert_eq!(fetches.load(Ordering::SeqCst), 1);

    // A verifier that starts after the rotation sees the new set; when that breaks, the keys stay.
    *set.lock() = jwk_set(&[("one", Algorithm::ES256, &first), ("two", Algorithm::RS256, &second)]);
    let verifier = TokenVerifier::new(&jwt).expect("settings");
    let rotated = sign(Algorithm::RS256, &second.private, Some("two"), &alice());
    assert!(verifier.verify_at(&rotated, NOW).await.is_ok());
    assert!(verifier.verify_at(&good, NOW).await.is_ok());
    *set.lock() = "broken".to_owned();
    assert!(verifier.verify_at(&foreign, NOW).await.is_err());
    assert!(verifier.verify_at(&rotated, NOW).await.is_ok());
    server.abort();
}

#[test]
fn api_keys_open_by_key_or_hash() {
    let row = |key: Option<&str>, key_hash: Option<String>, scopes: &[Scope]| ApiKey {
        key: key.map(Secret::new),
        key_hash,
        scopes: scopes.to_vec(),
    };
    let keys = ApiKeys::new(
        &[
            ("plain".to_owned(), row(Some("key-one"), None, &[Scope::Publish])),
            ("hashed".to_owned(), row(None, Some(hash_key("key-two")), &[Scope::Admin])),
        ]
        .into(),
    );
    let plain = keys.verify("key-one").expect("plain");
    assert_eq!((plain.sender_key().as_str(), plain.user()), ("k:plain", None));
    assert!(plain.require(Scope::Publish).is_ok());
    assert_eq!(plain.require(Scope::Read).expect_err("no").code, ErrorCode::Forbidden);
    let hashed = keys.verify("key-two").expect("hashed");
    assert!(Scope::ALL.iter().all(|scope| hashed.holds(*scope)));
    for bad in ["", "key-three", &hash_key("key-two")] {
        assert_eq!(keys.verify(bad).expect_err(bad).code, ErrorCode::InvalidToken);
    }
    assert_eq!(
        hash_key("abc"),
        "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    );
}

#[tokio::test]
async fn minted_tokens_are_accepted() {
    let jwt = Jwt { issuer: vec!["us".into()], audience: vec!["chat".into()], ..with_secret() };
    let token = NewToken {
        user: "alice".into(),
        scope: Some("realtime:read".into()),
        channels: Some(json!(["a"])),
        ttl: Duration::from_secs(60),
        ..NewToken::default()
    };
    let minted = mint(&jwt, None, &token, NOW).expect("a token");
    let claims =
        TokenVerifier::new(&jwt).expect("settings").verify_at(&minted, NOW).await.expect("good");
    let caller = Caller::User(Box::new(claims));
    assert_eq!(caller.sender_key(), "u:alice");
    assert!(caller.holds(Scope::Read) && !caller.holds(Scope::Publish));
    assert_eq!(mint(&Jwt::default(), None, &token, NOW), Err(MintError::NoSecret));
    let public_only = Jwt { algorithms: vec![Algorithm::RS256.into()], ..with_secret() };
    assert_eq!(mint(&public_only, None, &token, NOW), Err(MintError::NoAlgorithm));
}
