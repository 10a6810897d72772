//! Readings of the process and its machine, from `/proc`. They are absent on systems other than
//! Linux.

use std::time::Instant;

use super::{Meter, Sample};

/// Reads memory and CPU time of the process, and CPU time of the machine.
pub struct HostMeter {
    before: Option<(Instant, Ticks)>,
    missing: Option<String>,
    /// Whether the peak memory was reset when this meter was created.
    peak_is_ours: bool,
}

/// Load of other programs over a time span.
pub(crate) struct OtherLoad {
    began: Instant,
    before: Option<Ticks>,
}

impl OtherLoad {
    /// Starts the span.
    pub fn start() -> Self {
        Self { began: Instant::now(), before: ticks() }
    }

    /// CPU seconds that other programs used since the start, and elapsed seconds; `None` if the
    /// system does not report CPU time.
    pub fn others(&self) -> Option<(f64, f64)> {
        let (before, now) = (self.before?, ticks()?);
        let process = now.process.saturating_sub(before.process);
        let all = now.machine.saturating_sub(before.machine);
        Some((all.saturating_sub(process) as f64 / TICKS, self.began.elapsed().as_secs_f64()))
    }
}

/// CPU time in hundredths of a second.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Ticks {
    process: u64,
    machine: u64,
}

/// Ticks per second in `/proc`; Linux fixes the value that user programs see (`USER_HZ`).
const TICKS: f64 = 100.0;

impl HostMeter {
    /// Resets the process's peak memory if Linux allows it (`clear_refs`). Otherwise the peak is
    /// absent from samples.
    pub fn new() -> Self {
        let peak_is_ours = std::fs::write("/proc/self/clear_refs", "5").is_ok();
        Self { before: None, missing: None, peak_is_ours }
    }
}

impl Default for HostMeter {
    fn default() -> Self {
        Self::new()
    }
}

impl Meter for HostMeter {
    fn read(&mut self, sample: &mut Sample) {
        let now = ticks();
        if now.is_none() {
            self.missing.get_or_insert_with(|| "/proc does not report CPU times".into());
        }
        if let (Some((then, before)), Some(now)) = (&self.before, now) {
            let seconds = then.elapsed().as_secs_f64().max(1e-3);
            let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / TICKS / seconds;
            let process = rate(now.process, before.process);
            sample.processors_used = Some(process);
            sample.processors_others = Some((rate(now.machine, before.machine) - process).max(0.0));
        }
        // Ticks are coarse, so rates are computed over at least a tenth of a second.
        let due = self.before.as_ref().is_none_or(|(then, _)| then.elapsed().as_secs_f64() >= 0.1);
        if due {
            self.before = now.map(|now| (Instant::now(), now));
        }
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        sample.resident_bytes = kib(&status, "VmRSS:");
        sample.peak_resident_bytes = kib(&status, "VmHWM:").filter(|_| self.peak_is_ours);
    }

    fn missing(&self) -> Vec<(String, String)> {
        self.missing.iter().map(|why| ("processors".to_owned(), why.clone())).collect()
    }
}

fn kib(status: &str, key: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

fn ticks() -> Option<Ticks> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let machine = std::fs::read_to_string("/proc/stat").ok()?;
    parse(&stat, &machine)
}

/// Parses CPU times from `/proc/self/stat` and `/proc/stat`. The process's user and system time are
/// fields 14 and 15; field 2 is its name in parentheses. The machine's busy time is user, nice,
/// system and interrupt time of the first line, without idle time, I/O wait and steal time.
fn parse(stat: &str, machine: &str) -> Option<Ticks> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let process = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
    let numbers: Vec<u64> =
        machine.lines().next()?.strip_prefix("cpu ")?.split_ascii_whitespace().map_while(|x| x.parse().ok()).collect();
    let [user, nice, system, _idle, _wait, hard, soft, ..] = numbers[..] else { return None };
    Some(Ticks { process, machine: user + nice + system + hard + soft })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_times_are_parsed_after_any_process_name() {
        let stat = "12 (a ) b) R 1 2 3 4 5 6 7 8 9 10 700 30 0 0 20 0 3 0 99";
        let machine = "cpu  1000 20 300 9999 88 7 5 0 0 0\ncpu0 1 2 3";
        assert_eq!(parse(stat, machine), Some(Ticks { process: 730, machine: 1332 }));
        assert_eq!(parse("nonsense", machine), None);
        assert_eq!(parse(stat, "cpu 1 2"), None);
    }

    #[test]
    fn memory_of_this_process_is_known_on_linux() {
        let mut sample = Sample::default();
        HostMeter::new().read(&mut sample);
        let (resident, peak) = (sample.resident_bytes, sample.peak_resident_bytes);
        assert_eq!(resident.is_some(), cfg!(target_os = "linux"));
        assert!(peak.is_none() || resident <= peak);
        assert_eq!(sample.power_w, None);
    }
}
