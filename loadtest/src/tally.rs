//! The count of one run: deliveries, their latency, and what was lost, doubled or out of order.
//!
//! Lives on one thread; every connection of the driver adds to it. Knows nothing of sockets.

use crate::mark::Mark;
use hdrhistogram::Histogram;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// What all connections of a run add to.
pub(crate) struct Tally {
    /// Zero of every mark's clock.
    pub(crate) began: Instant,
    /// Measured messages received.
    pub(crate) delivered: Cell<u64>,
    /// Connections that have heard their channel at least once.
    pub(crate) ready: Cell<u64>,
    /// Bytes read from all sockets.
    pub(crate) bytes: Cell<u64>,
    /// Connections that the server ended.
    pub(crate) closed: Cell<u64>,
    /// Connects that had to be tried again, by reason.
    pub(crate) retries: RefCell<BTreeMap<String, u64>>,
    /// Longest time from asking for a TCP connection to having it: the driver's own lateness, mostly.
    pub(crate) dial_max: Cell<Duration>,
    /// Time of each handshake that succeeded, welcome included.
    connect_ns: RefCell<Histogram<u64>>,
    /// Publishes (or what else was asked) that were answered with an error.
    pub(crate) refused: Cell<u64>,
    /// What listening clients sent and had acknowledged.
    pub(crate) acked: Cell<u64>,
    /// Compressed messages received.
    pub(crate) compressed: Cell<u64>,
    /// Those of them that were inflated: the others were equal to one inflated before, byte for byte.
    pub(crate) inflated: Cell<u64>,
    /// Polls answered.
    pub(crate) polls: Cell<u64>,
    /// Clients that came back to where they were.
    pub(crate) recovered: Cell<u64>,
    /// Clients that came back and were told that they begin anew.
    pub(crate) fresh: Cell<u64>,
    /// Times that a client was told mid-connection that something is missing.
    pub(crate) resyncs: Cell<u64>,
    back_ns: RefCell<Histogram<u64>>,
    /// Answers to publishes.
    pub(crate) answered: Cell<u64>,
    /// Time from when a request was due to its answer.
    answer_ns: RefCell<Histogram<u64>>,
    /// One for each publisher: channel c is the one's at c modulo their count.
    progress: RefCell<Vec<Rc<Progress>>>,
    latency_ns: RefCell<Histogram<u64>>,
    /// Latencies of the running second: not yet in `latency_ns`.
    second_ns: RefCell<Histogram<u64>>,
}

/// How far one publisher's messages came.
pub(crate) struct Progress {
    /// Deliveries of its channels.
    pub(crate) delivered: Cell<u64>,
    /// Wakes the publisher when `delivered` reaches `wake_at`, and when answers come.
    pub(crate) changed: Notify,
    /// See `changed`.
    pub(crate) wake_at: Cell<u64>,
}

impl Tally {
    /// An empty count whose clock begins now.
    pub(crate) fn new() -> Self {
        let latency = Histogram::new_with_bounds(1, 120_000_000_000, 3).expect("constant bounds");
        Self {
            began: Instant::now(),
            delivered: Cell::new(0),
            ready: Cell::new(0),
            bytes: Cell::new(0),
            closed: Cell::new(0),
            retries: RefCell::default(),
            dial_max: Cell::default(),
            connect_ns: RefCell::new(latency.clone()),
            refused: Cell::new(0),
            acked: Cell::new(0),
            compressed: Cell::new(0),
            inflated: Cell::new(0),
            polls: Cell::new(0),
            recovered: Cell::new(0),
            fresh: Cell::new(0),
            resyncs: Cell::new(0),
            back_ns: RefCell::new(latency.clone()),
            answered: Cell::new(0),
            answer_ns: RefCell::new(latency.clone()),
            progress: RefCell::default(),
            second_ns: RefCell::new(latency.clone()),
            latency_ns: RefCell::new(latency),
        }
    }

    /// Nanoseconds since the run began.
    pub(crate) fn now_ns(&self) -> u64 {
        self.began.elapsed().as_nanos() as u64
    }

    /// Counts one delivery that was read at `now_ns`.
    pub(crate) fn deliver(&self, mark: &Mark, now_ns: u64) {
        add(&self.delivered, 1);
        self.second_ns.borrow_mut().saturating_record(now_ns.saturating_sub(mark.due_ns).max(1));
        let all = self.progress.borrow();
        // One publisher is the common case and the one with the most deliveries: no division for it.
        let at = if all.len() == 1 { 0 } else { mark.channel as usize % all.len().max(1) };
        let Some(progress) = all.get(at) else { return };
        add(&progress.delivered, 1);
        if progress.delivered.get() >= progress.wake_at.get() {
            progress.wake_at.set(u64::MAX);
            progress.changed.notify_one();
        }
    }

    /// Counts deliveries for `count` publishers from now on.
    pub(crate) fn divide(&self, count: usize) -> Vec<Rc<Progress>> {
        let one = || Progress {
            delivered: Cell::new(0),
            changed: Notify::new(),
            wake_at: Cell::new(u64::MAX),
        };
        let all: Vec<Rc<Progress>> = (0..count).map(|_| Rc::new(one())).collect();
        self.progress.borrow_mut().clone_from(&all);
        all
    }

    /// Notes how long after it was due a request was answered.
    pub(crate) fn answer(&self, took: Duration) {
        add(&self.answered, 1);
        self.answer_ns.borrow_mut().saturating_record(took.as_nanos().max(1) as u64);
    }

    /// Time to a request's answer at a quantile in milliseconds.
    pub(crate) fn answer_ms(&self, quantile: f64) -> f64 {
        self.answer_ns.borrow().value_at_quantile(quantile) as f64 / 1e6
    }

    /// Forgets the latencies so far: measuring begins.
    pub(crate) fn forget_latency(&self) {
        self.latency_ns.borrow_mut().reset();
        self.second_ns.borrow_mut().reset();
        self.answer_ns.borrow_mut().reset();
    }

    /// Notes a connect that was refused and is tried again.
    pub(crate) fn retry(&self, reason: &str) {
        *self.retries.borrow_mut().entry(reason.to_owned()).or_default() += 1;
    }

    /// Notes how long a handshake took.
    pub(crate) fn connected(&self, took: Duration) {
        self.connect_ns.borrow_mut().saturating_record(took.as_nanos() as u64);
    }

    /// Time of a handshake at a quantile in milliseconds.
    pub(crate) fn connect_ms(&self, quantile: f64) -> f64 {
        self.connect_ns.borrow().value_at_quantile(quantile) as f64 / 1e6
    }

    /// Notes how long after it was cut a client was there again.
    pub(crate) fn came_back(&self, took: Duration) {
        self.back_ns.borrow_mut().saturating_record(took.as_nanos() as u64);
    }

    /// Time to be there again at a quantile in milliseconds.
    pub(crate) fn back_ms(&self, quantile: f64) -> f64 {
        self.back_ns.borrow().value_at_quantile(quantile) as f64 / 1e6
    }

    /// Connections opened so far.
    pub(crate) fn opened(&self) -> u64 {
        self.connect_ns.borrow().len()
    }

    /// Ends a second: its median and 99th percentile in milliseconds. They count in the whole from now on.
    pub(crate) fn end_second(&self) -> (f64, f64) {
        let mut second = self.second_ns.borrow_mut();
        let ms = |quantile| second.value_at_quantile(quantile) as f64 / 1e6;
        let figures = (ms(0.5), ms(0.99));
        self.latency_ns.borrow_mut().add(&*second).expect("both have the same bounds");
        second.reset();
        figures
    }

    /// Latency at a quantile in milliseconds.
    pub(crate) fn latency_ms(&self, quantile: f64) -> f64 {
        self.end_second();
        self.latency_ns.borrow().value_at_quantile(quantile) as f64 / 1e6
    }

    /// Latency in milliseconds by the number of nines: 0 is the least, 1 is 90 %, 2 is 99 %, up to where a
    /// single delivery decides.
    pub(crate) fn latency_curve(&self) -> Vec<(f64, f64)> {
        self.end_second();
        let all = self.latency_ns.borrow();
        let most = (all.len() as f64).log10();
        (0..70)
            .map(|step| f64::from(step) / 10.0)
            .take_while(|nines| *nines <= most)
            .map(|nines| {
                let quantile = 1.0 - 10_f64.powf(-nines);
                (nines, all.value_at_quantile(quantile) as f64 / 1e6)
            })
            .collect()
    }
}

/// Adds `by` to a cell.
pub(crate) fn add(cell: &Cell<u64>, by: u64) {
    cell.set(cell.get() + by);
}

/// Order of one channel as one connection hears it.
#[derive(Default)]
pub(crate) struct Order {
    next: u32,
    gaps: Vec<u32>,
    /// Sequences heard more than once.
    pub(crate) duplicated: u64,
    /// Sequences heard after a later one.
    pub(crate) reordered: u64,
    /// Sequences heard once.
    pub(crate) unique: u64,
}

impl Order {
    /// Notes that `sequence` (from 1) was heard.
    pub(crate) fn hear(&mut self, sequence: u32) {
        const GAPS_MAX: u32 = 100_000;
        let next = self.next.max(1);
        if sequence >= next {
            self.gaps.extend((next..sequence).take(GAPS_MAX as usize));
            self.next = sequence + 1;
            self.unique += 1;
        } else if let Some(at) = self.gaps.iter().position(|gap| *gap == sequence) {
            self.gaps.swap_remove(at);
            self.reordered += 1;
            self.unique += 1;
        } else {
            self.duplicated += 1;
        }
    }

    /// How many of `published` were never heard.
    pub(crate) fn lost(&self, published: u32) -> u64 {
        u64::from(published).saturating_sub(self.unique)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_tells_lost_from_doubled_from_late() {
        let mut order = Order::default();
        for sequence in [1, 2, 2, 5, 3] {
            order.hear(sequence);
        }
        assert_eq!((order.duplicated, order.reordered, order.lost(6)), (1, 1, 2));
    }
}
