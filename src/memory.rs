//! Memory that this process can still allocate, checks of that memory while data grow, and the end of a process
//! whose allocation failed.
//!
//! An allocation beyond a limit of the process fails, and the process ends with exit code 7
//! ([`allocation_failed`]). Without such a limit, the system kills a process that uses too much memory, without a
//! message. Reading and tokenising therefore check the available memory (`Growth`).

use std::cell::Cell;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Error, Result};

/// Bytes of growth between two checks of the available memory. Growth counts only bytes of text or token ids,
/// and short rows need more than ten times the memory of their text.
const INTERVAL: u64 = 2 << 20;

/// Available bytes below which data must not grow further.
const RESERVE: u64 = 64 << 20;

/// Address space for the next part of a thread's heap. The system's allocator reserves 64 MiB at a time for every
/// thread except the main one, and twice that to align them.
const THREAD_HEAP: u64 = 128 << 20;

thread_local! {
    /// Whether the caller of the allocator handles a failure itself.
    static HANDLED: Cell<bool> = const { Cell::new(false) };
}

/// Bytes of memory that this process can allocate without swapping: the smallest value that the system reports
/// for the machine, the control groups of the process, and its address space (Linux).
pub fn available() -> Option<u64> {
    [machine(), control_groups(), address_space()].into_iter().flatten().min()
}

fn machine() -> Option<u64> {
    kib(&fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")
}

/// Returns the bytes of the line that starts with `name`, such as `VmSize:   1024 kB`.
fn kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

fn address_space() -> Option<u64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let limit = limits.lines().find_map(|line| line.strip_prefix("Max address space"))?;
    let limit: u64 = limit.split_whitespace().next()?.parse().ok()?;
    let used = kib(&fs::read_to_string("/proc/self/status").ok()?, "VmSize:")?;
    let heap = if rayon::current_thread_index().is_some() { THREAD_HEAP } else { 0 };
    Some(limit.saturating_sub(used + heap))
}

/// Names of the files with the memory limit, usage and statistics of a control group, and the statistics key of
/// the file cache that can be dropped.
type GroupFiles = [&'static str; 4];
const VERSION_2: GroupFiles = ["memory.max", "memory.current", "memory.stat", "inactive_file"];
const VERSION_1: GroupFiles = ["memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat", "total_inactive_file"];

fn control_groups() -> Option<u64> {
    let of_process = fs::read_to_string("/proc/self/cgroup").ok()?;
    let mut least: Option<u64> = None;
    for line in of_process.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let (root, files) = match controllers {
            "" => ("/sys/fs/cgroup", VERSION_2),
            _ if controllers.split(',').any(|name| name == "memory") => ("/sys/fs/cgroup/memory", VERSION_1),
            _ => continue,
        };
        // In a container the path may be that of the host, and the group is then the root of the mounted
        // hierarchy.
        for group in Path::new(path.trim_start_matches('/')).ancestors() {
            let left = left_in_group(&Path::new(root).join(group), files);
            least = least.into_iter().chain(left).min();
        }
    }
    least
}

fn left_in_group(group: &Path, [limit, usage, statistics, cache]: GroupFiles) -> Option<u64> {
    let number = |name: &str| fs::read_to_string(group.join(name)).ok()?.trim().parse::<u64>().ok();
    let (limit, used) = (number(limit)?, number(usage)?);
    let text = fs::read_to_string(group.join(statistics)).unwrap_or_default();
    let cached = text.lines().find_map(|line| line.strip_prefix(cache)?.strip_prefix(' ')?.parse::<u64>().ok());
    Some(limit.saturating_sub(used.saturating_sub(cached.unwrap_or(0))))
}

/// Counts the bytes by which data in memory grow. Threads share the counter.
#[derive(Debug, Default)]
pub(crate) struct Growth {
    bytes: AtomicU64,
}

impl Growth {
    /// Adds bytes and returns [`Error::Memory`] if little memory is left. `what` returns the name of the growing
    /// data and advice, for a message "WHAT; ADVICE".
    pub fn add(&self, bytes: u64, what: impl FnOnce() -> [String; 2]) -> Result<()> {
        let before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let after = before + bytes;
        if before / INTERVAL == after / INTERVAL {
            return Ok(());
        }
        match available() {
            Some(left) if left < RESERVE => {
                let [what, advice] = what();
                let (taken, left) = (after >> 20, left >> 20);
                Err(Error::Memory(format!("out of memory: {left} MiB are left after {taken} MiB of {what}; {advice}")))
            }
            _ => Ok(()),
        }
    }
}

/// Runs `allocate`, which handles a failed allocation itself: [`allocation_failed`] then does nothing
/// on this thread.
pub(crate) fn handling_failure<T>(allocate: impl FnOnce() -> T) -> T {
    let before = HANDLED.replace(true);
    let result = allocate();
    HANDLED.set(before);
    result
}

/// Ends the process with exit code 7 and the message that `bytes` could not be allocated; called by the allocator
/// of the binary. Returns if the caller handles the failure. Allocates nothing.
pub fn allocation_failed(bytes: usize) {
    if HANDLED.get() {
        return;
    }
    crate::files::remove_unfinished();
    let mut message = [0; 256];
    let mut rest = &mut message[..];
    let _ = writeln!(
        rest,
        "error: out of memory: cannot allocate {bytes} bytes; use fewer or shorter rows, smaller batches or a smaller \
         model, or raise the memory limit (`ulimit -v`, or that of the container)"
    );
    let unused = rest.len();
    let text = &message[..message.len() - unused];
    // SAFETY: the pointer and length are those of `text`, which is alive. `_exit` ends the process without
    // running code that could allocate. The result of `write` is ignored, because nothing can be done about a
    // failure.
    unsafe {
        libc::write(2, text.as_ptr().cast(), text.len());
        libc::_exit(7)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_has_memory_and_numbers_have_units() {
        assert!(available().is_some_and(|bytes| bytes > 1 << 20));
        assert_eq!(kib("VmPeak:\t 9 kB\nVmSize:\t    12 kB\n", "VmSize:"), Some(12 << 10));
        assert_eq!(kib("VmSize: 12 MB\n", "VmSize:"), None);
    }

    #[test]
    fn a_control_group_counts_its_file_cache_as_free() {
        let group = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(group.path().join(name), text).unwrap();
        write("memory.max", "1000\n");
        write("memory.current", "900\n");
        assert_eq!(left_in_group(group.path(), VERSION_2), Some(100));
        write("memory.stat", "anon 1\ninactive_file 300\nactive_file 7\n");
        assert_eq!(left_in_group(group.path(), VERSION_2), Some(400));
        write("memory.max", "max\n");
        assert_eq!(left_in_group(group.path(), VERSION_2), None);
    }
}
