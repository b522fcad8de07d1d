//! Stories that seeds have found, told again word by word.

use std::time::Duration;

use carillon_protocol::ChannelName;
use serde_json::{Value, json};

use crate::log::Log;
use crate::session::{Heard, Session};
use crate::stage::{DEEP, Hello, Stage};

/// Of the runtime's own clock.
const PATIENCE: Duration = Duration::from_secs(60);

fn story<Tale: Future<Output = ()>>(tale: impl FnOnce(Stage) -> Tale) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(async { tale(Stage::start(1, &Log::new(), 7)).await });
}

fn open(stage: &Stage, user: &str, sse: bool, cursor: Option<String>) -> Session {
    let channels = if sse { vec![DEEP.to_owned()] } else { Vec::new() };
    let hello = Hello { user: user.to_owned(), sse, channels, cursor };
    Session::new(stage.connect(0, hello).expect("somebody listens"), sse)
}

/// Reads up to and including the first message that is meant; all of them.
async fn until(
    session: &mut Session,
    meant: impl Fn(&Value) -> bool,
) -> Vec<(Value, Option<String>)> {
    let mut heard = Vec::new();
    loop {
        let next = tokio::time::timeout(PATIENCE, session.next(true)).await;
        let Ok(Heard::Message(message, cursor)) = next else {
            panic!("{next:?} after {heard:?}");
        };
        let found = meant(&message);
        heard.push((message, cursor));
        if found {
            return heard;
        }
    }
}

async fn until_type(session: &mut Session, kind: &str) -> Vec<(Value, Option<String>)> {
    until(session, |message| message["type"] == kind).await
}

async fn speaker(stage: &Stage) -> Session {
    let mut session = open(stage, "speaker", false, None);
    until_type(&mut session, "connect").await;
    session
}

async fn publish(session: &mut Session, id: &str, size: usize) {
    let payload = "x".repeat(size);
    let message =
        json!({"type": "message", "id": id, "channel": DEEP, "payload": payload, "ack_id": id});
    session.say(&message);
    until(session, |message| message["ack_id"] == id).await;
}

fn ids(heard: &[(Value, Option<String>)]) -> Vec<&str> {
    let messages = heard.iter().filter(|(message, _)| message["type"] == "message");
    messages.filter_map(|(message, _)| message["id"].as_str()).collect()
}

#[test]
fn a_stream_that_breaks_while_it_resumes_keeps_its_place() {
    story(async |stage| {
        let mut speaker = speaker(&stage).await;
        let mut stream = open(&stage, "ada", true, None);
        until_type(&mut stream, "subscribed").await;
        publish(&mut speaker, "m1", 10).await;
        let cursor = until_type(&mut stream, "message").await.pop().and_then(|(_, cursor)| cursor);
        drop(stream);
        publish(&mut speaker, "m2", 10).await;
        let mut stream = open(&stage, "ada", true, cursor);
        let cursor = until_type(&mut stream, "connect").await.pop().and_then(|(_, cursor)| cursor);
        drop(stream);
        let mut stream = open(&stage, "ada", true, cursor);
        let subscribed = until(&mut stream, |message| message["payload"]["channel"] == DEEP).await;
        let (subscribed, _) = subscribed.last().expect("a message");
        assert_eq!(subscribed["payload"]["recovered"], true, "{subscribed}");
        assert_eq!(ids(&until_type(&mut stream, "message").await), ["m2"]);
    });
}

#[test]
fn a_stream_opened_during_an_outage_resumes_when_it_is_over() {
    story(async |stage| {
        let mut speaker = speaker(&stage).await;
        let mut stream = open(&stage, "ada", true, None);
        until_type(&mut stream, "subscribed").await;
        publish(&mut speaker, "m1", 10).await;
        let cursor = until_type(&mut stream, "message").await.pop().and_then(|(_, cursor)| cursor);
        drop(stream);
        publish(&mut speaker, "m2", 10).await;
        stage.cluster().set_available(false);
        // Until its node has stopped to hear the channel, there would be nothing to open.
        tokio::time::sleep(Duration::from_secs(8)).await;
        let mut stream = open(&stage, "ada", true, cursor);
        until_type(&mut stream, "connect").await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        stage.cluster().set_available(true);
        let meant = |message: &Value| message["payload"]["channel"] == DEEP;
        let heard = until(&mut stream, meant).await;
        assert!(heard.iter().all(|(message, _)| message["type"] != "error"), "{heard:?}");
        let (subscribed, _) = heard.last().expect("a message");
        assert_eq!(subscribed["payload"]["recovered"], true, "{subscribed}");
        assert_eq!(ids(&until_type(&mut stream, "message").await), ["m2"]);
    });
}

#[test]
fn a_slow_reader_is_told_of_a_fork_in_its_turn() {
    story(async |stage| {
        let mut speaker = speaker(&stage).await;
        let mut reader = open(&stage, "ada", false, None);
        reader.say(&json!({"type": "subscribe", "channel": DEEP}));
        until_type(&mut reader, "subscribed").await;
        for index in 0..30 {
            publish(&mut speaker, &format!("m{index}"), 600).await;
        }
        let channel = ChannelName::new(DEEP).expect("a channel name");
        stage.deafen(0, true);
        stage.cluster().fork(&channel, 27);
        stage.undeafen(0);
        tokio::time::sleep(Duration::from_secs(2)).await;
        let heard = until_type(&mut reader, "resync").await;
        let before: Vec<u64> =
            heard.iter().filter_map(|(message, _)| message["offset"].as_u64()).collect();
        assert_eq!(before, (1..=before.len() as u64).collect::<Vec<_>>(), "whole until then");
        publish(&mut speaker, "after", 10).await;
        let heard = until(&mut reader, |message| message["id"] == "after").await;
        assert_eq!(ids(&heard), ["after"], "and nothing old behind it");
    });
}
