//! One run: a stage, clients, a nemesis; then calm, last words, rest, and the verdict. Everything that
//! is random comes from the seed, and time is the runtime's own.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use carillon_broker_client::{Broker, NodeId, POLLER_PREFIX, PresenceStore, UserStatus};
use carillon_protocol::{ChannelName, UserId};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;

use crate::checker::{Fault, judge};
use crate::client::{Character, Client, Facts, Mood, Way};
use crate::log::Log;
use crate::nemesis::Nemesis;
use crate::records::Rest;
use crate::scene::{DEEP, FLEETING, LOBBY, SHALLOW, rules};
use crate::stage::Stage;
use crate::storage::place;

/// How long the storm lasts.
const STORM: Duration = Duration::from_secs(7);
/// Everybody is back and caught up within this.
const SETTLES: Duration = Duration::from_secs(10);
/// A dead node's lease runs out and is swept within this; the promise (`cluster.md` 2) is 40 s.
const SWEPT: Duration = Duration::from_secs(25);
/// Last words reach everybody within this.
const ARRIVES: Duration = Duration::from_secs(6);

/// What came of a run.
pub(crate) struct Outcome {
    pub(crate) faults: Vec<Fault>,
    pub(crate) messages: usize,
    log: Log,
}

impl Outcome {
    /// All that happened, a line each.
    pub(crate) fn story(&self) -> String {
        self.log.text()
    }
}

/// Runs one seed to its end.
pub(crate) fn run(seed: u64) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(play(seed))
}

async fn play(seed: u64) -> Outcome {
    let mut rng = StdRng::seed_from_u64(seed);
    let log = Log::new();
    let stage = Stage::start(rng.random_range(2..=3), &log, seed);
    let (mood, moods) = watch::channel(Mood::Storm);
    let mut clients = tokio::task::JoinSet::new();
    let mut facts = Vec::new();
    for character in cast(&mut rng) {
        let (client, fact) = Client::new(character, &stage, &log, seed, moods.clone());
        clients.spawn(client.live());
        facts.push(fact);
    }
    let evils = rng.random_range(1..=3);
    let mut nemesis = Nemesis::new(&stage, &log, StdRng::seed_from_u64(seed ^ 0xE71));
    let leases_lost = nemesis.rage(evils, STORM).await;
    mood.send_replace(Mood::Calm);
    tokio::time::sleep(if leases_lost { SWEPT } else { SETTLES }).await;
    mood.send_replace(Mood::LastWords);
    tokio::time::sleep(ARRIVES).await;
    let rest = rest(&stage, &facts).await;
    clients.abort_all();
    let records = log.records();
    let faults = judge(&records, &rest, &rules());
    Outcome { faults, messages: records.len(), log }
}

/// Who plays.
fn cast(rng: &mut StdRng) -> Vec<Character> {
    let mut cast = Vec::new();
    for number in 0..rng.random_range(3..=5) {
        let way = match rng.random_range(0..10) {
            0..=3 if number >= 2 => Way::Stream,
            4..=6 if number >= 2 => Way::Poll,
            _ => Way::WebSocket,
        };
        let mut wants: Vec<String> =
            [DEEP, SHALLOW, FLEETING].into_iter().map(str::to_owned).collect();
        if number > 0 {
            wants.remove(rng.random_range(0..wants.len()));
        }
        cast.push(Character {
            number,
            // Two of them are one user on two devices.
            user: if number == 1 { "user-0".to_owned() } else { format!("user-{number}") },
            way,
            wants,
            speaks: way != Way::Stream,
            joins: way == Way::WebSocket && rng.random(),
        });
    }
    cast
}

/// What is true now, asked of storage and of the clients themselves.
async fn rest(stage: &Stage, facts: &[Arc<Mutex<Facts>>]) -> Rest {
    let (witness, _deaf) = stage.cluster().join(NodeId::random());
    let mut rest = Rest::default();
    for name in [DEEP, SHALLOW] {
        let channel = ChannelName::new(name).expect("a channel name");
        let tops = witness.tops(&[channel]).await.expect("storage is there");
        rest.tops.insert(name.to_owned(), place(tops[0]));
    }
    let facts: Vec<Facts> = facts.iter().map(|facts| facts.lock().clone()).collect();
    let lobby = ChannelName::new(LOBBY).expect("a channel name");
    let listed = witness.members(&lobby).await.expect("storage is there");
    let listed = listed.into_iter().map(|member| member.id.to_string()).collect();
    let joined = facts.iter().filter(|facts| facts.joined).map(|facts| facts.user.clone());
    rest.present.insert(LOBBY.to_owned(), (joined.collect(), listed));
    let users: BTreeSet<String> = facts.iter().map(|facts| facts.user.clone()).collect();
    for name in users {
        let user = UserId::new(&name).expect("a user id");
        let own = || facts.iter().filter(|facts| facts.user == name && facts.connected);
        let held = own().filter(|facts| facts.way != Way::Poll).count();
        let known = witness.connections_of(&user).await.expect("storage is there");
        // Who polls is online, and no connection.
        let counted = known.iter().filter(|id| !id.as_str().starts_with(POLLER_PREFIX)).count();
        if own().next().is_some() {
            rest.online.0.insert(name.clone());
        }
        let shown = witness.presence_of(&[user]).await.expect("storage is there");
        if shown[0].status != UserStatus::Offline {
            rest.online.1.insert(name.clone());
        }
        rest.connections.insert(name, (held as u64, counted as u64));
    }
    let held =
        facts.iter().filter(|facts| facts.connected && facts.way != Way::Poll).count() as u64;
    rest.connections_of_nodes = (held, stage.connections_counted());
    for (client, facts) in facts.iter().enumerate() {
        // Everybody wants to be connected; who owes last words could not say them.
        let mut wanted = facts.wants.clone();
        if !facts.connected || facts.owes_last_words {
            wanted.insert("to be served".to_owned());
        }
        rest.wanted.insert(client, wanted);
    }
    rest
}
