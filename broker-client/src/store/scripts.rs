//! The stores' way to Redis: scripts only, each over keys of one hash slot. Whoever holds
//! connections implements [`RedisCommands`]; the stores know no mode and no address.

use async_trait::async_trait;
use futures_util::stream::{self, StreamExt};
use redis::{Cmd, FromRedisValue, Value};

use crate::BrokerError;

/// Scripts of one batch that are in flight at once.
const IN_FLIGHT_MAX: usize = 512;

/// A script's text and digest.
#[derive(Debug)]
pub(crate) struct Script {
    text: &'static str,
    digest: String,
}

impl Script {
    pub(crate) fn new(text: &'static str) -> Self {
        Self { text, digest: redis::Script::new(text).get_hash().to_owned() }
    }

    /// What a server is taught with SCRIPT LOAD.
    pub(crate) fn text(&self) -> &'static str {
        self.text
    }
}

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

    /// The hash tag that decides where it runs, without its braces.
    #[must_use]
    pub fn hash_tag(&self) -> &str {
        let key = self.keys.first().map_or("", String::as_str);
        let tag = key.split_once('{').and_then(|(_, after)| after.split_once('}'));
        tag.map_or(key, |(tag, _)| tag)
    }

    /// The call by digest; a server that does not know the script answers NOSCRIPT.
    #[must_use]
    pub fn command(&self) -> Cmd {
        self.command_with("EVALSHA", &self.script.digest)
    }

    /// The same with the script's text, which teaches it to the server.
    #[must_use]
    pub fn teaching_command(&self) -> Cmd {
        self.command_with("EVAL", self.script.text)
    }

    fn command_with(&self, verb: &str, script: &str) -> Cmd {
        let mut command = redis::cmd(verb);
        command.arg(script).arg(self.keys.len());
        for key in &self.keys {
            command.arg(key);
        }
        for argument in &self.arguments {
            command.arg(argument);
        }
        command
    }
}

/// Runs scripts where their keys live.
#[async_trait]
pub trait RedisCommands: Send + Sync + 'static {
    /// Runs one script within the command time-out.
    async fn script(&self, call: ScriptCall) -> Result<Value, BrokerError>;

    /// Runs one command that only reads, of a single key, `key`: where nothing has to be decided beside the data, it
    /// costs the server a tenth of a script. Ends within twice the command time-out: those that are asked at once
    /// may go together, after those that are on their way.
    async fn command(&self, key: &str, command: Cmd) -> Result<Value, BrokerError>;

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
