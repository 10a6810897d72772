//! An emulator whose every call is counted, and any call of which can be made to fail.
//!
//! Time. The emulator is done with a call when the call returns; a GPU is not. So this device counts what is enqueued and knows
//! only that to be done for which the host has waited. A wait for anything else is counted as a synchronisation.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::{Mutex, MutexGuard};

use mapl::backend::kernels::device::{Device, Grid, Kernel, Properties, TensorMap, TensorMapSpec};
use mapl::backend::kernels::emulator::{Emulator, Memory};
use mapl::{Error, Result};

/// What was asked of a device.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Calls {
    /// Calls by name.
    pub by_name: BTreeMap<&'static str, usize>,
    /// Launches by kernel, of recorded ones when they are replayed too.
    pub launches: BTreeMap<&'static str, usize>,
    /// Waits of the host for work that nothing has shown to be done, by call; opening an outlet is not among them.
    pub synchronisations: BTreeMap<&'static str, usize>,
    /// Memory taken, by call.
    pub allocations: BTreeMap<&'static str, usize>,
    /// Bytes of device memory taken.
    pub bytes: u64,
}

impl Calls {
    /// Calls of one name.
    pub fn of(&self, name: &str) -> usize {
        self.by_name.get(name).copied().unwrap_or(0)
    }

    /// Launches in all.
    pub fn launched(&self) -> usize {
        self.launches.values().sum()
    }
}

#[derive(Default)]
struct State {
    calls: Calls,
    /// Name of every call so far.
    log: Vec<&'static str>,
    /// Number of the call that fails.
    fail_at: Option<usize>,
    failed: Option<&'static str>,
    /// Work enqueued so far, and how much of it the host knows to be done.
    now: u64,
    known: u64,
}

/// The device.
pub struct Observed {
    emulator: Emulator,
    /// Kernels run; otherwise memory keeps what it holds.
    runs: bool,
    state: Mutex<State>,
}

impl Observed {
    pub fn new(emulator: Emulator, runs: bool) -> Self {
        Self { emulator, runs, state: Mutex::default() }
    }

    /// What was asked for since the last call of this.
    pub fn take(&self) -> Calls {
        std::mem::take(&mut self.state().calls)
    }

    /// Names of all calls so far, in order.
    pub fn log(&self) -> Vec<&'static str> {
        self.state().log.clone()
    }

    /// Makes one call fail, the `after`th from now (0: the next).
    pub fn fail(&self, after: usize) {
        let mut state = self.state();
        state.fail_at = Some(state.log.len() + after);
    }

    /// The call that has failed.
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
        if matches!(name, "allocate" | "inlet" | "outlet") {
            *state.calls.allocations.entry(name).or_default() += 1;
        }
        if state.fail_at == Some(number) {
            state.failed = Some(name);
            return Err(match name {
                "allocate" | "inlet" | "outlet" => Error::Memory(format!("{name} was made to fail")),
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

/// Bytes on their way to the device.
pub struct Inlet {
    bytes: Vec<u8>,
    /// When the last transfer is done for certain: with the work that took it.
    taken: u64,
    sent: bool,
}

/// Bytes on their way to the host.
pub struct Outlet {
    bytes: Vec<u8>,
    fetched: u64,
}

impl Device for Observed {
    type Memory = Memory;
    type Inlet = Inlet;
    type Outlet = Outlet;
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
        // A driver may wait for the stream to take over memory that is not page-locked (CUDA, API synchronization behavior).
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

    fn inlet(&self, bytes: usize) -> Result<Inlet> {
        self.call("inlet")?.calls.bytes += bytes as u64;
        Ok(Inlet { bytes: vec![0; bytes], taken: 0, sent: false })
    }

    fn fill<'i>(&self, inlet: &'i mut Inlet) -> Result<&'i mut [u8]> {
        let mut state = self.call("fill")?;
        // A transfer that no work has taken yet is done at no known time.
        let until = if inlet.sent { state.now } else { inlet.taken };
        state.wait("fill", until);
        Ok(&mut inlet.bytes)
    }

    fn send(&self, inlet: &mut Inlet, bytes: usize) -> Result<()> {
        drop(self.call("send")?);
        assert!(bytes <= inlet.bytes.len());
        inlet.sent = true;
        Ok(())
    }

    fn receive(&self, inlet: &mut Inlet, start: usize, bytes: usize, to: &mut Memory) -> Result<()> {
        self.enqueued("receive")?;
        inlet.sent = false;
        inlet.taken = self.state().now;
        self.emulator.upload(to, 0, &inlet.bytes[start..start + bytes])
    }

    fn outlet(&self, bytes: usize) -> Result<Outlet> {
        drop(self.call("outlet")?);
        Ok(Outlet { bytes: vec![0; bytes], fetched: 0 })
    }

    fn fetch(&self, from: &Memory, start: usize, bytes: usize, outlet: &mut Outlet, at: usize) -> Result<()> {
        self.enqueued("fetch")?;
        outlet.fetched = self.state().now;
        self.emulator.download(from, start, &mut outlet.bytes[at..at + bytes])
    }

    fn open<'o>(&self, outlet: &'o mut Outlet) -> Result<&'o [u8]> {
        let mut state = self.call("open")?;
        state.known = state.known.max(outlet.fetched);
        Ok(&outlet.bytes)
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
        // SAFETY: the caller's promise.
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
        // SAFETY: the caller's promise.
        if self.runs { unsafe { self.emulator.launch(kernel, grid, shared_bytes, parameters) } } else { Ok(()) }
    }
}
