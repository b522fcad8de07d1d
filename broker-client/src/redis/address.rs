//! Finding the server to talk to: the configured one, or the master that the sentinels name.

use std::time::Duration;

use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo, aio::MultiplexedConnection};

use super::settings::{RedisMode, RedisSettings};

/// How long one sentinel may take.
const SENTINEL_PATIENCE: Duration = Duration::from_millis(500);

/// Where commands and pub/sub go now.
///
/// # Errors
/// One sentence: a URL that cannot be read, or no sentinel that knows the master.
pub(super) async fn resolve(settings: &RedisSettings) -> Result<ConnectionInfo, String> {
    match settings.mode {
        RedisMode::Standalone => {
            let url = settings.urls.first().ok_or("no redis.url is configured")?;
            url.as_str().into_connection_info().map_err(|error| error.to_string())
        }
        RedisMode::Sentinel => master(settings).await,
        RedisMode::Cluster | RedisMode::Shards => {
            Err("redis.mode cluster and shards are not served by this version".to_owned())
        }
    }
}

async fn master(settings: &RedisSettings) -> Result<ConnectionInfo, String> {
    let name =
        settings.master_name.as_deref().ok_or("redis.master_name is required with sentinels")?;
    let mut last = "no sentinel is configured".to_owned();
    for url in &settings.urls {
        match tokio::time::timeout(SENTINEL_PATIENCE, ask(url, name)).await {
            Ok(Ok((host, port))) => {
                // Credentials of the sentinel URL serve the master too; the address is the sentinel's word.
                let info =
                    url.as_str().into_connection_info().map_err(|error| error.to_string())?;
                return Ok(info.set_addr(ConnectionAddr::Tcp(host, port)));
            }
            Ok(Err(error)) => last = error,
            Err(_) => last = "a sentinel did not answer in time".to_owned(),
        }
    }
    Err(last)
}

async fn ask(url: &str, name: &str) -> Result<(String, u16), String> {
    let text = |error: redis::RedisError| error.to_string();
    let client = redis::Client::open(url).map_err(text)?;
    let mut sentinel: MultiplexedConnection =
        client.get_multiplexed_async_connection().await.map_err(text)?;
    let mut command = redis::cmd("SENTINEL");
    command.arg("get-master-addr-by-name").arg(name);
    let answer: Option<(String, u16)> = command.query_async(&mut sentinel).await.map_err(text)?;
    answer.ok_or_else(|| format!("the sentinel does not know a master {name:?}"))
}
