//! Which server serves what: one, several by hashing, or the masters of a cluster by slot. Also how a call
//! gets through when a cluster redirects it. Knows no meaning of any command.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use redis::{Cmd, Pipeline, Value};
use tokio::time::Instant;

use super::cluster::{Cluster, slot_of};
use super::hearing::Wish;
use super::link::{Link, sentence};
use super::names::tag_of;
use super::scripts;
use crate::BrokerError;

/// Between two attempts while a slot is on its way.
const REDIRECT_PAUSE: Duration = Duration::from_millis(20);

/// How often a server is taught its scripts for one command.
const TEACHINGS_MAX: usize = 3;

/// See the module.
pub(super) enum Layout {
    /// One server, or the master that sentinels name; or several servers, each with a name for hashing.
    Servers(Vec<(u64, Arc<Link>)>),
    Cluster(Arc<Cluster>),
}

/// A command and where it belongs.
pub(super) struct Call {
    pub(super) place: Place,
    pub(super) command: Cmd,
}

/// Where a hash tag lives.
#[derive(Clone)]
pub(super) struct Place {
    pub(super) link: Option<Arc<Link>>,
    /// Of a cluster; 0 elsewhere.
    pub(super) slot: u16,
}

impl Place {
    pub(super) fn is_same_server(&self, other: &Self) -> bool {
        matches!((&self.link, &other.link), (Some(one), Some(other)) if Arc::ptr_eq(one, other))
    }
}

impl Layout {
    /// Where the keys of this hash tag are.
    pub(super) fn place(&self, tag: &str) -> Place {
        match self {
            Self::Servers(servers) => Place { link: rendezvous(servers, tag.as_bytes()), slot: 0 },
            Self::Cluster(cluster) => {
                let slot = slot_of(tag.as_bytes());
                Place { link: cluster.link_of(slot), slot }
            }
        }
    }

    /// Where the keys of the nodes are: the first server, in a cluster by the tag.
    pub(super) fn common(&self, tag: &str) -> Place {
        match self {
            Self::Servers(servers) => {
                Place { link: servers.first().map(|(_, link)| Arc::clone(link)), slot: 0 }
            }
            Self::Cluster(_) => self.place(tag),
        }
    }

    /// Whether one server has every key, so that one script may touch all of them.
    pub(super) fn is_one_server(&self) -> bool {
        matches!(self, Self::Servers(servers) if servers.len() == 1)
    }

    pub(super) fn is_cluster(&self) -> bool {
        matches!(self, Self::Cluster(_))
    }

    /// PUBLISH, or its sharded sister.
    pub(super) fn publish_verb(&self) -> &'static str {
        match self {
            Self::Servers(_) => "PUBLISH",
            Self::Cluster(_) => "SPUBLISH",
        }
    }

    /// The links of this moment.
    pub(super) fn links(&self) -> Vec<Arc<Link>> {
        match self {
            Self::Servers(servers) => servers.iter().map(|(_, link)| Arc::clone(link)).collect(),
            Self::Cluster(cluster) => cluster.links(),
        }
    }

    /// Every server, and a hash tag that it serves.
    pub(super) fn marked(&self) -> Vec<(Arc<Link>, String)> {
        match self {
            Self::Servers(servers) => {
                servers.iter().map(|(_, link)| (Arc::clone(link), "server".to_owned())).collect()
            }
            Self::Cluster(cluster) => cluster.marked(),
        }
    }

    /// Runs one command, within the time-out.
    pub(super) async fn run(&self, place: &Place, command: &Cmd) -> Result<Value, BrokerError> {
        self.run_until(Instant::now() + self.patience(), place, command).await
    }

    /// How long a command may be sent from one server to another.
    pub(super) fn patience(&self) -> Duration {
        match self {
            Self::Servers(_) => Duration::ZERO,
            Self::Cluster(cluster) => cluster.patience(),
        }
    }

    /// Runs one command; it follows no redirection after `deadline`.
    pub(super) async fn run_until(
        &self,
        deadline: Instant,
        place: &Place,
        command: &Cmd,
    ) -> Result<Value, BrokerError> {
        let first = match &place.link {
            Some(link) => link.send(command).await,
            None => Err(BrokerError::unavailable("the cluster has not told who serves this key")),
        };
        let Some(again) = Again::of(&first) else { return settled(first?) };
        let Some(link) = &place.link else { return settled(first?) };
        match (again, self) {
            (Again::Teach, _) => {
                // Somebody may tell the server to forget them again between the two.
                let mut answer = first;
                for _ in 0..TEACHINGS_MAX {
                    let (load, count) = scripts::load_all();
                    link.send_all(&load, count).await?;
                    answer = link.send(command).await;
                    if !matches!(Again::of(&answer), Some(Again::Teach)) {
                        break;
                    }
                }
                settled(answer?)
            }
            (_, Self::Servers(_)) => settled(first?),
            (again, Self::Cluster(cluster)) => {
                self.redirected(cluster, place.slot, again, command, deadline).await
            }
        }
    }

    async fn redirected(
        &self,
        cluster: &Cluster,
        slot: u16,
        mut again: Again,
        command: &Cmd,
        deadline: Instant,
    ) -> Result<Value, BrokerError> {
        loop {
            let answer = match &again {
                Again::Ask(address) => match cluster.link_at(address) {
                    Some(link) => {
                        let mut asking = Pipeline::with_capacity(2);
                        asking.cmd("ASKING").add_command(command.clone());
                        link.send_all(&asking, 2).await.map(|mut answers| answers.swap_remove(1))
                    }
                    None => Err(BrokerError::unavailable(
                        "the cluster names a server that is not known yet",
                    )),
                },
                Again::Elsewhere | Again::Later | Again::Teach => {
                    cluster.doubt();
                    match cluster.link_of(slot) {
                        Some(link) => {
                            if matches!(again, Again::Teach) {
                                let (load, count) = scripts::load_all();
                                link.send_all(&load, count).await?;
                            }
                            link.send(command).await
                        }
                        None => Err(BrokerError::unavailable("nobody serves this slot")),
                    }
                }
            };
            match Again::of(&answer) {
                Some(next) if Instant::now() + REDIRECT_PAUSE < deadline => again = next,
                _ => return settled(answer?),
            }
            tokio::time::sleep(REDIRECT_PAUSE).await;
        }
    }

    /// Wishes to hear; the receivers complete when the wishes stand, `None` where there is no connection.
    pub(super) fn wish(
        &self,
        wishes: Vec<(Bytes, Wish)>,
    ) -> Vec<Option<tokio::sync::oneshot::Receiver<()>>> {
        match self {
            Self::Servers(servers) => {
                let mut shares: Vec<Vec<(Bytes, Wish)>> =
                    servers.iter().map(|_| Vec::new()).collect();
                for (key, wish) in wishes {
                    shares[chosen(servers, tag_of(&key))].push((key, wish));
                }
                let shares = servers.iter().zip(shares).filter(|(_, share)| !share.is_empty());
                shares.map(|((_, link), share)| link.hearing.wish(share)).collect()
            }
            Self::Cluster(cluster) => cluster.wish(wishes),
        }
    }

    /// Wishes to hear no more.
    pub(super) fn forget(&self, keys: Vec<Bytes>) {
        match self {
            Self::Servers(servers) => {
                let mut shares: Vec<Vec<Bytes>> = servers.iter().map(|_| Vec::new()).collect();
                for key in keys {
                    shares[chosen(servers, tag_of(&key))].push(key);
                }
                for ((_, link), share) in servers.iter().zip(shares) {
                    link.hearing.forget(share.into_iter());
                }
            }
            Self::Cluster(cluster) => cluster.forget(&keys),
        }
    }
}

/// What an answer asks us to do before it is a failure.
pub(super) enum Again {
    /// Another server has the slot.
    Elsewhere,
    /// Another server has the key already (`host:port`).
    Ask(String),
    /// The key is on its way, or the cluster is not ready.
    Later,
    /// The server does not know the script.
    Teach,
}

impl Again {
    pub(super) fn of(answer: &Result<Value, BrokerError>) -> Option<Self> {
        let Ok(Value::ServerError(error)) = answer else { return None };
        match error.code() {
            "MOVED" => Some(Self::Elsewhere),
            "ASK" => Some(Self::Ask(error.details()?.split(' ').nth(1)?.to_owned())),
            "TRYAGAIN" | "CLUSTERDOWN" => Some(Self::Later),
            "NOSCRIPT" => Some(Self::Teach),
            _ => None,
        }
    }
}

/// A server's error as the caller's. What the server may say differently tomorrow is unavailability.
pub(super) fn settled(value: Value) -> Result<Value, BrokerError> {
    match value {
        Value::ServerError(error) => match error.code() {
            "ERR" | "WRONGTYPE" | "CROSSSLOT" => Err(BrokerError::Invalid(sentence(&error))),
            _ => Err(BrokerError::unavailable(sentence(&error))),
        },
        value => Ok(value),
    }
}

/// The server with the highest score for the tag: adding one moves only what it takes over.
fn chosen(servers: &[(u64, Arc<Link>)], tag: &[u8]) -> usize {
    let score = |(_, (name, _)): &(usize, &(u64, Arc<Link>))| mixed(stable_hash(tag) ^ *name);
    servers.iter().enumerate().max_by_key(score).map_or(0, |(index, _)| index)
}

fn rendezvous(servers: &[(u64, Arc<Link>)], tag: &[u8]) -> Option<Arc<Link>> {
    match servers {
        [(_, only)] => Some(Arc::clone(only)),
        servers => servers.get(chosen(servers, tag)).map(|(_, link)| Arc::clone(link)),
    }
}

/// FNV-1a: every node, of every version, must place a channel alike.
pub(super) fn stable_hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The finisher of splitmix64, for scores that differ in all bits.
fn mixed(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}
