//! What a poll leaves on its node for the one that goes on from it: its connection, which still listens, and all that was
//! found out for it — whom the token names, which channels it may hear and where it stands in them. The next poll of the
//! chain that says the same asks storage only to be counted and to keep its answer; on another node it asks for all
//! again, and is answered the same. `protocol.md` 6, ruling R31.
//!
//! It must not know: events, answers.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use carillon_protocol::envelope::Refusal;
use carillon_protocol::{Profile, UserId};
use tokio::time::Instant;

use super::held::Held;
use super::merge::Stretch;
use super::origin::{self, Channels, Origin};
use super::page;
use super::question::Question;
use super::rate::{Rate, Toll};
use crate::auth::{Claims, TokenVerifier};
use crate::clock;
use crate::node::Node;
use crate::policy::Policy;

/// How long a token is taken for good because it was: keys that are fetched may be withdrawn.
const VERIFIED_FOR: Duration = Duration::from_secs(60);

/// How soon after an answer a client that goes on is given the next one that it had to wait for. Each answer costs a
/// request, and as many of them as there are messages would be too many (30 a minute are allowed): where they come often,
/// they come together.
const PACE: Duration = Duration::from_millis(200);

/// Who asks, as the token says, and the token.
#[derive(Clone, Debug)]
pub(super) struct Credentials {
    pub(super) claims: Arc<Claims>,
    /// Empty where it is not remembered.
    token: Arc<str>,
    verifier: Arc<TokenVerifier>,
    verified_at: Instant,
}

impl Credentials {
    /// Of a token that was found good just now.
    pub(super) fn new(node: &Node, claims: Claims, token: &str) -> Self {
        Self {
            claims: Arc::new(claims),
            token: token.into(),
            verifier: node.verifier.load_full(),
            verified_at: Instant::now(),
        }
    }

    fn are(&self, token: &str) -> bool {
        !token.is_empty()
            && aws_lc_rs::constant_time::verify_slices_are_equal(
                self.token.as_bytes(),
                token.as_bytes(),
            )
            .is_ok()
    }

    /// Whether the token would still be found good.
    fn hold(&self, node: &Node) -> bool {
        let expires_ms = self.claims.expires_at.saturating_mul(1_000);
        self.verified_at.elapsed() < VERIFIED_FOR
            && Arc::ptr_eq(&self.verifier, &node.verifier.load())
            && expires_ms > clock::unix_ms()
            && !node.revoked.refuses(&self.claims)
    }
}

/// See the module.
pub(crate) struct Seat {
    pub(super) held: Held,
    pub(super) credentials: Credentials,
    pub(super) channels: Channels,
    /// The channels that the question names, in few letters.
    pub(super) named: Box<str>,
    pub(super) origin: Origin,
    /// When the last answer was given.
    pub(super) answered_at: Option<Instant>,
    /// What the last poll was counted as.
    pub(super) rate: Option<Rate>,
    /// The next poll may go on from `origin`; else only what was heard meanwhile is its.
    pub(super) goes_on: bool,
    /// The channels as the question gave them.
    asked: Vec<String>,
    profile: Profile,
    policy: Arc<Policy>,
    /// Of the user's persistent subscriptions.
    edition: u32,
}

impl Seat {
    /// A new one: everything is asked for.
    ///
    /// # Errors
    /// `UNAVAILABLE`.
    async fn take(
        node: &Arc<Node>,
        credentials: &Credentials,
        question: &Question,
        remote: Option<IpAddr>,
    ) -> Result<Self, Refusal> {
        let claims = &*credentials.claims;
        let (policy, edition) = (node.policy.load_full(), node.interest_news.edition(&claims.user));
        let held = Held::open(node, claims, question.profile, remote)?;
        let mut channels = Channels::asked(&held, node, claims, &question.channels).await;
        let named = page::digest(channels.heard.iter().map(|listened| &listened.channel));
        let mut origin = origin::find(node, claims, question, &named).await?;
        channels.restore(&held, node, &mut origin.wishes).await;
        channels.add_interests(&held, node, claims).await?;
        Ok(Self {
            held,
            credentials: credentials.clone(),
            channels,
            named,
            origin,
            answered_at: None,
            rate: None,
            goes_on: true,
            asked: question.channels.clone(),
            profile: question.profile,
            policy,
            edition,
        })
    }

    /// Whether a question is the next one of the same chain, and nothing that was found out may have changed.
    fn fits(&self, node: &Node, question: &Question) -> bool {
        self.goes_on
            && !self.held.is_deaf()
            && question.last_poll_id == self.origin.id
            && question.messages.is_none()
            && question.profile == self.profile
            && question.channels == self.asked
            // What the application allowed, it is asked again (`channels.md` 2).
            && node.application.authorizer.is_none()
            && Arc::ptr_eq(&self.policy, &node.policy.load())
            && self.edition == node.interest_news.edition(&self.credentials.claims.user)
    }

    /// The question that is asked from here: its id and the store's key.
    pub(super) fn question(&self) -> (u64, String) {
        (self.origin.id, page::question(self.origin.id, &self.named))
    }

    /// Ends it; what it heard on channels without history.
    pub(crate) fn into_heard(self) -> Stretch {
        self.held.into_heard()
    }

    /// When the next answer is given, at the earliest, that has to be waited for.
    pub(super) fn paced_until(&self) -> Option<Instant> {
        self.answered_at.map(|last| last + PACE)
    }

    /// Whether it listens on channels without history.
    pub(crate) fn is_fleeting(&self) -> bool {
        self.channels.is_fleeting()
    }

    /// Whether it hears nothing any more.
    pub(crate) fn is_deaf(&self) -> bool {
        self.held.is_deaf()
    }
}

/// A seat that is taken, until this is dropped; then it is left for the next poll, if there is a number to find it by.
pub(super) struct Sitting {
    node: Arc<Node>,
    user: UserId,
    seat: Option<Seat>,
    /// The number that goes on from here.
    pub(super) leaves_as: Option<u64>,
}

impl Drop for Sitting {
    fn drop(&mut self) {
        if let (Some(seat), Some(id)) = (self.seat.take(), self.leaves_as)
            && !seat.is_deaf()
        {
            self.node.pollers.linger(&self.user, id, seat);
        }
    }
}

impl Sitting {
    /// A new seat.
    ///
    /// # Errors
    /// `UNAVAILABLE`.
    pub(super) async fn new(
        node: &Arc<Node>,
        credentials: &Credentials,
        question: &Question,
        remote: Option<IpAddr>,
    ) -> Result<Self, Refusal> {
        let seat = Seat::take(node, credentials, question, remote).await?;
        let user = credentials.claims.user.clone();
        Ok(Self { node: Arc::clone(node), user, seat: Some(seat), leaves_as: None })
    }

    /// The seat that was left under a number by who has this token, which still holds. Nothing was asked yet.
    pub(super) fn of_token(node: &Arc<Node>, user: &str, id: u64, token: &str) -> Option<Self> {
        Self::find(node, user, id, |seat| {
            seat.credentials.are(token) && seat.credentials.hold(node)
        })
    }

    /// The seat that fits a question, left by who has the same credentials.
    pub(super) fn of_question(
        node: &Arc<Node>,
        credentials: &Credentials,
        question: &Question,
    ) -> Option<Self> {
        let user = credentials.claims.user.as_str();
        Self::find(node, user, question.last_poll_id, |seat| {
            seat.credentials.are(&credentials.token) && seat.fits(node, question)
        })
    }

    fn find(node: &Arc<Node>, user: &str, id: u64, fits: impl Fn(&Seat) -> bool) -> Option<Self> {
        let (user, seat) = node.pollers.take_seat(user, id, fits)?;
        Some(Self { node: Arc::clone(node), user, seat: Some(seat), leaves_as: Some(id) })
    }

    /// The question that is asked from here: its id and the store's key.
    pub(super) fn question(&mut self) -> (u64, String) {
        self.seat().question()
    }

    /// Whether a poll that goes on here may be counted with its answer, which is at hand or will be before long. An answer that was given to the same
    /// question on another node is then found in the same step; what was heard on channels without history would be taken
    /// from the seat before.
    pub(super) fn may_be_counted_late(&mut self, toll: &Toll) -> bool {
        let seat = self.seat();
        let soon = || seat.paced_until().is_some_and(|next| next > Instant::now());
        !seat.is_fleeting() && (seat.held.was_nudged() || soon()) && toll.may_be_late(seat.rate)
    }

    /// Whether the seat fits a question.
    pub(super) fn fits(&mut self, question: &Question) -> bool {
        let node = Arc::clone(&self.node);
        self.seat().fits(&node, question)
    }

    /// The seat.
    pub(super) fn seat(&mut self) -> &mut Seat {
        self.seat.as_mut().expect("it is taken only when this is dropped")
    }
}
