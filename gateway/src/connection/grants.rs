//! What the application allowed this connection for a time: remembered, asked again when the time is over, and ended where
//! the answer is no. `channels.md` 2.

use std::time::Duration;

use carillon_protocol::ChannelName;
use carillon_protocol::envelope::{Correlation, Refusal, ServerMessage};
use foldhash::HashMap;
use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::Transport;
use super::driver::Driver;
use crate::policy::Action;

/// Channels and until when they may be heard. Costs an idle connection that has none a word.
#[derive(Debug, Default)]
pub(super) struct Grants(Mutex<Option<Box<HashMap<ChannelName, Instant>>>>);

impl Grants {
    fn set(&self, channel: &ChannelName, until: Instant) {
        self.0.lock().get_or_insert_default().insert(channel.clone(), until);
    }

    /// Takes those whose time is over.
    fn take_over(&self, now: Instant) -> Vec<ChannelName> {
        let mut grants = self.0.lock();
        let Some(known) = grants.as_mut() else { return Vec::new() };
        let over = known.iter().filter(|(_, until)| **until <= now);
        let over: Vec<ChannelName> = over.map(|(channel, _)| channel.clone()).collect();
        for channel in &over {
            known.remove(channel);
        }
        if known.is_empty() {
            *grants = None;
        }
        over
    }
}

impl Driver {
    /// What the application says; a yes for a time is asked again for as long as the channel is heard.
    pub(super) async fn ask_application(
        &self,
        action: Action,
        channel: &ChannelName,
    ) -> Result<(), Refusal> {
        let claims = self.claims.as_deref();
        let until = self.node.ask(action, claims, channel, Some(&self.connection.id)).await?;
        // A poll asks again by itself; a publish and a join are over when they are done.
        if let Some(until) = until
            && action == Action::Subscribe
            && self.connection.transport != Transport::Poll
        {
            self.grants.set(channel, until);
            let wait = until.saturating_duration_since(Instant::now());
            // Not before the answer that was kept is over.
            self.node.heartbeat.ask_again(&self.connection, wait + Duration::from_millis(100));
        }
        Ok(())
    }

    /// Asks again about what was allowed for a time that is over.
    pub(super) async fn ask_again(&mut self) {
        let over = self.grants.take_over(Instant::now());
        let heard = |channel: &ChannelName| {
            let named = self.resolve(channel).map(|named| named.channel);
            named.is_ok_and(|named| self.subscriptions.contains_key(&named))
        };
        let over: Vec<ChannelName> = over.into_iter().filter(heard).collect();
        if over.is_empty() {
            return;
        }
        self.end_refused(over).await;
        self.sync_interests(&None).await;
    }

    /// Asks about many channels at once, so that what follows one by one finds the answers.
    pub(crate) async fn ask_ahead(&self, channels: &[ChannelName]) {
        if self.node.application.authorizer.is_some() {
            join_all(channels.iter().map(|channel| self.allowed(Action::Subscribe, channel))).await;
        }
    }

    /// Ends the client's subscriptions to those of the channels that it may not hear any more, each with an `error`.
    pub(super) async fn end_refused(&mut self, channels: Vec<ChannelName>) {
        let answers =
            join_all(channels.iter().map(|channel| self.allowed(Action::Subscribe, channel))).await;
        for (channel, answer) in channels.iter().zip(answers) {
            let Err(refusal) = answer else { continue };
            let Ok(named) = self.resolve(channel) else { continue };
            // The user's persistent subscriptions are looked at by `sync_interests`.
            if self.subscriptions.get(&named.channel).is_none_or(|own| own.automatic) {
                continue;
            }
            self.drop_subscription(&named.channel);
            self.node.presence.leave(&self.connection, &named.channel).await;
            let error = ServerMessage::error(Correlation::default(), &refusal).on(channel.as_str());
            self.say(&error);
        }
    }
}
