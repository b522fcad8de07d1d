//! The fields of a request's payload, each read with its shape checked and its place named.
//! It knows nothing of what a request does.

use std::cell::OnceCell;

use serde_json::Value;

use super::{channel_name, wrong};
use crate::envelope::Refusal;
use crate::{ChannelName, ClientMessage, Since};

/// A request's payload, parsed when it is first looked into: publications stay opaque.
pub(super) struct Body<'a> {
    message: &'a ClientMessage,
    value: OnceCell<Value>,
}

impl<'a> Body<'a> {
    pub(super) fn of(message: &'a ClientMessage) -> Self {
        Self { message, value: OnceCell::new() }
    }

    pub(super) fn value(&self) -> &Value {
        self.value.get_or_init(|| self.message.payload.to_value())
    }

    /// A field that is there and not `null`.
    pub(super) fn field(&self, name: &str) -> Option<&Value> {
        self.value().get(name).filter(|value| !value.is_null())
    }

    pub(super) fn channel(&self) -> Result<ChannelName, Refusal> {
        if let Some(channel) = &self.message.channel {
            return channel_name(channel);
        }
        match self.field("channel") {
            Some(Value::String(channel)) => channel_name(channel),
            Some(_) => Err(wrong("must be a string", "payload.channel")),
            None => Err(wrong("is required", "channel")),
        }
    }

    pub(super) fn presence_channel(&self) -> Result<ChannelName, Refusal> {
        let channel = self.channel()?;
        if channel.as_str().strip_prefix("presence:").is_some_and(|resource| !resource.is_empty()) {
            Ok(channel)
        } else {
            Err(wrong("must be presence:{resource}, where presence is announced", "channel"))
        }
    }

    pub(super) fn text(&self, field: &str) -> Result<Option<Box<str>>, Refusal> {
        match self.field(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.as_str().into())),
            Some(_) => Err(wrong("must be a string", format!("payload.{field}"))),
        }
    }

    pub(super) fn required_text(&self, field: &str) -> Result<Box<str>, Refusal> {
        self.text(field)?
            .filter(|text| !text.is_empty())
            .ok_or_else(|| wrong("is required", format!("payload.{field}")))
    }

    pub(super) fn object(&self, field: &str) -> Result<Option<Value>, Refusal> {
        match self.field(field) {
            None => Ok(None),
            Some(value @ Value::Object(_)) => Ok(Some(value.clone())),
            Some(_) => Err(wrong("must be an object", format!("payload.{field}"))),
        }
    }

    pub(super) fn limit(&self) -> Result<Option<u32>, Refusal> {
        let Some(value) = self.field("limit") else { return Ok(None) };
        match value.as_u64().and_then(|limit| u32::try_from(limit).ok()) {
            Some(limit) => Ok(Some(limit)),
            None => Err(wrong("must be a whole number", "payload.limit")),
        }
    }

    pub(super) fn since(&self) -> Result<Option<Since>, Refusal> {
        let Some(since) = self.field("since") else { return Ok(None) };
        let offset = since.get("offset").and_then(Value::as_u64);
        let epoch = since.get("epoch").and_then(Value::as_str);
        let tag = match since.get("tag") {
            None | Some(Value::Null) => None,
            Some(Value::String(tag)) => Some(tag.as_str()),
            Some(_) => return Err(wrong("must be a string", "payload.since.tag")),
        };
        match (offset, epoch) {
            (Some(offset), Some(epoch)) => Ok(Some(Since::new(epoch, offset, tag))),
            (None, _) => Err(wrong("must be a whole number", "payload.since.offset")),
            (_, None) => Err(wrong("must be a string", "payload.since.epoch")),
        }
    }
}
