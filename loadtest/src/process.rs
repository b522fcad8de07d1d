//! What the kernel says about processes: CPU time and memory, their children included. Linux only.

use anyhow::{Context, Result};
use std::fs;

/// Clock ticks a second in `/proc/PID/stat`: 100 on every Linux in use.
const TICKS_PER_SECOND: u64 = 100;

/// User and system time of a process itself, microseconds.
pub(crate) fn cpu_us(pid: u32) -> Result<u64> {
    ticks_us(pid, 2)
}

/// User and system time of several processes and all their descendants together, microseconds.
///
/// What a child used that is gone is in its parent's account, so that the sum never falls.
pub(crate) fn cpu_us_of_all(pids: &[u32]) -> Result<u64> {
    for pid in pids {
        cpu_us(*pid)?;
    }
    Ok(families(pids).into_iter().filter_map(|pid| ticks_us(pid, 4).ok()).sum())
}

/// User and system time of the whole machine since it started, microseconds; interrupts apart.
pub(crate) fn machine_us() -> Result<u64> {
    let stat = fs::read_to_string("/proc/stat").context("/proc/stat")?;
    // user, nice, system
    let ticks: u64 =
        stat.split_whitespace().skip(1).take(3).filter_map(|field| field.parse::<u64>().ok()).sum();
    Ok(ticks * (1_000_000 / TICKS_PER_SECOND))
}

/// The first `fields` of: own user, own system, reaped children's user, reaped children's system.
fn ticks_us(pid: u32, fields: usize) -> Result<u64> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).with_context(|| path.clone())?;
    // The name in parentheses may hold spaces: count fields behind its end.
    let rest = stat.rsplit_once(')').context("no name in stat")?.1;
    let ticks: u64 = rest
        .split_whitespace()
        .skip(11)
        .take(fields)
        .map(|field| field.parse::<u64>().context("stat"))
        .sum::<Result<u64>>()?;
    Ok(ticks * (1_000_000 / TICKS_PER_SECOND))
}

/// The processes and their descendants, each once, in the order in which they are found.
pub(crate) fn families(pids: &[u32]) -> Vec<u32> {
    let mut all: Vec<u32> = Vec::new();
    let mut found: Vec<u32> = pids.iter().rev().copied().collect();
    while let Some(pid) = found.pop() {
        if !all.contains(&pid) {
            all.push(pid);
            found.extend(children(pid));
        }
    }
    all
}

/// Any thread may have forked.
fn children(pid: u32) -> Vec<u32> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    tasks
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|text| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
        .filter_map(|pid| pid.parse().ok())
        .collect()
}

/// The short name of a process; empty when it is gone.
pub(crate) fn name(pid: u32) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    text.trim_end().to_owned()
}

/// Resident memory of a process in bytes: cheap enough for every second, unlike the proportional set.
pub(crate) fn resident_bytes(pid: u32) -> Result<u64> {
    kilobytes(&format!("/proc/{pid}/status"), "VmRSS:")
}

/// Proportional set size of a process and all its descendants in bytes.
pub(crate) fn pss_bytes(pid: u32) -> Result<u64> {
    kilobytes(&format!("/proc/{pid}/smaps_rollup"), "Pss:")?;
    let of = |pid| kilobytes(&format!("/proc/{pid}/smaps_rollup"), "Pss:").ok();
    Ok(families(&[pid]).into_iter().filter_map(of).sum())
}

fn kilobytes(path: &str, name: &str) -> Result<u64> {
    let text = fs::read_to_string(path).with_context(|| path.to_owned())?;
    let line = text.lines().find(|line| line.starts_with(name)).context("no such figure")?;
    let kilobytes: u64 = line.split_whitespace().nth(1).context("no figure")?.parse()?;
    Ok(kilobytes * 1_024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn own_process_has_memory_and_a_clock() {
        let pid = std::process::id();
        cpu_us(pid).expect("stat");
        assert!(pss_bytes(pid).expect("smaps_rollup") > 0);
        assert!(resident_bytes(pid).expect("status") > 0);
        assert!(!name(pid).is_empty());
        assert!(machine_us().expect("/proc/stat") >= cpu_us(pid).expect("stat"));
    }

    #[test]
    fn children_count_and_so_does_what_a_gone_one_used() {
        // One child burns CPU and is reaped, then another waits: both are the shell's.
        let script = "i=0; (while [ $i -lt 60000 ]; do i=$((i+1)); done); sleep 60 & echo $!; wait";
        let mut shell = Command::new("sh")
            .args(["-c", script])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("a shell");
        let mut line = String::new();
        let out = shell.stdout.take().expect("piped");
        std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line).expect("a pid");
        let sleeper: u32 = line.trim().parse().expect("a number");
        assert_eq!(families(&[shell.id(), sleeper]), [shell.id(), sleeper]);
        let all = cpu_us_of_all(&[shell.id()]).expect("running");
        assert!(all > cpu_us(shell.id()).expect("running"), "{all}");
        let _gone = Command::new("kill").arg(sleeper.to_string()).status();
        shell.wait().expect("ended");
        assert!(cpu_us_of_all(&[shell.id()]).is_err(), "a server that is gone is an error");
    }
}
