//! Any WebSocket server, described on the command line by paths and texts with places to fill in.

use super::{Act, Caller, Profile, Publishing, Target};
use crate::token;
use crate::websocket;
use clap::Args;

/// The paths and texts of a plain WebSocket server. `{channel}`, `{index}` (of the connection), `{token}`
/// (HS256 of `--jwt-secret`, user `--user`-index) and, where something is published, `{payload}` (a JSON
/// object that must come out as it went in) are filled in. As they are they suit `loadtest floor`.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "--target plain")]
pub(crate) struct Plain {
    /// Path of a listener's WebSocket
    #[arg(long, default_value = "/ws?channel={channel}")]
    pub(crate) path: String,
    /// Path of a listener's event stream, for `--transport sse`
    #[arg(long)]
    pub(crate) sse_path: Option<String>,
    /// What a listener says once the WebSocket is open
    #[arg(long)]
    pub(crate) subscribe: Option<String>,
    /// A part of the message that says a listener is subscribed; without it nothing is waited for
    #[arg(long)]
    pub(crate) subscribed: Option<String>,
    /// A message (all of it) that the server sends to see who is there, and wants `--pong` for
    #[arg(long, requires = "pong")]
    pub(crate) ping: Option<String>,
    /// What is said to `--ping`
    #[arg(long, requires = "ping")]
    pub(crate) pong: Option<String>,
    /// Publish by POST to this path, the payload (or `--publish`) as body
    #[arg(long)]
    pub(crate) post: Option<String>,
    /// Path of the publisher's WebSocket, without `--post`
    #[arg(long, default_value = "/pub")]
    pub(crate) publish_path: String,
    /// The text that publishes; without it the payload in a POST, channel and payload on two lines in a
    /// WebSocket
    #[arg(long)]
    pub(crate) publish: Option<String>,
    /// A header of each POST
    #[arg(long, value_name = "NAME: VALUE")]
    pub(crate) header: Vec<String>,
}

impl Default for Plain {
    fn default() -> Self {
        Self {
            path: "/ws?channel={channel}".to_owned(),
            sse_path: None,
            subscribe: None,
            subscribed: None,
            ping: None,
            pong: None,
            post: None,
            publish_path: "/pub".to_owned(),
            publish: None,
            header: Vec::new(),
        }
    }
}

pub(super) struct Templates;

fn fill(template: &str, caller: Caller<'_>) -> String {
    let Caller { target, index, channel } = caller;
    let text = template
        .replace("{channel}", channel.unwrap_or_default())
        .replace("{index}", &index.to_string());
    if !text.contains("{token}") {
        return text;
    }
    text.replace("{token}", &token::sign(&target.jwt_secret, &format!("{}-{index}", target.user)))
}

impl Profile for Templates {
    fn ws_path(&self, caller: Caller<'_>) -> String {
        fill(&caller.target.plain.path, caller)
    }

    fn sse_path(&self, caller: Caller<'_>) -> Option<String> {
        caller.target.plain.sse_path.as_ref().map(|path| fill(path, caller))
    }

    fn converse(&self, caller: Caller<'_>, heard: Option<&[u8]>) -> Act {
        let Plain { subscribe, subscribed, .. } = &caller.target.plain;
        if caller.channel.is_none() {
            return Act::Open;
        }
        match (heard, subscribed) {
            (None, None) => {
                subscribe.as_ref().map_or(Act::Open, |text| Act::Last(fill(text, caller)))
            }
            (None, Some(_)) => {
                subscribe.as_ref().map_or(Act::Wait, |text| Act::Say(fill(text, caller)))
            }
            (Some(_), None) => Act::Open,
            (Some(heard), Some(part)) => {
                if memchr::memmem::find(heard, part.as_bytes()).is_some() {
                    Act::Open
                } else {
                    self.answer(caller.target, heard)
                        .map_or(Act::Wait, |pong| Act::Say(pong.to_owned()))
                }
            }
        }
    }

    fn answer<'t>(&self, target: &'t Target, heard: &[u8]) -> Option<&'t str> {
        let ping = target.plain.ping.as_ref()?;
        if heard == ping.as_bytes() { target.plain.pong.as_deref() } else { None }
    }

    fn publishing(&self, publisher: Caller<'_>) -> Publishing {
        let Plain { post, publish_path, .. } = &publisher.target.plain;
        if post.is_some() {
            return Publishing::Http;
        }
        Publishing::WebSocket(fill(publish_path, publisher))
    }

    fn push_publish(&self, to: &Target, into: &mut Vec<u8>, messages: &[(u32, String)]) -> u64 {
        let Plain { post, publish, header, .. } = &to.plain;
        let usual = if post.is_some() { "{payload}" } else { "{channel}\n{payload}" };
        let template = publish.as_deref().unwrap_or(usual);
        let headers: String = header.iter().map(|line| format!("{line}\r\n")).collect();
        for (channel, payload) in messages {
            let channel = self.channel(*channel);
            let caller = Caller { target: to, index: 0, channel: Some(&channel) };
            let body = fill(template, caller).replace("{payload}", payload);
            match post {
                Some(path) => to.push_post(into, &fill(path, caller), &headers, &body),
                None => websocket::push_client_frame(into, websocket::TEXT, body.as_bytes()),
            }
        }
        if post.is_some() { messages.len() as u64 } else { 0 }
    }
}
