//! A replica is promoted that has not seen the last writes: two real servers, two nodes, a thousand channels. Who
//! heard what is gone, who did not, who comes back later: everybody is told, and nobody without a cause.

mod switch;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use carillon_broker_client::{Health, NodeId, RedisBroker, RedisMode, RedisSettings, RedisTls};
use carillon_gateway::app;
use carillon_gateway::node::{Node, Stores};
use carillon_protocol::ChannelName;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::checker::judge;
use crate::client::place;
use crate::log::Log;
use crate::process::RedisProcess;
use crate::records::{Place, Record, Rest, Rules};
use crate::session::{Heard, Session};
use crate::stage::{self, Hello};
use switch::Switch;

const ROUNDS: usize = 5;
const CHANNELS: usize = 200;
const PATIENCE: Duration = Duration::from_secs(60);

/// A client that records what it hears.
struct Listener {
    number: usize,
    say: mpsc::UnboundedSender<Value>,
    known: Arc<Mutex<BTreeMap<String, Place>>>,
    answers: Arc<Mutex<HashMap<String, Value>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Listener {
    fn open(node: &Arc<Node>, number: usize, log: &Log, known: BTreeMap<String, Place>) -> Self {
        let hello = Hello {
            user: format!("user-{number}"),
            sse: false,
            channels: Vec::new(),
            cursor: None,
        };
        let session = Session::new(stage::reach(node, hello, 1 << 20), false);
        let (say, said) = mpsc::unbounded_channel();
        let since = known.clone();
        let known = Arc::new(Mutex::new(known));
        let answers = Arc::default();
        let ear = Ear {
            number,
            log: log.clone(),
            since,
            known: Arc::clone(&known),
            answers: Arc::clone(&answers),
        };
        let task = tokio::spawn(ear.listen(session, said));
        Self { number, say, known, answers, task }
    }

    fn subscribe(&self, channels: &[String]) {
        for channel in channels {
            let mut message = json!({"type": "subscribe", "channel": channel});
            if let Some(Place { epoch, offset, tag }) = self.known.lock().get(channel) {
                message["payload"] =
                    json!({"since": {"epoch": epoch, "offset": offset, "tag": tag}});
            }
            let _ = self.say.send(message);
        }
    }

    /// It is gone; where it stood.
    fn leave(self, log: &Log) -> BTreeMap<String, Place> {
        self.task.abort();
        log.push(Record::Gone { client: self.number });
        self.known.lock().clone()
    }
}

struct Ear {
    number: usize,
    log: Log,
    since: BTreeMap<String, Place>,
    known: Arc<Mutex<BTreeMap<String, Place>>>,
    answers: Arc<Mutex<HashMap<String, Value>>>,
}

impl Ear {
    async fn listen(self, mut session: Session, mut said: mpsc::UnboundedReceiver<Value>) {
        loop {
            tokio::select! {
                Some(message) = said.recv() => session.say(&message),
                heard = session.next(true) => match heard {
                    Heard::Message(message, _) => self.hear(&message),
                    Heard::End => return,
                },
            }
        }
    }

    fn hear(&self, message: &Value) {
        let client = self.number;
        let channel = |name: &Value| name.as_str().unwrap_or_default().to_owned();
        let payload = &message["payload"];
        let (channel, place, record) = match message["type"].as_str().unwrap_or_default() {
            "subscribed" => {
                let (channel, place) = (channel(&payload["channel"]), place(payload));
                let record = Record::Subscribed {
                    client,
                    channel: channel.clone(),
                    since: self.since.get(&channel).cloned(),
                    place: place.clone(),
                    recovered: payload["recovered"] == true,
                    reason: payload["reason"].as_str().unwrap_or_default().to_owned(),
                };
                (channel, place, record)
            }
            "resync" => {
                let (channel, place) = (channel(&message["channel"]), place(payload));
                let reason = payload["reason"].as_str().unwrap_or_default().to_owned();
                let record = Record::Resynced {
                    client,
                    channel: channel.clone(),
                    place: place.clone(),
                    reason,
                };
                (channel, place, record)
            }
            "message" => {
                let (channel, place) = (channel(&message["channel"]), place(message));
                let id = message["id"].as_str().unwrap_or_default().to_owned();
                let record = Record::Delivered {
                    client,
                    channel: channel.clone(),
                    id,
                    place: place.clone(),
                };
                (channel, place, record)
            }
            "ack" | "error" => {
                let ack = message["ack_id"].as_str().unwrap_or_default().to_owned();
                self.answers.lock().insert(ack, message.clone());
                return;
            }
            _ => return,
        };
        if !channel.starts_with("room:") {
            return;
        }
        if let Some(place) = place {
            self.known.lock().insert(channel, place);
        }
        self.log.push(record);
    }
}

/// The one who publishes, through one node, and knows what storage took.
struct Speaker {
    listener: Listener,
    log: Log,
    /// What stands in front of the next message of each channel.
    before: BTreeMap<String, String>,
    spoken: u64,
}

impl Speaker {
    /// Publishes one message on each of the channels, until each is acknowledged.
    async fn speak(&mut self, channels: &[String]) {
        let mut waiting = BTreeMap::new();
        for channel in channels {
            self.spoken += 1;
            let id = format!("m{}", self.spoken);
            waiting.insert(id.clone(), channel.clone());
            self.say(&id, channel);
        }
        let began = Instant::now();
        while !waiting.is_empty() {
            assert!(began.elapsed() < PATIENCE, "{} are not acknowledged", waiting.len());
            tokio::time::sleep(Duration::from_millis(5)).await;
            let answers = std::mem::take(&mut *self.listener.answers.lock());
            for (id, answer) in answers {
                let Some(channel) = waiting.get(&id).cloned() else { continue };
                match place(&answer["payload"]["data"]) {
                    Some(place) => {
                        waiting.remove(&id);
                        self.acknowledged(channel, id, place);
                    }
                    // The same id again is the same message.
                    None => self.say(&id, &channel),
                }
            }
        }
    }

    fn say(&self, id: &str, channel: &str) {
        let message =
            json!({"type": "message", "id": id, "channel": channel, "payload": 1, "ack_id": id});
        let _ = self.listener.say.send(message);
    }

    fn acknowledged(&mut self, channel: String, id: String, place: Place) {
        let start = || "--------".to_owned();
        let before = self.before.insert(channel.clone(), place.tag.clone()).unwrap_or_else(start);
        let (place, before) = (Some(place), Some(before));
        self.log.push(Record::Appended {
            channel: channel.clone(),
            id: id.clone(),
            place: place.clone(),
            before,
        });
        self.log.push(Record::Acknowledged { channel, id, place, node: 0 });
    }
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < PATIENCE, "waited for: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The server's replication offset, when it is a whole replica or a master.
fn offset(server: &RedisProcess) -> Option<String> {
    let info = server.cli(&["INFO", "replication"]);
    let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name));
    if field("role:")?.trim() == "slave" {
        (field("master_link_status:")?.trim() == "up").then_some(())?;
        return field("slave_repl_offset:").map(|offset| offset.trim().to_owned());
    }
    field("master_repl_offset:").map(|offset| offset.trim().to_owned())
}

fn start_node(port: u16) -> Arc<Node> {
    let settings = RedisSettings {
        mode: RedisMode::Standalone,
        urls: vec![format!("redis://127.0.0.1:{port}")],
        master_name: None,
        prefix: "p".to_owned(),
        tls: RedisTls::default(),
        command_timeout: Duration::from_secs(1),
    };
    let id = NodeId::random();
    let (broker, events) = RedisBroker::connect(settings, id.clone());
    let mut config = crate::scene::config();
    config.limits.subscriptions_per_connection = 0;
    config.limits.messages_per_second = 0;
    config.limits.queue_bytes = 4 << 20;
    let (node, told) = app::assemble(config, id, Arc::new(broker), events, Stores::memory())
        .expect("the settings are good");
    app::work(&node, told);
    node
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promotion_without_the_tail_is_told_to_everybody_and_nobody_else() {
    let mut master = RedisProcess::start(&[]);
    let mut replica = RedisProcess::start(&[]);
    let switch = Switch::start(master.port).await;
    let nodes = [start_node(switch.port), start_node(switch.port)];
    let mut rng = StdRng::seed_from_u64(6);
    for round in 0..ROUNDS {
        let following = replica.cli(&["REPLICAOF", "127.0.0.1", &master.port.to_string()]);
        assert_eq!(following, "OK");
        until("the replica", || offset(&replica).is_some()).await;
        for node in &nodes {
            until("the node", || *node.broker.health().borrow() == Health::Up).await;
        }
        promote(&nodes, &master, &replica, &switch, round, &mut rng).await;
        std::mem::swap(&mut master, &mut replica);
        replica.kill();
        replica.start_again();
    }
    nodes.iter().for_each(|node| node.stop.cancel());
}

/// One promotion, and the verdict on each of its channels.
async fn promote(
    nodes: &[Arc<Node>; 2],
    master: &RedisProcess,
    replica: &RedisProcess,
    switch: &Switch,
    round: usize,
    rng: &mut StdRng,
) {
    let log = Log::new();
    let channels: Vec<String> =
        (0..CHANNELS).map(|index| format!("room:{round}-{index}")).collect();
    let open = |node: usize, number, known| {
        let listener = Listener::open(&nodes[node], number, &log, known);
        listener.subscribe(&channels);
        listener
    };
    let hears_all = async |listener: &Listener, speaker: &Speaker| {
        until("everything heard", || {
            let known = listener.known.lock();
            channels.iter().all(|channel| {
                known.get(channel).is_some_and(|place| {
                    speaker.before.get(channel).is_none_or(|tag| *tag == place.tag)
                })
            })
        })
        .await;
    };
    let listener = Listener::open(&nodes[1], 9, &log, BTreeMap::new());
    let mut speaker = Speaker { listener, log: log.clone(), before: BTreeMap::new(), spoken: 0 };
    let listeners: Vec<Listener> =
        (0..3).map(|number| open(number % 2, number, BTreeMap::new())).collect();
    for listener in &listeners {
        hears_all(listener, &speaker).await;
    }
    speaker.speak(&channels).await;
    for listener in &listeners {
        hears_all(listener, &speaker).await;
    }
    // One goes before, and will not have heard what is lost. Every other round all do: then only the node that
    // acknowledged it knows.
    let mut away = BTreeMap::new();
    let stays = if round.is_multiple_of(2) { 2 } else { 0 };
    let mut staying = Vec::new();
    for (index, listener) in listeners.into_iter().enumerate() {
        if index < stays {
            staying.push(listener);
        } else {
            away.insert(listener.number, listener.leave(&log));
        }
    }
    until("a whole replica", || offset(replica).is_some() && offset(replica) == offset(master))
        .await;
    replica.cli(&["REPLICAOF", "NO", "ONE"]);
    let kept = speaker.before.clone();
    let mut lost = BTreeSet::new();
    for _ in 0..2 {
        let more: Vec<String> = channels.iter().filter(|_| rng.random_bool(0.4)).cloned().collect();
        speaker.speak(&more).await;
        lost.extend(more);
    }
    for listener in &staying {
        hears_all(listener, &speaker).await;
    }
    for channel in &lost {
        log.push(Record::Forked { channel: channel.clone() });
    }
    speaker.before = kept;
    let before = nodes.each_ref().map(|node| node.broker.generation());
    switch.target.send_replace(replica.port);
    for (node, before) in nodes.iter().zip(before) {
        until("the new master", || node.broker.generation() > before).await;
    }
    // Some come back before anybody published there, some after.
    let mut back = away.into_iter().map(|(number, known)| open(number % 2, number, known));
    staying.extend(back.next());
    speaker.speak(&channels).await;
    staying.extend(back);
    let mut rest = Rest::default();
    for listener in &staying {
        hears_all(listener, &speaker).await;
        rest.wanted.insert(listener.number, channels.iter().cloned().collect());
    }
    let names: Vec<ChannelName> =
        channels.iter().map(|name| ChannelName::new(name).expect("a channel name")).collect();
    // What is told late is told within a second or two of the audit.
    let began = Instant::now();
    loop {
        let tops = nodes[0].broker.tops(&names).await.expect("storage is there");
        let tops = tops.into_iter().map(crate::storage::place);
        rest.tops = channels.iter().cloned().zip(tops).collect();
        let at_rest = staying.iter().all(|listener| *listener.known.lock() == rest.tops);
        if at_rest || began.elapsed() > PATIENCE {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let rules =
        Rules { history_size: channels.iter().map(|channel| (channel.clone(), 1_000)).collect() };
    let faults = judge(&log.records(), &rest, &rules);
    assert!(faults.is_empty(), "round {round}: {faults:#?}\n{}", log.text());
    for listener in staying {
        listener.leave(&log);
    }
    speaker.listener.leave(&log);
}
