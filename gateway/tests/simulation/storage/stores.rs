//! The other words of the broker over a line. They say nothing themselves; all goes through [`Line::call`].

use std::time::Duration;

use async_trait::async_trait;
use carillon_broker_client::{
    ApplicationStore, BrokerError, CountedPage, CountedPoll, EventKinds, Happening, InboundMessage,
    InboundRead, Joined, Member, NewPollPage, PollLimit, PollPage, PollState, PollStore,
    PresenceStore, Revocation, RevocationStore, RevocationVersions, Revocations, UserPresence,
    UserStatus,
};
use carillon_protocol::{ChannelName, ConnectionId, UserId};

use super::Line;

#[async_trait]
impl PollStore for Line {
    async fn count_poll(
        &self,
        user: &UserId,
        window: Option<Duration>,
        asked: Option<(u64, &str)>,
    ) -> Result<CountedPoll, BrokerError> {
        let user = user.clone();
        let asked = asked.map(|(id, question)| (id, question.to_owned()));
        self.call(move |storage| async move {
            let asked = asked.as_ref().map(|(id, question)| (*id, question.as_str()));
            storage.broker.count_poll(&user, window, asked).await
        })
        .await
    }

    async fn find_poll_pages(
        &self,
        user: &UserId,
        id: u64,
        question: &str,
    ) -> Result<PollState, BrokerError> {
        let (user, question) = (user.clone(), question.to_owned());
        self.call(move |storage| async move {
            storage.broker.find_poll_pages(&user, id, &question).await
        })
        .await
    }

    async fn keep_poll_page(
        &self,
        user: &UserId,
        page: NewPollPage,
    ) -> Result<PollPage, BrokerError> {
        let user = user.clone();
        self.call(move |storage| async move { storage.broker.keep_poll_page(&user, page).await })
            .await
    }

    async fn keep_counted_poll_page(
        &self,
        user: &UserId,
        limit: Option<PollLimit>,
        page: NewPollPage,
    ) -> Result<CountedPage, BrokerError> {
        let user = user.clone();
        self.call(move |storage| async move {
            storage.broker.keep_counted_poll_page(&user, limit, page).await
        })
        .await
    }
}

#[async_trait]
impl PresenceStore for Line {
    async fn join_resource(
        &self,
        resource: &ChannelName,
        connection: &ConnectionId,
        member: &Member,
    ) -> Result<Joined, BrokerError> {
        let (resource, connection, member) = (resource.clone(), connection.clone(), member.clone());
        self.call(move |storage| async move {
            let joined = storage.broker.join_resource(&resource, &connection, &member).await;
            storage.log.note(format!("{} joins {resource} by {connection}: {joined:?}", member.id));
            joined
        })
        .await
    }

    async fn leave_resource(
        &self,
        resource: &ChannelName,
        connection: &ConnectionId,
        user: &UserId,
        last_seen_ms: i64,
    ) -> Result<bool, BrokerError> {
        let (resource, connection, user) = (resource.clone(), connection.clone(), user.clone());
        self.call(move |storage| async move {
            let left =
                storage.broker.leave_resource(&resource, &connection, &user, last_seen_ms).await;
            storage.log.note(format!("{user} leaves {resource} by {connection}: {left:?}"));
            left
        })
        .await
    }

    async fn put_member(
        &self,
        resource: &ChannelName,
        member: &Member,
        ttl: Option<Duration>,
    ) -> Result<bool, BrokerError> {
        let (resource, member) = (resource.clone(), member.clone());
        self.call(
            move |storage| async move { storage.broker.put_member(&resource, &member, ttl).await },
        )
        .await
    }

    async fn remove_member(
        &self,
        resource: &ChannelName,
        user: &UserId,
    ) -> Result<bool, BrokerError> {
        let (resource, user) = (resource.clone(), user.clone());
        self.call(
            move |storage| async move { storage.broker.remove_member(&resource, &user).await },
        )
        .await
    }

    async fn members(&self, resource: &ChannelName) -> Result<Vec<Member>, BrokerError> {
        let resource = resource.clone();
        self.call(move |storage| async move { storage.broker.members(&resource).await }).await
    }

    async fn user_seen(
        &self,
        user: &UserId,
        status: Option<UserStatus>,
    ) -> Result<(), BrokerError> {
        let user = user.clone();
        self.call(move |storage| async move { storage.broker.user_seen(&user, status).await }).await
    }

    async fn user_departed(&self, user: &UserId, delay: Duration) -> Result<(), BrokerError> {
        let user = user.clone();
        self.call(move |storage| async move { storage.broker.user_departed(&user, delay).await })
            .await
    }

    async fn presence_of(&self, users: &[UserId]) -> Result<Vec<UserPresence>, BrokerError> {
        let users = users.to_vec();
        self.call(move |storage| async move { storage.broker.presence_of(&users).await }).await
    }

    async fn tend(&self) -> Result<(), BrokerError> {
        self.call(move |storage| async move { storage.broker.tend().await }).await
    }
}

#[async_trait]
impl ApplicationStore for Line {
    fn tell_events(&self, kinds: EventKinds) {
        self.0.broker.tell_events(kinds);
    }

    async fn report(&self, happenings: &[Happening]) -> Result<(), BrokerError> {
        let happenings = happenings.to_vec();
        self.call(move |storage| async move { storage.broker.report(&happenings).await }).await
    }

    async fn read_inbound(&self, read: &InboundRead) -> Result<Vec<InboundMessage>, BrokerError> {
        let read = read.clone();
        self.call(move |storage| async move { storage.broker.read_inbound(&read).await }).await
    }

    async fn ack_inbound(&self, group: &str, ids: &[String]) -> Result<(), BrokerError> {
        let (group, ids) = (group.to_owned(), ids.to_vec());
        self.call(move |storage| async move { storage.broker.ack_inbound(&group, &ids).await })
            .await
    }

    async fn bury_inbound(
        &self,
        group: &str,
        message: &InboundMessage,
        reason: &str,
    ) -> Result<(), BrokerError> {
        let (group, message, reason) = (group.to_owned(), message.clone(), reason.to_owned());
        self.call(move |storage| async move {
            storage.broker.bury_inbound(&group, &message, &reason).await
        })
        .await
    }

    async fn dead_letters(
        &self,
        limit: usize,
    ) -> Result<Vec<(InboundMessage, String)>, BrokerError> {
        self.call(move |storage| async move { storage.broker.dead_letters(limit).await }).await
    }

    async fn hold_lease(&self, name: &str, lease: Duration) -> Result<bool, BrokerError> {
        let name = name.to_owned();
        self.call(move |storage| async move { storage.broker.hold_lease(&name, lease).await }).await
    }

    async fn release_lease(&self, name: &str) -> Result<(), BrokerError> {
        let name = name.to_owned();
        self.call(move |storage| async move { storage.broker.release_lease(&name).await }).await
    }
}

#[async_trait]
impl RevocationStore for Line {
    async fn revoke(&self, revocation: &Revocation) -> Result<RevocationVersions, BrokerError> {
        let revocation = revocation.clone();
        self.call(move |storage| async move { storage.broker.revoke(&revocation).await }).await
    }

    async fn revocations_version(&self) -> Result<u64, BrokerError> {
        self.call(|storage| async move { storage.broker.revocations_version().await }).await
    }

    async fn revocations(&self) -> Result<Revocations, BrokerError> {
        self.call(|storage| async move { storage.broker.revocations().await }).await
    }

    async fn restore_revocations(&self, all: &[Revocation]) -> Result<u64, BrokerError> {
        let all = all.to_vec();
        self.call(move |storage| async move { storage.broker.restore_revocations(&all).await })
            .await
    }
}
