//! The stores' way to Redis: scripts only, each over keys of one hash slot. Whoever holds
//! connections implements [`RedisCommands`]; the stores know no mode and no address.

use async_trait::async_trait;
use futures_util::stream::{self, StreamExt};
use redis::{FromRedisValue, Script, Value};

use crate::BrokerError;

/// Scripts of one batch that are in flight at once.
const IN_FLIGHT_MAX: usize = 512;

/// One script with its keys and arguments. All its keys share one hash tag.
#[derive(Clone, Debug)]
pub struct ScriptCall {
    script: &'static Script,
    keys: Vec<String>,
    arguments: Vec<Vec<u8>>,
}

impl ScriptCall {
    pub(crate) fn new(script: &'static Script, keys: Vec<String>) -> Self {
        Self { script, keys, arguments: Vec::new() }
    }

    pub(crate) fn arg(mut self, argument: impl AsRef<[u8]>) -> Self {
        self.arguments.push(argument.as_ref().to_vec());
        self
    }

    pub(crate) fn number(self, argument: i64) -> Self {
        self.arg(argument.to_string())
    }

    /// The key that decides where it runs.
    #[must_use]
    pub fn slot_key(&self) -> &str {
        self.keys.first().map_or("", String::as_str)
    }

    /// Ready for `invoke_async`, which loads the script where the server does not know it.
    #[must_use]
    pub fn invocation(&self) -> redis::ScriptInvocation<'static> {
        let mut invocation = self.script.prepare_invoke();
        for key in &self.keys {
            invocation.key(key);
        }
        for argument in &self.arguments {
            invocation.arg(argument);
        }
        invocation
    }
}

/// Runs scripts where their keys live.
#[async_trait]
pub trait RedisCommands: Send + Sync + 'static {
    /// Runs one script within the command time-out.
    async fn script(&self, call: ScriptCall) -> Result<Value, BrokerError>;

    /// Prefix of all keys.
    fn prefix(&self) -> &str;

    /// Whether all keys live on one server, so that one script may touch all of them.
    fn one_slot(&self) -> bool;

    /// Runs many, results in order. On a multiplexed connection this is a pipeline.
    async fn scripts(&self, calls: Vec<ScriptCall>) -> Vec<Result<Value, BrokerError>> {
        stream::iter(calls).map(|call| self.script(call)).buffered(IN_FLIGHT_MAX).collect().await
    }
}

/// Reads a script's answer.
pub(crate) fn decode<T: FromRedisValue>(value: Value) -> Result<T, BrokerError> {
    redis::from_redis_value(value)
        .map_err(|error| BrokerError::unavailable(format_args!("an unexpected answer: {error}")))
}

/// Fields of a hash with their values.
pub(crate) type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

/// Reads the flat answer of HGETALL.
pub(crate) fn pairs(value: Value) -> Result<Pairs, BrokerError> {
    let flat: Option<Vec<Vec<u8>>> = decode(value)?;
    let mut pairs = Vec::new();
    let mut flat = flat.unwrap_or_default().into_iter();
    while let (Some(field), Some(value)) = (flat.next(), flat.next()) {
        pairs.push((field, value));
    }
    Ok(pairs)
}
