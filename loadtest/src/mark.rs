//! The mark inside every measured payload: which channel, which number, when it was due.
//!
//! Fixed width, so that a receiver reads it in place instead of parsing JSON.

use clap::ValueEnum;
use memchr::memmem;

const NEEDLE: &[u8] = b"\"seq\":\"";
/// `CCCCCC-SSSSSSSS-DDDDDDDDDDDDDDDD`, hexadecimal.
const BODY: usize = 6 + 1 + 8 + 1 + 16;

/// What stands beside the mark, up to the asked size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Filling {
    /// One letter, again and again.
    Letter,
    /// Records as an application sends them, different in every message: what a compressor meets.
    Records,
}

/// What a measured message says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    /// Index of the channel in this run.
    pub(crate) channel: u32,
    /// Number within the channel: 0 is warm-up, measured messages begin at 1.
    pub(crate) sequence: u32,
    /// When the message was due, nanoseconds since the run's beginning.
    pub(crate) due_ns: u64,
}

impl Mark {
    /// A JSON object of `size` bytes (or the least possible) that carries the mark.
    pub(crate) fn payload(&self, size: usize) -> String {
        self.filled(size, Filling::Letter)
    }

    /// The same with something else beside the mark.
    pub(crate) fn filled(&self, size: usize, filling: Filling) -> String {
        let Self { channel, sequence, due_ns } = self;
        let mut text = format!("{{\"seq\":\"{channel:06x}-{sequence:08x}-{due_ns:016x}\"");
        if filling == Filling::Records {
            push_records(&mut text, size, u64::from(*channel) << 32 | u64::from(*sequence));
        }
        text.push_str(",\"pad\":\"");
        let pad = size.saturating_sub(text.len() + 2);
        text.extend(std::iter::repeat_n('x', pad));
        text.push_str("\"}");
        text
    }

    /// Finds the first mark in `bytes` and where it ends. `hint` is where the last one began: servers
    /// put the payload at the same place nearly every time.
    pub(crate) fn find(bytes: &[u8], hint: &mut usize) -> Option<(Self, usize)> {
        let there = bytes.get(*hint..*hint + NEEDLE.len()) == Some(NEEDLE);
        let begin = if there { *hint } else { memmem::find(bytes, NEEDLE)? };
        let at = begin + NEEDLE.len();
        let body = bytes.get(at..at + BODY)?;
        *hint = begin;
        let mark = Self {
            channel: hex(&body[..6])? as u32,
            sequence: hex(&body[7..15])? as u32,
            due_ns: hex(&body[16..])?,
        };
        Some((mark, at + BODY))
    }
}

/// Appends `"records":[…]` that leaves room for an empty pad in `size`.
fn push_records(text: &mut String, size: usize, seed: u64) {
    const NAMES: [&str; 8] =
        ["Amina", "Boris", "Chen", "Dolores", "Emeka", "Fatima", "Greta", "Hiro"];
    const STATES: [&str; 5] = ["open", "assigned", "waiting", "resolved", "closed"];
    let mut dice = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut roll = || {
        dice ^= dice << 13;
        dice ^= dice >> 7;
        dice ^= dice << 17;
        dice >> 16
    };
    let begin = text.len();
    text.push_str(",\"records\":[");
    let first = text.len();
    loop {
        let record = format!(
            "{{\"id\":{},\"owner\":\"{}\",\"state\":\"{}\",\"amount\":{}.{:02},\"token\":\"{:08x}\"}}",
            roll() % 1_000_000,
            NAMES[roll() as usize % NAMES.len()],
            STATES[roll() as usize % STATES.len()],
            roll() % 10_000,
            roll() % 100,
            roll() as u32,
        );
        if text.len() + record.len() + 12 > size {
            break;
        }
        if text.len() > first {
            text.push(',');
        }
        text.push_str(&record);
    }
    if text.len() == first {
        text.truncate(begin);
    } else {
        text.push(']');
    }
}

fn hex(digits: &[u8]) -> Option<u64> {
    digits
        .iter()
        .try_fold(0, |sum, digit| Some(sum << 4 | u64::from(char::from(*digit).to_digit(16)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mark_is_found_again_in_an_envelope_of_the_asked_size() {
        let mark = Mark { channel: 999, sequence: 123_456, due_ns: 9_876_543_210 };
        for (size, filling) in
            [(128, Filling::Letter), (128, Filling::Records), (1_024, Filling::Records)]
        {
            let payload = mark.filled(size, filling);
            assert_eq!(payload.len(), size);
            serde_json::from_str::<serde_json::Value>(&payload).expect("valid JSON");
        }
        let payload = mark.payload(128);
        serde_json::from_str::<serde_json::Value>(&payload).expect("valid JSON");
        let envelope = format!("{{\"type\":\"message\",\"payload\":{payload}}}");
        for hint in [0, 5_000] {
            let mut hint = hint;
            let (found, _) = Mark::find(envelope.as_bytes(), &mut hint).expect("a mark");
            assert_eq!(found, mark);
        }
        assert_eq!(Mark::find(b"{\"seq\":\"12", &mut 0), None);
    }
}
