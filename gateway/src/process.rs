//! What the process costs its machine, as Linux tells: processor time and resident memory. Elsewhere nothing is known,
//! and nothing is claimed.

use std::time::{Duration, Instant};

/// `/proc/self/stat` counts in hundredths of a second, on every architecture.
const TICK: Duration = Duration::from_millis(10);

/// Processor time that this process has used since it began.
fn processor_time() -> Option<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The program's name stands in parentheses and may hold anything.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u32>().ok();
    Some(TICK * (ticks()? + ticks()?))
}

/// Resident memory in bytes.
#[must_use]
pub fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(resident.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
}

/// Processor time between two looks.
#[derive(Debug)]
pub struct Load {
    looked_at: Instant,
    used: Duration,
}

impl Load {
    /// Begins to look.
    #[must_use]
    pub fn new() -> Self {
        Self { looked_at: Instant::now(), used: processor_time().unwrap_or_default() }
    }

    /// Thousandths of a core used since the last look; 0 where nobody knows.
    pub fn look(&mut self) -> u32 {
        let (now, used) = (Instant::now(), processor_time().unwrap_or_default());
        let wall = now.duration_since(self.looked_at).as_secs_f64().max(0.001);
        let share = used.saturating_sub(self.used).as_secs_f64() / wall;
        (self.looked_at, self.used) = (now, used);
        (share * 1_000.0).round() as u32
    }
}

impl Default for Load {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_busy_process_has_a_load_and_memory() {
        let mut load = Load::new();
        let began = Instant::now();
        let mut sum = 0_u64;
        // Until it shows: on a starved machine that takes longer.
        while load.used == processor_time().expect("Linux tells") {
            sum = sum.wrapping_add(began.elapsed().as_nanos() as u64);
        }
        assert!(load.look() > 0, "{sum}");
        assert!(resident_bytes().expect("Linux tells") > 1 << 20);
    }
}
