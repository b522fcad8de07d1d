//! A frame to each of many sockets by one system call: io_uring, where the kernel has it and the container lets us ask. All of
//! it is done when the call returns, just as if each had been sent alone. Why: `docs/decisions/0007-one-call-for-many-sockets.md`.
//!
//! It must not know: whose the frames are, who waits for room.

use smallvec::SmallVec;

use super::{Socket, traffic};

/// Most frames of one call.
pub const BURST_MAX: usize = 64;

/// How many bytes each socket took; 0 also where it was not asked, or failed: whoever sends to it alone learns why.
pub type Taken = SmallVec<[usize; BURST_MAX]>;

/// Allows it to the process (`server.io_uring`), or not.
pub fn allow(allowed: bool) {
    ring::ALLOWED.store(allowed, std::sync::atomic::Ordering::Relaxed);
}

/// Whether this thread has what it takes.
#[must_use]
pub fn is_possible() -> bool {
    ring::of_thread(|_| ()).is_some()
}

/// Sends what fits, never waiting. At most [`BURST_MAX`], all to plain sockets.
#[must_use]
pub fn send_all(frames: &[(&Socket, &[u8])]) -> Taken {
    debug_assert!(frames.len() <= BURST_MAX, "{}", frames.len());
    let taken = ring::of_thread(|ring| ring.send_all(frames));
    let taken = taken.unwrap_or_else(|| Taken::from_elem(0, frames.len()));
    traffic::sent(taken.iter().sum());
    taken
}

#[cfg(target_os = "linux")]
mod ring {
    use std::cell::RefCell;
    use std::io;
    use std::os::fd::AsRawFd as _;
    use std::sync::atomic::{AtomicBool, Ordering};

    use io_uring::{IoUring, Probe, opcode, types::Fd};

    use super::{BURST_MAX, Socket, Taken};

    pub(super) static ALLOWED: AtomicBool = AtomicBool::new(true);

    thread_local! {
        static RING: RefCell<Option<Ring>> = RefCell::new(Ring::new());
    }

    /// Calls `with` where the thread has a ring.
    pub(super) fn of_thread<T>(with: impl FnOnce(&mut Ring) -> T) -> Option<T> {
        if !ALLOWED.load(Ordering::Relaxed) {
            return None;
        }
        RING.with_borrow_mut(|slot| {
            let answer = with(slot.as_mut()?);
            slot.take_if(|ring| ring.is_broken);
            Some(answer)
        })
    }

    pub(super) struct Ring {
        ring: IoUring,
        is_broken: bool,
    }

    impl Ring {
        /// Room for a burst; `None` where the kernel is older than the call, or whoever confines us forbids it.
        fn new() -> Option<Self> {
            let ring = IoUring::new(BURST_MAX as u32).ok()?;
            let mut probe = Probe::new();
            ring.submitter().register_probe(&mut probe).ok()?;
            probe.is_supported(opcode::Send::CODE).then_some(Self { ring, is_broken: false })
        }

        #[expect(
            unsafe_code,
            reason = "the kernel is handed addresses; all of them are its no longer when this returns"
        )]
        pub(super) fn send_all(&mut self, frames: &[(&Socket, &[u8])]) -> Taken {
            let mut taken = Taken::from_elem(0, frames.len());
            let (mut asked, mut queue) = (0, self.ring.submission());
            for (index, (socket, frame)) in frames.iter().enumerate() {
                let Socket::Plain(socket) = socket else { continue };
                let length = u32::try_from(frame.len()).unwrap_or(u32::MAX);
                // Nothing is left to be tried again later: what does not fit now is refused.
                let send = opcode::Send::new(Fd(socket.as_raw_fd()), frame.as_ptr(), length)
                    .flags(libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
                    .build()
                    .user_data(index as u64);
                // SAFETY: descriptor and bytes are borrowed until this returns, which it does only when the kernel has answered
                // every request that it took, or when it took none that it did not answer and the ring is given up.
                if unsafe { queue.push(&send) }.is_err() {
                    break;
                }
                asked += 1;
            }
            drop(queue);
            let mut answered = 0;
            while answered < asked {
                let entered = self.ring.submit_and_wait(asked - answered);
                for completion in self.ring.completion() {
                    answered += 1;
                    if let Ok(bytes) = usize::try_from(completion.result()) {
                        taken[completion.user_data() as usize] = bytes;
                    }
                }
                let not_taken = self.ring.submission().len();
                if let Err(error) = entered
                    && error.kind() != io::ErrorKind::Interrupted
                    && answered + not_taken == asked
                {
                    tracing::warn!(%error, "io_uring is given up: sockets are written to one by one");
                    self.is_broken = true;
                    break;
                }
            }
            taken
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod ring {
    use std::sync::atomic::AtomicBool;

    use super::{Socket, Taken};

    pub(super) static ALLOWED: AtomicBool = AtomicBool::new(false);

    pub(super) enum Ring {}

    impl Ring {
        pub(super) fn send_all(&mut self, _: &[(&Socket, &[u8])]) -> Taken {
            match *self {}
        }
    }

    pub(super) fn of_thread<T>(_: impl FnOnce(&mut Ring) -> T) -> Option<T> {
        None
    }
}
