//! Whether a server still holds what was written there: a mark on each server that every node looks at once a second. A
//! server that lost its data under an open connection (FLUSHALL) has lost its mark too, and nothing else would say so:
//! the node's lease is on one server only. Source: `cluster.md` 2, ruling R43.
//!
//! A mark that nobody has is set by whoever looks first; a node that knew another one raises the alarm. What must not be
//! known here: what is restored then.

use std::sync::Arc;

use foldhash::HashMap;
use parking_lot::Mutex;
use redis::Value;

use super::health::LinkId;
use super::layout::Layout;
use super::link::Link;
use super::names::Names;

/// The marks that this node has seen, by link.
#[derive(Default)]
pub(super) struct Marks {
    seen: Mutex<HashMap<LinkId, Mark>>,
}

struct Mark {
    /// Where it stands: in a cluster a slot of that server, and slots move.
    key: String,
    value: Vec<u8>,
}

impl Marks {
    /// Looks at every server; how many have lost what they held since the last look. A server that does not answer is
    /// not judged: its connection will be made anew.
    pub(super) async fn lost(&self, layout: &Layout, names: &Names) -> usize {
        let looks = layout.marked().into_iter().map(|(link, tag)| {
            let key = names.mark(&tag);
            async move { self.lost_at(&link, key).await }
        });
        futures_util::future::join_all(looks).await.into_iter().filter(|lost| *lost).count()
    }

    async fn lost_at(&self, link: &Arc<Link>, key: String) -> bool {
        let fresh = format!("{:016x}", rand::random::<u64>());
        let mut set = redis::cmd("SET");
        set.arg(&key).arg(&fresh).arg("NX").arg("GET");
        let value = match link.send(&set).await {
            Ok(Value::Nil) => fresh.into_bytes(),
            Ok(Value::BulkString(value)) => value,
            // Out of memory, a slot on its way, no connection: nothing is known.
            _ => return false,
        };
        let mut seen = self.seen.lock();
        let lost = seen.get(&link.id).is_some_and(|mark| mark.key == key && mark.value != value);
        seen.insert(link.id, Mark { key, value });
        lost
    }
}
