//! Where a poll begins: what its number stands for, and what it listens to.

use std::sync::Arc;

use carillon_broker_client::PollPage;
use carillon_protocol::envelope::Refusal;
use carillon_protocol::{ChannelName, Cursor, ErrorCode, Filter};
use serde_json::Value;

use super::gather::Listened;
use super::held::Held;
use super::merge::Stretch;
use super::page::{self, Page, Place, Wishes};
use super::question::Question;
use crate::auth::Claims;
use crate::clock;
use crate::interests::{Interests, by_channel};
use crate::node::Node;
use crate::policy::Action;
use crate::rest::store_refusal;

/// Empty pages that are followed from a number to the next.
const FOLLOWED_MAX: usize = 16;
/// How far ahead of the clock a number may be: one counts for each event, and clocks of Redis servers differ.
const AHEAD_MAX_MS: i64 = 24 * 3_600 * 1_000;
/// Channels that persistent subscriptions add to a poll: each is looked at with every poll.
const INTERESTS_MAX: usize = 256;

/// What a poll number stands for.
pub(super) struct Origin {
    pub(super) id: u64,
    /// Numbers given from here on are greater: the one that was asked with, known or not.
    pub(super) after: u64,
    pub(super) cursor: Cursor,
    pub(super) twins: Vec<u64>,
    /// What the number's page holds behind it that is nowhere else.
    pub(super) rest: Stretch,
    /// Notifications may be pending that the user was not sent.
    pub(super) pending: bool,
    /// What former polls asked for by messages.
    pub(super) wishes: Wishes,
    /// Whether `id` stands for exactly this.
    pub(super) kept: bool,
    /// The number was known, or none was given.
    pub(super) recovered: bool,
    /// The same question was answered already.
    pub(super) answered: Option<(PollPage, Page)>,
}

impl Origin {
    fn fresh(asked: u64, cursor: Cursor, recovered: bool) -> Self {
        // One that nobody can have been given does not move the numbers of everybody.
        let newest = clock::unix_ms().saturating_add(AHEAD_MAX_MS).max(0) as u64;
        Self {
            id: 0,
            after: Some(asked).filter(|asked| *asked <= newest).unwrap_or(0),
            cursor,
            twins: Vec::new(),
            rest: Vec::new(),
            pending: true,
            wishes: Wishes::default(),
            kept: false,
            recovered,
            answered: None,
        }
    }
}

impl Origin {
    /// The answer that was given leads here.
    pub(super) fn goes_on(&mut self, id: u64, cursor: Cursor, page: Page) {
        (self.id, self.after, self.cursor) = (id, id, cursor);
        (self.twins, self.pending) = (page.twins, page.pending);
        (self.kept, self.recovered) = (true, true);
    }
}

/// The channels that a poll hears; those that are refused, for the answer.
#[derive(Default)]
pub(super) struct Channels {
    pub(super) heard: Vec<Listened>,
    pub(super) errors: Vec<Value>,
    /// How many are the server's doing.
    automatic: usize,
    /// How many of the errors are about channels that the question names: each answer says them again.
    lasting: usize,
}

impl Channels {
    /// The user's own stream and the channels asked for.
    pub(super) async fn asked(held: &Held, node: &Node, claims: &Claims, names: &[String]) -> Self {
        let mut channels = Self::default();
        if let Some(own) = ChannelName::user_stream(claims.user.as_str()) {
            let retention =
                node.policy.load().find(&own).and_then(|found| found.namespace.retention);
            let age = retention.map(|kept| kept.age);
            channels.heard.push(Listened {
                channel: own,
                age,
                conflate: false,
                asked: true,
                interests: None,
                filter: None,
            });
            channels.automatic = 1;
        }
        let asked: Vec<ChannelName> =
            names.iter().filter_map(|name| ChannelName::new(name).ok()).collect();
        held.driver.ask_ahead(&asked).await;
        for name in names {
            if let Err(refusal) = channels.add(held, node, name, None).await {
                channels.errors.push(error(name, &refusal));
            }
        }
        channels.lasting = channels.errors.len();
        channels
    }

    /// What was said once is not said by the next answer.
    pub(super) fn go_on(&mut self) {
        self.errors.truncate(self.lasting);
    }

    /// Adds one, unless it is there.
    pub(super) async fn add(
        &mut self,
        held: &Held,
        node: &Node,
        name: &str,
        filter: Option<Arc<Filter>>,
    ) -> Result<(), Refusal> {
        let name = ChannelName::new(name)
            .map_err(|invalid| Refusal::new(ErrorCode::InvalidMessage, invalid.to_string()))?;
        let channel = held.driver.resolve(&name)?.channel;
        let (traits, conflate) = held.driver.allowed(Action::Subscribe, &name).await?;
        if let Some(known) = self.heard.iter_mut().find(|known| known.channel == channel) {
            known.asked = true;
            if filter.is_some() {
                known.filter = filter;
            }
            return Ok(());
        }
        let limit = node.config.load().limits.subscriptions_per_connection as usize;
        let asked = self.heard.iter().filter(|listened| listened.asked).count();
        if limit > 0 && asked - self.automatic >= limit {
            let refusal =
                Refusal::new(ErrorCode::SubscriptionLimit, "Too many channels in one poll");
            return Err(refusal.with("limit", limit));
        }
        let age = traits.history_age;
        let interests = None;
        self.heard.push(Listened { channel, age, conflate, asked: true, interests, filter });
        Ok(())
    }

    /// What former polls subscribed to by messages; what is no longer allowed ends with an error (R18).
    pub(super) async fn restore(&mut self, held: &Held, node: &Node, wishes: &mut Wishes) {
        let mut ended = Vec::new();
        for wish in &wishes.subscribed {
            let filter = wish.filter.as_ref().and_then(|filter| Filter::new(filter).ok());
            let filter = filter.map(|filter| node.filters.share(filter));
            if let Err(refusal) = self.add(held, node, &wish.name, filter).await {
                self.errors.push(error(&wish.name, &refusal));
                ended.push(wish.name.clone());
            }
        }
        wishes.subscribed.retain(|wish| !ended.contains(&wish.name));
    }

    /// The user's persistent subscriptions: on the channels asked for, and on those that they add.
    ///
    /// # Errors
    /// `UNAVAILABLE`.
    pub(super) async fn add_interests(
        &mut self,
        held: &Held,
        node: &Node,
        claims: &Claims,
    ) -> Result<(), Refusal> {
        let active = node.subscriptions.active_for(&claims.user).await;
        let active = active.map_err(|error| store_refusal(node, error))?;
        let mut wanted: Vec<_> = by_channel(&active, &node.filters).into_iter().collect();
        wanted.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        wanted.truncate(INTERESTS_MAX);
        for (channel, interests) in wanted {
            let interests: Option<Interests> = Some(interests.into());
            if let Some(known) = self.heard.iter_mut().find(|known| known.channel == channel) {
                known.interests = interests;
            } else if let Ok((traits, conflate)) =
                held.driver.allowed(Action::Subscribe, &channel).await
            {
                let (age, asked) = (traits.history_age, false);
                self.heard.push(Listened {
                    channel,
                    age,
                    conflate,
                    asked,
                    interests,
                    filter: None,
                });
            }
        }
        Ok(())
    }

    /// The client's own subscription ends; the user's persistent ones on the channel stay.
    pub(super) fn drop_asked(&mut self, channel: &ChannelName) {
        self.heard.retain_mut(|listened| {
            let ends = listened.channel == *channel;
            listened.asked &= !ends;
            !ends || listened.interests.is_some()
        });
    }

    /// Whether any of them is heard only by listening.
    pub(super) fn is_fleeting(&self) -> bool {
        self.heard.iter().any(|listened| listened.age.is_none())
    }
}

fn error(channel: &str, refusal: &Refusal) -> Value {
    serde_json::json!({"channel": channel, "code": refusal.code.name(), "message": refusal.message})
}

/// Looks the number up.
///
/// # Errors
/// `UNAVAILABLE`.
pub(super) async fn find(
    node: &Node,
    claims: &Claims,
    question: &Question,
    named: &str,
) -> Result<Origin, Refusal> {
    let mut id = question.last_poll_id;
    if id == 0 {
        return Ok(match &question.since {
            None => Origin::fresh(0, Cursor::default(), true),
            Some(Ok(cursor)) => Origin::fresh(0, cursor.clone(), true),
            Some(Err(())) => Origin::fresh(0, Cursor::default(), false),
        });
    }
    for _ in 0..FOLLOWED_MAX {
        let state = node.broker.find_poll_pages(&claims.user, id, &page::question(id, named)).await;
        let state = state.map_err(|error| node.broker_refusal(&error))?;
        let read = |kept: PollPage| Page::read(&kept).map(|page| (kept, page));
        let answered = state.answered.and_then(read);
        // An answer without events only moved the cursor: go on from there.
        if let Some((kept, page)) = &answered
            && page.steps.is_empty()
        {
            id = kept.first_id;
            continue;
        }
        let at = state
            .origin
            .and_then(read)
            .and_then(|(kept, page)| Some((page.at(&kept, id)?, page.pending, page.wishes)));
        return Ok(match at {
            Some((Place { cursor, twins, rest }, pending, wishes)) => {
                let (after, kept, recovered) = (id, true, true);
                Origin {
                    id,
                    after,
                    cursor,
                    twins,
                    rest,
                    pending,
                    wishes,
                    kept,
                    recovered,
                    answered,
                }
            }
            None => Origin::fresh(id, Cursor::default(), false),
        });
    }
    Ok(Origin::fresh(id, Cursor::default(), false))
}

/// Channels that the cursor does not know begin now.
///
/// # Errors
/// `UNAVAILABLE`.
pub(super) async fn begin(
    node: &Node,
    origin: &mut Origin,
    channels: &[Listened],
) -> Result<(), Refusal> {
    let asked: Vec<&ChannelName> = channels.iter().map(|listened| &listened.channel).collect();
    page::trim(&mut origin.cursor, &asked);
    let new: Vec<ChannelName> = channels
        .iter()
        .filter(|listened| {
            listened.age.is_some() && origin.cursor.get(listened.channel.as_str()).is_none()
        })
        .map(|listened| listened.channel.clone())
        .collect();
    if new.is_empty() {
        return Ok(());
    }
    let tops = node.broker.tops(&new).await.map_err(|error| node.broker_refusal(&error))?;
    for (channel, top) in new.iter().zip(tops) {
        origin.cursor.set(channel, top);
    }
    origin.kept = false;
    Ok(())
}
