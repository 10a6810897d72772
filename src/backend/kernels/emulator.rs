//! The kernels on the CPU: threads as fibers, in orders that show what a GPU's order could break. Every C++ call of the
//! project is here. For small models and for those who write kernels; `kernels/emulator/` has the machinery.

mod recording;

use std::collections::BTreeSet;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr::NonNull;
use std::sync::Mutex;
use std::time::Instant;

use super::device::{Device, Grid, Kernel, MapElement, MapSwizzle, Properties, TensorMap, TensorMapSpec};
use crate::{Error, Result};
use recording::{Graph, Step};

/// Fields as in `EmulatorRequest` of `kernels/emulator/api.cpp`.
#[repr(C)]
struct Request {
    kernel: *const c_char,
    entry: unsafe extern "C" fn(*mut *mut c_void),
    parameters: *mut *mut c_void,
    grid: [u32; 3],
    threads: u32,
    cluster: u32,
    together: u32,
    early: u32,
    shared_bytes: usize,
    schedule: c_int,
    seed: u64,
    omitted_file: *const c_char,
    omitted_line: c_int,
}

/// A place of a kernel file that holds a barrier of the block.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Barrier {
    pub file: CString,
    pub line: c_int,
}

#[cfg(mapl_emulator)]
unsafe extern "C" {
    fn emulator_allocate(bytes: usize) -> *mut c_void;
    fn emulator_release(memory: *mut c_void);
    fn emulator_launch(request: *const Request, message: *mut c_char, room: usize) -> c_int;
    fn emulator_barriers(note: NoteBarrier, context: *mut c_void);
}

type NoteBarrier = unsafe extern "C" fn(*mut c_void, *const c_char, c_int);

#[cfg(not(mapl_emulator))]
mod absent {
    //! A build without a C++ compiler: no emulator can be made, so none of these is called.
    use super::*;
    pub unsafe fn emulator_allocate(_: usize) -> *mut c_void {
        std::ptr::null_mut()
    }
    pub unsafe fn emulator_release(_: *mut c_void) {}
    pub unsafe fn emulator_launch(_: *const Request, _: *mut c_char, _: usize) -> c_int {
        1
    }
    pub unsafe fn emulator_barriers(_: NoteBarrier, _: *mut c_void) {}
}
#[cfg(not(mapl_emulator))]
use absent::*;

/// First word of a tensor map, as MAGIC in `kernels/emulator/boxes.cpp`, which has the order of the rest.
const MAGIC: u64 = 0x7061_6d2d_6c70_616d;

/// Order in which threads and blocks run and asynchronous copies arrive. Results must be the same bits in all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// Lowest first; copies arrive when they are issued.
    Rising,
    /// Highest first; copies arrive when they are waited for.
    Falling,
    /// Drawn anew for every launch from a seed.
    Random(u64),
}

/// An emulated GPU.
#[derive(Debug)]
pub struct Emulator {
    schedule: Schedule,
    properties: Properties,
    omitted: Option<Barrier>,
    /// Work that is being recorded.
    recording: Mutex<Option<Vec<Step>>>,
}

impl Emulator {
    /// A device in rising order with 4 multiprocessors. [`Error::Device`] in a build without the emulator. The kernels for Hopper,
    /// whose tiles are large, take several times as long here as the portable ones, so it is a Hopper card only where
    /// `MAPL_SM90` is 1.
    pub fn new() -> Result<Self> {
        let mut device = Self::with(Schedule::Rising, 4)?;
        if std::env::var("MAPL_SM90").map_or(true, |value| value != "1") {
            device.properties.compute_capability = (8, 0);
        }
        Ok(device)
    }

    /// A Hopper card with an order of its own and any number of multiprocessors, which decides the grids of some kernels.
    pub fn with(schedule: Schedule, processors: usize) -> Result<Self> {
        if !cfg!(mapl_emulator) {
            return Err(Error::Device(
                "this build has no kernel emulator, because no C++ compiler was found; install g++ or clang++ and build again"
                    .into(),
            ));
        }
        let properties = Properties {
            name: "kernel emulator".into(),
            processors,
            shared_bytes: 227 << 10,
            compute_capability: (9, 0),
        };
        Ok(Self { schedule, properties, omitted: None, recording: Mutex::new(None) })
    }

    /// This device with the barriers of one place left out: kernels are then wrong, and some order of threads must show it.
    pub fn without(self, barrier: Barrier) -> Self {
        Self { omitted: Some(barrier), ..self }
    }

    /// Places of all barriers that kernels met on this thread since the last call.
    pub fn barriers() -> BTreeSet<Barrier> {
        unsafe extern "C" fn note(context: *mut c_void, file: *const c_char, line: c_int) {
            // SAFETY: the context is the set below, and the file a string of the program.
            let (found, file) = unsafe { (&mut *context.cast::<BTreeSet<Barrier>>(), CStr::from_ptr(file)) };
            found.insert(Barrier { file: file.to_owned(), line });
        }
        let mut found = BTreeSet::<Barrier>::new();
        // SAFETY: the set outlives the call, which uses it on this thread alone.
        unsafe { emulator_barriers(note, (&raw mut found).cast()) };
        found
    }
}

/// Memory between guard words.
#[derive(Debug)]
pub struct Memory {
    start: NonNull<c_void>,
    bytes: usize,
}

// SAFETY: plain memory that is written through `&mut` or by launches, which the backend's borrows order.
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
    type Inlet = Vec<u8>;
    type Outlet = Vec<u8>;
    type Graph = Graph;
    type Stamp = Instant;

    const NAME: &'static str = "emulator";
    const ASYNCHRONOUS: bool = false;

    fn memory_free(&self) -> Option<u64> {
        crate::backend::host::available()
    }

    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn allocate(&self, bytes: usize) -> Result<Memory> {
        self.not_recording("allocation")?;
        // SAFETY: no precondition; null means that there is no memory.
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
        // SAFETY: the range lies in the memory, which is borrowed exclusively.
        unsafe {
            std::ptr::copy_nonoverlapping(source.as_ptr(), memory.start.as_ptr().cast::<u8>().add(start), source.len());
        }
        Ok(())
    }

    fn download(&self, memory: &Memory, start: usize, to: &mut [u8]) -> Result<()> {
        self.not_recording("download")?;
        memory.check(start, to.len());
        // SAFETY: the range lies in the memory; no launch is under way, because launches end before they return.
        unsafe {
            std::ptr::copy_nonoverlapping(memory.start.as_ptr().cast::<u8>().add(start), to.as_mut_ptr(), to.len());
        }
        Ok(())
    }

    fn clear(&self, memory: &mut Memory, start: usize, bytes: usize) -> Result<()> {
        memory.check(start, bytes);
        // SAFETY: the range lies in the memory.
        let address = unsafe { memory.start.as_ptr().cast::<u8>().add(start) };
        if self.keep(|| Step::Clear { address: address as u64, bytes }) {
            return Ok(());
        }
        // SAFETY: as above; the memory is borrowed exclusively.
        unsafe { std::ptr::write_bytes(address, 0, bytes) };
        Ok(())
    }

    fn put(&self, memory: &mut Memory, start: usize, word: u32) -> Result<()> {
        self.upload(memory, start, &word.to_ne_bytes())
    }

    fn synchronize(&self) -> Result<()> {
        self.not_recording("wait")
    }

    fn inlet(&self, bytes: usize) -> Result<Vec<u8>> {
        crate::backend::host::zeros(bytes)
    }

    fn fill<'i>(&self, inlet: &'i mut Vec<u8>) -> Result<&'i mut [u8]> {
        Ok(inlet)
    }

    fn send(&self, inlet: &mut Vec<u8>, bytes: usize) -> Result<()> {
        assert!(bytes <= inlet.len(), "{bytes} bytes of an inlet of {}", inlet.len());
        Ok(())
    }

    fn receive(&self, inlet: &mut Vec<u8>, start: usize, bytes: usize, to: &mut Memory) -> Result<()> {
        self.upload(to, 0, &inlet[start..start + bytes])
    }

    fn outlet(&self, bytes: usize) -> Result<Vec<u8>> {
        crate::backend::host::zeros(bytes)
    }

    fn fetch(&self, from: &Memory, start: usize, bytes: usize, outlet: &mut Vec<u8>, at: usize) -> Result<()> {
        self.download(from, start, &mut outlet[at..at + bytes])
    }

    fn open<'o>(&self, outlet: &'o mut Vec<u8>) -> Result<&'o [u8]> {
        Ok(outlet)
    }

    fn record(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Option<Graph>> {
        self.record_steps(work).map(Some)
    }

    unsafe fn replay(&self, graph: &Graph) -> Result<()> {
        // SAFETY: this function's contract.
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
        words[0] = MAGIC;
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
        let Some(entry) = kernel.emulated else {
            return Err(refuse("is not in this build".into()));
        };
        if shared_bytes > self.properties.shared_bytes {
            return Err(refuse(format!(
                "{shared_bytes} bytes of shared memory; a block has {}",
                self.properties.shared_bytes
            )));
        }
        if !grid.0[0].is_multiple_of(kernel.cluster) {
            return Err(refuse(format!("{} blocks in clusters of {}", grid.0[0], kernel.cluster)));
        }
        // SAFETY: the parameters are those of the kernel (this function's contract).
        if self.keep(|| unsafe { Step::launch(kernel, grid, shared_bytes, parameters) }) {
            return Ok(());
        }
        let (schedule, seed) = match self.schedule {
            Schedule::Rising => (0, 0),
            Schedule::Falling => (1, 0),
            Schedule::Random(seed) => (2, seed),
        };
        let request = Request {
            kernel: kernel.c_name.as_ptr(),
            entry,
            parameters: parameters.as_mut_ptr(),
            grid: grid.0,
            threads: kernel.threads,
            cluster: kernel.cluster,
            together: if kernel.coresident { 0 } else { kernel.cluster },
            early: kernel.early.into(),
            shared_bytes,
            schedule,
            seed,
            omitted_file: self.omitted.as_ref().map_or(std::ptr::null(), |b| b.file.as_ptr()),
            omitted_line: self.omitted.as_ref().map_or(0, |b| b.line),
        };
        let mut message = [0 as c_char; 4096];
        // SAFETY: the request describes a kernel of this build and its parameters (this function's contract), and the message
        // has the room that is named.
        let failed = unsafe { emulator_launch(&request, message.as_mut_ptr(), message.len()) };
        if failed == 0 {
            return Ok(());
        }
        // SAFETY: the emulator ends every message it writes with a zero inside the room.
        let text = unsafe { CStr::from_ptr(message.as_ptr()) };
        Err(refuse(text.to_string_lossy().into_owned()))
    }
}
