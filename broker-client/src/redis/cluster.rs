//! The masters of a Redis Cluster and who serves which slot. Slots move: the map is asked for when
//! anybody doubts it and every few seconds, and wishes move with their slots.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use foldhash::{HashMap, HashMapExt};
use parking_lot::RwLock;
use redis::Value;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::dial::DialError;
use super::endpoint::Endpoint;
use super::hearing::Wish;
use super::link::{LOGGED_IN, Link, Shared, jittered};
use super::names::tag_of;
use super::sentinel::Source;

const SLOTS: usize = 16_384;
const REFRESH_EVERY: Duration = Duration::from_secs(5);
/// Between two refreshes, however often the map is doubted.
const REFRESH_PAUSE: Duration = Duration::from_millis(100);

/// See the module.
pub(super) struct Cluster {
    shared: Arc<Shared>,
    seeds: Vec<Endpoint>,
    map: RwLock<Map>,
    stop: CancellationToken,
}

/// Wishes for each link, by its id.
type Shares = HashMap<u64, (Arc<Link>, Vec<(Bytes, Wish)>)>;

struct Map {
    /// By `host:port`.
    masters: HashMap<String, Arc<Link>>,
    slots: Vec<Option<Arc<Link>>>,
    /// Wishes whose slot nobody serves.
    unplaced: HashMap<Bytes, Wish>,
    next_id: u64,
}

impl Cluster {
    /// Begins to ask the seeds.
    pub(super) fn start(
        seeds: Vec<Endpoint>,
        shared: &Arc<Shared>,
        stop: &CancellationToken,
    ) -> Arc<Self> {
        let unplaced =
            shared.told_on().into_iter().map(|name| (Bytes::from(name), Wish::Told)).collect();
        let map = Map { masters: HashMap::new(), slots: vec![None; SLOTS], unplaced, next_id: 1 };
        let cluster = Arc::new(Self {
            shared: Arc::clone(shared),
            seeds,
            map: RwLock::new(map),
            stop: stop.clone(),
        });
        let (watcher, stop) = (Arc::clone(&cluster), stop.clone());
        shared.tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = watcher.watch() => {}
            }
        });
        cluster
    }

    pub(super) fn patience(&self) -> Duration {
        self.shared.timeout
    }

    pub(super) fn link_of(&self, slot: u16) -> Option<Arc<Link>> {
        self.map.read().slots.get(usize::from(slot)).cloned().flatten()
    }

    pub(super) fn link_at(&self, address: &str) -> Option<Arc<Link>> {
        self.map.read().masters.get(address).cloned()
    }

    pub(super) fn links(&self) -> Vec<Arc<Link>> {
        self.map.read().masters.values().cloned().collect()
    }

    /// Every master that has slots, and a hash tag in one of them.
    pub(super) fn marked(&self) -> Vec<(Arc<Link>, String)> {
        let map = self.map.read();
        let serves = |tag: &str, link: &Arc<Link>| {
            let server = &map.slots[usize::from(slot_of(tag.as_bytes()))];
            server.as_ref().is_some_and(|server| Arc::ptr_eq(server, link))
        };
        // Numbers fall on slots evenly: a master's first one is found after as many tries as there are masters.
        let tag = |link| (0..SLOTS).map(|number| number.to_string()).find(|tag| serves(tag, link));
        map.masters.values().filter_map(|link| Some((Arc::clone(link), tag(link)?))).collect()
    }

    /// The map may be wrong: it is asked for soon.
    pub(super) fn doubt(&self) {
        self.shared.layout_doubted.notify_one();
    }

    pub(super) fn wish(&self, wishes: Vec<(Bytes, Wish)>) -> Vec<Option<oneshot::Receiver<()>>> {
        // One lock over placing and wishing: a map that changes meanwhile finds the wish.
        let mut map = self.map.write();
        let mut shares: Shares = HashMap::new();
        let mut answers = Vec::new();
        for (key, wish) in wishes {
            match &map.slots[usize::from(slot_of(tag_of(&key)))] {
                Some(link) => {
                    shares
                        .entry(link.id)
                        .or_insert_with(|| (Arc::clone(link), Vec::new()))
                        .1
                        .push((key, wish));
                }
                None => {
                    map.unplaced.insert(key, wish);
                    answers.push(None);
                }
            }
        }
        answers.extend(shares.into_values().map(|(link, share)| link.hearing.wish(share)));
        answers
    }

    pub(super) fn forget(&self, keys: &[Bytes]) {
        let mut map = self.map.write();
        for key in keys {
            map.unplaced.remove(key);
            if let Some(link) = &map.slots[usize::from(slot_of(tag_of(key)))] {
                link.hearing.forget(std::iter::once(key.clone()));
            }
        }
    }

    async fn watch(&self) {
        loop {
            let mut last = DialError::Refused("no cluster seed is configured".to_owned());
            match self.ask().await {
                Ok(ranges) => self.apply(ranges).await,
                Err(error) => last = error,
            }
            if self.map.read().masters.is_empty() {
                // A link of its own in the sum of health: the seeds.
                self.shared.board.add(0);
                self.shared.board.commands(0, Some(&last));
            } else {
                self.shared.board.remove(0);
            }
            tokio::time::sleep(jittered(REFRESH_PAUSE)).await;
            tokio::select! {
                () = self.shared.layout_doubted.notified() => {}
                () = tokio::time::sleep(jittered(REFRESH_EVERY)) => {}
            }
        }
    }

    /// Asks the masters we know, then the seeds. A master's own word counts most where it has a majority; after a
    /// failover the newest map is the one whose epoch is highest, which any live node learns in moments.
    async fn ask(&self) -> Result<Vec<Range>, DialError> {
        let mut slots = redis::cmd("CLUSTER");
        slots.arg("SLOTS");
        for link in self.links() {
            let Some(here) = link.address().borrow().clone() else { continue };
            if let Ok(answer) = link.send(&slots).await
                && let Some(ranges) = read_slots(&answer, &here)
            {
                return Ok(ranges);
            }
        }
        let mut last = DialError::Refused("no cluster seed is configured".to_owned());
        for seed in &self.seeds {
            match self.ask_seed(seed, &slots).await {
                Ok(ranges) => return Ok(ranges),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn ask_seed(&self, seed: &Endpoint, slots: &redis::Cmd) -> Result<Vec<Range>, DialError> {
        let line = self.shared.dialer.dial(seed, "carillon-layout").await?;
        let refused = |reason: String| DialError::Refused(format!("Redis {seed}: {reason}"));
        let config =
            redis::AsyncConnectionConfig::new().set_response_timeout(Some(self.shared.timeout));
        let made =
            redis::aio::MultiplexedConnection::new_with_config(&LOGGED_IN, line.socket, config);
        let made = tokio::time::timeout(self.shared.timeout, made).await;
        let (mut connection, driver) = made
            .map_err(|_| refused("no answer".to_owned()))?
            .map_err(|error| refused(error.to_string()))?;
        let answer = tokio::select! {
            answer = connection.send_packed_command(slots) => answer.map_err(|error| refused(error.to_string()))?,
            () = driver => return Err(DialError::Unreachable(format!("Redis {seed} closed the connection"))),
        };
        match &answer {
            Value::ServerError(error) => Err(refused(super::link::sentence(error))),
            answer => {
                read_slots(answer, seed).ok_or_else(|| refused("no slots are assigned".to_owned()))
            }
        }
    }

    /// Takes a new map: links for new masters, wishes to where their slots are, old links ended.
    async fn apply(&self, ranges: Vec<Range>) {
        let mut endings = Vec::new();
        let mut takers: Shares = HashMap::new();
        {
            let mut map = self.map.write();
            let mut masters = HashMap::new();
            let mut slots = vec![None; SLOTS];
            for Range { from, to, master } in ranges {
                let address = master.to_string();
                let known = masters.get(&address).or_else(|| map.masters.get(&address)).cloned();
                let link = known.unwrap_or_else(|| {
                    map.next_id += 1;
                    Link::start(map.next_id, Source::Fixed(master), &self.shared, &self.stop)
                });
                slots[usize::from(from)..=usize::from(to)].fill(Some(Arc::clone(&link)));
                masters.insert(address, link);
            }
            let mut homeless: Vec<(Bytes, Wish)> = map.unplaced.drain().collect();
            for link in map.masters.values() {
                homeless.extend(link.hearing.give_away(|key| {
                    let now: &Option<Arc<Link>> = &slots[usize::from(slot_of(tag_of(key)))];
                    now.as_ref().is_some_and(|now| Arc::ptr_eq(now, link))
                }));
            }
            for (key, wish) in homeless {
                match &slots[usize::from(slot_of(tag_of(&key)))] {
                    Some(link) => {
                        takers
                            .entry(link.id)
                            .or_insert_with(|| (Arc::clone(link), Vec::new()))
                            .1
                            .push((key, wish));
                    }
                    None => {
                        map.unplaced.insert(key, wish);
                    }
                }
            }
            for (address, link) in &map.masters {
                if !masters.contains_key(address) {
                    endings.push(Arc::clone(link));
                }
            }
            map.masters = masters;
            map.slots = slots;
            for (link, wishes) in takers.values() {
                link.hearing.adopt(wishes.clone());
            }
        }
        // The takers owe `Restored`; only then is an ended link's silence no reason any more.
        for link in endings {
            link.stop();
            self.shared.ears.restored(link.id, false).await;
        }
    }
}

struct Range {
    from: u16,
    to: u16,
    master: Endpoint,
}

/// Reads CLUSTER SLOTS as `here` answered it; `None` when there is nothing usable in it.
fn read_slots(answer: &Value, here: &Endpoint) -> Option<Vec<Range>> {
    let Value::Array(rows) = answer else { return None };
    let mut ranges = Vec::with_capacity(rows.len());
    for row in rows {
        let Value::Array(row) = row else { return None };
        let [Value::Int(from), Value::Int(to), Value::Array(master), ..] = &row[..] else {
            return None;
        };
        let [host, Value::Int(port), ..] = &master[..] else { return None };
        let host = match host {
            Value::BulkString(host) => String::from_utf8(host.clone()).ok()?,
            Value::SimpleString(host) => host.clone(),
            _ => String::new(),
        };
        // A server that does not know its own name means: where you reached me.
        let host = if host.is_empty() || host == "?" { here.host.clone() } else { host };
        let (from, to) = (u16::try_from(*from).ok()?, u16::try_from(*to).ok()?);
        if from > to || usize::from(to) >= SLOTS {
            return None;
        }
        ranges.push(Range { from, to, master: here.at(host, u16::try_from(*port).ok()?) });
    }
    (!ranges.is_empty()).then_some(ranges)
}

/// The slot of a hash tag: CRC-16/XMODEM, as Redis Cluster has it.
pub(super) fn slot_of(tag: &[u8]) -> u16 {
    let mut crc = 0_u16;
    for byte in tag {
        crc ^= u16::from(*byte) << 8;
        for _ in 0..8 {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
        }
    }
    crc % SLOTS as u16
}

#[cfg(test)]
mod tests {
    #[test]
    fn slots_are_those_of_redis() {
        assert_eq!(super::slot_of(b"123456789"), 0x31c3);
        assert_eq!(super::slot_of(b"foo"), 12_182);
    }
}
