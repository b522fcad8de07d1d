//! A Carillon node: the native profile over WebSocket or SSE, publishing through REST.

use super::{Act, Caller, Profile, PublishBy, Publishing, Target};
use crate::subscriber::Ask;
use crate::token;
use crate::websocket;

pub(super) struct Carillon;

fn query(caller: Caller<'_>) -> String {
    let Caller { target, index, channel } = caller;
    let sign = |user: &str| token::sign(&target.jwt_secret, user);
    match channel {
        Some("") => format!("token={}", sign(&target.user(index))),
        Some(channel) => format!("channel={channel}&token={}", sign(&target.user(index))),
        None => format!("token={}", sign(&format!("{}-publisher-{index}", target.user))),
    }
}

impl Profile for Carillon {
    fn channel(&self, index: u32) -> String {
        format!("room:bench-{index}")
    }

    fn ws_path(&self, caller: Caller<'_>) -> String {
        format!("/ws?{}", query(caller))
    }

    fn sse_path(&self, caller: Caller<'_>) -> Option<String> {
        Some(format!("/api/realtime/events?{}", query(caller)))
    }

    fn poll(&self, caller: Caller<'_>) -> Option<Ask> {
        let Caller { target, index, channel } = caller;
        let user = target.user(index);
        let token = token::sign(&target.jwt_secret, &user);
        let channel = channel.unwrap_or_default();
        Some(Ask {
            before: format!(
                "GET /api/v1/realtime/poll?user_id={user}&channels={channel}&last_poll_id="
            ),
            after: format!(
                " HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {token}\r\n\r\n",
                target.host
            ),
        })
    }

    /// The welcome is waited for: a connection without it may still be refused.
    fn converse(&self, _caller: Caller<'_>, heard: Option<&[u8]>) -> Act {
        if heard.is_some() { Act::Open } else { Act::Wait }
    }

    fn speak(&self, channel: &str, payload: &str) -> Option<String> {
        Some(format!("{{\"type\":\"message\",\"channel\":\"{channel}\",\"payload\":{payload}}}"))
    }

    fn publishing(&self, publisher: Caller<'_>) -> Publishing {
        match publisher.target.publish_by {
            PublishBy::Rest | PublishBy::Notifications => Publishing::Http,
            PublishBy::Websocket | PublishBy::WebsocketUnacknowledged => {
                Publishing::WebSocket(self.ws_path(publisher))
            }
        }
    }

    fn push_publish(&self, to: &Target, into: &mut Vec<u8>, messages: &[(u32, String)]) -> u64 {
        let ack = match to.publish_by {
            PublishBy::Websocket => Some("\"ack_id\":\"1\","),
            PublishBy::WebsocketUnacknowledged => Some(""),
            PublishBy::Rest | PublishBy::Notifications => None,
        };
        if let Some(ack) = ack {
            for (channel, payload) in messages {
                let channel = self.channel(*channel);
                let text = format!(
                    "{{\"type\":\"message\",\"channel\":\"{channel}\",{ack}\"payload\":{payload}}}"
                );
                websocket::push_client_frame(into, websocket::TEXT, text.as_bytes());
            }
            return if ack.is_empty() { 0 } else { messages.len() as u64 };
        }
        let key = format!("X-API-Key: {}\r\nContent-Type: application/json\r\n", to.api_key);
        if to.publish_by == PublishBy::Notifications {
            for (group, payload) in messages {
                let body = notification(to, *group, payload);
                to.push_post(into, "/api/realtime/notifications", &key, &body);
            }
            return messages.len() as u64;
        }
        let one = |(channel, payload): &(u32, String)| {
            let channel = self.channel(*channel);
            format!("{{\"channel\":\"{channel}\",\"type\":\"message\",\"payload\":{payload}}}")
        };
        if let [message] = messages {
            to.push_post(into, "/api/realtime/publish", &key, &one(message));
        } else {
            let all: Vec<String> = messages.iter().map(one).collect();
            let body = format!("{{\"messages\":[{}]}}", all.join(","));
            to.push_post(into, "/api/realtime/publish/batch", &key, &body);
        }
        1
    }

    /// A batch is answered with one code for each message that was not taken.
    fn refusals(&self, answer: &[u8]) -> u64 {
        let errors = memchr::memmem::find_iter(answer, b"\"code\":\"").count() as u64;
        errors.max(u64::from(answer.get(9) != Some(&b'2')))
    }

    fn verdict(&self, heard: &[u8]) -> Option<u64> {
        let is = |kind: &[u8]| memchr::memmem::find(heard, kind).is_some();
        if is(b"\"type\":\"ack\"") {
            return Some(0);
        }
        is(b"\"type\":\"error\"").then_some(1)
    }
}

/// To the users of a group: neighbours, as many as each notification has recipients.
fn notification(to: &Target, group: u32, payload: &str) -> String {
    let first = group as usize * to.recipients;
    let users: Vec<String> =
        (first..first + to.recipients).map(|index| format!("\"{}\"", to.user(index))).collect();
    format!(
        "{{\"type\":\"message\",\"title\":\"Load\",\"message\":\"measured\",\"recipients\":[{}],\"metadata\":{payload}}}",
        users.join(",")
    )
}
