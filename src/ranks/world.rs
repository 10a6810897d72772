//! Connects this process to the other ranks of its run, over MPI or NCCL; the process is then said to have joined
//! them. Without a launcher, or with one rank, it is a single-process run. A single rank on a GPU joins NCCL if it
//! is told to.
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
//! Errors: several ranks on CPUs without the cargo feature `mpi`; several ranks on GPUs without NCCL or without
//! a meeting point; several ranks for a command that does not share its work.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::collective::{Alone, Collective};
use super::end::{last_checkpoint, record};
use super::launcher::Ranks;
use super::meeting::{self, Met, Place, Seat};
#[cfg(feature = "mpi")]
use super::mpi::Mpi;
use super::nccl::Nccl;
use super::watch::{self, Event};
use crate::backend::kernels::driver::Driver;
use crate::backend::kernels::driver::nccl::{Communicator, Library};
use crate::backend::kernels::nccl::Calls;
use crate::{Error, Result};

/// Time that a failing rank gives rank 0 to report the same error.
const FIRST_SPEAKS: Duration = Duration::from_secs(3);

/// Time that the transport has to end this process; afterwards the process exits without the transport.
const ABORT_WAIT: Duration = Duration::from_secs(2);

/// Time for which the ranks that do not print wait for the one that does.
const PRINT_WAIT: Duration = Duration::from_millis(500);

/// Time in which all ranks on GPUs must have met, and time in which NCCL must have connected them.
const MEETING_WAIT: Duration = Duration::from_secs(300);

/// Host of every rank, by rank.
static HOSTS: OnceLock<Vec<String>> = OnceLock::new();

/// Transport of this process, if its ranks have met.
static JOINED: OnceLock<Box<dyn Transport>> = OnceLock::new();

/// This rank's GPU, if ranks have met on GPUs.
static GPU: OnceLock<Gpu> = OnceLock::new();

/// A rank's GPU and the calls for its collectives.
struct Gpu {
    ordinal: usize,
    calls: Arc<dyn Calls>,
    /// File and version of NCCL.
    library: String,
}

/// Collectives that can end all ranks.
trait Transport: Collective {
    /// Aborts the collective that this rank waits for; with MPI, ends all ranks.
    fn abort(&self, code: i32);

    /// Closes the transport; waits for all ranks.
    fn finish(&self);
}

#[cfg(feature = "mpi")]
impl Transport for Mpi {
    fn abort(&self, code: i32) {
        Mpi::abort(self, code);
    }

    fn finish(&self) {
        Mpi::finish(self);
    }
}

impl Transport for Nccl<Driver> {
    fn abort(&self, _: i32) {
        self.calls().abort();
    }

    fn finish(&self) {
        // Every rank must have ended its watch before any rank exits. The operating system frees the resources.
        if let Err(e) = self.barrier() {
            crate::terminal::complain(&format!("warning: {e}"));
        }
    }
}

/// Collective over the ranks of this process.
pub(crate) fn collective() -> &'static dyn Collective {
    match JOINED.get() {
        Some(joined) => joined.as_ref(),
        None => &Alone,
    }
}

/// Index of this rank's GPU on its host, if ranks have met on GPUs.
pub(crate) fn gpu() -> Option<usize> {
    GPU.get().map(|gpu| gpu.ordinal)
}

/// Calls of NCCL for collectives on buffers, if ranks have met on GPUs.
pub(crate) fn calls() -> Option<Arc<dyn Calls>> {
    GPU.get().map(|gpu| gpu.calls.clone())
}

/// File and version of NCCL, if ranks have met on GPUs.
pub(crate) fn nccl() -> Option<&'static str> {
    GPU.get().map(|gpu| gpu.library.as_str())
}

/// Whether there are several ranks. A single rank that has joined NCCL does not count.
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

/// Number of ranks on this rank's host, including this one.
pub(crate) fn ranks_on_this_host() -> usize {
    let own = host_of(collective().rank());
    HOSTS.get().map_or(1, |hosts| hosts.iter().filter(|host| *host == own).count().max(1))
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

/// Describes the launcher's variables, and the libraries with which ranks on CPUs and on GPUs can meet.
pub(crate) fn describe() -> [(&'static str, String); 3] {
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
    let nccl = match Library::load() {
        Ok(library) => format!("{}, for ranks on GPUs", library.name()),
        Err(why) => format!("none: {why}; {NCCL_ADVICE}"),
    };
    [("launcher", launcher), ("mpi", mpi), ("nccl", nccl)]
}

/// Makes a rank other than 0 print nothing, without connecting it to the other ranks.
pub(crate) fn follow_launcher() {
    if let Ok(Some(Ranks { rank: 1.., .. })) = Ranks::from_env() {
        crate::terminal::follow();
    }
}

/// Transport over which a command's ranks meet.
pub(crate) enum Meet<'a> {
    /// On CPUs, over MPI.
    Mpi,
    /// On GPUs, over NCCL.
    Nccl {
        /// File through which the id of NCCL passes, instead of a port.
        file: Option<&'a Path>,
        /// GPU of a single rank. With several ranks, each uses the GPU with the number of its local rank.
        gpu: usize,
    },
}

/// Use of ranks by a command.
#[derive(Clone, Copy)]
pub(crate) struct Sharing<'a> {
    /// Name of the command.
    pub command: &'a str,
    /// Whether several ranks share the work of the command.
    pub shares: bool,
    /// Whether a single rank on a GPU initialises NCCL too.
    pub one_joins: bool,
}

/// Connects this process to the other ranks that the launcher started. A single rank is connected only with
/// `one_joins`, and only on a GPU (NCCL). `meet` returns the transport for the given number of ranks.
pub(crate) fn join<'a>(
    Sharing { command, shares, one_joins }: Sharing<'_>,
    meet: impl FnOnce(usize) -> Result<Meet<'a>>,
) -> Result<()> {
    let one_joins = one_joins && shares;
    let ranks = if one_joins { Ranks::that_meet()? } else { Ranks::from_env()? };
    let Some(ranks) = ranks.filter(|ranks| ranks.size > 1 || one_joins) else { return Ok(()) };
    if ranks.size == 1 {
        return match meet(1)? {
            Meet::Mpi => Ok(()),
            Meet::Nccl { file, gpu } => connect_by_nccl(&ranks, file, gpu),
        };
    }
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
    match meet(ranks.size)? {
        Meet::Mpi => connect_by_mpi(&ranks),
        Meet::Nccl { file, gpu } => connect_by_nccl(&ranks, file, gpu),
    }
}

#[cfg(not(feature = "mpi"))]
fn connect_by_mpi(ranks: &Ranks) -> Result<()> {
    Err(Error::Usage(format!(
        "{} started {} ranks, and this build has no MPI; build it with `cargo build --release --features mpi`, or start \
         one process",
        ranks.launcher.name(),
        ranks.size
    )))
}

#[cfg(feature = "mpi")]
fn connect_by_mpi(ranks: &Ranks) -> Result<()> {
    watched(Box::new(Mpi::start(ranks)?), |_| || None)
}

/// Advice if NCCL is missing.
const NCCL_ADVICE: &str = "install it (pip install nvidia-nccl-cu13, or NVIDIA's package libnccl2) and add its folder to \
                           LD_LIBRARY_PATH";

fn connect_by_nccl(ranks: &Ranks, file: Option<&Path>, gpu: usize) -> Result<()> {
    let (rank, size) = (ranks.rank, ranks.size);
    let library = Library::load().map_err(|why| {
        Error::Device(format!(
            "{} over NCCL, which cannot be loaded ({why}); {NCCL_ADVICE}, or {}",
            if size == 1 { "one rank on a GPU joins".to_owned() } else { format!("{size} ranks on GPUs meet") },
            if size == 1 { "leave out --nccl-init" } else { "pass --device cpu" }
        ))
    })?;
    if let (2.., None) = (size, ranks.local) {
        return Err(Error::Usage(format!(
            "{} does not say which GPU belongs to this rank; set LOCAL_RANK with RANK and WORLD_SIZE, or start with \
             torchrun, srun or mpirun",
            ranks.launcher.name()
        )));
    }
    let place = match (file, &ranks.master) {
        (Some(file), _) => Place::File(file.to_owned()),
        (None, Some((host, port))) => Place::Tcp { host: host.clone(), port: *port },
        (None, None) => {
            return Err(Error::Usage(format!(
                "{} does not say where rank 0 is; set MASTER_ADDR and MASTER_PORT, or pass --nccl-init fs:/PATH with a \
                 shared folder",
                ranks.launcher.name()
            )));
        }
    };
    let ordinal = match ranks.local.filter(|_| size > 1) {
        // A launcher may make only one GPU visible to each rank.
        Some(_) if Driver::count()? == 1 => 0,
        Some(local) => local,
        None => gpu,
    };
    let driver = Driver::new(ordinal)?;
    let say = |text: &str| crate::terminal::complain(text);
    let Met { id, links } = meeting::meet(&place, Seat { rank, size }, || library.new_id(), (MEETING_WAIT, &say))?;
    let name = library.name().to_owned();
    let communicator = connected(rank, || Communicator::join(&driver, library, id, (rank, size)))?;
    if let (Some(file), 0) = (file, rank) {
        // All ranks have read the file.
        std::fs::remove_file(file).map_err(Error::io("remove", file))?;
    }
    let calls: Arc<dyn Calls> = Arc::new(communicator);
    let nccl = Nccl::new(driver, calls.clone())?;
    let _ = GPU.set(Gpu { ordinal, calls: calls.clone(), library: name });
    watched(Box::new(nccl), move |hosts| {
        // Ranks of this host are watched through /proc, which gives more information.
        let mut links: Vec<_> = links.into_iter().filter(|(other, _)| hosts[*other] != hosts[rank]).collect();
        move || {
            if let Some(why) = calls.failure() {
                return Some((rank, why));
            }
            let gone = meeting::ended(&mut links).first().copied()?;
            Some((
                gone,
                "has ended, because its connection closed; if it had an error, its own message names it".into(),
            ))
        }
    })
}

/// Runs `join`, which waits for other ranks, with a time limit. `join` cannot be stopped, so after the limit
/// this process ends.
fn connected<T>(rank: usize, join: impl FnOnce() -> Result<T>) -> Result<T> {
    let done = Arc::new(AtomicBool::new(false));
    let (seen, began) = (done.clone(), Instant::now());
    let limit = move || {
        while began.elapsed() < MEETING_WAIT {
            std::thread::sleep(Duration::from_millis(100));
            if seen.load(Ordering::SeqCst) {
                return;
            }
        }
        crate::terminal::complain_of_rank(&format!(
            "error: rank {rank}: NCCL has not connected the ranks in {} s: one of them has died, or cannot be reached; \
             NCCL_DEBUG=INFO prints what it tries",
            MEETING_WAIT.as_secs()
        ));
        // SAFETY: `_exit` has no precondition; it ends the process while a call of NCCL waits.
        unsafe { libc::_exit(1) }
    };
    std::thread::Builder::new().spawn(limit).map_err(no_thread)?;
    let joined = join();
    done.store(true, Ordering::SeqCst);
    joined
}

fn no_thread(e: std::io::Error) -> Error {
    Error::Runtime(format!("cannot start the thread that watches the ranks: {e}; raise `ulimit -u`"))
}

/// Sets the transport of this process and starts to watch the ranks. `look` receives the hosts of the ranks
/// and returns a function that reports failures of the transport.
fn watched<L: FnMut() -> Option<(usize, String)> + Send + 'static>(
    transport: Box<dyn Transport>,
    look: impl FnOnce(&[String]) -> L,
) -> Result<()> {
    let transport = JOINED.get_or_init(|| transport);
    let id = std::process::id();
    let own = (super::host::host_name(), id, watch::started(id).unwrap_or(0));
    let encoded = serde_json::to_vec(&own).map_err(|e| Error::Runtime(format!("cannot name this rank: {e}")))?;
    let of_ranks: Vec<(String, u32, u64)> = transport
        .all_gather(&encoded)?
        .iter()
        .map(|bytes| serde_json::from_slice(bytes))
        .collect::<Result<_, _>>()
        .map_err(|e| Error::Runtime(format!("cannot read the name of a rank: {e}")))?;
    let others = of_ranks.iter().enumerate().filter(|(rank, _)| *rank != transport.rank());
    // A process in a different container can have the same host name, but is not visible in this /proc.
    let here = others.filter(|(_, (host, id, started))| *host == own.0 && watch::started(*id) == Some(*started));
    let processes: Vec<watch::Process> =
        here.map(|(rank, (_, id, started))| watch::Process { rank, id: *id, started: *started }).collect();
    let hosts: Vec<String> = of_ranks.into_iter().map(|(host, ..)| host).collect();
    let look = look(&hosts);
    let _ = HOSTS.set(hosts);
    watch::start(transport.rank(), processes, look, move |event| {
        let named = |rank: usize| format!("rank {rank} of {} on {}", collective().size(), host_of(rank));
        match event {
            Event::Failed { rank, why, prints } => {
                let text = format!("{} {why}{}", named(rank), last_checkpoint());
                if prints {
                    crate::terminal::complain_of_rank(&format!("error: {text}"));
                }
                // Ranks that do not print wait, so that the lowest rank can print and rank 0 can record.
                let began = Instant::now();
                record(&text, Some(1));
                let rest = if prints { Duration::ZERO } else { PRINT_WAIT };
                std::thread::sleep(rest.saturating_sub(began.elapsed()));
                end_all(1);
            }
            Event::Reported { rank } => {
                record(
                    &format!("{} has ended with an error, which it has printed{}", named(rank), last_checkpoint()),
                    None,
                );
                // With MPI, the rank that reported its error ends all ranks. With NCCL it cannot, so every other
                // rank ends itself after a wait.
                std::thread::sleep(ABORT_WAIT);
                if !watch::has_ended() {
                    end_all(1);
                }
            }
        }
    })
    .map_err(no_thread)
}

/// Tells the other ranks that a signal ends this rank. Must be called before the rank ends.
pub(crate) fn end_by_signal() {
    if is_shared() {
        watch::mark_signal();
    }
}

/// Ends all ranks with an exit code.
fn end_all(code: i32) -> ! {
    let end = move || JOINED.get().iter().for_each(|joined| joined.abort(code));
    // A call that does not return must not keep this process alive.
    if let Ok(thread) = std::thread::Builder::new().spawn(end) {
        let began = Instant::now();
        while !thread.is_finished() && began.elapsed() < ABORT_WAIT {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    // SAFETY: `_exit` has no precondition; it skips the exit handlers of a transport, which would wait for
    // the other ranks.
    unsafe { libc::_exit(code) }
}

/// Reports the end of a command; returns the exit code. With several ranks an error ends all of them.
pub(crate) fn finish(outcome: Result<()>) -> i32 {
    let (code, message) = match outcome {
        Ok(()) | Err(Error::ReaderLeft) => (0, None),
        Err(Error::Ended(code)) => (code, None),
        Err(e) => (e.exit_code(), Some((format!("error: {e}"), matches!(e, Error::Stopped { .. })))),
    };
    if let Some(joined) = JOINED.get() {
        return finish_shared(joined.as_ref(), code, message);
    }
    if let Some((text, _)) = message {
        let_first_speak();
        crate::terminal::complain_of_rank(&text);
    }
    code
}

/// Delays a message of a rank that has not joined the others. Rank 0 prints the same message and exits, and the
/// launcher then ends this rank.
pub(crate) fn let_first_speak() {
    if Ranks::from_env().is_ok_and(|ranks| ranks.is_some_and(|ranks| ranks.rank > 0)) {
        std::thread::sleep(FIRST_SPEAKS);
    }
}

fn finish_shared(joined: &dyn Transport, code: i32, message: Option<(String, bool)>) -> i32 {
    match message {
        // All ranks stop at the same step, so none needs to end the others.
        Some((text, true)) => crate::terminal::complain(&text),
        Some((text, false)) => {
            let rank = joined.rank();
            if rank > 0 {
                std::thread::sleep(FIRST_SPEAKS);
            }
            watch::announce_end();
            let text = match rank {
                0 => text,
                _ => {
                    let text = text.strip_prefix("error: ").unwrap_or(&text);
                    let last = if text.contains("checkpoint") { String::new() } else { last_checkpoint() };
                    format!("error: rank {rank} of {} on {}: {text}{last}", joined.size(), host_of(rank))
                }
            };
            crate::terminal::complain_of_rank(&text);
            end_all(code)
        }
        None => {}
    }
    // Rank 0 may still write, and the other ranks report its death until it has finished. Closing the transport
    // waits for all ranks too, so no rank exits before every other rank has ended its watch.
    if let Err(e) = joined.barrier() {
        crate::terminal::complain(&format!("warning: {e}"));
    }
    watch::end();
    joined.finish();
    code
}
