//! The words of `broker.rs` within one process: each call asks the cluster's state, under its lock.
//!
//! It must not know: faults, presence, the application.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use carillon_protocol::{ChannelName, ConnectionId, Position, UserId};
use tokio::sync::watch;
use tokio::time::Instant;

use super::ear::{Ear, Kept};
use super::{COMMAND_TIMEOUT, MemoryBroker};
use crate::{
    Admission, Broker, BrokerError, ConnectionRecord, Event, Health, HistoryPage, HistoryQuery,
    InboundEntry, NodeId, NodeRecord, Publish, RateCount, Receipt, Target,
};

#[async_trait]
impl Broker for MemoryBroker {
    async fn publish(&self, request: Publish) -> Result<Receipt, BrokerError> {
        self.0.publish(request).await
    }

    async fn publish_batch(&self, requests: Vec<Publish>) -> Vec<Result<Receipt, BrokerError>> {
        let mut results = Vec::with_capacity(requests.len());
        for request in requests {
            results.push(self.0.publish(request).await);
        }
        results
    }

    async fn subscribe(&self, channels: &[ChannelName]) -> Result<(), BrokerError> {
        let shared = self.0.available()?;
        for channel in channels {
            shared.channels.subscribe(channel, &self.0.ear);
        }
        Ok(())
    }

    async fn unsubscribe(&self, channels: &[ChannelName]) -> Result<(), BrokerError> {
        let shared = self.0.available()?;
        for channel in channels {
            shared.channels.unsubscribe(channel, &self.0.ear);
        }
        Ok(())
    }

    async fn tops(&self, channels: &[ChannelName]) -> Result<Vec<Position>, BrokerError> {
        let shared = self.0.available()?;
        Ok(channels.iter().map(|channel| shared.channels.top(channel)).collect())
    }

    async fn history(
        &self,
        channel: &ChannelName,
        query: HistoryQuery,
    ) -> Result<HistoryPage, BrokerError> {
        Ok(self.0.available()?.channels.history(channel, query))
    }

    async fn fence(&self, known: &[(ChannelName, Position)]) -> Result<Vec<bool>, BrokerError> {
        let shared = self.0.available()?;
        let lost =
            known.iter().map(|(channel, position)| shared.channels.fence(channel, *position));
        Ok(lost.collect())
    }

    async fn clear_history(&self, channel: &ChannelName) -> Result<Position, BrokerError> {
        Ok(self.0.available()?.channels.clear(channel))
    }

    async fn register(
        &self,
        record: &ConnectionRecord,
        limit: u64,
    ) -> Result<Admission, BrokerError> {
        let shared = self.0.available()?;
        let mut registry = shared.registry.lock();
        let admission = registry.register(&self.0.id, record, limit, Instant::now());
        if admission == Admission::Admitted {
            self.0.owed.lock().remove(&record.id);
            self.0.registered.lock().insert(record.id.clone(), record.user.clone());
        }
        Ok(admission)
    }

    fn register_later(&self, record: &ConnectionRecord) {
        self.0.registered.lock().insert(record.id.clone(), record.user.clone());
        self.0.unwritten.store(true, Ordering::Release);
    }

    async fn deregister(&self, record: &ConnectionRecord) -> Result<(), BrokerError> {
        // Known even when the answer is no: a restored registry must not hold what has ended.
        self.0.registered.lock().remove(&record.id);
        let removed = self.0.available().map(|shared| shared.registry.lock().deregister(record));
        match &removed {
            // Whoever looked before found it here.
            Ok(()) => self.0.look_at(&record.user),
            Err(_) => drop(self.0.owed.lock().insert(record.id.clone(), record.user.clone())),
        }
        removed
    }

    async fn connections_of(&self, user: &UserId) -> Result<Vec<ConnectionId>, BrokerError> {
        Ok(self.0.available()?.registry.lock().connections_of(user, Instant::now()))
    }

    async fn beat(&self, record: &NodeRecord) -> Result<Vec<NodeRecord>, BrokerError> {
        let shared = self.0.available()?;
        self.0.ear.settle();
        let now = Instant::now();
        let mut registry = shared.registry.lock();
        let mut taken_back = Vec::new();
        for (id, user) in self.0.owed.lock().drain() {
            registry.deregister(&ConnectionRecord { id, user: user.clone() });
            taken_back.push(user);
        }
        let (living, lease_is_new) = registry.beat(record, now);
        if self.0.unwritten.swap(false, Ordering::AcqRel) || lease_is_new {
            for (id, user) in self.0.registered.lock().iter() {
                let record = ConnectionRecord { id: id.clone(), user: user.clone() };
                registry.restore(&self.0.id, &record, now);
            }
        }
        drop(registry);
        taken_back.iter().for_each(|user| self.0.look_at(user));
        Ok(living)
    }

    async fn retire(&self) -> Result<(), BrokerError> {
        let shared = self.0.available()?;
        self.0.registered.lock().clear();
        shared.registry.lock().retire(&self.0.id);
        self.0.retire_presence().await
    }

    async fn tell(&self, target: &Target, message: Bytes) -> Result<u64, BrokerError> {
        let ears: Vec<Arc<Ear>> = {
            let shared = self.0.available()?;
            let ears = shared.ears.read();
            match target {
                Target::Node(node) => {
                    let backend = || shared.backends.read().get(node).cloned();
                    ears.get(node).cloned().or_else(backend).into_iter().collect()
                }
                Target::All => ears.values().cloned().collect(),
            }
        };
        let deadline = Instant::now() + COMMAND_TIMEOUT;
        let mut listening = 0;
        for ear in ears.iter().filter(|ear| ear.is_listening()) {
            tell_one(ear, &message, deadline).await;
            listening += 1;
        }
        Ok(listening)
    }

    async fn append_inbound(&self, entry: &InboundEntry) -> Result<String, BrokerError> {
        Ok(self.0.available()?.application.lock().append_message(entry))
    }

    async fn count(&self, key: &str, window: Duration) -> Result<RateCount, BrokerError> {
        Ok(self.0.available()?.windows.lock().count(key, window, Instant::now()))
    }

    fn generation(&self) -> u64 {
        self.0.line.generation()
    }

    fn node(&self) -> &NodeId {
        &self.0.id
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.0.line.watch()
    }
}

async fn tell_one(ear: &Arc<Ear>, message: &Bytes, deadline: Instant) {
    let mut kept = Kept::new();
    while !ear.is_closed() {
        if let Ok(room) = ear.room(&mut kept) {
            return ear.deliver(room, || Event::Told(message.clone()));
        }
        ear.wait_until(deadline, &mut kept).await;
    }
}
