//! The end of a run: last messages, what history holds, and counts and presence against who is there.

use super::super::client::{Client, PRESENCE, Transport};
use super::super::http::Http;
use super::super::lane::Envelope;
use super::super::log::{Channel, Count, History, Log, Number, Place, fingerprint};
use super::super::publisher::publish;
use super::super::report::Figure;
use super::super::shared::Shared;
use super::{REST_PATIENCE, Trial};
use crate::mark::Mark;
use anyhow::{Context as _, Result};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::rc::Rc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Presence and counts are right again by then (`cluster.md` 2).
const COUNT_PATIENCE: Duration = Duration::from_secs(45);

impl Trial {
    /// One last message on each channel: who has it has everything before it.
    pub(super) async fn publish_closing(&mut self) -> Vec<Number> {
        let mut line: Option<Http> = None;
        let mut numbers = Vec::new();
        for channel in 0..self.setup.channels {
            numbers.push(
                publish(&self.shared, &mut line, channel, self.setup.size, &mut self.random).await,
            );
        }
        numbers
    }

    /// Waits until everybody heard the last messages; who does not is the judge's to find.
    pub(super) async fn wait_heard(&self, closing: &[Number]) {
        let end = Instant::now() + REST_PATIENCE;
        let heard = |client: &Rc<Client>| {
            client.gone.get()
                || client
                    .lanes
                    .borrow()
                    .0
                    .iter()
                    .all(|lane| lane.number >= closing[lane.index as usize])
        };
        while Instant::now() < end && !self.clients.iter().all(heard) {
            sleep(Duration::from_millis(20)).await;
        }
        // What is heard twice may come behind it.
        sleep(Duration::from_millis(500)).await;
    }

    pub(super) async fn history(&self, channel: Channel) -> Result<History> {
        #[derive(Deserialize)]
        struct Page<'a> {
            #[serde(borrow)]
            messages: Vec<&'a RawValue>,
            epoch: String,
            offset: u64,
            next: Option<String>,
        }
        let name = Shared::channel(channel);
        let mut history = History { channel, epoch: 0, top: 0, messages: Vec::new() };
        let mut since = "0".to_owned();
        loop {
            let path = format!("/api/realtime/channels/{name}/history?since={since}&limit=1000");
            let answer = self.ask("GET", &path, "").await?;
            let page: Page<'_> = serde_json::from_slice(&answer.body)
                .with_context(|| format!("history: {}", String::from_utf8_lossy(&answer.body)))?;
            (history.epoch, history.top) = (fingerprint(&page.epoch), page.offset);
            for message in page.messages {
                let envelope: Envelope<'_> = serde_json::from_str(message.get())?;
                let mark =
                    envelope.payload.and_then(|raw| Mark::find(raw.get().as_bytes(), &mut 0));
                let (mark, _) = mark.context("history holds what nobody published")?;
                let (epoch, offset) =
                    (envelope.epoch.context("epoch")?, envelope.offset.context("offset")?);
                history
                    .messages
                    .push((Place::of(&epoch, offset, envelope.tag.as_deref()), mark.sequence));
            }
            match page.next {
                Some(next) => since = next,
                None => return Ok(history),
            }
        }
    }

    /// Compares counts and presence with who is there; asks again until they are right or time is up.
    pub(super) async fn look_at_rest(&mut self, log: &mut Log, when: &str) -> Result<()> {
        let began = Instant::now();
        loop {
            let (counts, ghosts, missing) = self.look(when).await?;
            let right = counts.iter().all(|count| count.expected == count.found);
            if (right && ghosts.is_empty() && missing.is_empty())
                || began.elapsed() > COUNT_PATIENCE
            {
                log.counts.extend(counts);
                log.ghosts.extend(ghosts);
                log.missing.extend(missing);
                let name = format!("counts and presence right {when}, after");
                self.figure(Figure::told(name, began.elapsed().as_secs_f64(), "s"));
                return Ok(());
            }
            sleep(Duration::from_millis(250)).await;
        }
    }

    async fn look(&self, when: &str) -> Result<(Vec<Count>, Vec<String>, Vec<String>)> {
        let here = |client: &&Rc<Client>| !client.gone.get() && client.transport != Transport::Poll;
        let expected = self.clients.iter().filter(here).count() as u64;
        let stats = self.ask("GET", "/api/realtime/stats", "").await?.json()?;
        let by_transport = stats["totals"]["connections_by_transport"].as_object().cloned();
        let found = by_transport.iter().flatten().filter(|(name, _)| *name != "poll");
        let found = found.filter_map(|(_, count)| count.as_u64()).sum();
        let mut counts = vec![Count { what: format!("connections {when}"), expected, found }];
        for users in self.clients.chunks(500) {
            let users: Vec<_> =
                users.iter().filter(|client| client.transport != Transport::Poll).collect();
            let names: Vec<&str> = users.iter().map(|client| &*client.name).collect();
            let body = serde_json::json!({"user_ids": names}).to_string();
            let answer = self.ask("POST", "/api/realtime/users/presence", &body).await?.json()?;
            for (client, shown) in users.iter().zip(answer["users"].as_array().context("no users")?)
            {
                let expected = u64::from(!client.gone.get());
                let found = shown["connections"].as_u64().unwrap_or(u64::MAX);
                if found != expected {
                    let what = format!("connections of {} {when}", client.name);
                    counts.push(Count { what, expected, found });
                }
            }
        }
        let resource = PRESENCE.strip_prefix("presence:").unwrap_or(PRESENCE);
        let shown =
            self.ask("GET", &format!("/api/realtime/presence/{resource}"), "").await?.json()?;
        let shown: Vec<String> = shown["users"]
            .as_array()
            .context("no users")?
            .iter()
            .filter_map(|user| user["id"].as_str().map(str::to_owned))
            .collect();
        let present: Vec<&str> = self
            .clients
            .iter()
            .filter(|client| client.present && !client.gone.get())
            .map(|client| &*client.name)
            .collect();
        let ghosts = shown
            .iter()
            .filter(|name| !present.contains(&&***name))
            .map(|name| format!("{name} ({when})"))
            .collect();
        let missing = present
            .iter()
            .filter(|name| !shown.iter().any(|shown| shown == *name))
            .map(|name| format!("{name} ({when})"))
            .collect();
        Ok((counts, ghosts, missing))
    }
}
