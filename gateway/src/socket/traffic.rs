//! Bytes that this process read from and wrote to its clients' sockets. Counted beside each system call, so each thread
//! has a cache line of its own: a shared counter would cost the fan-out more than the count is worth.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// More threads than that share lines.
const LANES: usize = 16;

#[repr(align(128))]
struct Lane {
    received: AtomicU64,
    sent: AtomicU64,
}

static TRAFFIC: [Lane; LANES] =
    [const { Lane { received: AtomicU64::new(0), sent: AtomicU64::new(0) } }; LANES];
static NEXT: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static LANE: Cell<usize> = Cell::new(NEXT.fetch_add(1, Ordering::Relaxed) % LANES);
}

pub(super) fn received(bytes: usize) {
    TRAFFIC[LANE.get()].received.fetch_add(bytes as u64, Ordering::Relaxed);
}

pub(super) fn sent(bytes: usize) {
    TRAFFIC[LANE.get()].sent.fetch_add(bytes as u64, Ordering::Relaxed);
}

/// Bytes read and written since the process began.
#[must_use]
pub fn traffic() -> (u64, u64) {
    let sum = |of: fn(&Lane) -> &AtomicU64| {
        TRAFFIC.iter().map(|lane| of(lane).load(Ordering::Relaxed)).sum()
    };
    (sum(|lane| &lane.received), sum(|lane| &lane.sent))
}
