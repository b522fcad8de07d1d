//! Who the nodes are. A node's id is its incarnation: a restarted process is another node.

use std::collections::BTreeMap;

/// One life of one gateway process: 12 characters of `0–9 a–z`, random. Connection ids begin with it.
#[derive(
    Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, serde::Serialize, serde::Deserialize,
)]
pub struct NodeId(Box<str>);

impl NodeId {
    /// A new incarnation.
    #[must_use]
    pub fn random() -> Self {
        use rand::Rng;
        const ALPHABET: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
        let mut rng = rand::rng();
        Self((0..12).map(|_| ALPHABET[rng.random_range(0..36)] as char).collect::<String>().into())
    }

    /// Takes the text if it is a node id.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        (text.len() == 12 && text.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase()))
            .then(|| Self(text.into()))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for NodeId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a node tells the others with every heartbeat of its lease.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct NodeRecord {
    /// The incarnation.
    pub id: NodeId,
    /// `node.id` of the configuration: what operators call it.
    pub name: String,
    /// Version of the program.
    pub version: String,
    /// Unix milliseconds.
    pub started_at_ms: i64,
    /// Live connections by transport (`websocket`, `sse`, `poll`).
    pub connections: BTreeMap<String, u64>,
    /// Messages from clients and backends since the start.
    pub messages_in: u64,
    /// Deliveries to connections since the start.
    pub messages_out: u64,
    /// Processor time that it used lately, in thousandths of a core.
    #[serde(default)]
    pub load_millicores: u32,
    /// Draining nodes take no new clients.
    pub draining: bool,
}
