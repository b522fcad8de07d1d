//! The Lua scripts and their digests. What users supply reaches them as KEYS and ARGV only.

use std::sync::LazyLock;

use redis::{Cmd, Pipeline, Script};

macro_rules! scripts {
    ($($name:ident $($file:literal)+;)*) => {
        $(pub(super) static $name: LazyLock<Source> = LazyLock::new(|| Source::new(concat!($(include_str!($file)),+)));)*
        const ALL: &[&LazyLock<Source>] = &[$(&$name),*];
    };
}

scripts! {
    PUBLISH "append.lua" "publish.lua";
    PUBLISH_MANY "append.lua" "publish_many.lua";
    PUBLISH_PASSING "pass.lua" "publish_passing.lua";
    HISTORY "history.lua";
    TOP "top.lua";
    CLEAR "clear.lua";
    FENCE "fence.lua";
    REGISTER "admit.lua" "register.lua";
    ARRIVE "admit.lua" "pass.lua" "tell.lua" "status.lua" "arrive.lua";
    BEAT "beat.lua";
    CLAIM "claim.lua";
    COUNT "count.lua";
    COUNT_POLL "polls.lua" "count_poll.lua";
    FIND_POLL_PAGES "polls.lua" "find_poll_pages.lua";
    KEEP_POLL_PAGES "polls.lua" "keep_poll_pages.lua";
    PRESENCE_JOIN "pass.lua" "tell.lua" "presence_record.lua" "presence_join.lua";
    PRESENCE_LEAVE "pass.lua" "tell.lua" "presence_record.lua" "presence_leave.lua";
    PRESENCE_RECORDED "presence_recorded.lua";
    PRESENCE_SETTLE "pass.lua" "tell.lua" "status.lua" "presence_settle.lua";
    PRESENCE_DEPARTED "presence_departed.lua";
    PRESENCE_TOLD "presence_told.lua";
    PRESENCE_LOOK "presence_look.lua";
    PRESENCE_TEND "presence_tend.lua";
    PRESENCE_SWEPT "presence_swept.lua";
    APPLICATION_TELL "tell.lua" "application_tell.lua";
    APPLICATION_TELL_ONCE "tell.lua" "application_tell_once.lua";
    APPLICATION_HOLD "tell.lua" "application_hold.lua";
    APPLICATION_READ "application_read.lua";
    APPLICATION_BURY "application_bury.lua";
    APPLICATION_LEASE "application_lease.lua";
    REVOKE "revoke.lua";
    REVOCATIONS_RESTORE "revocations_restore.lua";
}

/// A script's text and digest.
pub(super) struct Source {
    pub(super) text: &'static str,
    digest: String,
}

impl Source {
    fn new(text: &'static str) -> Self {
        Self { text, digest: Script::new(text).get_hash().to_owned() }
    }

    /// A call with these keys; arguments follow.
    pub(super) fn call(&self, keys: &[&str]) -> Cmd {
        let mut command = redis::cmd("EVALSHA");
        command.arg(&self.digest).arg(keys.len()).arg(keys);
        command
    }
}

/// Loads every script, the stores' too.
pub(super) fn load_all() -> (Pipeline, usize) {
    let mut pipeline = Pipeline::new();
    let mut count = 0;
    let stores = crate::store::script_texts();
    for text in ALL.iter().map(|source| source.text).chain(stores) {
        pipeline.cmd("SCRIPT").arg("LOAD").arg(text);
        count += 1;
    }
    (pipeline, count)
}
