//! Lifecycle events of resource presence where the `inbound` stream lives on another server than the resource. The script
//! that makes a change leaves what must be told on record beside it, in order; whoever made the change tells all that
//! stands there and takes it away. What a node left there that died, or did not reach the stream, is told by who sweeps
//! the node, or later by the node itself. The stream's server knows what was told lately, so each is told once.
//!
//! It must not know: what the events say, what a change is.

use carillon_protocol::ChannelName;
use foldhash::HashSet;
use parking_lot::Mutex;

use super::keys;
use crate::BrokerError;
use crate::redis::{Inner, answer, scripts};

/// Events told in one script.
pub(super) const TOGETHER: usize = 64;
/// Resources that are looked at again; beyond that the next change there, or the node's end, tells what stands there.
const OWED_MAX: usize = 100_000;
/// Begins a note of the node's index that is no connection's.
const NOTE: char = '!';

/// Resources where something may stand that this node should have told.
#[derive(Default)]
pub(super) struct Owed(Mutex<HashSet<ChannelName>>);

/// A change is made and told. Unless it ends well its resource is owed, also when nobody waits for it any more.
pub(super) struct Telling<'a> {
    owed: &'a Owed,
    resource: &'a ChannelName,
    over: bool,
}

impl Telling<'_> {
    fn paid(mut self) {
        self.over = true;
    }
}

impl Drop for Telling<'_> {
    fn drop(&mut self) {
        let mut owed = self.owed.0.lock();
        if !self.over && owed.len() < OWED_MAX {
            owed.insert(self.resource.clone());
        }
    }
}

/// Whether a field of a node's index is a connection's hold; otherwise it only names a resource.
pub(super) fn is_hold(connection: &str) -> bool {
    !connection.starts_with(NOTE)
}

impl Inner {
    /// To be held from before a change until its event is told; `None` where that is one step, or nothing is told.
    pub(super) fn telling<'a>(
        &'a self,
        resource: &'a ChannelName,
        event: &str,
    ) -> Option<Telling<'a>> {
        let elsewhere = !self.layout.is_one_server() && !event.is_empty();
        elsewhere.then(|| Telling { owed: &self.held.owed, resource, over: false })
    }

    /// Notes under this node that a resource may have something to tell, before a change that no connection's hold notes.
    pub(super) async fn note_telling(
        &self,
        resource: &ChannelName,
        event: &str,
    ) -> Result<Option<String>, BrokerError> {
        if self.layout.is_one_server() || event.is_empty() {
            return Ok(None);
        }
        let note = format!("{NOTE}{} {resource}", uuid::Uuid::now_v7());
        let mut index = redis::cmd("HSET");
        index.arg(self.own_index()).arg(&note).arg("");
        self.layout.run(&self.layout.common(self.shared.node.as_str()), &index).await?;
        Ok(Some(note))
    }

    /// After such a change: its note is needed for as long as its event is not told.
    pub(super) async fn forget_telling(&self, note: Option<String>, told: bool) {
        if let Some(note) = note.filter(|_| told) {
            self.unindex(&note).await;
        }
    }

    /// After a change: tells what stands on record, at least up to its own event. `false` when that must be done later.
    pub(super) async fn tell_change(
        &self,
        telling: Option<Telling<'_>>,
        recorded: Vec<String>,
        own: &str,
    ) -> bool {
        let Some(telling) = telling else { return true };
        let told = self.tell_recorded(telling.resource, recorded, own).await;
        match told {
            Ok(()) => telling.paid(),
            Err(ref error) => {
                tracing::debug!(%error, resource = %telling.resource, "an event of presence is told later");
            }
        }
        told.is_ok()
    }

    /// Tells what others, or this node, left on record.
    pub(super) async fn tell_left_behind(&self, resource: &ChannelName) -> Result<(), BrokerError> {
        if self.layout.is_one_server() {
            return Ok(());
        }
        let recorded = self.recorded(resource, &[]).await?;
        self.tell_recorded(resource, recorded, "").await
    }

    /// Tells what this node could not tell before.
    pub(super) async fn tell_owed(&self) -> Result<(), BrokerError> {
        let owed: Vec<ChannelName> = self.held.owed.0.lock().iter().cloned().collect();
        for resource in owed {
            // Before it is looked at: a change that fails meanwhile owes it anew.
            let again = Telling { owed: &self.held.owed, resource: &resource, over: false };
            self.held.owed.0.lock().remove(&resource);
            self.tell_left_behind(&resource).await?;
            again.paid();
        }
        Ok(())
    }

    async fn tell_recorded(
        &self,
        resource: &ChannelName,
        mut recorded: Vec<String>,
        own: &str,
    ) -> Result<(), BrokerError> {
        while !recorded.is_empty() {
            self.tell_once(&recorded).await?;
            let is_own = |event: &String| event.split(' ').next() == Some(own);
            let enough = recorded.len() < TOGETHER || recorded.iter().any(is_own);
            recorded = self.recorded(resource, &recorded).await?;
            if enough {
                break;
            }
        }
        Ok(())
    }

    /// Takes away what was told; what is left, oldest first.
    async fn recorded(
        &self,
        resource: &ChannelName,
        told: &[String],
    ) -> Result<Vec<String>, BrokerError> {
        let [.., record] = keys(&self.shared.names, resource);
        let mut recorded = scripts::PRESENCE_RECORDED.call(&[&record]);
        recorded.arg(TOGETHER).arg(told);
        answer::read(self.layout.run(&self.layout.place(resource.as_str()), &recorded).await?)
    }
}
