//! RESP2 as our own connections read it: whole frames out of a growing buffer, as ranges into it.
//! Knows no socket and no meaning.

use std::ops::Range;

/// Frames nest at most so deep (HELLO's answer needs three).
const DEPTH_MAX: usize = 8;
/// Redis itself refuses longer strings.
const LENGTH_MAX: usize = 512 * 1024 * 1024;

/// One value, its texts as places in the buffer it was read from.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// A simple or a bulk string.
    Text(Range<usize>),
    Error(Range<usize>),
    Integer(i64),
    Nil,
    Array(Vec<Frame>),
}

/// What stands at the front of a buffer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Front {
    /// A frame and where the next one begins.
    Whole(Frame, usize),
    /// The frame needs at least so many bytes more.
    Partial(usize),
}

/// The bytes are no RESP2; the connection cannot be used any more.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("Redis sent bytes that are not RESP2")]
pub(super) struct Garbled;

/// Reads the frame that begins at `at`.
pub(super) fn read(bytes: &[u8], at: usize) -> Result<Front, Garbled> {
    read_nested(bytes, at, 0)
}

fn read_nested(bytes: &[u8], at: usize, depth: usize) -> Result<Front, Garbled> {
    let Some(&kind) = bytes.get(at) else { return Ok(Front::Partial(1)) };
    let Some(length) = memchr::memchr(b'\n', &bytes[at..]) else {
        // Only lengths, numbers and error sentences stand in a line.
        return if bytes.len() - at > 64 * 1024 { Err(Garbled) } else { Ok(Front::Partial(1)) };
    };
    let next = at + length + 1;
    if length < 2 || bytes[next - 2] != b'\r' || depth > DEPTH_MAX {
        return Err(Garbled);
    }
    let line = at + 1..next - 2;
    let number = || {
        let text = std::str::from_utf8(&bytes[line.clone()]).map_err(|_| Garbled)?;
        text.parse::<i64>().map_err(|_| Garbled)
    };
    Ok(match kind {
        b'+' => Front::Whole(Frame::Text(line), next),
        b'-' => Front::Whole(Frame::Error(line), next),
        b':' => Front::Whole(Frame::Integer(number()?), next),
        b'$' => match usize::try_from(number()?) {
            Err(_) => Front::Whole(Frame::Nil, next),
            Ok(length) if length > LENGTH_MAX => return Err(Garbled),
            Ok(length) => match (next + length + 2).checked_sub(bytes.len()) {
                None | Some(0) => Front::Whole(Frame::Text(next..next + length), next + length + 2),
                Some(missing) => Front::Partial(missing),
            },
        },
        b'*' => {
            let Ok(count) = usize::try_from(number()?) else {
                return Ok(Front::Whole(Frame::Nil, next));
            };
            let mut items = Vec::with_capacity(count.min(16));
            let mut at = next;
            for _ in 0..count {
                match read_nested(bytes, at, depth + 1)? {
                    Front::Whole(item, next) => {
                        items.push(item);
                        at = next;
                    }
                    partial @ Front::Partial(_) => return Ok(partial),
                }
            }
            Front::Whole(Frame::Array(items), at)
        }
        _ => return Err(Garbled),
    })
}

/// Appends a command as an array of bulk strings.
pub(super) fn write<'a>(out: &mut impl Extend<u8>, parts: impl ExactSizeIterator<Item = &'a [u8]>) {
    out.extend(format!("*{}\r\n", parts.len()).into_bytes());
    for part in parts {
        out.extend(format!("${}\r\n", part.len()).into_bytes());
        out.extend(part.iter().copied());
        out.extend(*b"\r\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PUSH: &[u8] = b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$4\r\na\r\nb\r\n";

    #[test]
    fn a_frame_cut_anywhere_is_partial_and_never_garbled() {
        for end in 0..PUSH.len() {
            assert!(
                matches!(read(&PUSH[..end], 0), Ok(Front::Partial(more)) if more <= PUSH.len() - end)
            );
        }
        let Ok(Front::Whole(Frame::Array(items), end)) = read(PUSH, 0) else { panic!("whole") };
        assert_eq!(end, PUSH.len());
        let Frame::Text(body) = &items[2] else { panic!("text") };
        assert_eq!(&PUSH[body.clone()], b"a\r\nb");
    }

    #[test]
    fn what_is_written_is_read() {
        let mut out = Vec::new();
        write(&mut out, [b"SET".as_slice(), b"", b"\r\n\0"].into_iter());
        let Ok(Front::Whole(Frame::Array(items), _)) = read(&out, 0) else { panic!("whole") };
        assert_eq!(items.len(), 3);
    }

    #[test]
    fn other_bytes_are_garbled() {
        for bytes in [&b"x\r\n"[..], b"\n", b"$a\r\n", b"*1\r\n?\r\n", b":1\n", b"$99999999999\r\n"]
        {
            assert_eq!(read(bytes, 0), Err(Garbled), "{bytes:?}");
        }
        assert_eq!(read(&b"*1\r\n".repeat(100), 0), Err(Garbled));
    }
}
