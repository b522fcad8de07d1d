//! Where one server is and who we are there. Knows no socket.

use redis::{ConnectionAddr, IntoConnectionInfo};

/// A server's address with our credentials.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Endpoint {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) tls: bool,
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
    pub(super) db: i64,
}

impl Endpoint {
    /// Reads `redis[s]://[user:password@]host:port[/db]`.
    pub(super) fn parse(url: &str) -> Result<Self, String> {
        // The URL itself may hold a password: it is not repeated in the error.
        let info = url
            .into_connection_info()
            .map_err(|error| format!("a Redis URL is invalid: {error}"))?;
        let (host, port, tls) = match info.addr() {
            ConnectionAddr::Tcp(host, port) => (host.clone(), *port, false),
            ConnectionAddr::TcpTls { host, port, .. } => (host.clone(), *port, true),
            _ => return Err("a Redis URL must begin with redis:// or rediss://".to_owned()),
        };
        let login = info.redis_settings();
        Ok(Self {
            host,
            port,
            tls,
            user: login.username().map(str::to_owned),
            password: login.password().map(str::to_owned),
            db: login.db(),
        })
    }

    /// Another server with the same credentials and the same kind of connection.
    pub(super) fn at(&self, host: String, port: u16) -> Self {
        Self { host, port, ..self.clone() }
    }

    /// The same server for somebody who does not log in (sentinels often know no users).
    pub(super) fn anonymous(&self) -> Self {
        Self { user: None, password: None, db: 0, ..self.clone() }
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Endpoint({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::Endpoint;

    #[test]
    fn urls_name_host_credentials_and_database() {
        let endpoint =
            Endpoint::parse("rediss://ada:s%40cret@redis.example:6380/3").expect("a URL");
        assert_eq!(
            (endpoint.host.as_str(), endpoint.port, endpoint.tls),
            ("redis.example", 6380, true)
        );
        assert_eq!(
            (endpoint.user.as_deref(), endpoint.password.as_deref()),
            (Some("ada"), Some("s@cret"))
        );
        assert_eq!(endpoint.db, 3);
        assert!(Endpoint::parse("http://redis.example").is_err());
        assert!(!format!("{endpoint} {endpoint:?}").contains("cret"));
    }
}
