//! Stories that seeds have found, told again word by word.

use std::time::Duration;

use carillon_broker_client::{Broker, NewSubscription, NodeId, Publish, Retention};
use carillon_gateway::interests;
use carillon_protocol::publication::Exclude;
use carillon_protocol::{ChannelName, MessageId, Payload, Publication, UserId};
use serde_json::{Value, json};

use crate::log::Log;
use crate::scene::{DEEP, FLEETING};
use crate::session::{Heard, Session};
use crate::stage::{Hello, Stage};

/// Of the runtime's own clock.
const PATIENCE: Duration = Duration::from_secs(60);

fn story<Tale: Future<Output = ()>>(tale: impl FnOnce(Stage) -> Tale) {
    story_of(1, tale);
}

fn story_of<Tale: Future<Output = ()>>(hosts: usize, tale: impl FnOnce(Stage) -> Tale) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(async { tale(Stage::start(hosts, &Log::new(), 7)).await });
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

/// A message that no node of the stage published.
async fn tell(stage: &Stage, channel: &str, id: &str) {
    let retention = Some(Retention { size: 1_000, age: Duration::from_secs(3_600) });
    publish_kept(stage, channel, id, retention).await;
}

/// The same without history.
async fn pass(stage: &Stage, id: &str) {
    publish_kept(stage, FLEETING, id, None).await;
}

async fn publish_kept(stage: &Stage, channel: &str, id: &str, retention: Option<Retention>) {
    let (backend, _deaf) = stage.cluster().join(NodeId::random());
    let publication = Publication {
        channel: ChannelName::new(channel).expect("a channel name"),
        position: None,
        previous_tag: None,
        stamp: 0,
        id: MessageId::new(id).expect("an id"),
        kind: "message".into(),
        timestamp_ms: 1,
        user_id: None,
        meta: None,
        exclude: Exclude::default(),
        expires_at_ms: None,
        traceparent: None,
        payload: Payload::from_json("1".to_owned()),
    };
    let request = Publish { publication, retention, idempotency: None };
    backend.publish(request).await.expect("storage is there");
}

/// Whether its node still hears the stream or not any more.
#[test]
fn a_stream_resumes_its_own_users_messages_when_an_outage_is_over() {
    for away_for in [0, 8] {
        story(async |stage| {
            let mut stream = open(&stage, "ada", true, None);
            until_type(&mut stream, "subscribed").await;
            tell(&stage, "user:ada", "n1").await;
            let heard = until(&mut stream, |message| message["id"] == "n1").await;
            let cursor = heard.last().and_then(|(_, cursor)| cursor.clone());
            drop(stream);
            tell(&stage, "user:ada", "n2").await;
            stage.cluster().set_available(false);
            tokio::time::sleep(Duration::from_secs(away_for)).await;
            let mut stream = open(&stage, "ada", true, cursor);
            until_type(&mut stream, "connect").await;
            tokio::time::sleep(Duration::from_secs(3)).await;
            stage.cluster().set_available(true);
            let heard = until(&mut stream, |message| message["id"] == "n2").await;
            assert!(heard.iter().all(|(message, _)| message["type"] != "resync"), "{heard:?}");
            let recovered = |message: &Value| {
                message["payload"]["channel"] == "notifications"
                    && message["payload"]["recovered"] == true
            };
            assert!(heard.iter().any(|(message, _)| recovered(message)), "{heard:?}");
        });
    }
}

#[test]
fn a_subscription_that_cannot_be_resumed_now_loses_nothing_meanwhile() {
    story(async |stage| {
        let mut reader = open(&stage, "ada", false, None);
        reader.say(&json!({"type": "subscribe", "channel": DEEP}));
        until_type(&mut reader, "subscribed").await;
        tell(&stage, DEEP, "m1").await;
        let heard = until(&mut reader, |message| message["id"] == "m1").await;
        let (first, _) = heard.last().expect("a message");
        let since =
            json!({"epoch": first["epoch"], "offset": first["offset"], "tag": first["tag"]});
        stage.stall(true);
        reader.say(&json!({"type": "subscribe", "channel": DEEP, "payload": {"since": since}, "ack_id": "again"}));
        let waits = tokio::time::timeout(Duration::from_millis(300), reader.next(true)).await;
        assert!(waits.is_err(), "{waits:?}");
        // Its node hears this one, and it is not live.
        tell(&stage, DEEP, "m2").await;
        until(&mut reader, |message| message["ack_id"] == "again" && message["type"] == "error")
            .await;
        stage.stall(false);
        tell(&stage, DEEP, "m3").await;
        let heard = until(&mut reader, |message| message["id"] == "m3").await;
        assert_eq!(ids(&heard), ["m2", "m3"]);
    });
}

#[test]
fn a_subscription_whose_node_died_before_it_could_say_so_acts_all_the_same() {
    story_of(2, async |stage| {
        let mut ada = open(&stage, "ada", false, None);
        until_type(&mut ada, "connect").await;
        let user = UserId::new("ada").expect("a user id");
        let dying = stage.node(1).expect("somebody runs there");
        interests::prepare(&dying, &user).await;
        let new = NewSubscription::resource(user, "Task", "7");
        dying.subscriptions.create(new).await.expect("stored");
        stage.kill(1);
        tokio::time::sleep(Duration::from_secs(8)).await;
        tell(&stage, "entity:Task:7", "changed").await;
        until(&mut ada, |message| message["id"] == "changed").await;
    });
}

async fn poll(stage: &Stage, host: usize, last: &Value) -> Value {
    poll_for(stage, host, last, &[FLEETING], 0).await
}

async fn poll_for(stage: &Stage, host: usize, last: &Value, channels: &[&str], wait: u32) -> Value {
    let mut body = question(last, wait);
    body["channels"] = json!(channels);
    let polled = stage.poll(host, "ada", &body).expect("somebody listens");
    let (status, answer) = polled.answer.await.expect("an answer");
    assert_eq!(status, 200, "{answer}");
    answer
}

fn question(last: &Value, wait: u32) -> Value {
    json!({"user_id": "ada", "last_poll_id": last, "timeout": wait, "channels": [FLEETING]})
}

fn events(answer: &Value) -> Vec<&str> {
    let list = answer["events"].as_array().into_iter().flatten();
    list.filter_map(|event| event["message_id"].as_str()).collect()
}

/// Its number was given a second time, for an answer that was its own question's answer from then on.
#[test]
fn a_poll_that_waits_while_storage_loses_everything_goes_on() {
    story(async |stage| {
        let first = poll_for(&stage, 0, &json!(0), &[DEEP], 0).await;
        for index in 0..300 {
            tell(&stage, DEEP, &format!("m{index}")).await;
        }
        // A number an event: they are ahead of the clock now.
        let mut last = first["last_poll_id"].clone();
        for _ in 0..3 {
            last = poll_for(&stage, 0, &last, &[DEEP], 0).await["last_poll_id"].clone();
        }
        let waits = async { poll_for(&stage, 0, &last, &[DEEP], 30).await };
        let loses = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            stage.cluster().set_available(false);
            stage.cluster().lose_data();
            tokio::time::sleep(Duration::from_secs(1)).await;
            stage.cluster().set_available(true);
        };
        let (answer, ()) = tokio::join!(waits, loses);
        assert_eq!(answer["events"][0]["type"], "resync", "{answer}");
        let next = answer["last_poll_id"].clone();
        assert!(next.as_u64() > last.as_u64(), "{next} after {last}");
        tell(&stage, DEEP, "after").await;
        let answer = poll_for(&stage, 0, &next, &[DEEP], 30).await;
        assert_eq!(events(&answer), ["after"], "{answer}");
        // Where nobody has the number, those that follow are behind it all the same.
        stage.cluster().lose_data();
        let lost = poll_for(&stage, 0, &answer["last_poll_id"], &[DEEP], 0).await;
        assert_eq!(lost["recovered"], false, "{lost}");
        assert!(lost["last_poll_id"].as_u64() > answer["last_poll_id"].as_u64(), "{lost}");
    });
}

/// The history behind it holds the same messages under the same tags: they were told again, as those of an epoch that the
/// client had never heard of. What only the answer held is told all the same.
#[test]
fn an_answer_is_not_repeated_out_of_another_epoch() {
    story(async |stage| {
        let first = poll_for(&stage, 0, &json!(0), &[DEEP, FLEETING], 0).await;
        let ask = || poll_for(&stage, 0, &first["last_poll_id"], &[DEEP, FLEETING], 0);
        tell(&stage, DEEP, "kept").await;
        pass(&stage, "passing").await;
        let lost = ask().await;
        assert_eq!(events(&lost), ["kept", "passing"], "{lost}");
        assert_eq!(ask().await["events"], lost["events"]);

        tell(&stage, DEEP, "rolled back").await;
        let (backend, _deaf) = stage.cluster().join(NodeId::random());
        let channel = ChannelName::new(DEEP).expect("a channel name");
        let known = backend.tops(std::slice::from_ref(&channel)).await.expect("storage is there");
        stage.cluster().fork(&channel, 1);
        let fenced = backend.fence(&[(channel, known[0])]).await;
        assert_eq!(fenced.expect("storage is there"), [true]);
        let again = ask().await;
        let told = &again["events"][0];
        assert_eq!(
            (&told["type"], &told["payload"]["reason"], &again["recovered"]),
            (&json!("resync"), &json!("epoch"), &json!(false)),
            "{again}"
        );
        assert_eq!(again["events"][1]["message_id"], "passing", "{again}");
    });
}

#[test]
fn what_one_node_heard_for_a_poll_is_told_whole_by_another() {
    story_of(2, async |stage| {
        // Until the nodes know each other.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let mut speaker = speaker(&stage).await;
        let first = poll(&stage, 0, &json!(0)).await;
        poll(&stage, 0, &first["last_poll_id"]).await;
        let said = json!({"n": 12_345_678_901_234_567_890_u64, "a": 1});
        let message = json!({"type": "message", "id": "f1", "channel": FLEETING, "payload": said, "ack_id": "1"});
        speaker.say(&message);
        until(&mut speaker, |message| message["ack_id"] == "1").await;
        let answer = poll(&stage, 1, &first["last_poll_id"]).await;
        let event = &answer["events"][0];
        assert_eq!((&event["message_id"], &event["payload"]), (&json!("f1"), &said), "{answer}");
        assert_eq!(event["id"], answer["last_poll_id"], "an event's id is its number");
    });
}

/// What was heard without history waits on where the answer could not be kept; where it was kept and nobody was told, it is
/// answered again. Once in all cases, here and elsewhere.
#[test]
fn an_answer_that_cannot_be_kept_loses_and_doubles_nothing() {
    for (is_kept, elsewhere) in [(false, 0), (false, 1), (true, 0), (true, 1)] {
        story_of(2, async |stage| {
            tokio::time::sleep(Duration::from_secs(3)).await;
            let first = poll(&stage, 0, &json!(0)).await;
            let asks = question(&first["last_poll_id"], 30);
            let waits = stage.poll(0, "ada", &asks).expect("somebody listens");
            tokio::time::sleep(Duration::from_secs(1)).await;
            pass(&stage, "f1").await;
            tokio::time::sleep(Duration::from_millis(10)).await;
            if is_kept {
                stage.stall(true);
            } else {
                stage.cut(0, true);
            }
            let (status, answer) = waits.answer.await.expect("an answer");
            assert_eq!((status, &answer["code"]), (503, &json!("UNAVAILABLE")), "{answer}");
            if is_kept {
                stage.stall(false);
            } else {
                stage.cut(0, false);
            }
            tokio::time::sleep(Duration::from_secs(2)).await;
            pass(&stage, "f2").await;
            tokio::time::sleep(Duration::from_millis(50)).await;
            let (mut last, mut heard) = (first["last_poll_id"].clone(), Vec::new());
            for _ in 0..3 {
                let answer = poll(&stage, elsewhere, &last).await;
                heard.extend(events(&answer).into_iter().map(str::to_owned));
                last = answer["last_poll_id"].clone();
            }
            assert_eq!(heard, ["f1", "f2"], "kept {is_kept}, asked at {elsewhere}");
        });
    }
}

/// Two nodes held a poll of the same number; one had not heard the first message and answered the second.
#[test]
fn an_ear_that_heard_more_says_nothing_behind_its_turn() {
    story_of(2, async |stage| {
        tokio::time::sleep(Duration::from_secs(3)).await;
        let first = poll(&stage, 0, &json!(0)).await;
        let asks = question(&first["last_poll_id"], 30);
        let here = stage.poll(0, "ada", &asks).expect("somebody listens");
        let there = stage.poll(1, "ada", &asks).expect("somebody listens");
        tokio::time::sleep(Duration::from_secs(1)).await;
        stage.pause(1, true);
        stage.skip(0, 1);
        pass(&stage, "f1").await;
        pass(&stage, "f2").await;
        let (_, answer) = here.answer.await.expect("an answer");
        assert_eq!(events(&answer), ["f2"]);
        stage.pause(1, false);
        let (_, same) = there.answer.await.expect("an answer");
        assert_eq!(same["events"], answer["events"]);
        pass(&stage, "f3").await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        let next = poll(&stage, 1, &answer["last_poll_id"]).await;
        assert_eq!(events(&next), ["f3"], "{next}");
    });
}

/// Each of two nodes heard one message for the same polls; a third answers both, in the order of publishing.
#[test]
fn what_two_ears_heard_that_share_nothing_is_put_in_order() {
    for (deaf_first, deaf_then) in [(0, 1), (1, 0)] {
        story_of(3, async |stage| {
            tokio::time::sleep(Duration::from_secs(3)).await;
            let first = poll(&stage, 0, &json!(0)).await;
            let asks = question(&first["last_poll_id"], 30);
            let here = stage.poll(0, "ada", &asks).expect("somebody listens");
            let there = stage.poll(1, "ada", &asks).expect("somebody listens");
            tokio::time::sleep(Duration::from_secs(1)).await;
            drop((here, there));
            for (id, deaf) in [("f1", deaf_first), ("f2", deaf_then)] {
                stage.skip(deaf, 1);
                pass(&stage, id).await;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            let answer = poll(&stage, 2, &first["last_poll_id"]).await;
            assert_eq!(events(&answer), ["f1", "f2"], "{answer}");
        });
    }
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
