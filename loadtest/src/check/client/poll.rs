//! A client that polls: resumes with `last_poll_id`, on whatever node answers, and publishes with a poll's
//! `messages`.

use super::websocket::{Refusal, refused};
use super::{Ended, Order, Saying, Talk, breathe, stopped};
use crate::check::http::Http;
use crate::check::log::{Beginning, Heard};
use crate::check::shared::Shared;
use anyhow::{Context as _, Result};
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;
use std::time::Duration;
use tokio::time::timeout;

/// How long a poll waits at the server, seconds; short, so that publishes need not wait long.
const HELD_SECONDS: u64 = 2;
/// When an answer is given up.
const ANSWER_BY: Duration = Duration::from_secs(12);

#[derive(Deserialize)]
struct Page<'a> {
    #[serde(borrow)]
    events: Vec<&'a RawValue>,
    last_poll_id: u64,
    #[serde(borrow, default)]
    replies: Vec<&'a RawValue>,
    #[serde(default = "yes")]
    recovered: bool,
}

const fn yes() -> bool {
    true
}

/// Polls until the end; one connection for as long as it lasts.
pub(super) async fn session(talk: &mut Talk<'_>) -> Ended {
    let mut http = match timeout(ANSWER_BY, Http::connect(talk.shared().address(talk.node))).await {
        Ok(Ok(http)) => http,
        Ok(Err(error)) => return refused(&error),
        Err(_) => {
            return Ended::Refused { reason: "connect timed out".to_owned(), retry_after_ms: 0 };
        }
    };
    let mut stalled = false;
    loop {
        while let Ok(order) = talk.orders.try_recv() {
            match order {
                Order::Quit => return Ended::Over,
                Order::Away(away) => return Ended::Away(away),
                Order::Stall => stalled = true,
                Order::Read => stalled = false,
                Order::Say(saying, done) => {
                    talk.client.saying.borrow_mut().push_back((saying, done));
                }
            }
        }
        if *talk.stop.borrow() {
            return Ended::Over;
        }
        if stalled {
            breathe().await;
            continue;
        }
        let view = &talk.shared().balancer.nodes[talk.node];
        if talk.client.live.get() && !view.open.get() {
            // A balancer would send the next poll elsewhere; nobody cut this client.
            return Ended::Away(Duration::ZERO);
        }
        let asked = tokio::select! {
            asked = timeout(ANSWER_BY, ask(talk.client, &mut http)) => asked,
            () = stopped(talk.stop) => return Ended::Over,
        };
        let body = match asked {
            Ok(Ok(body)) => body,
            Ok(Err(error))
                if talk.client.live.get() && error.downcast_ref::<Refusal>().is_none() =>
            {
                return Ended::Cut { retry_after_ms: 0 };
            }
            Ok(Err(error)) => return refused(&error),
            Err(_) => {
                return Ended::Refused { reason: "poll timed out".to_owned(), retry_after_ms: 0 };
            }
        };
        if take(talk, &body).is_err() {
            return Ended::Refused { reason: "not a poll's answer".to_owned(), retry_after_ms: 0 };
        }
    }
}

async fn ask(client: &super::Client, http: &mut Http) -> Result<Vec<u8>> {
    let last: u64 = client.cursor.borrow().as_ref().map_or(Ok(0), |last| last.parse())?;
    let names: Vec<String> = client.lanes.borrow().0.iter().map(|lane| lane.name.clone()).collect();
    // The first poll only learns where it begins.
    let wait = if client.live.get() { HELD_SECONDS } else { 0 };
    let mut body =
        json!({"user_id": client.name, "last_poll_id": last, "timeout": wait, "channels": names});
    let messages: Vec<serde_json::Value> = client.saying.borrow().iter().filter_map(|(saying, _)| {
        client.shared.sent(saying.index);
        let Saying { index, channel, id, payload } = saying;
        let payload: serde_json::Value = serde_json::from_str(payload).ok()?;
        Some(json!({"type": "message", "channel": Shared::channel(*channel), "id": id, "ack_id": index.to_string(), "payload": payload}))
    }).collect();
    if !messages.is_empty() {
        body["messages"] = messages.into();
        body["timeout"] = 0.into();
    }
    let headers =
        format!("Authorization: Bearer {}\r\nContent-Type: application/json\r\n", client.token);
    let answer = http.ask("POST", "/api/v1/realtime/poll", &headers, &body.to_string()).await?;
    if answer.status != 200 {
        let retry_after_ms = answer.retry_after.unwrap_or(0) * 1_000;
        return Err(Refusal { status: answer.status, retry_after_ms }.into());
    }
    Ok(answer.body)
}

/// Notes an answer.
fn take(talk: &Talk<'_>, body: &[u8]) -> Result<()> {
    let page: Page<'_> = serde_json::from_slice(body).context("a page")?;
    let (client, at_ms) = (talk.client, talk.shared().now_ms());
    let first = client.cursor.borrow().is_none();
    // A resync among the events says which channel; without one, all of them may lack something.
    let resyncs = page.events.iter().any(|event| event.get().contains("\"type\":\"resync\""));
    if first || (!page.recovered && !resyncs) {
        for lane in &mut client.lanes.borrow_mut().0 {
            let how = if first { Beginning::First } else { Beginning::Refused("poll".to_owned()) };
            lane.heard.push(Heard::Begun { at_ms, place: None, how });
        }
    }
    for message in page.replies.iter().chain(&page.events) {
        let _counted = talk.hear(message.get().as_bytes());
    }
    *client.cursor.borrow_mut() = Some(page.last_poll_id.to_string());
    if !client.live.get() {
        talk.connected();
        for lane in &mut client.lanes.borrow_mut().0 {
            lane.live = true;
        }
        talk.judge_live();
    }
    Ok(())
}
