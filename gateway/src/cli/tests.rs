//! The command line as people type it; publishing against a server that stumbles; what `listen` remembers.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use clap::{CommandFactory as _, Parser as _};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::listen::{Heard, Look, Session};
use super::*;
use crate::auth::TokenVerifier;

fn parse(line: &[&str]) -> Cli {
    Cli::try_parse_from(std::iter::once(&"carillon").chain(line))
        .unwrap_or_else(|error| panic!("{line:?}: {error}"))
}

#[test]
fn every_subcommand_is_well_formed_and_has_examples() {
    Cli::command().debug_assert();
    for command in Cli::command().get_subcommands() {
        let examples = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        assert!(
            examples.contains(&format!("carillon {}", command.get_name()))
                || examples.contains("hash-key"),
            "{}",
            command.get_name()
        );
    }
}

#[test]
fn serving_is_the_default_and_flags_become_settings() {
    let Cli { command: None, serve } = parse(&[
        "--dev",
        "--listen",
        "127.0.0.1:0",
        "--redis-url",
        "redis://r",
        "--set",
        "log.level=debug",
    ]) else {
        panic!("a subcommand")
    };
    let flags = serve.sources().flags;
    for (key, value) in [
        ("dev", "true"),
        ("server.listen", "127.0.0.1:0"),
        ("redis.url", "redis://r"),
        ("log.level", "debug"),
    ] {
        assert!(flags.contains(&(key.to_owned(), value.to_owned())), "{key} in {flags:?}");
    }
    assert!(matches!(parse(&["serve", "--dev"]).command, Some(Command::Serve(_))));
    for bad in [&["--set", "novalue"][..], &["publish", "--channel", "a"], &["token"], &["unknown"]]
    {
        assert!(Cli::try_parse_from(std::iter::once(&"carillon").chain(bad)).is_err(), "{bad:?}");
    }
}

#[tokio::test]
async fn the_banner_holds_a_token_that_works() {
    let config = Config::development(&[("server.listen", "0.0.0.0:8082")]).expect("config");
    let now = jiff::Timestamp::now().as_second();
    let banner = serve::banner(&config, now);
    let token = banner.lines().find_map(|line| line.strip_prefix(" token    ")).expect("a token");
    let claims =
        TokenVerifier::new(&config.auth.jwt).expect("settings").verify(token).await.expect("good");
    assert_eq!(claims.user.as_str(), "alice");
    for part in [
        "DEVELOPMENT MODE",
        "curl -H 'X-API-Key: ",
        " listen --url http://127.0.0.1:8082",
        "/api/realtime/docs",
    ] {
        assert!(banner.contains(part), "{part} is missing in {banner}");
    }
}

#[tokio::test]
async fn a_token_is_signed_with_the_given_secret() {
    let secret = "0123456789abcdef0123456789abcdef";
    let line = [
        "token",
        "--user",
        "bob",
        "--ttl",
        "2h",
        "--channels",
        "a, b.*",
        "--scope",
        "realtime:read,realtime:publish",
        "--secret",
        secret,
    ];
    let Some(Command::Token(args)) = parse(&line).command else { panic!("no token") };
    let now = jiff::Timestamp::now().as_second();
    let token = token::make(&args, now).expect("a token");
    let config = Config::development(&[("auth.jwt.secret", secret)]).expect("config");
    let claims =
        TokenVerifier::new(&config.auth.jwt).expect("settings").verify(&token).await.expect("good");
    assert_eq!(
        (claims.user.as_str(), claims.expires_at, claims.scopes.len()),
        ("bob", now + 7200, 2)
    );
    assert_eq!(claims.all["channels"], json!(["a", "b.*"]));
}

/// What the stumbling gateway has seen and what it still has to say.
#[derive(Default)]
struct Gateway {
    stumbles: Vec<(StatusCode, Value)>,
    published: Vec<Value>,
    calls: usize,
}

async fn batch(
    State(gateway): State<Arc<Mutex<Gateway>>>,
    body: axum::Json<Value>,
) -> (StatusCode, axum::Json<Value>) {
    let mut gateway = gateway.lock();
    gateway.calls += 1;
    if let Some((status, answer)) = gateway.stumbles.pop() {
        return (status, axum::Json(answer));
    }
    let messages = body["messages"].as_array().cloned().unwrap_or_default();
    let results: Vec<Value> = messages
        .iter()
        .map(|message| match message["payload"].as_str() {
            Some("bad") => json!({"error": "no", "code": "FORBIDDEN"}),
            _ => json!({"id": message["id"], "duplicate": gateway.published.contains(message)}),
        })
        .collect();
    gateway.published.extend(messages);
    (StatusCode::OK, axum::Json(json!({"results": results})))
}

async fn gateway(
    stumbles: Vec<(StatusCode, Value)>,
) -> (String, Arc<Mutex<Gateway>>, tokio::task::JoinHandle<()>) {
    let state = Arc::new(Mutex::new(Gateway { stumbles, ..Gateway::default() }));
    let router = axum::Router::new()
        .route("/api/realtime/publish/batch", axum::routing::post(batch))
        .with_state(state.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
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
    (url, state, server)
}

fn publish_args(url: &str, more: &[&str]) -> publish::PublishArgs {
    let line =
        [&["publish", "--url", url, "--channel", "general", "--from", "-", "--api-key", "k"], more]
            .concat();
    let Some(Command::Publish(args)) = parse(&line).command else { panic!("no publish") };
    args
}

#[tokio::test]
async fn lines_are_published_in_order_through_stumbles() {
    let (url, state, server) = gateway(vec![
        (StatusCode::TOO_MANY_REQUESTS, json!({"error": "slow", "details": {"retry_after_ms": 1}})),
        (StatusCode::SERVICE_UNAVAILABLE, json!({"error": "out of reach"})),
    ])
    .await;
    let input: String =
        (0..1_000).map(|n| format!("{{\"n\":{n}}}\n\n")).collect::<String>() + "plain text\n";
    let tally =
        publish::publish(&publish_args(&url, &[]), input.as_bytes()).await.expect("published");
    assert_eq!(tally, publish::Tally { published: 1_001, duplicates: 0, failed: 0 });
    let seen = state.lock();
    let payloads: Vec<&Value> = seen.published.iter().map(|message| &message["payload"]).collect();
    assert!((0..1_000).all(|n| *payloads[n] == json!({"n": n})));
    assert_eq!(*payloads[1_000], json!("plain text"));
    assert!(seen.calls < 200, "{} calls for 1,001 messages", seen.calls);
    assert_eq!(seen.published[0]["type"], "message");
    server.abort();
}

#[tokio::test]
async fn refused_messages_are_counted_and_a_refused_caller_stops() {
    let (url, _, server) = gateway(Vec::new()).await;
    let tally = publish::publish(&publish_args(&url, &[]), "good\nbad\ngood\n".as_bytes())
        .await
        .expect("published");
    assert_eq!(tally, publish::Tally { published: 2, duplicates: 0, failed: 1 });
    server.abort();
    let (url, state, server) =
        gateway(vec![(StatusCode::UNAUTHORIZED, json!({"error": "invalid API key"}))]).await;
    let error =
        publish::publish(&publish_args(&url, &["--in-flight", "1"]), "a\nb\nc\n".as_bytes())
            .await
            .expect_err("refused");
    assert!(error.to_string().contains("401") && error.to_string().contains("invalid API key"));
    assert_eq!(state.lock().calls, 1);
    server.abort();
}

#[tokio::test]
async fn a_gateway_that_stays_away_is_given_up() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    drop(listener);
    let tally = publish::publish(&publish_args(&url, &["--retry-for", "0"]), "a\n".as_bytes())
        .await
        .expect("a tally");
    assert_eq!(tally, publish::Tally { published: 0, duplicates: 0, failed: 1 });
}

#[test]
fn listening_resumes_from_the_last_message_of_each_channel() {
    let mut session = Session::new(&["chat".to_owned()]);
    assert_eq!(
        session.requests(),
        [json!({"type": "subscribe", "channel": "chat", "payload": {}}).to_string()]
    );
    let welcome = json!({"type": "connect", "payload": {"user_id": "alice", "channels": [
        {"channel": "notifications", "offset": 4, "epoch": "E", "tag": "T4"}]}});
    assert_eq!(session.hear(&welcome.to_string())[0], Heard::Connected);
    let subscribed = json!({"type": "subscribed", "channel": "chat", "payload": {"channel": "chat", "offset": 0, "epoch": "F", "recovered": false, "reason": "fresh"}});
    assert_eq!(
        session.hear(&subscribed.to_string()),
        [Heard::Note("subscribed to chat".to_owned())]
    );
    let message = |offset: u64| json!({"type": "message", "channel": "chat", "payload": 1, "offset": offset, "epoch": "F", "tag": "T"});
    let two = format!("{}\n{}\n", message(1), message(2));
    assert_eq!(session.hear(&two).len(), 2);
    assert_eq!(session.hear(&message(2).to_string()), [], "a repetition");
    let requests: Vec<Value> =
        session.requests().iter().map(|text| serde_json::from_str(text).expect("JSON")).collect();
    assert_eq!(requests[0]["payload"]["since"], json!({"offset": 2, "epoch": "F", "tag": "T"}));
    assert_eq!(requests[1]["channel"], "notifications");
    assert_eq!(requests[1]["payload"]["since"], json!({"offset": 4, "epoch": "E", "tag": "T4"}));
    // Where history was lost it says so and goes on from the new place.
    let lost = json!({"type": "subscribed", "payload": {"channel": "chat", "offset": 9, "epoch": "G", "recovered": false, "reason": "epoch"}});
    assert!(
        matches!(&session.hear(&lost.to_string())[..], [Heard::Note(note)] if note.contains("lost"))
    );
    assert!(session.requests()[0].contains("\"offset\":9"));
}

#[test]
fn listening_says_when_not_to_come_back() {
    let mut session = Session::new(&[]);
    let bye = |payload: Value| json!({"type": "disconnect", "payload": payload}).to_string();
    let reconnects = |heard: &[Heard]| {
        heard.iter().any(|heard| matches!(heard, Heard::Disconnect { reconnect: true, .. }))
    };
    assert!(reconnects(&session.hear(&bye(
        json!({"reason": "draining", "code": 1012, "reconnect": true, "retry_after_ms": 5})
    ))));
    assert!(!reconnects(
        &session.hear(&bye(json!({"reason": "kicked", "code": 4403, "reconnect": false})))
    ));
    assert!(!reconnects(
        &session.hear(&bye(json!({"reason": "token expired", "code": 4401, "reconnect": true})))
    ));
    assert_eq!(session.hear("not json"), []);
}

#[test]
fn a_line_shows_time_channel_type_and_payload() {
    let message = json!({"type": "me\u{1b}ssage", "channel": "chat", "payload": {"text": "a\u{1b}"}, "timestamp": "2026-01-02T03:04:05.678Z"});
    let plain = Look::Text { colour: false }.line(&message);
    assert_eq!(plain, "03:04:05.678 chat me\u{fffd}ssage {\"text\":\"a\\u001b\"}");
    assert!(Look::Text { colour: true }.line(&message).contains("\u{1b}[36mchat\u{1b}[0m"));
    assert_eq!(Look::Json.line(&message), message.to_string());
}

/// Takes one connection, its headers' word for the token and its first request.
async fn welcome(
    listener: &tokio::net::TcpListener,
) -> (tokio_tungstenite::WebSocketStream<tokio::net::TcpStream>, Option<String>, Value) {
    use futures_util::StreamExt as _;
    use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
    let (stream, _) = listener.accept().await.expect("a connection");
    let mut authorization = None;
    #[expect(clippy::result_large_err, reason = "the callback's type is the library's")]
    let callback = |request: &Request, response: Response| {
        let value = request.headers().get("authorization");
        authorization = value.and_then(|value| value.to_str().ok()).map(str::to_owned);
        Ok(response)
    };
    let mut socket =
        tokio_tungstenite::accept_hdr_async(stream, callback).await.expect("a handshake");
    let first = socket.next().await.expect("a frame").expect("a good frame");
    let request = serde_json::from_str(first.to_text().expect("text")).expect("JSON");
    (socket, authorization, request)
}

#[tokio::test]
async fn listening_reconnects_and_resumes() {
    use futures_util::SinkExt as _;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("ws://{}/ws", listener.local_addr().expect("an address"));
    let message = |offset: u64| {
        let message = json!({"type": "message", "channel": "chat", "payload": offset, "offset": offset, "epoch": "F", "tag": "T"});
        tokio_tungstenite::tungstenite::Message::text(message.to_string())
    };
    let server = async {
        let (mut socket, authorization, request) = welcome(&listener).await;
        assert_eq!(authorization.as_deref(), Some("Bearer secret-token"));
        assert_eq!(request["payload"], json!({}));
        socket.send(message(1)).await.expect("sent");
        socket.close(None).await.expect("closed");
        drop(socket);
        let (mut socket, _, request) = welcome(&listener).await;
        assert_eq!(request["payload"]["since"], json!({"offset": 1, "epoch": "F", "tag": "T"}));
        socket.send(message(2)).await.expect("sent");
    };
    let line = [
        "listen",
        "--url",
        &url,
        "--channel",
        "chat",
        "--token",
        "secret-token",
        "--json",
        "--count",
        "2",
    ];
    let Some(Command::Listen(args)) = parse(&line).command else { panic!("no listen") };
    let (code, ()) = tokio::join!(super::listen::run(args), server);
    assert_eq!(code.expect("listened"), ExitCode::SUCCESS);
}
