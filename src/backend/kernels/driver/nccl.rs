//! NCCL, loaded at run time. A communicator has one GPU per rank and a separate stream.
//!
//! This file contains all NCCL calls of the project. They are enqueued on the communicator's stream and do
//! not wait for the device. Events order them with the ops of a step: [`Calls::fork`] before a call,
//! [`Calls::settle`] after it.
//!
//! A missing library and a library without bf16 (before 2.10) are errors. The error of a call names the call
//! and contains NCCL's error text; `NCCL_DEBUG=INFO` prints more.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::fmt::Display;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use cudarc::driver::sys;
use libloading::os::unix::{Library as Loaded, RTLD_LOCAL, RTLD_NOW};

use super::Driver;
use super::transfer::Event;
use crate::backend::collective::Ticket;
use crate::backend::kernels::nccl::{Calls, Number, Operands};
use crate::{Error, Result};

/// File names of the library, in the order in which they are tried.
const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];

/// Oldest NCCL version with bf16.
const OLDEST: c_int = 21_000;

/// Number of events that [`Calls::mark`] records, in cyclic order. If the event of an older ticket has been
/// recorded again, a wait for it also covers the older ticket, because the stream runs in order.
const MARKS: usize = 64;

/// Bytes of a communicator's id.
pub(crate) const ID_BYTES: usize = 128;

/// `ncclSum`.
const SUM: c_int = 0;

/// `ncclInProgress`.
const IN_PROGRESS: c_int = 7;

/// `ncclUniqueId`.
#[repr(C)]
#[derive(Clone, Copy)]
struct UniqueId([u8; ID_BYTES]);

type Comm = *mut c_void;
type Stream = *mut c_void;
type In = *const c_void;
type Out = *mut c_void;

/// Functions of the library, with the types of its header.
struct Functions {
    version: unsafe extern "C" fn(*mut c_int) -> c_int,
    unique_id: unsafe extern "C" fn(*mut UniqueId) -> c_int,
    join: unsafe extern "C" fn(*mut Comm, c_int, UniqueId, c_int) -> c_int,
    abort: unsafe extern "C" fn(Comm) -> c_int,
    destroy: unsafe extern "C" fn(Comm) -> c_int,
    async_error: unsafe extern "C" fn(Comm, *mut c_int) -> c_int,
    error_text: unsafe extern "C" fn(c_int) -> *const c_char,
    group_start: unsafe extern "C" fn() -> c_int,
    group_end: unsafe extern "C" fn() -> c_int,
    reduce_scatter: unsafe extern "C" fn(In, Out, usize, c_int, c_int, Comm, Stream) -> c_int,
    reduce: unsafe extern "C" fn(In, Out, usize, c_int, c_int, c_int, Comm, Stream) -> c_int,
    all_reduce: unsafe extern "C" fn(In, Out, usize, c_int, c_int, Comm, Stream) -> c_int,
    all_gather: unsafe extern "C" fn(In, Out, usize, c_int, Comm, Stream) -> c_int,
    broadcast: unsafe extern "C" fn(In, Out, usize, c_int, c_int, Comm, Stream) -> c_int,
}

/// The loaded NCCL library.
pub(crate) struct Library {
    functions: Functions,
    /// File and version, such as `libnccl.so.2 2.28.3`.
    name: String,
    /// Keeps the library loaded, because `functions` are valid only while it is loaded.
    _loaded: Loaded,
}

/// Returns a version as text: 22803 is 2.28.3.
fn version_text(version: c_int) -> String {
    format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
}

/// Returns the dynamic loader's reason why a library cannot be loaded.
fn cause(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

impl Library {
    /// Loads the library, or returns the reason why it cannot be used.
    pub fn load() -> Result<Self, String> {
        let mut why = String::new();
        for file in NAMES {
            // SAFETY: NCCL's initialisers have no precondition.
            match unsafe { Loaded::open(Some(file), RTLD_NOW | RTLD_LOCAL) } {
                Ok(loaded) => return Self::of(file, loaded),
                Err(e) if why.is_empty() => why = cause(&e),
                Err(_) => {}
            }
        }
        Err(why)
    }

    fn of(file: &str, loaded: Loaded) -> Result<Self, String> {
        let missing = |symbol: &[u8]| format!("{file} is not NCCL: it has no {}", String::from_utf8_lossy(symbol));
        macro_rules! functions {
            ($($field:ident: $symbol:literal),* $(,)?) => {
                // SAFETY: the types are those of nccl.h, which have not changed since 2.10.
                unsafe { Functions { $($field: *loaded.get($symbol).map_err(|_| missing($symbol))?),* } }
            };
        }
        let functions = functions! {
            version: b"ncclGetVersion",
            unique_id: b"ncclGetUniqueId",
            join: b"ncclCommInitRank",
            abort: b"ncclCommAbort",
            destroy: b"ncclCommDestroy",
            async_error: b"ncclCommGetAsyncError",
            error_text: b"ncclGetErrorString",
            group_start: b"ncclGroupStart",
            group_end: b"ncclGroupEnd",
            reduce_scatter: b"ncclReduceScatter",
            reduce: b"ncclReduce",
            all_reduce: b"ncclAllReduce",
            all_gather: b"ncclAllGather",
            broadcast: b"ncclBroadcast",
        };
        let mut version = 0;
        // SAFETY: the call writes one number.
        let code = unsafe { (functions.version)(&raw mut version) };
        if code != 0 || version < OLDEST {
            return Err(format!("{file} is NCCL {}, and mapl needs 2.10 or newer", version_text(version)));
        }
        Ok(Self { name: format!("{file} {}", version_text(version)), functions, _loaded: loaded })
    }

    /// File and version.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn text_of(&self, code: c_int) -> String {
        // SAFETY: the library returns a static string for any number.
        let text = unsafe { CStr::from_ptr((self.functions.error_text)(code)) };
        text.to_string_lossy().into_owned()
    }

    fn checked(&self, call: impl Display, code: c_int) -> Result<()> {
        match code {
            0 => Ok(()),
            code => Err(Error::Device(format!(
                "{call}: {} ({code}); NCCL_DEBUG=INFO prints NCCL's reasons",
                self.text_of(code)
            ))),
        }
    }

    /// Returns the id of a new communicator, which rank 0 sends to the other ranks.
    pub fn new_id(&self) -> Result<[u8; ID_BYTES]> {
        let mut id = UniqueId([0; ID_BYTES]);
        // SAFETY: the call writes one id.
        self.checked("ncclGetUniqueId", unsafe { (self.functions.unique_id)(&raw mut id) })?;
        Ok(id.0)
    }
}

/// A rank's communicator.
pub(crate) struct Communicator {
    library: Library,
    comm: Comm,
    rank: usize,
    size: usize,
    context: sys::CUcontext,
    stream: sys::CUstream,
    forked: Event,
    marks: Vec<Event>,
    next: AtomicU64,
    aborted: AtomicBool,
}

// SAFETY: the handles may be used from any thread that has made the context current, and every method does
// so. Only one thread at a time enqueues. The watch thread polls and aborts, which NCCL allows at any time.
unsafe impl Send for Communicator {}
// SAFETY: as above.
unsafe impl Sync for Communicator {}

impl Communicator {
    /// Joins the communicator `id` on the device of `driver`, whose work stream becomes the communicator's
    /// stream. Waits for all ranks.
    pub fn join(driver: &Driver, library: Library, id: [u8; ID_BYTES], (rank, size): (usize, usize)) -> Result<Self> {
        driver.make_current()?;
        let mut comm = ptr::null_mut();
        // SAFETY: the call writes one handle to `comm`, and `rank` is below `size`.
        let code = unsafe { (library.functions.join)(&raw mut comm, size as c_int, UniqueId(id), rank as c_int) };
        library.checked(format!("ncclCommInitRank of rank {rank} of {size}"), code).map_err(|e| match code {
            5 => Error::Device(format!("{e}; are two ranks on one GPU? Start one rank per GPU")),
            _ => e,
        })?;
        Ok(Self {
            comm,
            rank,
            size,
            context: driver.context,
            stream: driver.stream,
            forked: Event::new(driver)?,
            marks: (0..MARKS).map(|_| Event::new(driver)).collect::<Result<_>>()?,
            next: AtomicU64::new(0),
            aborted: AtomicBool::new(false),
            library,
        })
    }

    /// Returns the communicator, after making its context current on this thread.
    fn comm(&self) -> Result<Comm> {
        // SAFETY: the context lives as long as its driver, which outlives this value.
        unsafe { cudarc::driver::result::ctx::set_current(self.context) }.map_err(super::failed("cuCtxSetCurrent"))?;
        Ok(self.comm)
    }

    fn checked(&self, call: &str, code: c_int) -> Result<()> {
        self.library.checked(format!("{call} of rank {} of {}", self.rank, self.size), code)
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        if !self.aborted.load(Ordering::SeqCst) && self.comm().is_ok() {
            // SAFETY: the handle belongs to this value and is not used afterwards.
            unsafe { (self.library.functions.destroy)(self.comm) };
        }
    }
}

fn number(number: Number) -> c_int {
    number as c_int
}

impl Calls for Communicator {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn stream(&self) -> u64 {
        self.stream as u64
    }

    fn fork(&self, ops: u64) -> Result<()> {
        self.comm()?;
        self.forked.record(ops as sys::CUstream)?;
        self.forked.stream_wait(self.stream)
    }

    fn mark(&self) -> Result<Ticket> {
        self.comm()?;
        let ticket = self.next.fetch_add(1, Ordering::Relaxed);
        self.marks[ticket as usize % MARKS].record(self.stream)?;
        Ok(Ticket(ticket))
    }

    fn settle(&self, ticket: Ticket, ops: u64) -> Result<()> {
        self.comm()?;
        self.marks[ticket.0 as usize % MARKS].stream_wait(ops as sys::CUstream)
    }

    fn group_start(&self) -> Result<()> {
        // SAFETY: the call has no precondition.
        self.checked("ncclGroupStart", unsafe { (self.library.functions.group_start)() })
    }

    fn group_end(&self) -> Result<()> {
        self.comm()?;
        // SAFETY: the call has no precondition.
        self.checked("ncclGroupEnd", unsafe { (self.library.functions.group_end)() })
    }

    unsafe fn reduce_scatter(&self, Operands { from, to, len, number: of }: Operands, stream: u64) -> Result<()> {
        let (call, comm) = (self.library.functions.reduce_scatter, self.comm()?);
        // SAFETY: the caller guarantees the contract of `Calls::reduce_scatter`.
        let code = unsafe { call(from as In, to as Out, len, number(of), SUM, comm, stream as Stream) };
        self.checked("ncclReduceScatter", code)
    }

    unsafe fn reduce(&self, Operands { from, to, len, number: of }: Operands, root: usize, stream: u64) -> Result<()> {
        let (call, comm) = (self.library.functions.reduce, self.comm()?);
        // SAFETY: the caller guarantees the contract of `Calls::reduce`.
        let code = unsafe { call(from as In, to as Out, len, number(of), SUM, root as c_int, comm, stream as Stream) };
        self.checked("ncclReduce", code)
    }

    unsafe fn all_reduce(&self, Operands { from, to, len, number: of }: Operands, stream: u64) -> Result<()> {
        let (call, comm) = (self.library.functions.all_reduce, self.comm()?);
        // SAFETY: the caller guarantees the contract of `Calls::all_reduce`.
        let code = unsafe { call(from as In, to as Out, len, number(of), SUM, comm, stream as Stream) };
        self.checked("ncclAllReduce", code)
    }

    unsafe fn all_gather(&self, Operands { from, to, len, number: of }: Operands, stream: u64) -> Result<()> {
        let (call, comm) = (self.library.functions.all_gather, self.comm()?);
        // SAFETY: the caller guarantees the contract of `Calls::all_gather`.
        let code = unsafe { call(from as In, to as Out, len, number(of), comm, stream as Stream) };
        self.checked("ncclAllGather", code)
    }

    unsafe fn broadcast(
        &self,
        Operands { from, to, len, number: of }: Operands,
        root: usize,
        stream: u64,
    ) -> Result<()> {
        let (call, comm) = (self.library.functions.broadcast, self.comm()?);
        // SAFETY: the caller guarantees the contract of `Calls::broadcast`.
        let code = unsafe { call(from as In, to as Out, len, number(of), root as c_int, comm, stream as Stream) };
        self.checked("ncclBroadcast", code)
    }

    fn failure(&self) -> Option<String> {
        if self.aborted.load(Ordering::SeqCst) {
            return None;
        }
        let mut code = 0;
        // SAFETY: the communicator is alive, and the call writes one number.
        let asked = unsafe { (self.library.functions.async_error)(self.comm, &raw mut code) };
        let code = if asked == 0 { code } else { asked };
        (code != 0 && code != IN_PROGRESS).then(|| format!("NCCL reports: {} ({code})", self.library.text_of(code)))
    }

    fn abort(&self) {
        if !self.aborted.swap(true, Ordering::SeqCst) && self.comm().is_ok() {
            // SAFETY: NCCL allows the call at any time; the flag keeps the handle from being used again.
            unsafe { (self.library.functions.abort)(self.comm) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_written_as_nvidia_writes_it() {
        assert_eq!(version_text(22_803), "2.28.3");
        assert_eq!(version_text(21_003), "2.10.3");
    }

    #[test]
    fn a_library_without_the_functions_is_refused_with_the_first_one_it_lacks() {
        // SAFETY: the C library is loaded already.
        let loaded = unsafe { Loaded::open(Some("libc.so.6"), RTLD_NOW) }.unwrap();
        let why = Library::of("libc.so.6", loaded).err().unwrap();
        assert!(why.contains("libc.so.6 is not NCCL") && why.contains("ncclGetVersion"), "{why}");
    }
}
