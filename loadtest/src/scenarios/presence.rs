//! Presence at rest: everybody is present in one of `--channels` rooms, shows it by a heartbeat now and then, and nobody
//! comes or goes. What that costs beside the same connections without presence.

use super::run::{Client, Run};
use crate::http::Http;
use crate::redis;
use crate::subscriber::{Ears, Subscriber};
use crate::target::{Kind, Transport};
use anyhow::{Result, bail, ensure};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::rc::Rc;
use std::time::Duration;
use tokio::time::{Instant, sleep, sleep_until};

/// What is measured at least: one round of the server's own pings (`heartbeat.interval`). All who connected together are pinged
/// together; a shorter look has the round in it or not, and that is as much as what it is after.
const REST_MIN: Duration = Duration::from_secs(30);
/// Longest wait until everybody's join is acknowledged.
const JOINED_MAX: Duration = Duration::from_secs(120);

impl Run<'_> {
    /// Connects, measures, joins, measures again.
    pub(super) async fn presence(&mut self) -> Result<()> {
        let options = self.options;
        if options.target != Kind::Carillon || options.transport != Transport::Ws {
            bail!("presence is joined over Carillon's WebSocket");
        }
        let (count, rooms) = (options.connections, self.channels);
        let opening = self.opening(true);
        let client = |index: usize| {
            let room = index as u32 % rooms;
            Client { channels: room..room + 1, ears: Ears::default(), opening }
        };
        let users = self.open((0..count).map(client).collect()).await?;
        // Until what connecting left to do (registrations, online) is done.
        sleep(Duration::from_secs(7)).await;
        let rest = REST_MIN.max(Duration::from_secs_f64(options.duration));
        let (before, _) = self.look_at_rest(rest).await?;
        self.report.idle_core_percent = before;
        let joined = Cell::new(0);
        let present = async {
            self.join(&users, &joined).await?;
            sleep(Duration::from_secs(5)).await;
            let there = self.present()?;
            Ok::<_, anyhow::Error>((there, self.look_at_rest(rest).await?))
        };
        let (there, (percent, commands)) = tokio::select! {
            looked = present => looked?,
            never = beat(&users, &joined, options.heartbeat) => match never {},
        };
        self.report.present = there;
        self.report.rest_core_percent = percent;
        self.report.redis_commands_per_second = commands.values().sum();
        self.report.redis_commands = commands;
        self.report.seconds = rest.as_secs_f64();
        let still = self.present()?;
        ensure!(still == count as u64, "{still} of {count} users are still present");
        Ok(())
    }

    /// Everybody joins, a few hundred at a time as their acks come.
    async fn join(&self, users: &[Rc<Subscriber>], joined: &Cell<usize>) -> Result<()> {
        const UNANSWERED: u64 = 64;
        let by = Instant::now() + JOINED_MAX;
        let begun = self.tally.acked.get();
        for (sent, user) in users.iter().enumerate() {
            joined.set((self.tally.acked.get() - begun) as usize);
            while sent as u64 >= self.tally.acked.get() - begun + UNANSWERED {
                ensure!(Instant::now() < by, "joins are not acknowledged");
                sleep(Duration::from_millis(2)).await;
            }
            let room = room(user.channel);
            let text = format!(
                "{{\"type\":\"presence:join\",\"channel\":\"{room}\",\"ack_id\":\"j\",\"payload\":{{\"name\":\"User {}\"}}}}",
                user.index
            );
            ensure!(user.try_send(text.as_bytes()), "a user's socket is full");
        }
        while self.tally.acked.get() - begun < users.len() as u64 {
            let refused = self.tally.refused.get();
            ensure!(refused == 0, "{refused} joins were refused");
            ensure!(Instant::now() < by, "joins are not acknowledged");
            sleep(Duration::from_millis(10)).await;
        }
        joined.set(users.len());
        Ok(())
    }

    /// How many are present, as REST says.
    fn present(&self) -> Result<u64> {
        let mut http = Http::connect(self.targets[0].address, &self.options.api_key)?;
        (0..self.channels)
            .map(|index| {
                let path = format!("/presence/{}", room(index).trim_start_matches("presence:"));
                Ok(http.ask("GET", &path, None)?["count"].as_u64().unwrap_or(0))
            })
            .sum()
    }

    /// Percent of a core and Redis commands a second over `time`.
    async fn look_at_rest(&self, time: Duration) -> Result<(f64, BTreeMap<String, f64>)> {
        let count = || self.options.redis.map_or(Ok(BTreeMap::new()), redis::commands);
        let (start, cpu, commands) = (Instant::now(), self.cpu_us()?, count()?);
        sleep(time).await;
        let seconds = start.elapsed().as_secs_f64();
        let percent = (self.cpu_us()? - cpu) as f64 / 1e4 / seconds;
        let rate = |(name, calls): (String, u64)| {
            let more = calls - commands.get(&name).copied().unwrap_or(0);
            (more > 0).then(|| (name, more as f64 / seconds))
        };
        Ok((percent, count()?.into_iter().filter_map(rate).collect()))
    }
}

/// Every user who has joined shows it every `every` seconds, spread evenly, for ever.
async fn beat(users: &[Rc<Subscriber>], joined: &Cell<usize>, every: f64) -> Infallible {
    let start = Instant::now();
    let gap = every / users.len().max(1) as f64;
    for k in 0_usize.. {
        sleep_until(start + Duration::from_secs_f64(k as f64 * gap)).await;
        let at = k % users.len();
        if at < joined.get() {
            let room = room(users[at].channel);
            let text = format!("{{\"type\":\"presence:heartbeat\",\"channel\":\"{room}\"}}");
            let _full = users[at].try_send(text.as_bytes());
        }
    }
    unreachable!("the count of heartbeats does not end")
}

fn room(index: u32) -> String {
    format!("presence:bench-{index}")
}
