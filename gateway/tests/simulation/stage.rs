//! The nodes of a run: real ones but for their sockets, over one embedded cluster. They start, die, pause and
//! leave; clients reach them through pipes in memory. It must not know: what clients do, what is right.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use carillon_broker_client::{Broker, MemoryCluster, NodeId};
use carillon_gateway::app;
use carillon_gateway::auth::{Claims, Grants, NewToken, mint};
use carillon_gateway::clock;
use carillon_gateway::config::Config;
use carillon_gateway::connection::driver::Driver;
use carillon_gateway::connection::outbox::{Outbox, Wire};
use carillon_gateway::connection::{Connection, Transport};
use carillon_gateway::dispatch::{Dress, Medium};
use carillon_gateway::node::{Node, Stores};
use carillon_gateway::socket::{PipeEnd, Socket, pipe};
use carillon_gateway::transport::handshake::Handshake;
use carillon_gateway::transport::{poll, websocket};
use carillon_protocol::{CloseCode, Codec, Cursor, Profile, UserId};
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::log::Log;
use crate::records::Record;
use crate::scene::config;
use crate::storage::{Line, runs};

/// Polls that one token is good for.
const TOKEN_POLLS: u32 = 20;
/// Bytes that a kernel would hold for one connection in each direction.
const KERNEL_BYTES: usize = 2 * 1024;

/// One place where a node runs; a restarted node is another life in the same place.
struct Host {
    life: Mutex<Option<Life>>,
}

struct Life {
    number: usize,
    node: Arc<Node>,
    line: Line,
    paused: watch::Sender<bool>,
    /// The process is no more.
    gone: CancellationToken,
    /// The nodes' ends of their clients' connections.
    sockets: Vec<std::sync::Weak<PipeEnd>>,
}

/// See the module. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Stage(Arc<Inner>);

struct Inner {
    cluster: MemoryCluster,
    stores: Stores,
    config: Config,
    log: Log,
    seed: u64,
    hosts: Vec<Host>,
    lives: Mutex<usize>,
    stalled: watch::Sender<bool>,
    /// Each user who polls has one, which is another one now and then.
    tokens: Mutex<HashMap<String, (u32, String)>>,
}

/// A client's end of a connection.
pub(crate) struct Reached {
    pub(crate) socket: PipeEnd,
    /// Which life of which node it leads to.
    pub(crate) life: usize,
    /// The node's process does not run at present: nothing is read there.
    pub(crate) paused: watch::Receiver<bool>,
}

/// A poll that a node has to answer.
pub(crate) struct Polled {
    /// Status and body; an error when the node is gone.
    pub(crate) answer: oneshot::Receiver<(u16, Value)>,
    /// Which life of which node it was sent to.
    pub(crate) life: usize,
}

/// What a client says while it connects.
pub(crate) struct Hello {
    pub(crate) user: String,
    pub(crate) sse: bool,
    pub(crate) channels: Vec<String>,
    pub(crate) cursor: Option<String>,
}

impl Stage {
    /// Starts `hosts` nodes.
    pub(crate) fn start(hosts: usize, log: &Log, seed: u64) -> Self {
        let inner = Inner {
            cluster: MemoryCluster::new(),
            stores: Stores::memory(),
            config: config(),
            log: log.clone(),
            seed,
            hosts: (0..hosts).map(|_| Host { life: Mutex::new(None) }).collect(),
            lives: Mutex::new(0),
            stalled: watch::Sender::new(false),
            tokens: Mutex::default(),
        };
        let stage = Self(Arc::new(inner));
        (0..hosts).for_each(|host| stage.boot(host));
        stage
    }

    pub(crate) fn cluster(&self) -> &MemoryCluster {
        &self.0.cluster
    }

    pub(crate) fn hosts(&self) -> usize {
        self.0.hosts.len()
    }

    /// The node that runs there.
    pub(crate) fn node(&self, host: usize) -> Option<Arc<Node>> {
        self.0.hosts[host].life.lock().as_ref().map(|life| Arc::clone(&life.node))
    }

    /// Starts a node where none runs.
    pub(crate) fn boot(&self, host: usize) {
        let mut life = self.0.hosts[host].life.lock();
        if life.is_some() {
            return;
        }
        let number = {
            let mut lives = self.0.lives.lock();
            *lives += 1;
            *lives
        };
        let id = NodeId::random();
        let paused = watch::Sender::new(false);
        let (line, events) = Line::join(
            &self.0.cluster,
            &id,
            &self.0.log,
            self.0.seed ^ (number as u64) << 32,
            self.0.stalled.subscribe(),
            paused.subscribe(),
        );
        let broker: Arc<dyn Broker> = Arc::new(line.clone());
        let stores = self.0.stores.clone();
        let (node, told) = app::assemble(self.0.config.clone(), id.clone(), broker, events, stores)
            .expect("the settings are good");
        app::work(&node, told);
        self.0.log.note(format!("host {host} runs life {number}"));
        let gone = CancellationToken::new();
        *life = Some(Life { number, node, line, paused, gone, sockets: Vec::new() });
    }

    /// The node is gone between two instructions; nobody is told.
    pub(crate) fn kill(&self, host: usize) {
        let Some(life) = self.0.hosts[host].life.lock().take() else { return };
        self.0.log.push(Record::Killed { node: life.number });
        life.line.die();
        life.gone.cancel();
        life.node.stop.cancel();
        for socket in life.sockets.iter().filter_map(std::sync::Weak::upgrade) {
            socket.reset();
        }
        // Whatever of it still runs must not wait for a process that will never run again.
        life.paused.send_replace(false);
    }

    /// The node says goodbye to its clients, gives back its lease, and ends.
    pub(crate) async fn leave(&self, host: usize) {
        let Some((node, line, number)) = self.0.hosts[host]
            .life
            .lock()
            .as_ref()
            .map(|life| (Arc::clone(&life.node), life.line.clone(), life.number))
        else {
            return;
        };
        self.0.log.note(format!("life {number} leaves"));
        node.draining.store(true, Ordering::Relaxed);
        node.closing.store(true, Ordering::Relaxed);
        for connection in node.hub.connections() {
            connection.outbox.close(CloseCode::Draining);
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
        if let Some(life) = self.0.hosts[host].life.lock().take_if(|life| life.number == number) {
            life.gone.cancel();
            for socket in life.sockets.iter().filter_map(std::sync::Weak::upgrade) {
                socket.reset();
            }
        }
        // A lease that cannot be given back runs out.
        let _ = node.broker.retire().await;
        node.stop.cancel();
        line.die();
    }

    pub(crate) fn pause(&self, host: usize, paused: bool) {
        if let Some(life) = self.0.hosts[host].life.lock().as_ref() {
            life.paused.send_replace(paused);
        }
    }

    /// Storage answers nobody.
    pub(crate) fn stall(&self, stalled: bool) {
        self.0.stalled.send_replace(stalled);
    }

    /// The node hears nothing from storage from now on; `early`: it knows.
    pub(crate) fn deafen(&self, host: usize, early: bool) {
        if let Some(life) = self.0.hosts[host].life.lock().as_ref() {
            self.0.cluster.interrupt(&life.node.id);
            life.line.deafen(early);
        }
    }

    /// The node does not hear the next publications, and nothing says so.
    pub(crate) fn skip(&self, host: usize, publications: u32) {
        if let Some(life) = self.0.hosts[host].life.lock().as_ref() {
            life.line.skip(publications);
        }
    }

    /// The node hears again, and is told that it must look.
    pub(crate) fn undeafen(&self, host: usize) {
        if let Some(life) = self.0.hosts[host].life.lock().as_ref() {
            self.0.cluster.restore(&life.node.id);
        }
    }

    /// The node's commands fail.
    pub(crate) fn cut(&self, host: usize, cut: bool) {
        if let Some(life) = self.0.hosts[host].life.lock().as_ref() {
            self.0.cluster.set_reachable(&life.node.id, !cut);
        }
    }

    fn token(&self, user: &str) -> String {
        let mut tokens = self.0.tokens.lock();
        let (polls, token) = tokens.entry(user.to_owned()).or_default();
        if polls.is_multiple_of(TOKEN_POLLS) {
            let ttl = Duration::from_secs(3_600);
            let new = NewToken { user: user.to_owned(), ttl, ..NewToken::default() };
            let minted = mint(&self.0.config.auth.jwt, None, &new, clock::unix_ms() / 1_000);
            *token = minted.expect("a secret");
        }
        *polls += 1;
        token.clone()
    }

    /// Asks a host; `None` when nobody listens there. Who drops the answer hangs up.
    pub(crate) fn poll(&self, host: usize, user: &str, body: &Value) -> Option<Polled> {
        let life = self.0.hosts[host].life.lock();
        let life = life.as_ref()?;
        let token = self.token(user);
        let request = http::Request::post(poll::PATH)
            .header("authorization", format!("Bearer {token}"))
            .header("content-type", "application/json")
            .body(Body::from(body.to_string()))
            .expect("a request");
        let (mut reply, answer) = oneshot::channel();
        let (node, paused) = (Arc::clone(&life.node), life.paused.subscribe());
        let gone = life.gone.clone();
        life.node.tasks.spawn(async move {
            let work = async {
                runs(&paused).await;
                let response = poll::post(State(node), request).await;
                runs(&paused).await;
                let status = response.status().as_u16();
                let body = response.into_body().collect().await.expect("a body").to_bytes();
                (status, serde_json::from_slice(&body).expect("an answer is JSON"))
            };
            let answer = tokio::select! {
                biased;
                () = reply.closed() => return,
                () = gone.cancelled() => return,
                answer = work => answer,
            };
            let _hung_up = reply.send(answer);
        });
        Some(Polled { answer, life: life.number })
    }

    /// WebSockets and event streams that the nodes count, added up.
    pub(crate) fn connections_counted(&self) -> u64 {
        let of_node = |life: &Life| {
            let of = |transport| life.node.metrics.connections_of(transport);
            of(Transport::WebSocket) + of(Transport::Sse)
        };
        let count = |host: &Host| host.life.lock().as_ref().map_or(0, of_node);
        self.0.hosts.iter().map(count).sum()
    }

    /// Opens a connection to a host; `None` when nobody listens there.
    pub(crate) fn connect(&self, host: usize, hello: Hello) -> Option<Reached> {
        let mut life = self.0.hosts[host].life.lock();
        let life = life.as_mut()?;
        let (client, server) = pipe(KERNEL_BYTES);
        let server = Arc::new(server);
        life.sockets.retain(|socket| socket.strong_count() > 0);
        life.sockets.push(Arc::downgrade(&server));
        let node = Arc::clone(&life.node);
        life.node.tasks.spawn(accept(node, server, hello));
        Some(Reached { socket: client, life: life.number, paused: life.paused.subscribe() })
    }
}

/// Opens a connection to a node that is no part of a stage.
pub(crate) fn reach(node: &Arc<Node>, hello: Hello, kernel_bytes: usize) -> Reached {
    let (client, server) = pipe(kernel_bytes);
    node.tasks.spawn(accept(Arc::clone(node), Arc::new(server), hello));
    Reached { socket: client, life: 0, paused: watch::Sender::new(false).subscribe() }
}

/// What the transports do with an accepted handshake, without hyper in front.
async fn accept(node: Arc<Node>, server: Arc<PipeEnd>, hello: Hello) {
    let user = UserId::new(&hello.user).expect("a user id");
    let claims = Claims {
        user: user.clone(),
        name: None,
        scopes: Box::default(),
        grants: Grants::default(),
        expires_at: i64::MAX / 2_000,
        token_id: None,
        issued_at: None,
        all: serde_json::Map::new(),
    };
    let handshake = Handshake {
        claims: Some(claims),
        profile: Profile::Social,
        channels: hello.channels,
        resume: hello.cursor.map(|cursor| Cursor::parse(&cursor).map_err(|_| ())),
    };
    // A refusal is an HTTP answer; here the connection just ends.
    let Ok(admitted) = node.admit(Some(&user)).await else { return };
    let socket = Arc::new(Socket::Memory(server));
    if !hello.sse {
        let medium = Medium::WebSocket(Codec::Json);
        let dress = Dress { medium, profile: Profile::Social, compressed: false };
        let opening = websocket::Opening { handshake, admitted, dress, remote: None, name: None };
        return websocket::begin(node, socket, Vec::new(), opening).await;
    }
    let dress = Dress { medium: Medium::Sse, profile: Profile::Social, compressed: false };
    let wire = Wire::Socket(Arc::clone(&socket));
    let outbox = Outbox::new(wire, node.config.load().limits.queue_bytes).for_sse(false, None);
    let connection =
        Connection::new(admitted.id.clone(), Some(user), Transport::Sse, dress, None, outbox);
    let mut driver = Box::new(Driver::new(
        Arc::clone(&node),
        Arc::clone(&connection),
        handshake.claims,
        admitted,
        Some(Arc::clone(&socket)),
    ));
    // hyper has written the response's head.
    connection.outbox.release();
    Box::pin(driver.welcome(&handshake.channels, handshake.resume)).await;
    node.tasks.spawn(driver.run_listener(async move {
        // hyper would see the peer go; an event stream's client says nothing else.
        let mut nothing = [0; 1];
        while socket.readable().await.is_ok() {
            match socket.try_read(&mut nothing) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
    }));
}
