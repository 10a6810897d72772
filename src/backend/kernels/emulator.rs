//! Runs the kernels on the CPU, for small models and for kernel development. Threads are fibers that run in
//! one of several orders, so that tests find results that depend on the order. `kernels/emulator/` contains
//! the C++ part, and this module contains every C++ call of the project.

pub(crate) mod accesses;
mod recording;

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr::NonNull;
use std::sync::Mutex;
use std::time::Instant;

use super::device::{Device, Grid, Kernel, MapElement, MapSwizzle, Properties, TensorMap, TensorMapSpec};
use super::launchers::{self, MAP_MAGIC};
use super::own::{self, Entry, Target};
use crate::{Error, Result};
use recording::{Graph, Step};

/// Has the fields of `EmulatorRequest` in `kernels/emulator/api.cpp`.
#[repr(C)]
struct Request {
    kernel: *const c_char,
    entry: unsafe extern "C" fn(*mut *mut c_void),
    parameters: *mut *mut c_void,
    grid: [u32; 3],
    threads: u32,
    cluster: u32,
    resident: u32,
    early: u32,
    shared_bytes: usize,
    schedule: c_int,
    seed: u64,
    omitted_file: *const c_char,
    omitted_line: c_int,
    proxies: u32,
    accesses: u32,
}

/// Source position of a block barrier or proxy fence.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Site {
    /// File.
    pub file: CString,
    /// Line, from 1.
    pub line: c_int,
}

#[cfg(mapl_emulator)]
unsafe extern "C" {
    fn emulator_allocate(bytes: usize) -> *mut c_void;
    fn emulator_release(memory: *mut c_void);
    fn emulator_launch(request: *const Request, message: *mut c_char, room: usize) -> c_int;
    fn emulator_sites(fences: c_int, note: NoteSite, context: *mut c_void);
    fn emulator_interface(bytes: *mut usize) -> *const c_void;
    fn emulator_shared_arrays() -> usize;
    fn emulator_accesses(note: accesses::Note, context: *mut c_void);
}

type NoteSite = unsafe extern "C" fn(*mut c_void, *const c_char, c_int);

#[cfg(not(mapl_emulator))]
mod absent {
    //! Stubs for a build without a C++ compiler. No [`Emulator`] can be created, so none of these functions
    //! is called.
    use super::*;
    pub unsafe fn emulator_allocate(_: usize) -> *mut c_void {
        std::ptr::null_mut()
    }
    pub unsafe fn emulator_release(_: *mut c_void) {}
    pub unsafe fn emulator_launch(_: *const Request, _: *mut c_char, _: usize) -> c_int {
        1
    }
    pub unsafe fn emulator_sites(_: c_int, _: NoteSite, _: *mut c_void) {}
    pub unsafe fn emulator_interface(_: *mut usize) -> *const c_void {
        std::ptr::null()
    }
    pub unsafe fn emulator_shared_arrays() -> usize {
        0
    }
    pub unsafe fn emulator_accesses(_: accesses::Note, _: *mut c_void) {}
}
#[cfg(not(mapl_emulator))]
use absent::*;

/// Order in which threads and blocks run and asynchronous copies complete. Results must have the
/// same bits in every order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// Ascending; copies complete when they are issued.
    Rising,
    /// Descending; copies complete when they are waited for.
    Falling,
    /// Random, with this seed in every launch.
    Random(u64),
    /// Ascending, but the first warp of each block runs only if no other thread can, and copies complete
    /// when they are waited for, the oldest first.
    Late,
}

/// Returns the table of functions that kernel libraries connect to, and its size in bytes.
pub(super) fn interface() -> (*const c_void, usize) {
    let mut bytes = 0;
    // SAFETY: the call writes one number.
    let table = unsafe { emulator_interface(&mut bytes) };
    (table, bytes)
}

thread_local! {
    /// Bytes of the shared arrays in the last launch of each entry point on this thread.
    static SHARED_ARRAYS: RefCell<HashMap<usize, usize>> = RefCell::default();
}

/// Bytes of a kernel's shared arrays, without dynamic shared memory; `None` if this thread has not launched
/// the kernel. Within `own::with` the custom kernel is meant, otherwise the shipped one.
pub fn shared_arrays(kernel: &Kernel) -> Option<usize> {
    let entry = own::emulated(kernel).or(kernel.emulated)?;
    SHARED_ARRAYS.with_borrow(|seen| seen.get(&(entry as usize)).copied())
}

/// An emulated GPU.
#[derive(Debug)]
pub struct Emulator {
    schedule: Schedule,
    properties: Properties,
    omitted: Option<Site>,
    /// Whether launches check proxy fences.
    proxies: bool,
    /// Steps of a capture in progress.
    recording: Mutex<Option<Vec<Step>>>,
}

impl Emulator {
    /// Creates a device with 4 multiprocessors that runs threads and blocks in ascending order. Returns
    /// [`Error::Device`] in a build without the emulator. The device has the compute capability of Hopper
    /// only if `MAPL_SM90` is 1. The large tiles of the Hopper kernels are several times slower here than the
    /// portable kernels.
    pub fn new() -> Result<Self> {
        let mut device = Self::with(Schedule::Rising, 4)?;
        if std::env::var("MAPL_SM90").map_or(true, |value| value != "1") {
            device.properties.compute_capability = (8, 0);
        }
        Ok(device)
    }

    /// Creates a Hopper device with a schedule and a number of multiprocessors. The grids of some kernels
    /// depend on the number of multiprocessors.
    pub fn with(schedule: Schedule, processors: usize) -> Result<Self> {
        if !cfg!(mapl_emulator) {
            return Err(Error::Device(
                "this build has no kernel emulator, because no C++ compiler was found; install g++ or clang++ and build again"
                    .into(),
            ));
        }
        own::prepare_environment(Target::Emulator)?;
        let properties = Properties {
            name: "kernel emulator".into(),
            processors,
            shared_bytes: 227 << 10,
            compute_capability: (9, 0),
        };
        Ok(Self { schedule, properties, omitted: None, proxies: false, recording: Mutex::new(None) })
    }

    /// Enables the check of proxy fences. A launch then fails if a TMA store or wgmma reads a plain write
    /// without a fence of the writing thread. Every wait compares the block's shared memory, so the check is
    /// only for small sizes.
    pub fn with_proxies(self) -> Self {
        Self { proxies: true, ..self }
    }

    /// Omits the barriers or proxy fences at one source position. Kernels are then wrong. Tests require that
    /// some order of threads, or the check of proxy fences, detects the error.
    pub fn without(self, site: Site) -> Self {
        Self { omitted: Some(site), ..self }
    }

    /// Returns the source positions of all barriers that kernels on this thread have executed since the last
    /// call.
    pub fn barriers() -> BTreeSet<Site> {
        Self::sites(false)
    }

    /// Returns the source positions of all proxy fences that kernels on this thread have executed since the
    /// last call, in launches that check them.
    pub fn fences() -> BTreeSet<Site> {
        Self::sites(true)
    }

    fn sites(fences: bool) -> BTreeSet<Site> {
        unsafe extern "C" fn note(context: *mut c_void, file: *const c_char, line: c_int) {
            // SAFETY: the context is the set below, and the file is a string literal of the
            // program.
            let (found, file) = unsafe { (&mut *context.cast::<BTreeSet<Site>>(), CStr::from_ptr(file)) };
            found.insert(Site { file: file.to_owned(), line });
        }
        let mut found = BTreeSet::<Site>::new();
        // SAFETY: the set outlives the call, which uses it on this thread only.
        unsafe { emulator_sites(fences.into(), note, (&raw mut found).cast()) };
        found
    }
}

/// An allocation between guard words.
#[derive(Debug)]
pub struct Memory {
    start: NonNull<c_void>,
    bytes: usize,
}

// SAFETY: the memory is plain data, written through `&mut` or by launches. The borrows of the backend order
// these writes.
unsafe impl Send for Memory {}
// SAFETY: as above; shared access only reads.
unsafe impl Sync for Memory {}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: `start` came from `emulator_allocate` and is released once.
        unsafe { emulator_release(self.start.as_ptr()) }
    }
}

impl Memory {
    fn check(&self, start: usize, bytes: usize) {
        assert!(start + bytes <= self.bytes, "bytes {start}+{bytes} outside memory of {}", self.bytes);
    }
}

impl Device for Emulator {
    type Memory = Memory;
    type UploadBuffer = Vec<u8>;
    type ReadbackBuffer = Vec<u8>;
    type Graph = Graph;
    type Stamp = Instant;

    const NAME: &'static str = "emulator";
    const ASYNCHRONOUS: bool = false;

    fn memory_free(&self) -> Option<u64> {
        crate::memory::available()
    }

    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn allocate(&self, bytes: usize) -> Result<Memory> {
        self.not_recording("allocation")?;
        // SAFETY: the call has no precondition; null means that the allocation failed.
        let start = NonNull::new(unsafe { emulator_allocate(bytes) });
        start.map(|start| Memory { start, bytes }).ok_or_else(|| {
            Error::Memory(format!(
                "cannot allocate {} MiB for the emulator; choose a smaller model or batch",
                bytes >> 20
            ))
        })
    }

    fn address(memory: &Memory) -> u64 {
        memory.start.as_ptr() as u64
    }

    fn upload(&self, memory: &mut Memory, start: usize, source: &[u8]) -> Result<()> {
        self.not_recording("upload")?;
        memory.check(start, source.len());
        // SAFETY: the range is inside the allocation, which is borrowed exclusively.
        unsafe {
            std::ptr::copy_nonoverlapping(source.as_ptr(), memory.start.as_ptr().cast::<u8>().add(start), source.len());
        }
        Ok(())
    }

    fn download(&self, memory: &Memory, start: usize, to: &mut [u8]) -> Result<()> {
        self.not_recording("download")?;
        memory.check(start, to.len());
        // SAFETY: the range is inside the allocation, and no launch is in progress, because a launch call
        // returns only after the launch has ended.
        unsafe {
            std::ptr::copy_nonoverlapping(memory.start.as_ptr().cast::<u8>().add(start), to.as_mut_ptr(), to.len());
        }
        Ok(())
    }

    fn clear(&self, memory: &mut Memory, start: usize, bytes: usize) -> Result<()> {
        memory.check(start, bytes);
        // SAFETY: the range is inside the allocation.
        let address = unsafe { memory.start.as_ptr().cast::<u8>().add(start) };
        if self.record_step(|| Step::Clear { address: address as u64, bytes }) {
            return Ok(());
        }
        // SAFETY: as above; the memory is borrowed exclusively.
        unsafe { std::ptr::write_bytes(address, 0, bytes) };
        Ok(())
    }

    fn copy(&self, from: &Memory, start: usize, to: &mut Memory, at: usize, bytes: usize) -> Result<()> {
        self.not_recording("copy")?;
        from.check(start, bytes);
        to.check(at, bytes);
        // SAFETY: both ranges are inside their allocations, which differ because `to` is borrowed
        // exclusively.
        unsafe {
            let (from, to) = (from.start.as_ptr().cast::<u8>().add(start), to.start.as_ptr().cast::<u8>().add(at));
            std::ptr::copy_nonoverlapping(from, to, bytes);
        }
        Ok(())
    }

    fn put(&self, memory: &mut Memory, start: usize, word: u32) -> Result<()> {
        self.upload(memory, start, &word.to_ne_bytes())
    }

    fn synchronize(&self) -> Result<()> {
        self.not_recording("wait")
    }

    fn upload_buffer(&self, bytes: usize) -> Result<Vec<u8>> {
        crate::backend::host::zeros(bytes)
    }

    fn fill<'i>(&self, upload_buffer: &'i mut Vec<u8>) -> Result<&'i mut [u8]> {
        Ok(upload_buffer)
    }

    fn send(&self, upload_buffer: &mut Vec<u8>, bytes: usize) -> Result<()> {
        assert!(bytes <= upload_buffer.len(), "{bytes} bytes in an upload buffer of {}", upload_buffer.len());
        Ok(())
    }

    fn receive(&self, upload_buffer: &mut Vec<u8>, start: usize, bytes: usize, to: &mut Memory) -> Result<()> {
        self.upload(to, 0, &upload_buffer[start..start + bytes])
    }

    fn readback_buffer(&self, bytes: usize) -> Result<Vec<u8>> {
        crate::backend::host::zeros(bytes)
    }

    fn fetch(&self, from: &Memory, start: usize, bytes: usize, readback_buffer: &mut Vec<u8>, at: usize) -> Result<()> {
        self.download(from, start, &mut readback_buffer[at..at + bytes])
    }

    fn open<'o>(&self, readback_buffer: &'o mut Vec<u8>) -> Result<&'o [u8]> {
        Ok(readback_buffer)
    }

    fn record(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Option<Graph>> {
        self.record_steps(work).map(Some)
    }

    unsafe fn replay(&self, graph: &Graph) -> Result<()> {
        // SAFETY: the caller guarantees the contract of `Device::replay`.
        unsafe { self.replay_steps(graph) }
    }

    fn stamp(&self) -> Result<Instant> {
        Ok(Instant::now())
    }

    fn seconds_between(&self, from: &Instant, to: &Instant) -> Result<f64> {
        Ok(to.duration_since(*from).as_secs_f64())
    }

    fn tensor_map(&self, spec: &TensorMapSpec) -> Result<TensorMap> {
        spec.check()?;
        let mut words = [0u64; 16];
        let element = match spec.element {
            MapElement::F32 => 0,
            MapElement::Bf16 => 1,
        };
        let swizzle = u64::from(spec.swizzle == MapSwizzle::Bytes128);
        // The layout that `kernels/emulator/boxes.cpp` reads.
        words[0] = MAP_MAGIC;
        words[1] = spec.address;
        words[2] = element | (spec.dims.len() as u64) << 8 | swizzle << 16;
        words[3..3 + spec.dims.len()].copy_from_slice(&spec.dims);
        words[8..8 + spec.strides.len()].copy_from_slice(&spec.strides);
        for (d, &size) in spec.boxes.iter().enumerate() {
            words[12 + d / 2] |= u64::from(size) << (32 * (d % 2));
        }
        Ok(TensorMap(words))
    }

    unsafe fn launch(
        &self,
        kernel: &'static Kernel,
        grid: Grid,
        shared_bytes: usize,
        parameters: &mut [*mut c_void],
    ) -> Result<()> {
        let refuse = |why: String| Error::Runtime(format!("emulated kernel {}: {why}", kernel.name));
        let Some(entry) = own::emulated(kernel).or(kernel.emulated) else {
            return Err(refuse("this build has no emulator".into()));
        };
        if shared_bytes > self.properties.shared_bytes {
            return Err(refuse(format!(
                "{shared_bytes} bytes of shared memory; a block has at most {}",
                self.properties.shared_bytes
            )));
        }
        if !grid.0[0].is_multiple_of(kernel.cluster) {
            return Err(refuse(format!("{} blocks are not whole clusters of {}", grid.0[0], kernel.cluster)));
        }
        // SAFETY: the parameters match the kernel (contract of this function).
        if self.record_step(|| unsafe { Step::launch(kernel, entry, grid, shared_bytes, parameters) }) {
            return Ok(());
        }
        // SAFETY: the caller guarantees the contract of `Device::launch`.
        unsafe { self.run(kernel, entry, grid, shared_bytes, parameters) }
    }
}

impl Emulator {
    /// Runs the entry point of a kernel, either the shipped or a custom one.
    ///
    /// # Safety
    /// Like [`Device::launch`].
    unsafe fn run(
        &self,
        kernel: &'static Kernel,
        entry: Entry,
        grid: Grid,
        shared_bytes: usize,
        parameters: &mut [*mut c_void],
    ) -> Result<()> {
        let refuse = |why: String| Error::Runtime(format!("emulated kernel {}: {why}", kernel.name));
        let (schedule, seed) = match self.schedule {
            Schedule::Rising => (launchers::Schedule::Rising, 0),
            Schedule::Falling => (launchers::Schedule::Falling, 0),
            Schedule::Random(seed) => (launchers::Schedule::Random, seed),
            Schedule::Late => (launchers::Schedule::Late, 0),
        };
        let request = Request {
            kernel: kernel.c_name.as_ptr(),
            entry,
            parameters: parameters.as_mut_ptr(),
            grid: grid.0,
            threads: kernel.threads,
            cluster: kernel.cluster,
            resident: if kernel.coresident { 0 } else { kernel.cluster },
            early: kernel.early.into(),
            shared_bytes,
            schedule: schedule as c_int,
            seed,
            omitted_file: self.omitted.as_ref().map_or(std::ptr::null(), |b| b.file.as_ptr()),
            omitted_line: self.omitted.as_ref().map_or(0, |b| b.line),
            proxies: self.proxies.into(),
            accesses: accesses::wanted().into(),
        };
        let mut message = [0 as c_char; 4096];
        // SAFETY: the request describes a kernel of this build and its parameters (contract of this
        // function), and the message has the given length.
        let failed = unsafe { emulator_launch(&request, message.as_mut_ptr(), message.len()) };
        if failed == 0 {
            // SAFETY: the call has no precondition.
            let arrays = unsafe { emulator_shared_arrays() };
            SHARED_ARRAYS.with_borrow_mut(|seen| seen.insert(entry as usize, arrays));
            accesses::collect(kernel);
            return Ok(());
        }
        // SAFETY: the emulator terminates every message inside the buffer.
        let text = unsafe { CStr::from_ptr(message.as_ptr()) };
        Err(refuse(text.to_string_lossy().into_owned()))
    }
}
