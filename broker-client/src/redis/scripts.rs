//! The Lua scripts and their digests. What users supply reaches them as KEYS and ARGV only.

use std::sync::LazyLock;

use redis::Script;

macro_rules! scripts {
    ($($name:ident $file:literal)*) => { $(
        pub(super) static $name: LazyLock<Source> = LazyLock::new(|| Source::new(include_str!($file)));
    )* };
}

scripts! {
    PUBLISH "publish.lua"
    PUBLISH_ONCE "publish_once.lua"
    HISTORY "history.lua"
    CLEAR "clear.lua"
    REGISTER "register.lua"
    BEAT "beat.lua"
    COUNT "count.lua"
    PRESENCE_JOIN "presence_join.lua"
    PRESENCE_LEAVE "presence_leave.lua"
    PRESENCE_SETTLE "presence_settle.lua"
    PRESENCE_LOOK "presence_look.lua"
    PRESENCE_TEND "presence_tend.lua"
    PRESENCE_SWEPT "presence_swept.lua"
}

/// A script's text and digest.
pub(super) struct Source {
    pub(super) text: &'static str,
    pub(super) digest: String,
}

impl Source {
    fn new(text: &'static str) -> Self {
        Self { text, digest: Script::new(text).get_hash().to_owned() }
    }
}
