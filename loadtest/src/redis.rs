//! What a Redis says of itself: commands performed and memory. One question a connection; for measuring, not for load.

use anyhow::{Context as _, Result};
use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Calls of each command since the server began, `INFO` itself left out.
pub(crate) fn commands(address: SocketAddr) -> Result<BTreeMap<String, u64>> {
    Ok(read_commands(&info(address, "commandstats")?))
}

/// Bytes that the server's data and buffers take.
pub(crate) fn used_bytes(address: SocketAddr) -> Result<u64> {
    let text = info(address, "memory")?;
    let line = text.lines().find_map(|line| line.strip_prefix("used_memory:"));
    line.context("no used_memory")?.trim().parse().context("used_memory")
}

fn info(address: SocketAddr, section: &str) -> Result<String> {
    let mut stream = BufReader::new(TcpStream::connect(address)?);
    stream.get_mut().set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.get_mut().write_all(format!("INFO {section}\r\n").as_bytes())?;
    let mut line = String::new();
    stream.read_line(&mut line)?;
    let size: usize = line.trim().trim_start_matches('$').parse().context("INFO's length")?;
    let mut text = vec![0; size];
    stream.read_exact(&mut text)?;
    Ok(String::from_utf8(text)?)
}

fn read_commands(text: &str) -> BTreeMap<String, u64> {
    let calls = |line: &str| {
        let (name, figures) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
        let calls = figures.split(',').next()?.parse().ok()?;
        (name != "info").then(|| (name.to_owned(), calls))
    };
    text.lines().filter_map(calls).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn calls_of_each_command_are_read_and_the_question_is_not_counted() {
        let text = "# Commandstats\r\ncmdstat_evalsha:calls=12,usec=3,rejected_calls=0\r\ncmdstat_info:calls=2,usec=1\r\n";
        let commands = super::read_commands(text);
        assert_eq!(commands.into_iter().collect::<Vec<_>>(), [("evalsha".to_owned(), 12)]);
    }
}
