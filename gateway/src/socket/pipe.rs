//! A connection in memory, as a socket of the simulation: the same code runs over it under a clock of its own. Reading and
//! writing never wait. It must not know: TLS, frames, who says what.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Read as _};
use std::net::Shutdown;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

/// Two ends of a connection in memory. Each direction holds at most `bytes_max` bytes, as a kernel's
/// buffers would; dropping an end is what a peer's death is to TCP.
#[must_use]
pub fn pipe(bytes_max: usize) -> (PipeEnd, PipeEnd) {
    let way = || Arc::new(Way { bytes_max, ..Way::default() });
    let (one, other) = (way(), way());
    let end = |incoming: &Arc<Way>, outgoing: &Arc<Way>| PipeEnd {
        incoming: Arc::clone(incoming),
        outgoing: Arc::clone(outgoing),
    };
    (end(&one, &other), end(&other, &one))
}

/// One end of a [`pipe`]. One task reads, one waits to write.
#[derive(Debug)]
pub struct PipeEnd {
    incoming: Arc<Way>,
    outgoing: Arc<Way>,
}

/// Bytes under way in one direction.
#[derive(Debug, Default)]
struct Way {
    bytes_max: usize,
    flow: Mutex<Flow>,
}

#[derive(Debug, Default)]
struct Flow {
    bytes: VecDeque<u8>,
    /// The writer will write no more.
    ended: bool,
    /// The reader will read no more, or one end was dropped.
    broken: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl PipeEnd {
    /// As [`super::Socket::readable`].
    ///
    /// # Errors
    /// Never; a broken pipe shows in the read.
    pub async fn readable(&self) -> io::Result<()> {
        std::future::poll_fn(|cx| self.poll_read_ready(cx)).await
    }

    /// As [`super::Socket::writable`].
    ///
    /// # Errors
    /// Never; a broken pipe shows in the write.
    pub async fn writable(&self) -> io::Result<()> {
        std::future::poll_fn(|cx| self.poll_write_ready(cx)).await
    }

    /// As [`PipeEnd::readable`], for polling; the last one to ask is woken.
    ///
    /// # Errors
    /// Never.
    pub fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut flow = self.incoming.flow.lock();
        if !flow.bytes.is_empty() || flow.ended || flow.broken {
            return Poll::Ready(Ok(()));
        }
        flow.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    /// As [`PipeEnd::writable`], for polling; the last one to ask is woken.
    ///
    /// # Errors
    /// Never.
    pub fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut flow = self.outgoing.flow.lock();
        if flow.bytes.len() < self.outgoing.bytes_max || flow.broken {
            return Poll::Ready(Ok(()));
        }
        flow.writer = Some(cx.waker().clone());
        Poll::Pending
    }

    /// As [`super::Socket::try_read`].
    ///
    /// # Errors
    /// `WouldBlock`, `ConnectionReset`.
    pub fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut flow = self.incoming.flow.lock();
        if flow.broken {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        if flow.bytes.is_empty() {
            return if flow.ended { Ok(0) } else { Err(io::ErrorKind::WouldBlock.into()) };
        }
        let count = flow.bytes.read(buffer)?;
        let writer = flow.writer.take();
        drop(flow);
        wake(writer);
        Ok(count)
    }

    /// As [`super::Socket::try_write`].
    ///
    /// # Errors
    /// `WouldBlock`, `BrokenPipe`.
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.try_write_vectored(&[IoSlice::new(bytes)])
    }

    /// As [`super::Socket::try_write_vectored`].
    ///
    /// # Errors
    /// `WouldBlock`, `BrokenPipe`.
    pub fn try_write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut flow = self.outgoing.flow.lock();
        if flow.broken || flow.ended {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let mut written = 0;
        for slice in slices {
            let room = self.outgoing.bytes_max.saturating_sub(flow.bytes.len());
            let count = room.min(slice.len());
            flow.bytes.extend(&slice[..count]);
            written += count;
        }
        if written == 0 && slices.iter().any(|slice| !slice.is_empty()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let reader = flow.reader.take();
        drop(flow);
        wake(reader);
        Ok(written)
    }

    /// Ends directions: what was written before still arrives, what was not read is lost.
    pub fn shutdown(&self, how: Shutdown) {
        if matches!(how, Shutdown::Write | Shutdown::Both) {
            self.outgoing.change(|flow| flow.ended = true);
        }
        if matches!(how, Shutdown::Read | Shutdown::Both) {
            self.incoming.change(|flow| flow.broken = true);
        }
    }

    /// Cuts both directions at once; what is under way is lost.
    pub fn reset(&self) {
        self.incoming.change(|flow| flow.broken = true);
        self.outgoing.change(|flow| flow.broken = true);
    }
}

impl Drop for PipeEnd {
    fn drop(&mut self) {
        self.shutdown(Shutdown::Both);
    }
}

impl Way {
    fn change(&self, change: impl FnOnce(&mut Flow)) {
        let mut flow = self.flow.lock();
        change(&mut flow);
        let (reader, writer) = (flow.reader.take(), flow.writer.take());
        drop(flow);
        wake(reader);
        wake(writer);
    }
}

fn wake(waiting: Option<Waker>) {
    if let Some(waiting) = waiting {
        waiting.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_pipe_holds_what_it_may_and_wakes_who_waits() {
        let (here, there) = pipe(4);
        assert_eq!(here.try_write(b"abcdef").expect("room"), 4);
        assert_eq!(here.try_write(b"ef").unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let mut buffer = [0; 3];
        let (waited, read) = tokio::join!(here.writable(), async {
            there.readable().await.expect("no failure");
            there.try_read(&mut buffer)
        });
        waited.expect("no failure");
        assert_eq!((read.expect("bytes"), &buffer), (3, b"abc"));
        assert_eq!(here.try_write(b"ef").expect("room"), 2);
    }

    #[tokio::test]
    async fn what_was_written_before_the_end_arrives_and_a_reset_takes_it_away() {
        let (here, there) = pipe(16);
        here.try_write(b"last words").expect("room");
        drop(here);
        let mut buffer = [0; 16];
        assert_eq!(there.try_read(&mut buffer).expect("bytes"), 10);
        assert_eq!(there.try_read(&mut buffer).expect("the end"), 0);
        assert_eq!(there.try_write(b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        let (here, there) = pipe(16);
        here.try_write(b"never read").expect("room");
        here.reset();
        let error = there.try_read(&mut buffer).expect_err("reset");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
}
