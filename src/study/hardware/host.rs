//! The process and its machine, from `/proc`; elsewhere than on Linux its numbers are absent.

use std::time::Instant;

use super::{Meter, Sample};

/// Reads the process's memory and processor time, and the machine's.
pub struct HostMeter {
    before: Option<(Instant, Ticks)>,
    missing: Option<String>,
    /// Whether the peak is one since this meter was made.
    peak_is_ours: bool,
}

/// Work of other programs over a stretch of time.
pub(crate) struct OtherLoad {
    began: Instant,
    before: Option<Ticks>,
}

impl OtherLoad {
    /// From now on.
    pub fn start() -> Self {
        Self { began: Instant::now(), before: ticks() }
    }

    /// Seconds of processors that others used since, and seconds since; `None` where the system does not say.
    pub fn others(&self) -> Option<(f64, f64)> {
        let (before, now) = (self.before?, ticks()?);
        let process = now.process.saturating_sub(before.process);
        let all = now.machine.saturating_sub(before.machine);
        Some((all.saturating_sub(process) as f64 / TICKS, self.began.elapsed().as_secs_f64()))
    }
}

/// Hundredths of seconds of processor time.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Ticks {
    process: u64,
    machine: u64,
}

/// Ticks of a second in `/proc`; Linux fixes what user programs see (`USER_HZ`).
const TICKS: f64 = 100.0;

impl HostMeter {
    /// Starts the process's peak of memory anew where Linux allows it (`clear_refs`); else there is none to give.
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
            self.missing.get_or_insert_with(|| "/proc does not give processor times".into());
        }
        if let (Some((then, before)), Some(now)) = (&self.before, now) {
            let seconds = then.elapsed().as_secs_f64().max(1e-3);
            let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / TICKS / seconds;
            let process = rate(now.process, before.process);
            sample.processors_used = Some(process);
            sample.processors_others = Some((rate(now.machine, before.machine) - process).max(0.0));
        }
        // Ticks are coarse: rates are taken over a tenth of a second at least.
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

/// User and system time: the 14th and 15th field of the process's line, whose second is its name in brackets; and of the
/// machine's first line user, nice and system time, interrupts too, but neither idle time nor waiting nor what a host took.
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
    fn processor_times_are_found_behind_any_name() {
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
