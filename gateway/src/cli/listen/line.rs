//! How a message looks in the terminal.

use serde_json::Value;

/// One line a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) enum Look {
    /// The envelope as JSON.
    Json,
    /// Time, channel, type, payload.
    Text {
        /// With escape sequences.
        colour: bool,
    },
}

impl Look {
    /// The line, without its end.
    pub(in crate::cli) fn line(self, message: &Value) -> String {
        let Look::Text { colour } = self else { return message.to_string() };
        let text = |name: &str| printable(message[name].as_str().unwrap_or("-"));
        let payload = match &message["payload"] {
            Value::Null => String::new(),
            payload => printable(&payload.to_string()),
        };
        let paint = |code: &str, text: &str| {
            if colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
        };
        format!(
            "{} {} {} {payload}",
            paint("2", &time(&message["timestamp"])),
            paint("36", &text("channel")),
            paint("1;33", &text("type")),
        )
    }
}

/// A peer's text must not steer the terminal. JSON escapes most control characters, not those of U+0080–U+009F.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// `12:34:56.789` UTC of RFC 3339 text or Unix milliseconds.
fn time(timestamp: &Value) -> String {
    let parsed = match timestamp {
        Value::String(text) => text.parse().ok(),
        Value::Number(ms) => ms.as_i64().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok()),
        _ => None,
    };
    parsed.map_or_else(
        || "--:--:--.---".to_owned(),
        |at: jiff::Timestamp| at.strftime("%H:%M:%S%.3f").to_string(),
    )
}
