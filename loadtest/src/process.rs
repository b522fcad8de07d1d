//! What the kernel says about a process: CPU time and memory. Linux only.

use anyhow::{Context, Result};
use std::fs;

/// Clock ticks a second in `/proc/PID/stat`: 100 on every Linux in use.
const TICKS_PER_SECOND: u64 = 100;

/// User and system time of a process, microseconds.
pub(crate) fn cpu_us(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).with_context(|| path.clone())?;
    // The name in parentheses may hold spaces: count fields behind its end.
    let fields = stat.rsplit_once(')').context("no name in stat")?.1;
    let ticks: u64 = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(|field| field.parse::<u64>().context("stat"))
        .sum::<Result<u64>>()?;
    Ok(ticks * (1_000_000 / TICKS_PER_SECOND))
}

/// CPU time of several processes together, microseconds.
pub(crate) fn cpu_us_of_all(pids: &[u32]) -> Result<u64> {
    pids.iter().map(|pid| cpu_us(*pid)).sum()
}

/// Proportional set size of a process in bytes.
pub(crate) fn pss_bytes(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    let line = text.lines().find(|line| line.starts_with("Pss:")).context("no Pss")?;
    let kilobytes: u64 = line.split_whitespace().nth(1).context("no Pss figure")?.parse()?;
    Ok(kilobytes * 1_024)
}

#[cfg(test)]
mod tests {
    #[test]
    fn own_process_has_memory_and_a_clock() {
        let pid = std::process::id();
        super::cpu_us(pid).expect("stat");
        assert!(super::pss_bytes(pid).expect("smaps_rollup") > 0);
    }
}
