//! Socket.IO (protocol 5 over Engine.IO 4) on a WebSocket from the start, without polling before it.
//!
//! Engine.IO packets begin with a digit: 0 open, 1 close, 2 ping, 3 pong, 4 message; a message holds a
//! Socket.IO packet: 0 connect, 1 disconnect, 2 event, 4 error. The room to join is in the query,
//! `publish(channel, payload)` is the event that publishes: `peers/socketio.mjs` shows the server's side.

use super::{Act, Caller, Profile, Publishing, Target};
use crate::websocket;

pub(super) struct SocketIo;

const PATH: &str = "/socket.io/?EIO=4&transport=websocket";

impl Profile for SocketIo {
    fn ws_path(&self, caller: Caller<'_>) -> String {
        match caller.channel {
            Some(channel) => format!("{PATH}&channel={channel}"),
            None => PATH.to_owned(),
        }
    }

    fn converse(&self, _caller: Caller<'_>, heard: Option<&[u8]>) -> Act {
        match heard {
            // Engine.IO's open packet; the namespace is joined after it.
            Some([b'0', ..]) => Act::Say("40".to_owned()),
            Some([b'4', b'0', ..]) => Act::Open,
            Some([b'4', b'4', ..]) => {
                Act::Refused(String::from_utf8_lossy(heard.unwrap_or_default()).into_owned())
            }
            Some([b'2']) => Act::Say("3".to_owned()),
            Some([b'1', ..]) => Act::Refused("Engine.IO closed the session".to_owned()),
            None | Some(_) => Act::Wait,
        }
    }

    fn answer<'t>(&self, _target: &'t Target, heard: &[u8]) -> Option<&'t str> {
        (heard == b"2").then_some("3")
    }

    fn speak(&self, channel: &str, payload: &str) -> Option<String> {
        Some(format!("42[\"publish\",\"{channel}\",{payload}]"))
    }

    fn publishing(&self, _publisher: Caller<'_>) -> Publishing {
        Publishing::WebSocket(PATH.to_owned())
    }

    fn push_publish(&self, _to: &Target, into: &mut Vec<u8>, messages: &[(u32, String)]) -> u64 {
        for (channel, payload) in messages {
            let text = self.speak(&self.channel(*channel), payload).unwrap_or_default();
            websocket::push_client_frame(into, websocket::TEXT, text.as_bytes());
        }
        0
    }
}
