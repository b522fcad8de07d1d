//! Where Redis is and how it is laid out.
//!
//! A user that may do no more than this is enough (`rt` is the prefix; `redis_faults.rs` holds it to that):
//! `on >PASSWORD resetkeys ~rt:* resetchannels &rt:* -@all +@read +@write +@stream +@pubsub +@connection
//! +@transaction +evalsha +script|load +time -@dangerous`, and for a cluster `+cluster|slots`.

use std::time::Duration;

/// How Redis is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RedisMode {
    /// One server.
    Standalone,
    /// Sentinels know the master.
    Sentinel,
    /// Redis Cluster, sharded pub/sub.
    Cluster,
    /// Independent servers, channels spread by client-side hashing.
    Shards,
}

/// TLS to Redis (`rediss://` URLs).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RedisTls {
    /// PEM file of the authority that signed the server's certificate; the system's when `None`.
    pub ca: Option<String>,
    /// PEM file of our certificate.
    pub cert: Option<String>,
    /// PEM file of our key.
    pub key: Option<String>,
    /// Accept any certificate (tests only).
    pub insecure: bool,
}

impl RedisSettings {
    /// Judges one of [`Self::urls`] without connecting.
    ///
    /// # Errors
    /// What is wrong with it, without the URL: it may hold a password.
    pub fn check_url(url: &str) -> Result<(), String> {
        super::endpoint::Endpoint::parse(url).map(|_| ())
    }
}

/// Where Redis is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedisSettings {
    /// Layout.
    pub mode: RedisMode,
    /// `redis://[user:password@]host:port[/db]`; sentinels, cluster seeds or shards.
    pub urls: Vec<String>,
    /// Sentinel's name of the master.
    pub master_name: Option<String>,
    /// Prefix of all keys and channels.
    pub prefix: String,
    /// TLS files.
    pub tls: RedisTls,
    /// Longest wait for an answer.
    pub command_timeout: Duration,
}
