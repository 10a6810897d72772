//! Measured ceilings of the machine, bytes per second of memory and FLOP/s of GEMMs; and the trait
//! of backends that can be benchmarked, with their peers.

use std::sync::LazyLock;

use super::measure::{Effort, PreparedCall, TimedCall, interleaved};
use super::operand::OperandSet;
use super::peer;
use super::work::linear::{Linear, Pass};
use super::work::{Call, Work};
use super::yardstick::Yardstick;
use crate::Result;
use crate::backend::Backend;
use crate::backend::contract::{Bound, LinearDims, Precision};
use crate::backend::cpu::{self, Cpu};
use crate::backend::kernels::Kernels;
use crate::backend::kernels::device::{Device, Element};
use crate::backend::kernels::driver::Driver;
use crate::backend::kernels::emulator::Emulator;
use crate::perf::ceilings::Ceilings;
use crate::perf::hardware::gpu::GpuSensors as _;
use crate::perf::hardware::nvml;

/// Measured upper bounds of the machine's rates.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    /// Memory bandwidth in bytes per second: the better of a copy and a sum.
    pub memory: f64,
    /// Best measured GEMM throughput in FLOP/s.
    pub product: f64,
}

impl Rates {
    /// Maximum of both, field by field.
    pub fn or(self, other: Self) -> Self {
        Self { memory: self.memory.max(other.memory), product: self.product.max(other.product) }
    }
}

/// A library whose calls are timed next to a backend's ops.
pub(crate) trait Peer<B: Backend> {
    /// Name and version.
    fn name(&self) -> String;

    /// Prepares the library's call for the sizes of `work`; `None` if the library does not support
    /// it.
    fn prepare<'a>(&'a self, on: &'a B, work: &Work, set: &mut OperandSet<B>) -> Result<PreparedCall<'a, B>>;
}

/// Available peers, and unavailable ones with the reason.
pub(crate) struct Peers<'a, B: Backend> {
    pub present: Vec<Box<dyn Peer<B> + 'a>>,
    pub absent: Vec<(String, String)>,
}

impl<B: Backend> Default for Peers<'_, B> {
    fn default() -> Self {
        Self { present: Vec::new(), absent: Vec::new() }
    }
}

/// Properties of a backend that a benchmark needs in addition to its ops.
pub(crate) trait BenchBackend: Backend {
    /// Name of the GPU or CPU.
    fn hardware(&self) -> String;

    /// Minimum size of rotating operands, in bytes, at which calls read from memory instead of
    /// caches.
    fn cold_bytes(&self) -> u64;

    /// Measures the ceilings; `None` if times on this backend say nothing about hardware.
    fn rates(&self) -> Result<Option<Rates>>;

    /// Control workload for calls with this bound, timed between their samples to cancel machine
    /// drift. `None` if times of different runs are comparable without it.
    fn yardstick(&self, _: Bound) -> Option<Box<TimedCall<'static, Self>>> {
        None
    }

    /// Energy counter of the hardware in joules, if it has one.
    fn joules(&self) -> Option<f64> {
        None
    }

    /// Power limit of the hardware in watts, if known.
    fn power_limit(&self) -> Option<f64> {
        None
    }

    /// Runs `work` with the peers of this backend.
    fn with_peers<R>(&self, work: impl FnOnce(&Peers<'_, Self>) -> R) -> R {
        work(&Peers::default())
    }
}

impl<A: cpu::Element> BenchBackend for Cpu<A> {
    fn hardware(&self) -> String {
        let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let value = |key: &str| {
            let line = text.lines().find(|line| line.split(':').next().is_some_and(|k| k.trim() == key))?;
            Some(line.split(':').nth(1)?.trim().to_owned())
        };
        let name = value("model name").unwrap_or_else(|| std::env::consts::ARCH.into());
        // Virtual machines replace the name by a family; the numbers still identify the CPU model.
        let numbers = match (value("cpu family"), value("model")) {
            (Some(family), Some(model)) => format!(" (family {family} model {model})"),
            _ => String::new(),
        };
        let units = match A::PRECISION {
            Precision::Bf16 => format!(", bf16 by {}", self.units()),
            Precision::F32 | Precision::F64 => String::new(),
        };
        format!("{name}{numbers}, {} threads{units}", rayon::current_num_threads())
    }

    /// Size of the operands on which the memory ceiling is measured. If a server's caches are larger, calls
    /// and ceiling benefit equally.
    fn cold_bytes(&self) -> u64 {
        crate::perf::ceilings::COPIED_BYTES
    }

    fn yardstick(&self, bound: Bound) -> Option<Box<TimedCall<'static, Self>>> {
        static YARDSTICK: LazyLock<Yardstick> = LazyLock::new(Yardstick::new);
        Some(Box::new(move |_, _| {
            YARDSTICK.run(bound);
            Ok(())
        }))
    }

    fn rates(&self) -> Result<Option<Rates>> {
        let ceilings = Ceilings::measure((A::PRECISION == Precision::Bf16).then_some(self.units()));
        Ok(Some(Rates { memory: crate::perf::ceilings::memory(ceilings.copy), product: ceilings.gemm() }))
    }
}

impl<A: Element> BenchBackend for Kernels<Emulator, A> {
    fn hardware(&self) -> String {
        self.device().properties().name.clone()
    }

    fn cold_bytes(&self) -> u64 {
        u64::MAX
    }

    /// Emulated time says nothing about a GPU.
    fn rates(&self) -> Result<Option<Rates>> {
        Ok(None)
    }
}

impl<A: Element> BenchBackend for Kernels<Driver, A> {
    fn hardware(&self) -> String {
        self.device().properties().name.clone()
    }

    /// Twice the larger of the L2 caches: 50 MB on H100 and H200, 40 MB on A100 (data sheets).
    fn cold_bytes(&self) -> u64 {
        100 << 20
    }

    fn rates(&self) -> Result<Option<Rates>> {
        let (memory, mut product) = (copy(self.device())?, 0.0f64);
        let effort = Effort {
            repeats: 10,
            warm_up: 3,
            min_samples: 5,
            sample: std::time::Duration::from_millis(20),
            budget: std::time::Duration::from_secs(2),
        };
        for side in [4096, 8192] {
            let dims = LinearDims { tokens: side, inputs: side, outputs: side };
            let work = Work::from(Linear { pass: Pass::Forward, dims });
            let operands = work.operands();
            let mut sets = vec![OperandSet::new(self, &operands)?];
            sets[0].fill(self, &operands, |at, place| operands[at].value(Self::PRECISION, place))?;
            let best = self.with_peers(|peers| -> Result<f64> {
                let own = |on: &Self, set: &mut OperandSet<Self>| work.call(on, set.cursor());
                let mut calls: Vec<Box<TimedCall<'_, Self>>> = vec![Box::new(own)];
                for peer in &peers.present {
                    calls.extend(peer.prepare(self, &work, &mut sets[0])?);
                }
                let calls: Vec<&TimedCall<'_, Self>> = calls.iter().map(|call| &**call).collect();
                let timings = interleaved(self, &calls, &mut sets, &effort)?;
                Ok(timings.iter().flat_map(|t| &t.seconds).copied().fold(f64::INFINITY, f64::min))
            })?;
            product = product.max(dims.flops() as f64 / best);
        }
        Ok(Some(Rates { memory, product }))
    }

    fn joules(&self) -> Option<f64> {
        counters(self)?.energy().ok()
    }

    fn power_limit(&self) -> Option<f64> {
        counters(self)?.power_limit().ok()
    }

    fn with_peers<R>(&self, work: impl FnOnce(&Peers<'_, Self>) -> R) -> R {
        peer::with_cublaslt(self, work)
    }
}

/// NVML's counters of a backend's GPU.
fn counters(on: &impl Backend) -> Option<nvml::NvmlGpu<'static>> {
    static LIBRARY: LazyLock<Option<nvml_wrapper::Nvml>> = LazyLock::new(|| nvml::load().ok());
    nvml::NvmlGpu::new(LIBRARY.as_ref()?, on.hardware_id().as_deref()).ok()
}

/// Bytes per second of the driver's copy of 1 GiB, counting reads and writes.
fn copy(driver: &Driver) -> Result<f64> {
    const BYTES: usize = 1 << 30;
    let (from, mut to) = (driver.allocate(BYTES)?, driver.allocate(BYTES)?);
    let mut best = f64::INFINITY;
    for _ in 0..20 {
        let start = driver.stamp()?;
        driver.copy(&from, &mut to, BYTES)?;
        let end = driver.stamp()?;
        best = best.min(driver.seconds_between(&start, &end)?);
    }
    Ok(2.0 * BYTES as f64 / best)
}
