//! How an outbox writes an event stream: cursors, HTTP/1.1 chunks, and gzip out of shared pieces.
//! Source: `protocol.md` 1 and 6, rulings R22 and R30.

use bytes::Bytes;
use carillon_protocol::Cursor;
use carillon_protocol::codec::gzip::{self, Sum};

use super::{Item, State};

/// Bodies up to this many bytes are copied beside their `id:` line instead of being a slice of their own.
const SSE_COPY_BYTES_MAX: usize = 4096;
/// The last chunk of a response.
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

#[derive(Debug, Default)]
pub(super) struct EventStream {
    pub(super) cursor: Cursor,
    pub(super) chunked: bool,
    /// Of a gzip stream: the sum of what has left the queue.
    pub(super) gzip: Option<Sum>,
}

impl State {
    /// A text of an event stream that is nobody else's.
    pub(super) fn enqueue_text(&mut self, text: &[u8]) {
        let Some(sse) = &self.sse else { return };
        let (stored, sum) = match sse.gzip {
            Some(_) => gzip::text(text),
            None => (text.to_vec(), Sum::default()),
        };
        let bytes = if sse.chunked { chunk(&stored) } else { stored.into() };
        self.enqueue_summed(bytes, 0, sum);
    }

    /// What ends an event stream: gzip's check sum, the last chunk.
    pub(super) fn enqueue_end(&mut self) {
        let Some(sse) = &self.sse else { return };
        let chunked = sse.chunked;
        if let Some(left) = sse.gzip {
            let sum = self.queue.iter().fold(left, |sum, item| sum.then(item.sum));
            let end = gzip::end(sum);
            self.enqueue(if chunked { chunk(&end) } else { end.into() }, 0);
        }
        if chunked {
            self.enqueue(Bytes::from_static(LAST_CHUNK), 0);
        }
    }

    /// An item has left the queue for its reader.
    pub(super) fn left(&mut self, item: &Item) {
        if let Some(EventStream { gzip: Some(sum), .. }) = self.sse.as_deref_mut() {
            *sum = sum.then(item.sum);
        }
    }

    /// An event of shared bytes with the cursor that is this listener's.
    pub(super) fn enqueue_event(&mut self, frame: &Bytes, conflate: u64) {
        let Some(sse) = &self.sse else { return };
        let mut id_line = Vec::with_capacity(96);
        if !sse.cursor.positions().is_empty() {
            id_line.extend_from_slice(b"id: ");
            sse.cursor.write(&mut id_line);
            id_line.push(b'\n');
        }
        id_line.push(b'\n');
        let shared;
        let mut sum = Sum::default();
        // Compressed or not, an event is shared bytes and a tail of this listener's own.
        let (frame, mut id_line) = if sse.gzip.is_none() {
            (frame, id_line)
        } else {
            let (body, tail, own) = gzip::event(frame, &id_line);
            (shared, sum) = (body, own);
            (&shared, tail)
        };
        let chunked = sse.chunked;
        let length = frame.len() + id_line.len();
        let head = if chunked { format!("{length:x}\r\n") } else { String::new() };
        let tail: &[u8] = if chunked { b"\r\n" } else { b"" };
        // An event that may be replaced is one item, so that it is never dropped in part.
        if frame.len() <= SSE_COPY_BYTES_MAX || conflate != 0 {
            let mut event = Vec::with_capacity(head.len() + length + tail.len());
            event.extend_from_slice(head.as_bytes());
            event.extend_from_slice(frame);
            event.extend_from_slice(&id_line);
            event.extend_from_slice(tail);
            self.enqueue_summed(event.into(), conflate, sum);
        } else {
            let frame = frame.clone();
            id_line.extend_from_slice(tail);
            self.enqueue(head.into(), 0);
            self.enqueue(frame, 0);
            self.enqueue_summed(id_line.into(), 0, sum);
        }
    }
}

/// An HTTP/1.1 chunk.
fn chunk(text: &[u8]) -> Bytes {
    let mut chunk = format!("{:x}\r\n", text.len()).into_bytes();
    chunk.extend_from_slice(text);
    chunk.extend_from_slice(b"\r\n");
    chunk.into()
}
