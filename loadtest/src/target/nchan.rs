//! nginx with Nchan, one location for each side: `/sub?channel=X` for WebSocket and SSE, `/pub?channel=X`
//! for POST. One message a request: Nchan has no batches.

use super::{Caller, Profile, Publishing, Target};

pub(super) struct Nchan;

impl Profile for Nchan {
    fn ws_path(&self, caller: Caller<'_>) -> String {
        format!("/sub?channel={}", caller.channel.unwrap_or_default())
    }

    fn sse_path(&self, caller: Caller<'_>) -> Option<String> {
        Some(self.ws_path(caller))
    }

    fn publishing(&self, _publisher: Caller<'_>) -> Publishing {
        Publishing::Http
    }

    fn push_publish(&self, to: &Target, into: &mut Vec<u8>, messages: &[(u32, String)]) -> u64 {
        for (channel, payload) in messages {
            let path = format!("/pub?channel={}", self.channel(*channel));
            to.push_post(into, &path, "", payload);
        }
        messages.len() as u64
    }
}
