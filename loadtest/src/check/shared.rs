//! What all clients and publishers of a run share: keys, clock, the choice of a node, and the counts.
//!
//! Lives on one thread, so that nothing needs a lock.

use super::balancer::Balancer;
use super::cluster::Keys;
use super::log::{Channel, Number, Place, Published};
use super::report::Latency;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Instant;
use tokio::sync::watch;

/// See the module.
pub(crate) struct Shared {
    pub(crate) began: Instant,
    pub(crate) keys: Keys,
    pub(crate) balancer: Rc<Balancer>,
    /// Bytes of a payload.
    pub(crate) size: usize,
    /// The channel whose deliveries are not in `latency`.
    pub(crate) hot: Option<Channel>,
    /// Everything that was published.
    pub(crate) published: RefCell<Vec<Published>>,
    numbers: RefCell<Vec<Number>>,
    /// Deliveries, from when they were due.
    pub(crate) latency: RefCell<Latency>,
    /// From a cut to the last channel being heard again.
    pub(crate) reconnect: RefCell<Latency>,
    /// How long publishers waited for an answer, whatever it was.
    pub(crate) answer: RefCell<Latency>,
    pub(crate) deliveries: Cell<u64>,
    /// Connections that ended without the client's will, by second of the run.
    pub(crate) cuts: RefCell<BTreeMap<u64, u64>>,
    /// Connects that went to a node that had been told to end.
    pub(crate) returned_to_draining: Cell<u64>,
    /// Connects that failed and were tried again, by reason.
    pub(crate) retried: RefCell<BTreeMap<String, u64>>,
    /// Publishes that were refused or not answered, by reason.
    pub(crate) refused: RefCell<BTreeMap<String, u64>>,
    /// Becomes true when clients shall go home.
    pub(crate) stop: watch::Sender<bool>,
}

impl Shared {
    /// Nothing has happened yet.
    pub(crate) fn new(
        keys: Keys,
        balancer: Rc<Balancer>,
        channels: u32,
        size: usize,
        hot: Option<Channel>,
    ) -> Self {
        Self {
            began: Instant::now(),
            keys,
            balancer,
            size,
            hot,
            published: RefCell::default(),
            numbers: RefCell::new(vec![0; channels as usize]),
            latency: RefCell::default(),
            reconnect: RefCell::default(),
            answer: RefCell::default(),
            deliveries: Cell::new(0),
            cuts: RefCell::default(),
            returned_to_draining: Cell::new(0),
            retried: RefCell::default(),
            refused: RefCell::default(),
            stop: watch::Sender::new(false),
        }
    }

    /// Milliseconds since the beginning.
    pub(crate) fn now_ms(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }

    /// Nanoseconds since the beginning.
    pub(crate) fn now_ns(&self) -> u64 {
        self.began.elapsed().as_nanos() as u64
    }

    /// Where a node's clients connect.
    pub(crate) fn address(&self, node: usize) -> SocketAddr {
        self.balancer.nodes[node].client
    }

    /// Gives the next message of a channel its number; the index is of `published`.
    pub(crate) fn publish(&self, channel: Channel) -> (usize, Number) {
        let number = {
            let mut numbers = self.numbers.borrow_mut();
            numbers[channel as usize] += 1;
            numbers[channel as usize]
        };
        let mut published = self.published.borrow_mut();
        let sent_ms = self.now_ms();
        published.push(Published {
            channel,
            number,
            sent_ms,
            sent_last_ms: sent_ms,
            acknowledged: None,
        });
        (published.len() - 1, number)
    }

    /// The message is sent (again) now.
    pub(crate) fn sent(&self, index: usize) {
        self.published.borrow_mut()[index].sent_last_ms = self.now_ms();
    }

    /// The server said where it stands.
    pub(crate) fn acknowledge(&self, index: usize, place: Place) {
        self.published.borrow_mut()[index].acknowledged = Some(place);
    }

    /// Counts a reason.
    pub(crate) fn count(into: &RefCell<BTreeMap<String, u64>>, reason: &str) {
        *into.borrow_mut().entry(reason.to_owned()).or_default() += 1;
    }

    /// A client was cut.
    pub(crate) fn cut(&self) {
        *self.cuts.borrow_mut().entry(self.now_ms() / 1_000).or_default() += 1;
    }

    /// The name of a channel.
    pub(crate) fn channel(index: Channel) -> String {
        format!("room:check-{index}")
    }
}
