//! A small HTTP/1.1 client on one kept connection: enough to publish, poll and look at nodes.
//!
//! Knows nothing of Carillon. Whatever goes wrong ends the connection; the caller opens another.

use anyhow::{Context as _, Result, bail};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// What a server answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Seconds of `Retry-After`.
    pub(crate) retry_after: Option<u64>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// The body as JSON.
    pub(crate) fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_slice(&self.body).context("the answer is not JSON")
    }
}

/// A kept connection.
pub(crate) struct Http {
    stream: TcpStream,
    host: SocketAddr,
    buffer: Vec<u8>,
}

impl Http {
    /// Connects.
    pub(crate) async fn connect(host: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(host).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, host, buffer: Vec::new() })
    }

    /// One request and its answer. Not cancellation safe: a dropped future leaves the connection
    /// useless.
    pub(crate) async fn ask(
        &mut self,
        method: &str,
        path: &str,
        headers: &str,
        body: &str,
    ) -> Result<Answer> {
        let (host, length) = (self.host, body.len());
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
        );
        self.stream.write_all(request.as_bytes()).await?;
        let head_end = loop {
            if let Some(at) = memchr::memmem::find(&self.buffer, b"\r\n\r\n") {
                break at + 4;
            }
            self.more().await?;
        };
        let head = String::from_utf8_lossy(&self.buffer[..head_end]).to_ascii_lowercase();
        let status = head.get(9..12).and_then(|status| status.parse().ok());
        let status = status.context("no status")?;
        let value = |name: &str| {
            head.lines()
                .find_map(|line| line.strip_prefix(name).map(|value| value.trim().to_owned()))
        };
        let length = value("content-length:").and_then(|length| length.parse::<usize>().ok());
        let retry_after = value("retry-after:").and_then(|seconds| seconds.parse().ok());
        let chunked = value("transfer-encoding:").is_some_and(|coding| coding.contains("chunked"));
        self.buffer.drain(..head_end);
        let body =
            if chunked { self.chunks().await? } else { self.exactly(length.unwrap_or(0)).await? };
        Ok(Answer { status, retry_after, body })
    }

    async fn more(&mut self) -> Result<()> {
        if self.stream.read_buf(&mut self.buffer).await? == 0 {
            bail!("the server closed");
        }
        Ok(())
    }

    async fn exactly(&mut self, length: usize) -> Result<Vec<u8>> {
        while self.buffer.len() < length {
            self.more().await?;
        }
        Ok(self.buffer.drain(..length).collect())
    }

    async fn chunks(&mut self) -> Result<Vec<u8>> {
        let mut chunks = Chunks::default();
        let mut body = Vec::new();
        loop {
            let bytes = std::mem::take(&mut self.buffer);
            if chunks.feed(&bytes, &mut body)? {
                return Ok(body);
            }
            self.more().await?;
        }
    }
}

/// One request on a connection of its own, within `patience`.
pub(crate) async fn once(
    host: SocketAddr,
    method: &str,
    path: &str,
    headers: &str,
    body: &str,
    patience: Duration,
) -> Result<Answer> {
    let asked = async { Http::connect(host).await?.ask(method, path, headers, body).await };
    timeout(patience, asked).await.context("no answer in time")?
}

/// Takes chunked transfer coding apart as it comes.
#[derive(Debug, Default)]
pub(crate) struct Chunks {
    /// Bytes of the present chunk that are still to come.
    left: usize,
    /// The line end behind a chunk is still to come.
    behind: bool,
    line: Vec<u8>,
    over: bool,
}

impl Chunks {
    /// Appends the content of `bytes`; whether the body is over.
    ///
    /// # Errors
    /// What is no chunk.
    pub(crate) fn feed(&mut self, mut bytes: &[u8], into: &mut Vec<u8>) -> Result<bool> {
        while !bytes.is_empty() {
            if self.left > 0 {
                let taken = self.left.min(bytes.len());
                into.extend_from_slice(&bytes[..taken]);
                bytes = &bytes[taken..];
                self.left -= taken;
                self.behind = self.left == 0;
                continue;
            }
            let Some(end) = memchr::memchr(b'\n', bytes) else {
                self.line.extend_from_slice(bytes);
                break;
            };
            self.line.extend_from_slice(&bytes[..end]);
            bytes = &bytes[end + 1..];
            let line = std::mem::take(&mut self.line);
            if std::mem::take(&mut self.behind) {
                continue;
            }
            if self.over {
                return Ok(true);
            }
            let text = String::from_utf8_lossy(&line);
            let size = text.trim().split(';').next().unwrap_or_default();
            self.left = usize::from_str_radix(size, 16)
                .with_context(|| format!("{text:?} is no chunk size"))?;
            self.over = self.left == 0;
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_joined_wherever_they_are_cut() {
        let bytes = b"5\r\nhello\r\n1;x=y\r\n \r\n3\r\nall\r\n0\r\n\r\n";
        for cut in 0..bytes.len() {
            let (mut chunks, mut body) = (Chunks::default(), Vec::new());
            assert!(!chunks.feed(&bytes[..cut], &mut body).expect("chunks"));
            assert!(chunks.feed(&bytes[cut..], &mut body).expect("chunks"));
            assert_eq!(body, b"hello all");
        }
        assert!(Chunks::default().feed(b"zz\r\n", &mut Vec::new()).is_err());
    }
}
