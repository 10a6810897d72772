//! A thread of every rank that watches the other ranks of its host, and ends all ranks if one of them
//! has died or hangs. The launcher watches the hosts.
//!
//! ```text
//! every 100 ms, for each rank of this host, from /proc:
//!     gone, or another process       -> died
//!     stopped (SIGSTOP) for 5 s      -> hangs
//!     no processor time for 8 s, no thread running or waiting for a disk, while this rank waits for it
//!                                    -> hangs
//!     it has announced its own end   -> nothing more to watch: it prints its own message, or a signal ends it
//! and from the transport: what NCCL reports, and ranks of other hosts whose connection has ended
//! the lowest rank that is left prints one message; every rank that is left ends all
//! ```
//!
//! An announcement is the name of the process (`/proc/self/comm`), which other processes of the host
//! can read while it lives.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Time between two polls.
const INTERVAL: Duration = Duration::from_millis(100);

/// Number of consecutive polls of a stopped process after which it counts as hanging.
const STOPPED_LOOKS: u32 = 50;

/// Number of consecutive polls without processor time after which a process counts as hanging, if this rank
/// waits for it.
const IDLE_LOOKS: u32 = 80;

/// Name of a process that reports its own error.
const ENDING: &str = "mapl ending";

/// Name of a process that a signal ends.
const SIGNALLED: &str = "mapl signalled";

/// Number of collectives in which this rank waits.
static WAITING: AtomicUsize = AtomicUsize::new(0);

/// Whether the watch has ended.
static ENDED: AtomicBool = AtomicBool::new(false);

/// While it exists, this rank counts as waiting for the others.
pub(super) struct Waiting;

impl Waiting {
    pub fn begin() -> Self {
        WAITING.fetch_add(1, Ordering::Relaxed);
        Self
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        WAITING.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A process of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Process {
    pub rank: usize,
    pub id: u32,
    /// Start time in clock ticks. With the id, it identifies one process even if the id is reused.
    pub started: u64,
}

/// State of a process in /proc.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Look {
    name: String,
    state: char,
    /// Clock ticks of processor time.
    ticks: u64,
    started: u64,
}

impl Look {
    /// Reads the line of /proc/ID/stat: `id (name) state ...`.
    fn parse(line: &str) -> Option<Self> {
        let (start, end) = (line.find('(')?, line.rfind(')')?);
        let fields: Vec<&str> = line[end + 1..].split_whitespace().collect();
        let number = |i: usize| fields.get(i)?.parse::<u64>().ok();
        Some(Self {
            name: line[start + 1..end].to_owned(),
            state: fields.first()?.chars().next()?,
            ticks: number(11)? + number(12)?,
            started: number(19)?,
        })
    }

    fn at(id: u32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{id}/stat")).ok()?)
    }
}

/// Start time of a process of this host.
pub(super) fn started(id: u32) -> Option<u64> {
    Look::at(id).map(|look| look.started)
}

/// Whether a thread of a process runs or waits for a disk.
fn is_busy(id: u32) -> bool {
    let threads = fs::read_dir(format!("/proc/{id}/task")).into_iter().flatten().flatten();
    let state = |path: std::path::PathBuf| Look::parse(&fs::read_to_string(path).ok()?).map(|look| look.state);
    threads.filter_map(|thread| state(thread.path().join("stat"))).any(|state| matches!(state, 'R' | 'D'))
}

/// Results of the previous polls of one process.
#[derive(Debug, Default)]
struct Record {
    ticks: u64,
    stopped: u32,
    idle: u32,
    /// At an earlier poll a signal was ending the process, so its death is not a failure.
    signalled: bool,
}

/// State of a watched process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Well,
    /// The process prints its own error.
    Ending,
    /// A signal ends the process.
    Signalled,
    /// The process has failed; holds the reason, which ends the run.
    Failed(&'static str),
}

impl Record {
    /// Processes the next poll. `waited` says whether this rank waits for others, `busy` whether a thread of
    /// the process runs.
    fn next(&mut self, of: &Process, look: Option<Look>, waited: bool, busy: impl Fn() -> bool) -> Found {
        let Some(look) = look.filter(|look| look.started == of.started && !matches!(look.state, 'Z' | 'X')) else {
            if self.signalled {
                return Found::Signalled;
            }
            return Found::Failed(
                "has died without a message: it was killed (by a signal, or by the system because memory was low)",
            );
        };
        match look.name.as_str() {
            ENDING => return Found::Ending,
            SIGNALLED => {
                self.signalled = true;
                return Found::Signalled;
            }
            _ => {}
        }
        self.stopped = if matches!(look.state, 'T' | 't') { self.stopped + 1 } else { 0 };
        let rests = look.ticks == self.ticks && waited && !busy();
        self.idle = if rests { self.idle + 1 } else { 0 };
        self.ticks = look.ticks;
        match () {
            () if self.stopped >= STOPPED_LOOKS => Found::Failed("hangs: its process is stopped (SIGSTOP)"),
            () if self.idle >= IDLE_LOOKS => Found::Failed("hangs: it does nothing while the others wait for it"),
            () => Found::Well,
        }
    }
}

/// Event that ends the run of a watching rank.
pub(super) enum Event<'a> {
    /// A rank has failed without a message; `prints` if this rank reports it.
    Failed { rank: usize, why: &'a str, prints: bool },
    /// A rank has printed its own error and ends all ranks.
    Reported { rank: usize },
}

/// Decision after a poll of all processes.
enum Decision {
    Watch,
    LookAgain,
    Stop,
    End(Event<'static>),
}

/// Decides after a poll of all processes. The lowest rank that is left reports a failed rank. After a rank has
/// died, a launcher signals the others, possibly before this rank has found the death. A signal therefore ends
/// the watch only at the second poll that finds one; `signalled` records the first.
fn decide(own: usize, processes: &[Process], found: &[Found], signalled: &mut bool) -> Decision {
    let each = || processes.iter().zip(found);
    let failed = each().find_map(|(of, found)| match found {
        Found::Failed(why) => Some((of.rank, *why)),
        _ => None,
    });
    if let Some((rank, why)) = failed {
        let left = each().filter(|(_, found)| !matches!(found, Found::Failed(_)));
        let prints = left.map(|(of, _)| of.rank).all(|other| own < other);
        return Decision::End(Event::Failed { rank, why, prints });
    }
    if let Some((of, _)) = each().find(|(_, found)| **found == Found::Ending) {
        return Decision::End(Event::Reported { rank: of.rank });
    }
    match found.contains(&Found::Signalled) {
        true if std::mem::replace(signalled, true) => Decision::Stop,
        true => Decision::LookAgain,
        false => Decision::Watch,
    }
}

/// Watches `processes` until one fails or reports an error, and calls `ends` with that event. `transport`
/// returns other failures: a rank and the reason.
pub(super) fn start(
    own: usize,
    processes: Vec<Process>,
    mut transport: impl FnMut() -> Option<(usize, String)> + Send + 'static,
    ends: impl FnOnce(Event<'_>) + Send + 'static,
) -> std::io::Result<()> {
    let watch = move || {
        let mut records: Vec<Record> = processes.iter().map(|_| Record::default()).collect();
        let mut signalled = false;
        loop {
            std::thread::sleep(INTERVAL);
            if ENDED.load(Ordering::SeqCst) {
                return;
            }
            let waited = WAITING.load(Ordering::Relaxed) > 0;
            let each = processes.iter().zip(&mut records);
            let found: Vec<Found> =
                each.map(|(of, record)| record.next(of, Look::at(of.id), waited, || is_busy(of.id))).collect();
            match decide(own, &processes, &found, &mut signalled) {
                Decision::Watch => {}
                Decision::LookAgain => continue,
                Decision::Stop => return,
                // This process may have ended its watch while it polled the others.
                Decision::End(Event::Failed { .. }) if ENDED.load(Ordering::SeqCst) => return,
                Decision::End(event) => return ends(event),
            }
            if let Some((rank, why)) = transport() {
                if ENDED.load(Ordering::SeqCst) {
                    return;
                }
                let prints = processes.iter().all(|other| own < other.rank);
                return ends(Event::Failed { rank, why: &why, prints });
            }
        }
    };
    std::thread::Builder::new().name("ranks".into()).spawn(watch).map(|_| ())
}

/// Ends the watch of this rank.
pub(super) fn end() {
    ENDED.store(true, Ordering::SeqCst);
}

/// Whether the watch of this rank has ended.
pub(super) fn has_ended() -> bool {
    ENDED.load(Ordering::SeqCst)
}

/// Tells the other ranks of this host that this rank reports its error itself, and waits until they have polled
/// it.
pub(super) fn announce_end() {
    end();
    mark(ENDING);
}

/// Tells the other ranks of this host that a signal ends this rank. The watch continues: a launcher that has
/// seen a rank die signals the others, and one of them must report the death.
pub(super) fn mark_signal() {
    mark(SIGNALLED);
}

fn mark(name: &str) {
    let began = Instant::now();
    if fs::write("/proc/self/comm", name).is_ok() {
        std::thread::sleep((3 * INTERVAL).saturating_sub(began.elapsed()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(state: char, ticks: u64) -> Option<Look> {
        Some(Look { name: "mapl".into(), state, ticks, started: 7 })
    }

    const OF: Process = Process { rank: 1, id: 1, started: 7 };

    fn reads(looks: impl IntoIterator<Item = Option<Look>>, waited: bool, busy: bool) -> Found {
        let mut record = Record::default();
        let mut all = looks.into_iter().map(|look| record.next(&OF, look, waited, || busy));
        all.find(|found| *found != Found::Well).unwrap_or(Found::Well)
    }

    #[test]
    fn a_line_of_proc_is_read_and_this_process_is_alive() {
        let line = "12 (a) b) S 1 12 12 0 -1 4194560 1 2 3 4 50 6 0 0 20 0 3 0 987 1 2";
        let look = Look::parse(line).unwrap();
        assert_eq!(look, Look { name: "a) b".into(), state: 'S', ticks: 56, started: 987 });
        assert_eq!(Look::parse("12 (a"), None);
        let id = std::process::id();
        assert_eq!(started(id), Look::at(id).map(|look| look.started));
        assert!(started(id).is_some() && is_busy(id));
    }

    #[test]
    fn the_dead_the_stopped_and_the_idle_are_found_and_no_other() {
        let dead = |found| matches!(found, Found::Failed(why) if why.contains("died"));
        assert!(dead(reads([None], false, false)));
        assert!(dead(reads([look('Z', 3)], false, false)));
        let other = Look { started: 8, ..look('R', 3).unwrap() };
        assert!(dead(reads([Some(other)], false, false)));
        let stopped = |looks: usize| reads(std::iter::repeat_n(look('T', 3), looks), false, false);
        assert_eq!(stopped(49), Found::Well);
        assert!(matches!(stopped(50), Found::Failed(why) if why.contains("SIGSTOP")));
        let idle = |looks, waited, busy| reads(std::iter::repeat_n(look('S', 3), looks), waited, busy);
        assert!(matches!(idle(81, true, false), Found::Failed(why) if why.contains("does nothing")));
        for (waited, busy) in [(false, false), (true, true)] {
            assert_eq!(idle(500, waited, busy), Found::Well);
        }
        assert_eq!(reads((0..500).map(|i| look('S', i)), true, false), Found::Well);
        for (name, found) in [(ENDING, Found::Ending), (SIGNALLED, Found::Signalled)] {
            let named = Look { name: name.into(), ..look('S', 3).unwrap() };
            assert_eq!(reads([Some(named)], true, false), found);
            // Linux keeps 15 bytes of a process name.
            assert!(name.len() <= 15);
        }
    }

    #[test]
    fn a_death_behind_a_signal_is_told() {
        let processes = [0, 2].map(|rank| Process { rank, id: 1, started: 7 });
        let mut signalled = false;
        let mut look = |own, found: [Found; 2]| decide(own, &processes, &found, &mut signalled);
        // Rank 0 died after this poll had found it well, and the launcher then signalled rank 2.
        assert!(matches!(look(1, [Found::Well, Found::Signalled]), Decision::LookAgain));
        let told = look(1, [Found::Failed("died"), Found::Signalled]);
        assert!(matches!(told, Decision::End(Event::Failed { rank: 0, why: "died", prints: true })));
        // The second poll that finds a signal ends the watch.
        assert!(matches!(look(1, [Found::Well, Found::Signalled]), Decision::Stop));
        assert!(matches!(look(1, [Found::Ending, Found::Well]), Decision::End(Event::Reported { rank: 0 })));
        assert!(matches!(look(1, [Found::Well; 2]), Decision::Watch));
        // The death of a process that a signal ends is not a failure.
        let named = Look { name: SIGNALLED.into(), ..self::look('S', 3).unwrap() };
        let mut record = Record::default();
        for look in [Some(named), None] {
            assert_eq!(record.next(&OF, look, false, || false), Found::Signalled);
        }
    }

    /// A shell sets the name of its process, in place of a failing rank.
    #[test]
    fn a_rank_that_reports_its_own_error_is_told_by_its_name() {
        let mut shell = std::process::Command::new("sh");
        shell
            .args(["-c", &format!("printf '{ENDING}' > /proc/$$/comm; read line")])
            .stdin(std::process::Stdio::piped());
        let mut child = shell.spawn().unwrap();
        let process = Process { rank: 5, id: child.id(), started: started(child.id()).unwrap() };
        let (send, receive) = std::sync::mpsc::channel();
        let ends = move |event: Event<'_>| {
            let Event::Reported { rank } = event else { panic!("another event") };
            send.send(rank).unwrap();
        };
        start(2, vec![process], || None, ends).unwrap();
        let rank = receive.recv_timeout(Duration::from_secs(60));
        drop(child.stdin.take());
        child.wait().unwrap();
        assert_eq!(rank, Ok(5));
    }

    #[test]
    fn what_the_transport_reports_is_told_by_the_lowest_rank_of_a_host() {
        let told = |own: usize, others: Vec<Process>| {
            let (send, receive) = std::sync::mpsc::channel();
            let ends = move |event: Event<'_>| {
                let Event::Failed { rank, why, prints } = event else { panic!("another event") };
                send.send((rank, why.to_owned(), prints)).unwrap();
            };
            start(own, others, || Some((4, "is gone".into())), ends).unwrap();
            receive.recv_timeout(Duration::from_secs(60)).unwrap()
        };
        assert_eq!(told(2, Vec::new()), (4, "is gone".into(), true));
        let id = std::process::id();
        let lower = Process { rank: 1, id, started: started(id).unwrap() };
        assert_eq!(told(2, vec![lower]), (4, "is gone".into(), false));
    }
}
