//! A client that comes back: chooses a node, resumes where it was, hears, publishes, and notes all.
//!
//! One task a client. The transports (`websocket`, `stream`, `poll`) own bytes; this file owns what is
//! common: orders, waiting between attempts, and when the client counts as there again.

mod poll;
mod stream;
mod websocket;

use super::lane::{Lanes, Meaning};
use super::log::{self, Channel};
use super::shared::Shared;
use crate::token;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep};

/// A connection that hears nothing for so long is dead: nodes ping every 5 s here.
const SILENCE_MAX: Duration = Duration::from_secs(12);
/// A handshake that takes longer is given up.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// Longest pause between two attempts.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// A publish without an answer is repeated on another connection.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// How a client is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    WebSocket,
    Stream,
    Poll,
}

impl Transport {
    /// For a reader.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::WebSocket => "ws",
            Self::Stream => "sse",
            Self::Poll => "poll",
        }
    }
}

/// A message to publish; `index` is its place in the run's list.
#[derive(Debug, Clone)]
pub(crate) struct Saying {
    pub(crate) index: usize,
    pub(crate) channel: Channel,
    pub(crate) id: String,
    pub(crate) payload: String,
}

/// What a client is told to do.
#[derive(Debug)]
pub(crate) enum Order {
    /// Publish, and tell when it was acknowledged.
    Say(Saying, oneshot::Sender<()>),
    /// Cut the connection and stay away for so long.
    Away(Duration),
    /// Stop reading, without cutting.
    Stall,
    /// Read again.
    Read,
    /// Leave for good.
    Quit,
}

/// How a connection ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// The client wanted it; it stays away for so long.
    Away(Duration),
    /// The run is over, or the client left.
    Over,
    /// The server, or the network.
    Cut { retry_after_ms: u64 },
    /// It never stood.
    Refused { reason: String, retry_after_ms: u64 },
}

/// One client. Its task owns its connection; others read what it noted.
pub(crate) struct Client {
    pub(crate) name: String,
    pub(crate) transport: Transport,
    /// Joins the run's presence channel (WebSocket alone).
    pub(crate) present: bool,
    pub(crate) lanes: RefCell<Lanes>,
    /// All channels are heard.
    pub(crate) live: Cell<bool>,
    /// Left for good.
    pub(crate) gone: Cell<bool>,
    pub(crate) orders: mpsc::Sender<Order>,
    pub(super) shared: Rc<Shared>,
    pub(super) token: String,
    /// SSE: the last `id:`; long poll: the last number.
    pub(super) cursor: RefCell<Option<String>>,
    pub(super) saying: RefCell<VecDeque<(Saying, oneshot::Sender<()>)>>,
    cut_at: Cell<Option<Instant>>,
}

/// The name of the presence channel.
pub(crate) const PRESENCE: &str = "presence:check";

impl Client {
    /// Starts a client's task on the present thread.
    pub(crate) fn start(
        shared: &Rc<Shared>,
        name: String,
        transport: Transport,
        channels: &[Channel],
        present: bool,
        seed: u64,
    ) -> Rc<Self> {
        let (orders, receiver) = mpsc::channel(64);
        let lanes = Lanes::new(channels.iter().map(|index| (*index, Shared::channel(*index))));
        let client = Rc::new(Self {
            token: token::sign(&shared.keys.jwt_secret, &name),
            name,
            transport,
            present,
            lanes: RefCell::new(lanes),
            live: Cell::new(false),
            gone: Cell::new(false),
            orders,
            shared: Rc::clone(shared),
            cursor: RefCell::default(),
            saying: RefCell::default(),
            cut_at: Cell::new(None),
        });
        tokio::task::spawn_local(Rc::clone(&client).live_on(receiver, StdRng::seed_from_u64(seed)));
        client
    }

    async fn live_on(self: Rc<Self>, mut orders: mpsc::Receiver<Order>, mut random: StdRng) {
        let mut stop = self.shared.stop.subscribe();
        let mut attempts = 0_u32;
        loop {
            let Some(node) = self.shared.balancer.choose(&mut random) else {
                if self.pause(Duration::from_millis(200), &mut orders, &mut stop).await {
                    break;
                }
                continue;
            };
            self.lanes.borrow_mut().begin();
            let was_live = Cell::new(false);
            let mut talk = Talk {
                client: &self,
                orders: &mut orders,
                stop: &mut stop,
                was_live: &was_live,
                node,
            };
            let ended = match self.transport {
                Transport::WebSocket => websocket::session(&mut talk).await,
                Transport::Stream => stream::session(&mut talk).await,
                Transport::Poll => poll::session(&mut talk).await,
            };
            self.live.set(false);
            self.lanes.borrow_mut().begin();
            if was_live.get() {
                attempts = 0;
            }
            let wait = match ended {
                Ended::Over => break,
                Ended::Away(away) => away,
                Ended::Cut { retry_after_ms } => {
                    self.shared.cut();
                    self.cut_at.set(self.cut_at.get().or_else(|| Some(Instant::now())));
                    Duration::from_millis(retry_after_ms + random.random_range(0..1_000))
                }
                Ended::Refused { reason, retry_after_ms } => {
                    Shared::count(&self.shared.retried, &reason);
                    attempts += 1;
                    let most = (250_u64 << attempts.min(6)).min(PAUSE_MAX.as_millis() as u64);
                    Duration::from_millis(retry_after_ms + random.random_range(0..most))
                }
            };
            if self.pause(wait, &mut orders, &mut stop).await {
                break;
            }
        }
        self.gone.set(true);
        self.live.set(false);
    }

    /// Waits; whether the client shall leave.
    async fn pause(
        &self,
        wait: Duration,
        orders: &mut mpsc::Receiver<Order>,
        stop: &mut watch::Receiver<bool>,
    ) -> bool {
        let mut end = Instant::now() + wait;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(end) => return *stop.borrow(),
                () = stopped(stop) => return true,
                order = orders.recv() => match order {
                    None | Some(Order::Quit) => return true,
                    Some(Order::Away(away)) => end = end.max(Instant::now() + away),
                    Some(Order::Say(saying, done)) => self.saying.borrow_mut().push_back((saying, done)),
                    Some(Order::Stall | Order::Read) => {}
                },
            }
        }
    }

    /// What it heard, for the judge.
    pub(crate) fn log(&self) -> Vec<log::Lane> {
        let lanes = self.lanes.borrow();
        let client = format!("{} ({})", self.name, self.transport.name());
        lanes
            .0
            .iter()
            .map(|lane| log::Lane {
                client: client.clone(),
                channel: lane.index,
                heard: lane.heard.clone(),
                stayed: !self.gone.get(),
            })
            .collect()
    }
}

/// A client's present connection, as its transport sees it.
pub(super) struct Talk<'a> {
    pub(super) client: &'a Rc<Client>,
    pub(super) orders: &'a mut mpsc::Receiver<Order>,
    pub(super) stop: &'a mut watch::Receiver<bool>,
    pub(super) node: usize,
    was_live: &'a Cell<bool>,
}

impl Talk<'_> {
    pub(super) fn shared(&self) -> &Rc<Shared> {
        &self.client.shared
    }

    /// The connection stands: whoever connects to a node that was told to end is counted.
    pub(super) fn connected(&self) {
        let shared = &self.client.shared;
        if shared.balancer.nodes[self.node].ending.get() {
            shared.returned_to_draining.set(shared.returned_to_draining.get() + 1);
        }
    }

    /// Takes in one message and what it means for the run's counts; what is left is the transport's.
    pub(super) fn hear(&self, text: &[u8]) -> Meaning {
        let shared = &self.client.shared;
        let meaning = self.client.lanes.borrow_mut().hear(text, shared.now_ms());
        match &meaning {
            Meaning::Message { channel, due_ns } => {
                shared.deliveries.set(shared.deliveries.get() + 1);
                if shared.hot != Some(*channel) {
                    let late = shared.now_ns().saturating_sub(*due_ns);
                    shared.latency.borrow_mut().record_ns(late);
                }
            }
            Meaning::Subscribed => self.judge_live(),
            Meaning::Answer { ack_id, position, code } => {
                self.answered(ack_id, position.as_ref(), code.as_deref());
            }
            Meaning::Disconnect { .. } | Meaning::Refused { .. } | Meaning::Other => {}
        }
        meaning
    }

    /// Notes that the client is there again, when it is.
    pub(super) fn judge_live(&self) {
        let client = self.client;
        if client.live.get() || !client.lanes.borrow().all_live() {
            return;
        }
        client.live.set(true);
        self.was_live.set(true);
        if let Some(cut_at) = client.cut_at.take() {
            client.shared.reconnect.borrow_mut().record(cut_at.elapsed());
        }
    }

    /// A publish was answered.
    pub(super) fn answered(
        &self,
        ack_id: &str,
        position: Option<&super::lane::Position>,
        code: Option<&str>,
    ) {
        let client = self.client;
        let mut saying = client.saying.borrow_mut();
        let Some(at) = saying.iter().position(|(said, _)| said.index.to_string() == ack_id) else {
            return;
        };
        match position {
            Some(position) => {
                if let Some((said, done)) = saying.remove(at) {
                    client.shared.acknowledge(said.index, position.place());
                    // Who waited may have gone home.
                    let _ = done.send(());
                }
            }
            None => Shared::count(&client.shared.refused, code.unwrap_or("no position")),
        }
    }
}

/// Waits for ever unless `until` is given.
async fn sleep_maybe(until: Option<Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}

/// A pause that a transport makes between two tries of the same thing.
async fn breathe() {
    sleep(Duration::from_millis(100)).await;
}

/// Completes when the run is over. Cancellation safe.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    // A run that is gone is over, too.
    let _ = stop.wait_for(|stop| *stop).await;
}
