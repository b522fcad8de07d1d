//! The interface of `loadtest floor` and `loadtest naive`: `/ws?channel=X` listens, text frames
//! `CHANNEL\nPAYLOAD` on `/pub` publish.

use super::{Caller, Profile, Publishing, Target};
use crate::websocket;

pub(super) struct Floor;

impl Profile for Floor {
    fn ws_path(&self, caller: Caller<'_>) -> String {
        format!("/ws?channel={}", caller.channel.unwrap_or_default())
    }

    fn publishing(&self, _publisher: Caller<'_>) -> Publishing {
        Publishing::WebSocket("/pub".to_owned())
    }

    fn push_publish(&self, _to: &Target, into: &mut Vec<u8>, messages: &[(u32, String)]) -> u64 {
        for (channel, payload) in messages {
            let text = format!("{}\n{payload}", self.channel(*channel));
            websocket::push_client_frame(into, websocket::TEXT, text.as_bytes());
        }
        0
    }
}
