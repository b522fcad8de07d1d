//! Where a client was, in the server's own words, and whether it came back there. Only clients that will be cut
//! remember.

use std::cell::{Cell, RefCell};
use std::time::Instant;

/// See the module.
#[derive(Default)]
pub(crate) struct Resume {
    /// Positions are remembered.
    pub(crate) wanted: Cell<bool>,
    /// `{"offset":…,"epoch":"…","tag":"…"}` of the last message.
    since: RefCell<String>,
    /// When the connection was cut that did not come back yet.
    pub(crate) cut_at: Cell<Option<Instant>>,
}

/// How a subscription was answered.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Subscribed {
    /// It goes on where the client was.
    Recovered,
    /// It begins now.
    Fresh,
}

impl Resume {
    /// Takes the position out of an envelope.
    pub(super) fn note(&self, envelope: &[u8]) {
        let Some((offset, epoch, tag)) = position(envelope) else { return };
        let mut since = self.since.borrow_mut();
        since.clear();
        since.push_str("{\"offset\":");
        since.push_str(offset);
        since.push_str(",\"epoch\":\"");
        since.push_str(epoch);
        if let Some(tag) = tag {
            since.push_str("\",\"tag\":\"");
            since.push_str(tag);
        }
        since.push_str("\"}");
    }

    /// What a subscription's payload says to go on from here.
    pub(crate) fn payload(&self) -> String {
        let since = self.since.borrow();
        if since.is_empty() { "{}".to_owned() } else { format!("{{\"since\":{since}}}") }
    }
}

/// Reads a `subscribed`.
pub(super) fn subscribed(envelope: &[u8]) -> Option<Subscribed> {
    memchr::memmem::find(envelope, b"\"type\":\"subscribed\"")?;
    let recovered = memchr::memmem::find(envelope, b"\"recovered\":true").is_some();
    Some(if recovered { Subscribed::Recovered } else { Subscribed::Fresh })
}

fn position(envelope: &[u8]) -> Option<(&str, &str, Option<&str>)> {
    let offset = after(envelope, b"\"offset\":", |byte| byte.is_ascii_digit())?;
    let epoch = after(envelope, b"\"epoch\":\"", |byte| byte != b'"')?;
    Some((offset, epoch, after(envelope, b"\"tag\":\"", |byte| byte != b'"')))
}

fn after<'a>(bytes: &'a [u8], name: &[u8], belongs: impl Fn(u8) -> bool) -> Option<&'a str> {
    let from = memchr::memmem::find(bytes, name)? + name.len();
    let size = bytes[from..].iter().position(|byte| !belongs(*byte))?;
    std::str::from_utf8(&bytes[from..from + size]).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn position_of_the_last_message_is_what_is_asked_for() {
        let resume = Resume::default();
        assert_eq!(resume.payload(), "{}");
        resume.note(br#"{"type":"message","channel":"room:1","offset":12,"epoch":"e","tag":"t","payload":{}}"#);
        resume.note(br#"{"type":"pong"}"#);
        assert_eq!(resume.payload(), r#"{"since":{"offset":12,"epoch":"e","tag":"t"}}"#);
        let answer = br#"{"type":"subscribed","payload":{"recovered":true,"count":3}}"#;
        assert_eq!(subscribed(answer), Some(Subscribed::Recovered));
    }
}
