//! The ranks of this process. Without a launcher, or with one rank, it is alone.
//!
//! [`join`] is called once, before any other thread starts. From then on the ranks other than 0 print
//! and write nothing ([`terminal::follow`](crate::terminal::follow)).
//!
//! ```text
//! end of a rank      by an error           by success
//! rank 0             prints, ends all      waits for the others
//! another rank       waits 3 s for rank 0 to print the same error; then prints with its number
//!                    and host, ends all
//! ```
//!
//! Refused: several ranks without the cargo feature `mpi`, and commands that do not share their work.

use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use super::collective::{Alone, Collective};
use super::launcher::Ranks;
use crate::{Error, Result};

#[cfg(feature = "mpi")]
use super::{mpi::Mpi, watch};
/// Time that a failing rank leaves to rank 0 to report the same error.
const FIRST_SPEAKS: Duration = Duration::from_secs(3);

/// Time that `MPI_Abort` has to end this process; after it the process exits on its own.
#[cfg(feature = "mpi")]
const ABORT_WAIT: Duration = Duration::from_secs(2);

/// Advice on the last checkpoint of a run.
type LastCheckpoint = Box<dyn Fn() -> String + Send>;

static LAST_CHECKPOINT: Mutex<Option<LastCheckpoint>> = Mutex::new(None);

/// Host of every rank, by rank.
static HOSTS: OnceLock<Vec<String>> = OnceLock::new();

#[cfg(feature = "mpi")]
static MPI: OnceLock<Mpi> = OnceLock::new();

/// The ranks of this process.
pub(crate) fn collective() -> &'static dyn Collective {
    #[cfg(feature = "mpi")]
    if let Some(mpi) = MPI.get() {
        return mpi;
    }
    &Alone
}

/// Whether there are several ranks.
pub(crate) fn is_shared() -> bool {
    collective().size() > 1
}

/// Host of a rank.
pub(crate) fn host_of(rank: usize) -> &'static str {
    HOSTS.get().and_then(|hosts| hosts.get(rank)).map_or("this host", String::as_str)
}

/// Ranks with their hosts: `rank 1 on node3`.
pub(crate) fn named_with_hosts(ranks: &[usize]) -> String {
    let texts: Vec<String> = ranks.iter().map(|&rank| format!("rank {rank} on {}", host_of(rank))).collect();
    texts.join(", ")
}

/// Hosts of the ranks, each once.
pub(crate) fn hosts() -> Vec<&'static str> {
    let mut names: Vec<&str> = Vec::new();
    for host in HOSTS.get().into_iter().flatten() {
        if !names.contains(&host.as_str()) {
            names.push(host);
        }
    }
    names
}

/// Sets what a message about a failed rank says about checkpoints.
pub(crate) fn set_last_checkpoint(text: impl Fn() -> String + Send + 'static) {
    *LAST_CHECKPOINT.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(text));
}

#[cfg(feature = "mpi")]
fn last_checkpoint() -> String {
    // The lock is held for moments only; a failed rank must be reported in any case.
    LAST_CHECKPOINT.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map_or(String::new(), |text| text())
}

/// What the launcher's variables say, and whether ranks on CPUs can meet.
pub(crate) fn describe() -> [(&'static str, String); 2] {
    let launcher = match Ranks::from_env() {
        Ok(None) => "none: one rank".to_owned(),
        Ok(Some(ranks)) => {
            let local = ranks.local.map_or(String::new(), |local| format!(", {local} on its host"));
            let master = ranks.master.map_or(String::new(), |(host, port)| format!(", meeting at {host}:{port}"));
            format!("{}: rank {} of {}{local}{master}", ranks.launcher.name(), ranks.rank, ranks.size)
        }
        Err(why) => why.to_string(),
    };
    #[cfg(feature = "mpi")]
    let mpi = match Mpi::found() {
        Ok(name) => format!("{name}, for several ranks on CPUs"),
        Err(why) => format!("none: {why}; install Open MPI (Debian: apt-get install openmpi-bin)"),
    };
    #[cfg(not(feature = "mpi"))]
    let mpi = "not in this build; cargo build --release --features mpi adds it".to_owned();
    [("launcher", launcher), ("mpi", mpi)]
}

/// Makes a rank other than 0 print nothing, without joining the others.
pub(crate) fn follow_launcher() {
    if let Ok(Some(Ranks { rank: 1.., .. })) = Ranks::from_env() {
        crate::terminal::follow();
    }
}

/// Joins the ranks of the launcher, if there are several. `shares` tells whether `command` does.
pub(crate) fn join(command: &str, shares: bool) -> Result<()> {
    let Some(ranks) = Ranks::from_env()?.filter(|ranks| ranks.size > 1) else { return Ok(()) };
    crate::terminal::pass_on();
    if ranks.rank > 0 {
        crate::terminal::follow();
    }
    if !shares {
        return Err(Error::Usage(format!(
            "mapl {command} runs as one process, and {} started {}; start it without a launcher (sft, reward, dpo, kto, \
             score, eval, compare and generate share their work over ranks)",
            ranks.launcher.name(),
            ranks.size
        )));
    }
    connect(&ranks)
}

#[cfg(not(feature = "mpi"))]
fn connect(ranks: &Ranks) -> Result<()> {
    Err(Error::Usage(format!(
        "{} started {} ranks, and this build has no MPI; build it with `cargo build --release --features mpi`, or start \
         one process",
        ranks.launcher.name(),
        ranks.size
    )))
}

#[cfg(feature = "mpi")]
fn connect(ranks: &Ranks) -> Result<()> {
    let started = Mpi::start(ranks)?;
    let mpi = MPI.get_or_init(|| started);
    let id = std::process::id();
    let own = (super::host::host_name(), id, watch::started(id).unwrap_or(0));
    let encoded = serde_json::to_vec(&own).map_err(|e| Error::Runtime(format!("cannot name this rank: {e}")))?;
    let of_ranks: Vec<(String, u32, u64)> = mpi
        .all_gather(&encoded)?
        .iter()
        .map(|bytes| serde_json::from_slice(bytes))
        .collect::<Result<_, _>>()
        .map_err(|e| Error::Runtime(format!("cannot read the name of a rank: {e}")))?;
    let others = of_ranks.iter().enumerate().filter(|(rank, _)| *rank != mpi.rank());
    // A process in another container can have the same host name and is not seen from here.
    let here = others.filter(|(_, (host, id, started))| *host == own.0 && watch::started(*id) == Some(*started));
    let processes: Vec<watch::Process> =
        here.map(|(rank, (_, id, started))| watch::Process { rank, id: *id, started: *started }).collect();
    let _ = HOSTS.set(of_ranks.into_iter().map(|(host, ..)| host).collect());
    watch::start(mpi.rank(), processes, |rank, why, prints| {
        if prints {
            crate::terminal::complain_of_rank(&format!(
                "error: rank {rank} of {} on {} {why}{}",
                collective().size(),
                host_of(rank),
                last_checkpoint()
            ));
        }
        // The others leave the lowest rank time to print.
        std::thread::sleep(Duration::from_millis(if prints { 0 } else { 500 }));
        end_all(1);
    })
    .map_err(|e| Error::Runtime(format!("cannot start the thread that watches the ranks: {e}; raise `ulimit -u`")))
}

/// To call before a signal ends this rank.
pub(crate) fn end_by_signal() {
    #[cfg(feature = "mpi")]
    if is_shared() {
        watch::mark_end();
    }
}

/// Ends all ranks with an exit code.
#[cfg(feature = "mpi")]
fn end_all(code: i32) -> ! {
    let end = move || MPI.get().iter().for_each(|mpi| mpi.abort(code));
    // A call that does not return must not keep this process.
    if let Ok(thread) = std::thread::Builder::new().spawn(end) {
        let began = std::time::Instant::now();
        while !thread.is_finished() && began.elapsed() < ABORT_WAIT {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    // SAFETY: ends the process without the handlers of MPI, which would wait for the other ranks.
    unsafe { libc::_exit(code) }
}

/// Reports the end of a command; returns the exit code. With several ranks an error ends all of them.
pub(crate) fn finish(outcome: Result<()>) -> i32 {
    let (code, message) = match outcome {
        Ok(()) | Err(Error::ReaderLeft) => (0, None),
        Err(e) => (e.exit_code(), Some((format!("error: {e}"), matches!(e, Error::Stopped { .. })))),
    };
    #[cfg(feature = "mpi")]
    if let Some(mpi) = MPI.get() {
        return finish_shared(mpi, code, message);
    }
    if let Some((text, _)) = message {
        let_first_speak();
        crate::terminal::complain_of_rank(&text);
    }
    code
}

/// Before a message of a rank that has not joined the others: rank 0 prints the same one, and its end
/// makes the launcher end this rank.
pub(crate) fn let_first_speak() {
    if Ranks::from_env().is_ok_and(|ranks| ranks.is_some_and(|ranks| ranks.rank > 0)) {
        std::thread::sleep(FIRST_SPEAKS);
    }
}

#[cfg(feature = "mpi")]
fn finish_shared(mpi: &Mpi, code: i32, message: Option<(String, bool)>) -> i32 {
    match message {
        // All ranks stop at one step, so none needs to end the others.
        Some((text, true)) => crate::terminal::complain(&text),
        Some((text, false)) => {
            let rank = mpi.rank();
            if rank > 0 {
                std::thread::sleep(FIRST_SPEAKS);
            }
            watch::announce_end();
            let text = match rank {
                0 => text,
                _ => {
                    let text = text.strip_prefix("error: ").unwrap_or(&text);
                    let last = if text.contains("checkpoint") { String::new() } else { last_checkpoint() };
                    format!("error: rank {rank} of {} on {}: {text}{last}", mpi.size(), host_of(rank))
                }
            };
            crate::terminal::complain_of_rank(&text);
            end_all(code)
        }
        None => {}
    }
    // Rank 0 may still write; until then its death is reported. MPI_Finalize waits for all ranks too, so
    // none ends before the watch of every other one has ended.
    if let Err(e) = mpi.barrier() {
        crate::terminal::complain(&format!("warning: {e}"));
    }
    watch::end();
    mpi.finish();
    code
}
