//! The stores' way to Redis: their scripts run where the layout says their hash tag lives.

use async_trait::async_trait;
use redis::{Cmd, Value};

use super::RedisBroker;
use super::layout::Call;
use super::names::tag_of;
use crate::{BrokerError, RedisCommands, ScriptCall};

#[async_trait]
impl RedisCommands for RedisBroker {
    async fn script(&self, call: ScriptCall) -> Result<Value, BrokerError> {
        let place = self.inner.layout.place(call.hash_tag());
        self.inner.layout.run(&place, &call.command()).await
    }

    async fn scripts(&self, calls: Vec<ScriptCall>) -> Vec<Result<Value, BrokerError>> {
        let layout = &self.inner.layout;
        let placed = calls
            .iter()
            .map(|call| Call { place: layout.place(call.hash_tag()), command: call.command() });
        layout.run_all(placed.collect()).await
    }

    async fn command(&self, key: &str, command: Cmd) -> Result<Value, BrokerError> {
        let tag = String::from_utf8_lossy(tag_of(key.as_bytes()));
        let place = self.inner.layout.place(&tag);
        self.inner.look(Call { place, command }).await
    }

    fn prefix(&self) -> &str {
        self.inner.shared.names.prefix()
    }

    fn one_slot(&self) -> bool {
        self.inner.layout.is_one_server()
    }
}
