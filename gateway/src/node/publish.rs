//! From a request to publish to a publication at the broker: namespace, limits, identity of the
//! sender. Used by client connections and REST alike.

use bytes::Bytes;
use carillon_broker_client::{BrokerError, Idempotency, InboundEntry, Publish, Receipt};
use carillon_protocol::envelope::Refusal;
use carillon_protocol::publication::Exclude;
use carillon_protocol::session::{Rate, Verdict};
use carillon_protocol::{ChannelName, ErrorCode, MessageId, Payload, Publication, UserId};
use foldhash::HashMap;
use parking_lot::Mutex;

use super::Node;
use crate::application::calls::Message;
use crate::clock;

/// Channels whose publish rate is remembered; full buckets are forgotten first.
const RATED_CHANNELS_MAX: usize = 100_000;

/// A message somebody wants published.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// Where.
    pub channel: ChannelName,
    /// Message type.
    pub kind: Box<str>,
    /// Opaque payload.
    pub payload: Payload,
    /// The publisher's id for it; also makes repeating it harmless.
    pub id: Option<Box<str>>,
    /// Makes repeating it harmless without being its id.
    pub idempotency_key: Option<Box<str>>,
    /// The authenticated sender, or whom a backend names.
    pub user_id: Option<UserId>,
    /// Who must not hear it.
    pub exclude: Exclude,
    /// A JSON object.
    pub meta: Option<Bytes>,
    /// Who publishes, for the scope of idempotency (R2).
    pub sender: String,
    /// Kept in history where the channel has one.
    pub history: bool,
    /// W3C trace context.
    pub traceparent: Option<Box<str>>,
}

/// Publish rates a channel, on this node.
#[derive(Debug, Default)]
pub struct PublishLimits {
    rates: Mutex<HashMap<ChannelName, Rate>>,
}

/// State of a channel's publish limit after a publish, for the `X-RateLimit-*` headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateState {
    /// Publishes a second; 0 when there is no limit.
    pub limit: u32,
    /// Left now.
    pub remaining: u64,
}

impl PublishLimits {
    /// Counts one publish.
    ///
    /// # Errors
    /// `RATE_LIMITED` with `retry_after_ms`.
    pub fn charge(&self, channel: &ChannelName, per_second: u32) -> Result<RateState, Refusal> {
        if per_second == 0 {
            return Ok(RateState { limit: 0, remaining: u64::MAX });
        }
        let now = clock::monotonic_ms();
        let mut rates = self.rates.lock();
        if rates.len() >= RATED_CHANNELS_MAX {
            rates.retain(|_, rate| {
                rate.refill(now);
                rate.remaining() < u64::from(per_second)
            });
        }
        let rate = rates.entry(channel.clone()).or_insert_with(|| Rate::new(per_second, now));
        // A reload may have changed it.
        rate.adjust(per_second, now);
        match rate.take(now) {
            Verdict::Admit => Ok(RateState { limit: per_second, remaining: rate.remaining() }),
            Verdict::Refuse { retry_after_ms } => Err(too_fast(retry_after_ms)),
            Verdict::Abuse => Err(too_fast(1_000)),
        }
    }
}

impl PublishLimits {
    /// The state of a channel's limit, nothing taken.
    #[must_use]
    pub fn state(&self, channel: &ChannelName, per_second: u32) -> RateState {
        if per_second == 0 {
            return RateState { limit: 0, remaining: u64::MAX };
        }
        let now = clock::monotonic_ms();
        let mut rates = self.rates.lock();
        let remaining = rates.get_mut(channel).map_or(u64::from(per_second), |rate| {
            rate.adjust(per_second, now);
            // As the last publish left it: what flowed in since would hide the publish that is being answered.
            rate.remaining()
        });
        RateState { limit: per_second, remaining }
    }
}

fn too_fast(retry_after_ms: u64) -> Refusal {
    Refusal::new(ErrorCode::RateLimited, "Too many publishes to this channel")
        .with("retry_after_ms", retry_after_ms)
}

impl Node {
    /// Publishes one message.
    ///
    /// # Errors
    /// `CHANNEL_NOT_FOUND`, `RATE_LIMITED`, `UNAVAILABLE`, `INVALID_MESSAGE` for a bad id. After
    /// `UNAVAILABLE` it may or may not have happened.
    pub async fn publish(&self, outgoing: Outgoing) -> Result<Receipt, Refusal> {
        let published = self.publish_one(outgoing).await;
        published.inspect_err(|refusal| self.metrics.publish_failed(refusal.code))
    }

    async fn publish_one(&self, outgoing: Outgoing) -> Result<Receipt, Refusal> {
        let copy = self.copy_of(&outgoing);
        let request = self.prepare(outgoing)?;
        self.metrics.published(1);
        let channel = request.publication.channel.clone();
        let generation = self.broker.generation();
        let published = self.broker.publish(request).await;
        let receipt = published.map_err(|error| self.broker_refusal(&error))?;
        self.relay.acknowledged(&channel, &receipt, generation);
        self.copy(copy).await?;
        Ok(receipt)
    }

    /// A copy for the application, if it wants one of what clients publish (`inbound.types`).
    fn copy_of(&self, outgoing: &Outgoing) -> Option<InboundEntry> {
        let is_clients = !outgoing.sender.starts_with("k:");
        if !is_clients || !self.application.wants_copy(&outgoing.kind) {
            return None;
        }
        let message = Message {
            kind: &outgoing.kind,
            id: outgoing.id.as_deref(),
            user: outgoing.user_id.as_ref(),
            connection: None,
            channel: Some(&outgoing.channel),
            payload: &outgoing.payload,
        };
        Some(InboundEntry { kind: outgoing.kind.to_string(), json: message.to_json() })
    }

    /// Puts a copy on the stream before the publish is acknowledged. A publisher who is told that it failed repeats it
    /// with the same id: then the copy comes once more, and the channel's listeners hear nothing twice.
    async fn copy(&self, copy: Option<InboundEntry>) -> Result<(), Refusal> {
        let Some(copy) = copy else { return Ok(()) };
        let appended = self.broker.append_inbound(&copy).await;
        appended.map(drop).map_err(|error| self.broker_refusal(&error))
    }

    /// Publishes many, pipelined; results in order.
    pub async fn publish_batch(
        &self,
        outgoing: Vec<Result<Outgoing, Refusal>>,
    ) -> Vec<Result<Receipt, Refusal>> {
        let mut copies: Vec<Option<InboundEntry>> = Vec::with_capacity(outgoing.len());
        let copied = |outgoing: &Result<Outgoing, Refusal>| self.copy_of(outgoing.as_ref().ok()?);
        copies.extend(outgoing.iter().map(copied));
        let prepared: Vec<Result<Publish, Refusal>> =
            outgoing.into_iter().map(|outgoing| self.prepare(outgoing?)).collect();
        let refusals: Vec<Option<Refusal>> =
            prepared.iter().map(|prepared| prepared.as_ref().err().cloned()).collect();
        let requests: Vec<Publish> = prepared.into_iter().filter_map(Result::ok).collect();
        let channels: Vec<ChannelName> =
            requests.iter().map(|request| request.publication.channel.clone()).collect();
        self.metrics.published(requests.len() as u64);
        let generation = self.broker.generation();
        let results = self.broker.publish_batch(requests).await;
        for (channel, receipt) in channels.iter().zip(&results) {
            if let Ok(receipt) = receipt {
                self.relay.acknowledged(channel, receipt, generation);
            }
        }
        let mut results = results.into_iter();
        let mut answers = Vec::with_capacity(refusals.len());
        for (refusal, copy) in refusals.into_iter().zip(copies) {
            let answer = match refusal {
                Some(refusal) => Err(refusal),
                None => match results.next() {
                    Some(result) => result.map_err(|error| self.broker_refusal(&error)),
                    None => Err(Refusal::new(ErrorCode::Unavailable, "No answer for this message")),
                },
            };
            let answer = match answer {
                Ok(receipt) => self.copy(copy).await.map(|()| receipt),
                refused => refused,
            };
            answers.push(answer.inspect_err(|refusal| self.metrics.publish_failed(refusal.code)));
        }
        answers
    }

    /// What a broker's error is to a caller.
    pub fn broker_refusal(&self, error: &BrokerError) -> Refusal {
        match error {
            BrokerError::Unavailable(reason) => {
                tracing::debug!(%reason, "broker unavailable");
                self.metrics.broker_unavailable();
                Refusal::new(ErrorCode::Unavailable, "Redis is out of reach")
                    .with("retry_after_ms", 1_000)
            }
            BrokerError::Invalid(reason) => {
                tracing::error!(%reason, "the broker refused a request");
                Refusal::new(ErrorCode::InternalError, "Internal error")
            }
        }
    }

    /// The state of a channel's publish limit; `None` for a channel without a namespace.
    #[must_use]
    pub fn publish_rate(&self, channel: &ChannelName) -> Option<RateState> {
        let policy = self.policy.load();
        let namespace = policy.find(channel)?.namespace;
        let per_second = namespace
            .publishes_per_second
            .unwrap_or(self.config.load().limits.publishes_per_second_per_channel);
        Some(self.publish_limits.state(channel, per_second))
    }

    fn prepare(&self, outgoing: Outgoing) -> Result<Publish, Refusal> {
        let policy = self.policy.load();
        let found =
            policy.find(&outgoing.channel).ok_or_else(|| channel_not_found(&outgoing.channel))?;
        let per_second = found
            .namespace
            .publishes_per_second
            .unwrap_or(self.config.load().limits.publishes_per_second_per_channel);
        self.publish_limits.charge(&outgoing.channel, per_second)?;
        let id = match &outgoing.id {
            Some(id) => MessageId::new(id).map_err(|invalid| {
                Refusal::new(ErrorCode::InvalidMessage, invalid.to_string()).with("field", "id")
            })?,
            None => crate::ids::message_id(),
        };
        let (key, other_key) = match (outgoing.idempotency_key, outgoing.id) {
            (Some(key), id) => (Some(key), id),
            (None, id) => (id, None),
        };
        let idempotency = key.map(|key| Idempotency {
            sender: outgoing.sender,
            other_key: other_key.filter(|other| *other != key).map(Into::into),
            key: key.into(),
        });
        let retention = if outgoing.history { found.namespace.retention } else { None };
        Ok(Publish {
            publication: Publication {
                channel: outgoing.channel,
                position: None,
                previous_tag: None,
                stamp: 0,
                id,
                kind: outgoing.kind,
                timestamp_ms: clock::unix_ms(),
                user_id: outgoing.user_id,
                meta: outgoing.meta,
                exclude: outgoing.exclude,
                expires_at_ms: None,
                traceparent: outgoing.traceparent,
                payload: outgoing.payload,
            },
            retention,
            idempotency,
        })
    }
}

/// `CHANNEL_NOT_FOUND` for a channel.
#[must_use]
pub(crate) fn channel_not_found(channel: &ChannelName) -> Refusal {
    Refusal::new(ErrorCode::ChannelNotFound, "No namespace matches the channel")
        .with("channel", channel.as_str())
}
