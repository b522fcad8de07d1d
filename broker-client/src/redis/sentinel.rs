//! Where a link's server is: fixed, or whom the sentinels name. Sentinels are asked again on every reconnect and
//! every few seconds; nothing is subscribed to.

use std::time::Duration;

use super::dial::{DialError, Dialer, question};
use super::endpoint::Endpoint;

/// How often sentinels are asked while all is well: bounds how long a master that was cut off keeps us.
const ASK_EVERY: Duration = Duration::from_secs(3);
/// How long one sentinel may take.
const PATIENCE: Duration = Duration::from_millis(400);

/// See the module.
#[derive(Clone, Debug)]
pub(super) enum Source {
    Fixed(Endpoint),
    Sentinels { sentinels: Vec<Endpoint>, master_name: String },
}

impl Source {
    /// Whether only a master will do.
    pub(super) fn wants_master(&self) -> bool {
        matches!(self, Self::Sentinels { .. })
    }

    /// The server's address now.
    pub(super) async fn resolve(&self, dialer: &Dialer) -> Result<Endpoint, DialError> {
        let (sentinels, name) = match self {
            Self::Fixed(endpoint) => return Ok(endpoint.clone()),
            Self::Sentinels { sentinels, master_name } => (sentinels, master_name),
        };
        let mut last = DialError::Refused("no sentinel is configured".to_owned());
        for sentinel in sentinels {
            match tokio::time::timeout(PATIENCE, ask(dialer, sentinel, name)).await {
                Ok(Ok(master)) => return Ok(master),
                Ok(Err(error)) => last = error,
                Err(_) => last = DialError::Unreachable(format!("sentinel {sentinel}: no answer")),
            }
        }
        Err(last)
    }

    /// Completes when the sentinels name another master; never for a fixed server.
    pub(super) async fn moved(&self, dialer: &Dialer, from: &Endpoint) -> String {
        if !self.wants_master() {
            return std::future::pending().await;
        }
        loop {
            tokio::time::sleep(ASK_EVERY).await;
            match self.resolve(dialer).await {
                Ok(master) if master != *from => {
                    return format!("the master moved from {from} to {master}");
                }
                Ok(_) | Err(_) => {}
            }
        }
    }
}

/// The credentials of the sentinel's URL are the master's; the sentinel may know them or not.
async fn ask(dialer: &Dialer, sentinel: &Endpoint, name: &str) -> Result<Endpoint, DialError> {
    let command = [&b"SENTINEL"[..], b"GET-MASTER-ADDR-BY-NAME", name.as_bytes()];
    let login = Endpoint { db: 0, ..sentinel.clone() };
    let answer = match question(dialer, &login, "carillon", &command).await {
        Err(DialError::Refused(_)) if sentinel.password.is_some() => {
            question(dialer, &sentinel.anonymous(), "carillon", &command).await
        }
        answer => answer,
    }?;
    let unknown = || DialError::Refused(format!("sentinel {sentinel} knows no master {name:?}"));
    let [host, port] = &answer[..] else { return Err(unknown()) };
    Ok(sentinel.at(host.clone(), port.parse().map_err(|_| unknown())?))
}
