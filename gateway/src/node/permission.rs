//! Whether somebody may: the policy's rules and, where they leave it to the application, its answer. Used by connections
//! and REST alike. `channels.md` 2.

use carillon_protocol::envelope::Refusal;
use carillon_protocol::{ChannelName, ConnectionId};
use tokio::time::Instant;

use super::Node;
use crate::application::authorize::Question;
use crate::auth::Claims;
use crate::policy::{Action, Decision, forbidden};

impl Node {
    /// Passes whoever may act on a channel, over REST.
    ///
    /// # Errors
    /// `CHANNEL_NOT_FOUND`, `FORBIDDEN`.
    pub async fn permit(
        &self,
        action: Action,
        claims: Option<&Claims>,
        channel: &ChannelName,
    ) -> Result<(), Refusal> {
        let decision = self.policy.load().decide(action, claims, channel);
        match decision {
            Decision::Allow => Ok(()),
            Decision::Refuse(refusal) => Err(refusal),
            Decision::Ask => self.ask(action, claims, channel, None).await.map(drop),
        }
    }

    /// What the application says; until when it holds, if it said so. At most `authorize.webhook.timeout`.
    ///
    /// # Errors
    /// `FORBIDDEN`, also when it cannot be asked.
    pub async fn ask(
        &self,
        action: Action,
        claims: Option<&Claims>,
        channel: &ChannelName,
        connection: Option<&ConnectionId>,
    ) -> Result<Option<Instant>, Refusal> {
        let refused = || forbidden(action, channel);
        let authorizer = self.application.authorizer.as_ref().ok_or_else(refused)?;
        let verdict = authorizer.ask(Question { action, channel, claims, connection }).await;
        if verdict.allow { Ok(verdict.until) } else { Err(refused()) }
    }
}
