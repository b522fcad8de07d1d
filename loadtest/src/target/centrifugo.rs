//! Centrifugo's bidirectional JSON protocol (version 2, Centrifugo 4 and newer) and its HTTP API (5 and newer).
//!
//! Commands and replies are JSON objects, several in one frame by newlines; a reply has its command's id, a
//! push has none; an empty object is a ping and wants one back. Where `--jwt-secret` is empty the server must
//! admit clients without a token.

use super::{Act, Caller, Profile, Publishing, Target};
use crate::token;
use serde_json::Value;

pub(super) struct Centrifugo;

const CONNECT: u64 = 1;
const SUBSCRIBE: u64 = 2;

impl Profile for Centrifugo {
    fn ws_path(&self, _caller: Caller<'_>) -> String {
        "/connection/websocket".to_owned()
    }

    fn converse(&self, caller: Caller<'_>, heard: Option<&[u8]>) -> Act {
        let Caller { target, index, channel } = caller;
        let Some(heard) = heard else {
            let token = if target.jwt_secret.is_empty() {
                String::new()
            } else {
                let token = token::sign(&target.jwt_secret, &format!("{}-{index}", target.user));
                format!("\"token\":\"{token}\"")
            };
            return Act::Say(format!("{{\"id\":{CONNECT},\"connect\":{{{token}}}}}"));
        };
        // The last reply of a frame decides: an earlier one is of an earlier step.
        let mut act = Act::Wait;
        for line in heard.split(|byte| *byte == b'\n') {
            let Ok(reply) = serde_json::from_slice::<Value>(line) else { continue };
            if let Some(error) = reply.get("error") {
                return Act::Refused(error.to_string());
            }
            act = match (reply["id"].as_u64(), channel) {
                (Some(CONNECT), Some(channel)) => Act::Say(format!(
                    "{{\"id\":{SUBSCRIBE},\"subscribe\":{{\"channel\":\"{channel}\"}}}}"
                )),
                (Some(CONNECT), None) | (Some(SUBSCRIBE), _) => Act::Open,
                _ if reply.as_object().is_some_and(serde_json::Map::is_empty) => {
                    Act::Say("{}".to_owned())
                }
                _ => act,
            };
        }
        act
    }

    fn answer<'t>(&self, _target: &'t Target, heard: &[u8]) -> Option<&'t str> {
        let ping = heard == b"{}"
            || heard.starts_with(b"{}\n")
            || heard.ends_with(b"\n{}")
            || memchr::memmem::find(heard, b"\n{}\n").is_some();
        ping.then_some("{}")
    }

    fn speak(&self, channel: &str, payload: &str) -> Option<String> {
        Some(format!("{{\"id\":3,\"publish\":{{\"channel\":\"{channel}\",\"data\":{payload}}}}}"))
    }

    fn publishing(&self, _publisher: Caller<'_>) -> Publishing {
        Publishing::Http
    }

    fn push_publish(&self, to: &Target, into: &mut Vec<u8>, messages: &[(u32, String)]) -> u64 {
        let one = |(channel, payload): &(u32, String)| {
            format!("{{\"channel\":\"{}\",\"data\":{payload}}}", self.channel(*channel))
        };
        let key = format!("X-API-Key: {}\r\nContent-Type: application/json\r\n", to.api_key);
        if let [message] = messages {
            to.push_post(into, "/api/publish", &key, &one(message));
        } else {
            let publish = |message| format!("{{\"publish\":{}}}", one(message));
            let all: Vec<String> = messages.iter().map(publish).collect();
            let body = format!("{{\"commands\":[{}]}}", all.join(","));
            to.push_post(into, "/api/batch", &key, &body);
        }
        1
    }

    /// Errors are in the body of a 200.
    fn refusals(&self, answer: &[u8]) -> u64 {
        let errors = memchr::memmem::find_iter(answer, b"\"error\":{").count() as u64;
        errors.max(u64::from(answer.get(9) != Some(&b'2')))
    }
}
