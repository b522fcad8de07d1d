//! Reading what a pub/sub connection pushes (RESP2), out of a growing buffer, without copying bodies.

use bytes::{Bytes, BytesMut};

/// One push.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Push {
    /// A message: channel and body.
    Message(Bytes, Bytes),
    /// A subscribe or unsubscribe was carried out for one channel.
    Confirmed,
    /// A simple answer (`+OK`) or one to a ping.
    Fine,
    /// An error answer.
    Refused(String),
}

/// The peer does not speak RESP2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a RESP2 push")]
pub(super) struct Garbled;

/// Most elements of a push.
const ELEMENTS_MAX: usize = 8;
/// Largest body: history entries are bounded by the message size, this only stops nonsense.
const BULK_BYTES_MAX: usize = 512 * 1024 * 1024;

/// Takes the next whole push out of the buffer; `None` when more bytes are needed.
pub(super) fn take(buffer: &mut BytesMut) -> Result<Option<Push>, Garbled> {
    let Some((&kind, _)) = buffer.split_first() else { return Ok(None) };
    let Some(end) = line_end(buffer, 0) else { return Ok(None) };
    match kind {
        b'+' | b':' => {
            let _ = buffer.split_to(end + 2);
            Ok(Some(Push::Fine))
        }
        b'-' => {
            let line = buffer.split_to(end + 2);
            Ok(Some(Push::Refused(String::from_utf8_lossy(&line[1..end]).into_owned())))
        }
        b'*' => {
            let count = number(&buffer[1..end])?;
            if count > ELEMENTS_MAX {
                return Err(Garbled);
            }
            take_array(buffer, end + 2, count)
        }
        _ => Err(Garbled),
    }
}

fn take_array(buffer: &mut BytesMut, start: usize, count: usize) -> Result<Option<Push>, Garbled> {
    let mut spans = [(0, 0); ELEMENTS_MAX];
    let mut at = start;
    for span in spans.iter_mut().take(count) {
        let Some(&kind) = buffer.get(at) else { return Ok(None) };
        let Some(end) = line_end(buffer, at) else { return Ok(None) };
        match kind {
            b'$' if buffer[at + 1..end] == *b"-1" => {
                *span = (end, end);
                at = end + 2;
            }
            b'$' => {
                let length = number(&buffer[at + 1..end])?;
                if length > BULK_BYTES_MAX {
                    return Err(Garbled);
                }
                let from = end + 2;
                if buffer.len() < from + length + 2 {
                    // Grow once for a large body instead of once a read.
                    buffer.reserve(from + length + 2 - buffer.len());
                    return Ok(None);
                }
                *span = (from, from + length);
                at = from + length + 2;
            }
            b':' => {
                *span = (at + 1, end);
                at = end + 2;
            }
            _ => return Err(Garbled),
        }
    }
    let frame = buffer.split_to(at).freeze();
    let element = |index: usize| frame.slice(spans[index].0..spans[index].1);
    let kind = if count > 0 { element(0) } else { return Err(Garbled) };
    Ok(Some(match &kind[..] {
        b"message" | b"smessage" if count == 3 => Push::Message(element(1), element(2)),
        b"subscribe" | b"unsubscribe" | b"ssubscribe" | b"sunsubscribe" => Push::Confirmed,
        _ => Push::Fine,
    }))
}

fn line_end(buffer: &[u8], from: usize) -> Option<usize> {
    let mut at = from;
    while let Some(found) = buffer[at..].iter().position(|byte| *byte == b'\r') {
        let end = at + found;
        match buffer.get(end + 1) {
            Some(b'\n') => return Some(end),
            Some(_) => at = end + 1,
            None => return None,
        }
    }
    None
}

fn number(digits: &[u8]) -> Result<usize, Garbled> {
    std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok()).ok_or(Garbled)
}

/// A command as an array of bulk strings.
pub(super) fn command(parts: &[&[u8]]) -> Vec<u8> {
    let mut out = format!("*{}\r\n", parts.len()).into_bytes();
    for part in parts {
        out.extend_from_slice(format!("${}\r\n", part.len()).as_bytes());
        out.extend_from_slice(part);
        out.extend_from_slice(b"\r\n");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pushes_are_taken_whole_wherever_the_bytes_are_cut() {
        let stream = b"*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$5\r\nx\r\ny\r\r\n+OK\r\n-ERR no\r\n";
        let whole = [
            Push::Confirmed,
            Push::Message(Bytes::from_static(b"a"), Bytes::from_static(b"x\r\ny\r")),
            Push::Fine,
            Push::Refused("ERR no".to_owned()),
        ];
        for cut in 0..stream.len() {
            let mut buffer = BytesMut::from(&stream[..cut]);
            let mut taken = Vec::new();
            while let Some(push) = take(&mut buffer).expect("RESP2") {
                taken.push(push);
            }
            buffer.extend_from_slice(&stream[cut..]);
            while let Some(push) = take(&mut buffer).expect("RESP2") {
                taken.push(push);
            }
            assert_eq!(taken, whole, "cut at {cut}");
        }
    }
}
