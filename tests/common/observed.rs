//! An emulator that counts every call and can make any call fail.
//!
//! The emulator completes a call before it returns; a GPU does not. So this device numbers the
//! enqueued work and treats work as complete only after the host has waited for it. A wait for work
//! that is not known to be complete counts as a synchronisation.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::{Mutex, MutexGuard};

use mapl::backend::kernels::device::{Device, Grid, Kernel, Properties, TensorMap, TensorMapSpec};
use mapl::backend::kernels::emulator::{Emulator, Memory};
use mapl::{Error, Result};

/// Calls made to a device.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Calls {
    /// Number of calls by name.
    pub by_name: BTreeMap<&'static str, usize>,
    /// Number of launches by kernel, including launches of replayed graphs.
    pub launches: BTreeMap<&'static str, usize>,
    /// Number of host waits for work that is not known to be complete, by call. Opening a readback
    /// buffer does not count.
    pub synchronisations: BTreeMap<&'static str, usize>,
    /// Number of allocations, by call.
    pub allocations: BTreeMap<&'static str, usize>,
    /// Bytes of device memory allocated.
    pub bytes: u64,
}

impl Calls {
    /// Returns the number of calls of one name.
    pub fn of(&self, name: &str) -> usize {
        self.by_name.get(name).copied().unwrap_or(0)
    }

    /// Returns the total number of launches.
    pub fn launched(&self) -> usize {
        self.launches.values().sum()
    }
}

#[derive(Default)]
struct State {
    calls: Calls,
    /// Name of every call so far.
    log: Vec<&'static str>,
    /// Index in `log` of the call that fails.
    fail_at: Option<usize>,
    failed: Option<&'static str>,
    /// Work items enqueued so far.
    now: u64,
    /// Work items that the host knows to be complete.
    known: u64,
}

/// An emulator that counts its calls.
pub struct Observed {
    emulator: Emulator,
    /// Whether kernels run. If false, only `grad_norm` runs, which decides whether an update is applied.
    /// Without it the host code would end the run, because every update would be skipped.
    runs: bool,
    state: Mutex<State>,
}

impl Observed {
    pub fn new(emulator: Emulator, runs: bool) -> Self {
        Self { emulator, runs, state: Mutex::default() }
    }

    /// Returns the calls since the last `take`, and resets the counts.
    pub fn take(&self) -> Calls {
        std::mem::take(&mut self.state().calls)
    }

    /// Names of all calls so far, in order.
    pub fn log(&self) -> Vec<&'static str> {
        self.state().log.clone()
    }

    /// Makes a later call fail: `after` is the number of calls before it (0: the next call fails).
    pub fn fail(&self, after: usize) {
        let mut state = self.state();
        state.fail_at = Some(state.log.len() + after);
    }

    /// Returns the name of the failed call.
    pub fn failed(&self) -> Option<&'static str> {
        self.state().failed
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn call(&self, name: &'static str) -> Result<MutexGuard<'_, State>> {
        let mut state = self.state();
        let number = state.log.len();
        state.log.push(name);
        *state.calls.by_name.entry(name).or_default() += 1;
        if matches!(name, "allocate" | "upload_buffer" | "readback_buffer") {
            *state.calls.allocations.entry(name).or_default() += 1;
        }
        if state.fail_at == Some(number) {
            state.failed = Some(name);
            return Err(match name {
                "allocate" | "upload_buffer" | "readback_buffer" => Error::Memory(format!("{name} was made to fail")),
                _ => Error::Device(format!("{name} was made to fail")),
            });
        }
        Ok(state)
    }

    fn enqueued(&self, name: &'static str) -> Result<()> {
        self.call(name)?.now += 1;
        Ok(())
    }
}

impl State {
    fn wait(&mut self, name: &'static str, until: u64) {
        if until > self.known {
            *self.calls.synchronisations.entry(name).or_default() += 1;
            self.known = until;
        }
    }
}

/// Staging buffer for transfers to the device.
pub struct UploadBuffer {
    bytes: Vec<u8>,
    /// Number of the work item that consumed the last transfer. When this item is complete, so is the
    /// transfer.
    taken: u64,
    sent: bool,
}

/// Staging buffer for transfers to the host.
pub struct ReadbackBuffer {
    bytes: Vec<u8>,
    fetched: u64,
}

impl Device for Observed {
    type Memory = Memory;
    type UploadBuffer = UploadBuffer;
    type ReadbackBuffer = ReadbackBuffer;
    type Graph = (<Emulator as Device>::Graph, BTreeMap<&'static str, usize>);
    type Stamp = <Emulator as Device>::Stamp;

    const NAME: &'static str = "observed emulator";
    const ASYNCHRONOUS: bool = true;

    fn properties(&self) -> &Properties {
        self.emulator.properties()
    }

    fn allocate(&self, bytes: usize) -> Result<Memory> {
        self.call("allocate")?.calls.bytes += bytes as u64;
        self.emulator.allocate(bytes)
    }

    fn address(memory: &Memory) -> u64 {
        Emulator::address(memory)
    }

    fn upload(&self, memory: &mut Memory, start: usize, source: &[u8]) -> Result<()> {
        let mut state = self.call("upload")?;
        // A driver may synchronise the stream before it copies from pageable memory (CUDA Driver
        // API, API synchronization behavior).
        state.now += 1;
        let now = state.now;
        state.wait("upload", now);
        self.emulator.upload(memory, start, source)
    }

    fn download(&self, memory: &Memory, start: usize, to: &mut [u8]) -> Result<()> {
        let mut state = self.call("download")?;
        state.now += 1;
        let now = state.now;
        state.wait("download", now);
        self.emulator.download(memory, start, to)
    }

    fn clear(&self, memory: &mut Memory, start: usize, bytes: usize) -> Result<()> {
        self.enqueued("clear")?;
        self.emulator.clear(memory, start, bytes)
    }

    fn copy(&self, from: &Memory, start: usize, to: &mut Memory, at: usize, bytes: usize) -> Result<()> {
        self.enqueued("copy")?;
        self.emulator.copy(from, start, to, at, bytes)
    }

    fn put(&self, memory: &mut Memory, start: usize, word: u32) -> Result<()> {
        self.enqueued("put")?;
        self.emulator.put(memory, start, word)
    }

    fn synchronize(&self) -> Result<()> {
        let mut state = self.call("synchronize")?;
        let now = state.now;
        state.wait("synchronize", now);
        Ok(())
    }

    fn upload_buffer(&self, bytes: usize) -> Result<UploadBuffer> {
        self.call("upload_buffer")?.calls.bytes += bytes as u64;
        Ok(UploadBuffer { bytes: vec![0; bytes], taken: 0, sent: false })
    }

    fn fill<'i>(&self, upload_buffer: &'i mut UploadBuffer) -> Result<&'i mut [u8]> {
        let mut state = self.call("fill")?;
        // If no work item has consumed the transfer yet, only completion of all work proves it
        // done.
        let until = if upload_buffer.sent { state.now } else { upload_buffer.taken };
        state.wait("fill", until);
        Ok(&mut upload_buffer.bytes)
    }

    fn send(&self, upload_buffer: &mut UploadBuffer, bytes: usize) -> Result<()> {
        drop(self.call("send")?);
        assert!(bytes <= upload_buffer.bytes.len());
        upload_buffer.sent = true;
        Ok(())
    }

    fn receive(&self, upload_buffer: &mut UploadBuffer, start: usize, bytes: usize, to: &mut Memory) -> Result<()> {
        self.enqueued("receive")?;
        upload_buffer.sent = false;
        upload_buffer.taken = self.state().now;
        self.emulator.upload(to, 0, &upload_buffer.bytes[start..start + bytes])
    }

    fn readback_buffer(&self, bytes: usize) -> Result<ReadbackBuffer> {
        drop(self.call("readback_buffer")?);
        Ok(ReadbackBuffer { bytes: vec![0; bytes], fetched: 0 })
    }

    fn fetch(
        &self,
        from: &Memory,
        start: usize,
        bytes: usize,
        readback_buffer: &mut ReadbackBuffer,
        at: usize,
    ) -> Result<()> {
        self.enqueued("fetch")?;
        readback_buffer.fetched = self.state().now;
        self.emulator.download(from, start, &mut readback_buffer.bytes[at..at + bytes])
    }

    fn open<'o>(&self, readback_buffer: &'o mut ReadbackBuffer) -> Result<&'o [u8]> {
        let mut state = self.call("open")?;
        state.known = state.known.max(readback_buffer.fetched);
        Ok(&readback_buffer.bytes)
    }

    fn record(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Option<Self::Graph>> {
        drop(self.call("record")?);
        let before = self.state().calls.launches.clone();
        let graph = self.emulator.record(work)?;
        let mut recorded = self.state().calls.launches.clone();
        recorded.iter_mut().for_each(|(name, count)| *count -= before.get(name).unwrap_or(&0));
        self.state().calls.launches = before;
        Ok(graph.map(|graph| (graph, recorded)))
    }

    unsafe fn replay(&self, graph: &Self::Graph) -> Result<()> {
        self.enqueued("replay")?;
        for (name, count) in &graph.1 {
            *self.state().calls.launches.entry(name).or_default() += count;
        }
        // SAFETY: the caller of `replay` guarantees that all memory that the graph accesses is still
        // allocated.
        if self.runs { unsafe { self.emulator.replay(&graph.0) } } else { Ok(()) }
    }

    fn stamp(&self) -> Result<Self::Stamp> {
        self.emulator.stamp()
    }

    fn seconds_between(&self, from: &Self::Stamp, to: &Self::Stamp) -> Result<f64> {
        let mut state = self.call("seconds_between")?;
        let now = state.now;
        state.wait("seconds_between", now);
        self.emulator.seconds_between(from, to)
    }

    fn tensor_map(&self, spec: &TensorMapSpec) -> Result<TensorMap> {
        self.emulator.tensor_map(spec)
    }

    unsafe fn launch(
        &self,
        kernel: &'static Kernel,
        grid: Grid,
        shared_bytes: usize,
        parameters: &mut [*mut c_void],
    ) -> Result<()> {
        self.enqueued("launch")?;
        *self.state().calls.launches.entry(kernel.name).or_default() += 1;
        if !self.runs && kernel.name != "grad_norm" {
            return Ok(());
        }
        // SAFETY: the caller of `launch` guarantees that the parameters match the kernel, and that their
        // device pointers cover all its accesses.
        unsafe { self.emulator.launch(kernel, grid, shared_bytes, parameters) }
    }
}
