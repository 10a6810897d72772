//! Collectives over MPI. The library is Open MPI, loaded at run time, so that one program runs with and
//! without it. Only bytes are sent: sums are formed by [`Collective`], whose order is fixed.
//!
//! Errors: a missing library; a library other than Open MPI (only in Open MPI are handles addresses of symbols);
//! a world that differs from the launcher's variables. If a call fails, MPI's error handler ends all ranks.

use std::error::Error as _;
use std::ffi::{c_char, c_int, c_void};
use std::ptr;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

use super::collective::Collective;
use super::launcher::Ranks;
use crate::{Error, Result};

/// File names of the library.
const NAMES: [&str; 2] = ["libmpi.so.40", "libmpi.so"];

/// `MPI_THREAD_MULTIPLE`: the thread that watches the ranks may end them during a call.
const THREAD_MULTIPLE: c_int = 3;

/// `MPI_THREAD_SERIALIZED`: only one thread at a time calls MPI, but not always the same thread.
const THREAD_SERIALIZED: c_int = 2;

/// Maximum number of bytes of a call, over all ranks; counts and offsets are 32-bit.
const MOST_BYTES: usize = 1 << 30;

type Handle = *mut c_void;

type Init = unsafe extern "C" fn(*mut c_int, *mut *mut *mut c_char, c_int, *mut c_int) -> c_int;
type Number = unsafe extern "C" fn(Handle, *mut c_int) -> c_int;
type Exchange = unsafe extern "C" fn(
    *const c_void,
    *const c_int,
    *const c_int,
    Handle,
    *mut c_void,
    *const c_int,
    *const c_int,
    Handle,
    Handle,
) -> c_int;
type Gather = unsafe extern "C" fn(
    *const c_void,
    c_int,
    Handle,
    *mut c_void,
    *const c_int,
    *const c_int,
    Handle,
    Handle,
) -> c_int;
type Barrier = unsafe extern "C" fn(Handle) -> c_int;
type Abort = unsafe extern "C" fn(Handle, c_int) -> c_int;
type Finalize = unsafe extern "C" fn() -> c_int;

/// All ranks of an MPI program.
pub(super) struct Mpi {
    rank: usize,
    size: usize,
    exchange: Exchange,
    gather: Gather,
    barrier: Barrier,
    abort: Abort,
    finalize: Finalize,
    world: usize,
    byte: usize,
    threads: bool,
    /// The functions are valid while the library is loaded.
    _library: Library,
}

/// Counts, offsets and total length of contiguous parts.
fn layout(lengths: impl Iterator<Item = usize>) -> Result<(Vec<c_int>, Vec<c_int>, usize)> {
    let (mut counts, mut offsets, mut total) = (Vec::new(), Vec::new(), 0_usize);
    for length in lengths {
        let number = |value: usize| c_int::try_from(value).map_err(|_| too_long(value));
        offsets.push(number(total)?);
        counts.push(number(length)?);
        total += length;
    }
    Ok((counts, offsets, total))
}

fn too_long(bytes: usize) -> Error {
    Error::Runtime(format!("{bytes} bytes are too many for one message between ranks"))
}

fn checked(call: &str, code: c_int) -> Result<()> {
    match code {
        0 => Ok(()),
        code => Err(Error::Runtime(format!("{call} failed with code {code}; look at the messages of MPI above"))),
    }
}

/// A buffer of `len` zeros with an address on the heap. The address of an empty vector is 1, which Open MPI
/// interprets as `MPI_IN_PLACE`.
fn zeros(len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len.max(1));
    bytes.resize(len, 0);
    bytes
}

impl Mpi {
    /// Name of the library that would be loaded, or why there is none.
    pub fn found() -> Result<&'static str, String> {
        Self::library().map(|(name, _)| name)
    }

    fn library() -> Result<(&'static str, Library), String> {
        let mut why = String::new();
        for name in NAMES {
            // Components of Open MPI find its symbols only if they are global.
            // SAFETY: Open MPI's initialisers have no precondition.
            match unsafe { Library::open(Some(name), RTLD_NOW | RTLD_GLOBAL) } {
                Ok(library) => return Ok((name, library)),
                // The message of the system names the file that is missing.
                Err(e) if why.is_empty() => why = e.source().map_or_else(|| e.to_string(), ToString::to_string),
                Err(_) => {}
            }
        }
        Err(why)
    }

    /// Starts MPI; the launcher's variables must agree with its world.
    pub fn start(ranks: &Ranks) -> Result<Self> {
        let (name, library) = Self::library().map_err(|why| {
            Error::Device(format!(
                "{} ranks meet over Open MPI, which cannot be loaded ({why}); install it (Debian: apt-get install \
                 openmpi-bin), or add its folder to LD_LIBRARY_PATH",
                ranks.size
            ))
        })?;
        let missing = |e: libloading::Error| {
            Error::Device(format!(
                "{name} is not Open MPI ({e}), and mapl needs Open MPI 4 or 5; add the folder of its libmpi.so.40 to \
                 LD_LIBRARY_PATH"
            ))
        };
        // SAFETY: the types are those of the MPI standard for C; the handles of Open MPI are the addresses
        // of the objects `ompi_mpi_*`, so the address of each symbol is the handle itself.
        let mpi = unsafe {
            let address = |name: &str| library.get::<*mut c_void>(name.as_bytes()).map(|s| s.as_raw_ptr() as usize);
            let world = address("ompi_mpi_comm_world").map_err(missing)?;
            let byte = address("ompi_mpi_byte").map_err(missing)?;
            let init = *library.get::<Init>(b"MPI_Init_thread").map_err(missing)?;
            let rank_of = *library.get::<Number>(b"MPI_Comm_rank").map_err(missing)?;
            let size_of = *library.get::<Number>(b"MPI_Comm_size").map_err(missing)?;
            let exchange = *library.get::<Exchange>(b"MPI_Alltoallv").map_err(missing)?;
            let gather = *library.get::<Gather>(b"MPI_Allgatherv").map_err(missing)?;
            let barrier = *library.get::<Barrier>(b"MPI_Barrier").map_err(missing)?;
            let abort = *library.get::<Abort>(b"MPI_Abort").map_err(missing)?;
            let finalize = *library.get::<Finalize>(b"MPI_Finalize").map_err(missing)?;
            let (mut provided, mut rank, mut size) = (0, 0, 0);
            checked("MPI_Init_thread", init(ptr::null_mut(), ptr::null_mut(), THREAD_MULTIPLE, &raw mut provided))?;
            checked("MPI_Comm_rank", rank_of(world as Handle, &raw mut rank))?;
            checked("MPI_Comm_size", size_of(world as Handle, &raw mut size))?;
            if provided < THREAD_SERIALIZED {
                return Err(Error::Device(format!("{name} was built without support for threads, which mapl needs")));
            }
            let threads = provided >= THREAD_MULTIPLE;
            let (rank, size) = (rank as usize, size as usize);
            Self { rank, size, exchange, gather, barrier, abort, finalize, world, byte, threads, _library: library }
        };
        if (mpi.rank, mpi.size) != (ranks.rank, ranks.size) {
            let Ranks { launcher, rank, size, .. } = ranks;
            return Err(Error::Usage(format!(
                "{} started rank {rank} of {size}, but MPI sees rank {} of {}; on CPUs start the ranks with \
                 `mpirun -n {size} mapl ...`, or with srun if Slurm supports this MPI (srun --mpi=list)",
                launcher.name(),
                mpi.rank,
                mpi.size
            )));
        }
        Ok(mpi)
    }

    /// Ends all ranks with an exit code. Has no effect if MPI does not allow calls from any thread.
    pub fn abort(&self, code: i32) {
        if self.threads {
            // SAFETY: `start` has initialised MPI. It sets `threads` only if MPI allows calls from any thread.
            unsafe { (self.abort)(self.world as Handle, code) };
        }
    }

    /// Finalises MPI, which waits for all ranks.
    pub fn finish(&self) {
        // SAFETY: `start` has initialised MPI. The caller (`world::finish`) calls this once, after the last
        // collective of this rank has returned.
        unsafe { (self.finalize)() };
    }

    /// One exchange of at most [`MOST_BYTES`].
    fn exchange_once(&self, parts: &[&[u8]]) -> Result<Vec<Vec<u8>>> {
        let lengths: Vec<u8> = parts.iter().flat_map(|part| (part.len() as u64).to_le_bytes()).collect();
        let lengths: Vec<usize> = {
            let eight = vec![8; self.size];
            let (counts, offsets, total) = layout(eight.iter().copied())?;
            let mut received = vec![0_u8; total];
            self.call_exchange((&lengths, &counts, &offsets), (&mut received, &counts, &offsets))?;
            received.as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b) as usize).collect()
        };
        let (counts, offsets, _) = layout(parts.iter().map(|part| part.len()))?;
        let (their_counts, their_offsets, total) = layout(lengths.iter().copied())?;
        let (mut sent, mut received) = (zeros(0), zeros(total));
        parts.iter().for_each(|part| sent.extend_from_slice(part));
        self.call_exchange((&sent, &counts, &offsets), (&mut received, &their_counts, &their_offsets))?;
        let mut rest = received.as_slice();
        let mut take = |length: usize| {
            let (part, after) = rest.split_at(length);
            rest = after;
            part.to_vec()
        };
        Ok(lengths.into_iter().map(&mut take).collect())
    }

    fn call_exchange(
        &self,
        (sent, counts, offsets): (&[u8], &[c_int], &[c_int]),
        (received, their_counts, their_offsets): (&mut [u8], &[c_int], &[c_int]),
    ) -> Result<()> {
        let (world, byte) = (self.world as Handle, self.byte as Handle);
        // SAFETY: the callers make counts and offsets with `layout`, one of each per rank, and both buffers
        // as long as their totals.
        let code = unsafe {
            (self.exchange)(
                sent.as_ptr().cast(),
                counts.as_ptr(),
                offsets.as_ptr(),
                byte,
                received.as_mut_ptr().cast(),
                their_counts.as_ptr(),
                their_offsets.as_ptr(),
                byte,
                world,
            )
        };
        checked("MPI_Alltoallv", code)
    }

    /// The bytes of every rank, with known lengths.
    fn gather_known(&self, bytes: &[u8], lengths: &[usize]) -> Result<Vec<u8>> {
        let (counts, offsets, total) = layout(lengths.iter().copied())?;
        let mut received = zeros(total);
        let own = if bytes.is_empty() { &[0] } else { bytes };
        let (world, byte) = (self.world as Handle, self.byte as Handle);
        // SAFETY: `own` has at least the bytes of this rank's length, and `received` has room for the bytes
        // of all ranks.
        let code = unsafe {
            (self.gather)(
                own.as_ptr().cast(),
                counts[self.rank],
                byte,
                received.as_mut_ptr().cast(),
                counts.as_ptr(),
                offsets.as_ptr(),
                byte,
                world,
            )
        };
        checked("MPI_Allgatherv", code).map(|()| received)
    }
}

impl Collective for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn exchange(&self, parts: &[Vec<u8>]) -> Result<Vec<Vec<u8>>> {
        let _waiting = super::watch::Waiting::begin();
        // Every rank must make the same number of calls, so the longest part of all ranks decides the number.
        let longest = parts.iter().map(Vec::len).max().unwrap_or(0) as u64;
        let longest = self.gather_known(&longest.to_le_bytes(), &vec![8; self.size])?;
        let longest = longest.as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b) as usize).max().unwrap_or(0);
        let piece = MOST_BYTES / self.size;
        let mut received = vec![Vec::new(); self.size];
        for start in (0..longest.max(1)).step_by(piece) {
            let pieces: Vec<&[u8]> =
                parts.iter().map(|part| &part[start.min(part.len())..(start + piece).min(part.len())]).collect();
            let of_call = self.exchange_once(&pieces)?;
            received.iter_mut().zip(of_call).for_each(|(all, part): (&mut Vec<u8>, _)| all.extend(part));
        }
        Ok(received)
    }

    fn all_gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        let _waiting = super::watch::Waiting::begin();
        let lengths = self.gather_known(&(bytes.len() as u64).to_le_bytes(), &vec![8; self.size])?;
        let lengths: Vec<usize> = lengths.as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b) as usize).collect();
        let piece = MOST_BYTES / self.size;
        let mut gathered = vec![Vec::new(); self.size];
        for start in (0..lengths.iter().copied().max().unwrap_or(0)).step_by(piece) {
            let pieces: Vec<usize> =
                lengths.iter().map(|&length| (start + piece).min(length) - start.min(length)).collect();
            let own = &bytes[start.min(bytes.len())..(start + piece).min(bytes.len())];
            let received = self.gather_known(own, &pieces)?;
            let mut rest = received.as_slice();
            for (all, &length) in gathered.iter_mut().zip(&pieces) {
                let (part, after) = rest.split_at(length);
                all.extend_from_slice(part);
                rest = after;
            }
        }
        Ok(gathered)
    }

    fn broadcast(&self, bytes: Vec<u8>) -> Result<Vec<u8>> {
        let sent = if self.rank == 0 { bytes.as_slice() } else { &[] };
        Ok(self.all_gather(sent)?.swap_remove(0))
    }

    fn barrier(&self) -> Result<()> {
        let _waiting = super::watch::Waiting::begin();
        // SAFETY: `start` has initialised MPI.
        checked("MPI_Barrier", unsafe { (self.barrier)(self.world as Handle) })
    }
}
