//! What goes wrong, by seeded dice: deaf ears, cut and stalled lines, outages, lost data, promoted replicas,
//! nodes that die, pause and leave. Afterwards everything is whole again. It must not know: clients.

use std::time::Duration;

use carillon_broker_client::{Broker, MemoryBroker, NodeId};
use carillon_protocol::ChannelName;
use rand::Rng;
use rand::rngs::StdRng;

use crate::log::Log;
use crate::records::Record;
use crate::scene::{DEEP, SHALLOW};
use crate::stage::Stage;

/// See the module.
pub(crate) struct Nemesis {
    stage: Stage,
    log: Log,
    rng: StdRng,
    leases_lost: bool,
    /// Looks at storage without being a node.
    witness: MemoryBroker,
}

/// A kind of fault, and how often it is chosen.
#[derive(Clone, Copy, Debug)]
enum Evil {
    Skip,
    Deaf,
    Cut,
    Stall,
    Outage,
    Loss,
    Promotion,
    Kill,
    Pause,
    Leave,
}

const EVILS: &[(Evil, u32)] = &[
    (Evil::Skip, 4),
    (Evil::Deaf, 5),
    (Evil::Cut, 3),
    (Evil::Stall, 3),
    (Evil::Outage, 4),
    (Evil::Loss, 2),
    (Evil::Promotion, 4),
    (Evil::Kill, 4),
    (Evil::Pause, 3),
    (Evil::Leave, 2),
];

impl Nemesis {
    pub(crate) fn new(stage: &Stage, log: &Log, rng: StdRng) -> Self {
        let (witness, _deaf) = stage.cluster().join(NodeId::random());
        Self { stage: stage.clone(), log: log.clone(), rng, leases_lost: false, witness }
    }

    /// Does evil for about `time`, then mends everything.
    /// `true` when presence and counts are only right again after a lease ran out.
    pub(crate) async fn rage(&mut self, evils: usize, time: Duration) -> bool {
        let share = time / u32::try_from(evils.max(1)).expect("a few");
        for _ in 0..evils {
            let pause = share.mul_f64(self.rng.random_range(0.2..1.0));
            tokio::time::sleep(pause).await;
            self.strike().await;
        }
        self.mend();
        self.leases_lost
    }

    fn mend(&self) {
        self.log.note("everything is whole again");
        self.stage.stall(false);
        self.stage.cluster().set_available(true);
        for host in 0..self.stage.hosts() {
            self.stage.pause(host, false);
            self.stage.cut(host, false);
            self.stage.boot(host);
            self.stage.undeafen(host);
        }
    }

    fn host(&mut self) -> usize {
        self.rng.random_range(0..self.stage.hosts())
    }

    async fn a_while(&mut self, shortest_ms: u64, longest_ms: u64) {
        let pause = self.rng.random_range(shortest_ms..=longest_ms);
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }

    async fn strike(&mut self) {
        let total: u32 = EVILS.iter().map(|(_, weight)| weight).sum();
        let mut choice = self.rng.random_range(0..total);
        let evil = EVILS.iter().find(|(_, weight)| {
            let chosen = choice < *weight;
            choice = choice.saturating_sub(*weight);
            chosen
        });
        let Some((evil, _)) = evil else { return };
        let host = self.host();
        self.log.note(format!("{evil:?} at host {host}"));
        match evil {
            Evil::Skip => {
                let publications = self.rng.random_range(1..=4);
                self.stage.skip(host, publications);
                self.a_while(50, 1_000).await;
                self.stage.skip(host, 0);
            }
            Evil::Deaf => {
                let early = self.rng.random();
                self.stage.deafen(host, early);
                self.a_while(50, 3_000).await;
                self.stage.undeafen(host);
            }
            Evil::Cut => {
                self.stage.cut(host, true);
                self.a_while(50, 3_000).await;
                self.stage.cut(host, false);
            }
            Evil::Stall => {
                self.stage.stall(true);
                self.a_while(100, 3_000).await;
                self.stage.stall(false);
            }
            Evil::Outage => self.outage(|_| {}).await,
            Evil::Loss => {
                self.outage(|nemesis| {
                    nemesis.stage.cluster().lose_data();
                    nemesis.log.push(Record::Lost);
                })
                .await;
            }
            Evil::Promotion => self.outage(Self::promote).await,
            Evil::Kill => {
                self.leases_lost = true;
                self.stage.kill(host);
                self.a_while(200, 3_000).await;
                self.stage.boot(host);
            }
            Evil::Pause => {
                // Sometimes for longer than its lease lives.
                let longest_ms = if self.rng.random_bool(0.2) { 20_000 } else { 3_000 };
                self.leases_lost = true;
                self.stage.pause(host, true);
                self.a_while(200, longest_ms).await;
                self.stage.pause(host, false);
            }
            Evil::Leave => {
                self.leases_lost = true;
                self.stage.leave(host).await;
                self.a_while(100, 2_000).await;
                self.stage.boot(host);
            }
        }
    }

    /// Storage goes away and comes back as `changed` left it. The nodes' ears fail first: for a moment it still
    /// takes and acknowledges what nobody hears.
    async fn outage(&mut self, changed: impl FnOnce(&mut Self)) {
        for host in 0..self.stage.hosts() {
            let early = self.rng.random();
            self.stage.deafen(host, early);
            if self.rng.random_bool(0.3) {
                self.a_while(0, 300).await;
            }
        }
        self.a_while(0, 800).await;
        self.stage.cluster().set_available(false);
        if self.rng.random_bool(0.7) {
            self.a_while(50, 3_000).await;
        }
        changed(self);
        self.stage.cluster().set_available(true);
        for host in 0..self.stage.hosts() {
            self.a_while(0, 400).await;
            self.stage.undeafen(host);
        }
    }

    /// A replica takes over that had not seen the last messages of some channels.
    fn promote(&mut self) {
        for name in [DEEP, SHALLOW] {
            let channel = ChannelName::new(name).expect("a channel name");
            // Nothing in it waits: the answer is there at once.
            self.stage.cluster().set_available(true);
            let top = now(self.witness.tops(std::slice::from_ref(&channel)));
            let top = top.expect("storage is there")[0].offset;
            let lost = self.rng.random_range(0..=3).min(top);
            if lost > 0 {
                self.stage.cluster().fork(&channel, top - lost);
                self.log.note(format!("{name} lost {lost} of {top}"));
                self.log.push(Record::Forked { channel: name.to_owned() });
            }
        }
    }
}

/// The result of a future that is ready at once.
fn now<T>(future: impl Future<Output = T>) -> T {
    futures_util::FutureExt::now_or_never(future).expect("it waits for nothing")
}
