//! A client's connection: frames and events on one side, JSON documents on the other. It must not know: what
//! the documents mean.

use std::io::ErrorKind;

use serde_json::Value;

use crate::stage::Reached;
use crate::storage::runs;

const READ_BYTES: usize = 1024;

/// See the module.
pub(crate) struct Session {
    reached: Reached,
    sse: bool,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
}

/// What a client hears.
#[derive(Debug)]
pub(crate) enum Heard {
    /// A message, on an event stream with the cursor behind it.
    Message(Value, Option<String>),
    /// The connection is over.
    End,
}

impl Session {
    pub(crate) fn new(reached: Reached, sse: bool) -> Self {
        Self { reached, sse, incoming: Vec::new(), outgoing: Vec::new() }
    }

    /// Which life of a node this leads to.
    pub(crate) fn life(&self) -> usize {
        self.reached.life
    }

    /// Queues a message; [`Session::next`] writes it.
    pub(crate) fn say(&mut self, message: &Value) {
        self.frame(0x1, message.to_string().as_bytes());
    }

    /// Writes what is queued and waits for the next message; with `reads` unset it only writes. Cancel safe.
    pub(crate) async fn next(&mut self, reads: bool) -> Heard {
        loop {
            if reads && let Some(heard) = self.take() {
                return heard;
            }
            runs(&self.reached.paused).await;
            let socket = &self.reached.socket;
            let writes = !self.outgoing.is_empty();
            let may_read = tokio::select! {
                biased;
                _ = socket.writable(), if writes => false,
                _ = socket.readable(), if reads => true,
                () = std::future::pending() => false,
            };
            let done = if may_read { self.read() } else { self.write() };
            if let Err(ErrorKind::UnexpectedEof) = done {
                return Heard::End;
            }
        }
    }

    fn read(&mut self) -> Result<(), ErrorKind> {
        let mut buffer = [0; READ_BYTES];
        match self.reached.socket.try_read(&mut buffer) {
            Ok(0) => Err(ErrorKind::UnexpectedEof),
            Ok(count) => {
                self.incoming.extend_from_slice(&buffer[..count]);
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
            Err(_) => Err(ErrorKind::UnexpectedEof),
        }
    }

    fn write(&mut self) -> Result<(), ErrorKind> {
        match self.reached.socket.try_write(&self.outgoing) {
            Ok(count) => {
                self.outgoing.drain(..count);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            // What came before the end is still to be read.
            Err(_) => self.outgoing.clear(),
        }
        Ok(())
    }

    /// The next whole message, if it is there.
    fn take(&mut self) -> Option<Heard> {
        if self.sse { self.take_event() } else { self.take_frame() }
    }

    fn take_event(&mut self) -> Option<Heard> {
        loop {
            let end = self.incoming.windows(2).position(|pair| pair == b"\n\n")?;
            let event: Vec<u8> = self.incoming.drain(..end + 2).collect();
            let text = String::from_utf8(event).expect("an event stream is UTF-8");
            let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
            if let Some(data) = field("data: ") {
                let message = serde_json::from_str(data).expect("an event's data is JSON");
                return Some(Heard::Message(message, field("id: ").map(str::to_owned)));
            }
        }
    }

    fn take_frame(&mut self) -> Option<Heard> {
        loop {
            let (opcode, payload) = self.frame_at_front()?;
            match opcode {
                0x1 => {
                    let message = serde_json::from_slice(&payload).expect("a message is JSON");
                    return Some(Heard::Message(message, None));
                }
                0x8 => return Some(Heard::End),
                0x9 => self.frame(0xA, &payload),
                other => panic!("a server sends no frame of opcode {other}"),
            }
        }
    }

    fn frame_at_front(&mut self) -> Option<(u8, Vec<u8>)> {
        let (first, second) = (*self.incoming.first()?, *self.incoming.get(1)?);
        assert_eq!((first & 0xF0, second & 0x80), (0x80, 0), "a whole frame without a mask");
        let (head, length) = match second {
            126 => {
                let length = self.incoming.get(2..4)?;
                (4, usize::from(u16::from_be_bytes([length[0], length[1]])))
            }
            127 => panic!("nothing here is that long"),
            length => (2, usize::from(length)),
        };
        let payload = self.incoming.get(head..head + length)?.to_vec();
        self.incoming.drain(..head + length);
        Some((first & 0x0F, payload))
    }

    /// Queues a frame under the mask that changes nothing.
    fn frame(&mut self, opcode: u8, payload: &[u8]) {
        self.outgoing.push(0x80 | opcode);
        match u8::try_from(payload.len()) {
            Ok(length) if length < 126 => self.outgoing.push(0x80 | length),
            _ => {
                let length = u16::try_from(payload.len()).expect("nothing here is that long");
                self.outgoing.push(0x80 | 126);
                self.outgoing.extend_from_slice(&length.to_be_bytes());
            }
        }
        self.outgoing.extend_from_slice(&[0; 4]);
        self.outgoing.extend_from_slice(payload);
    }
}
