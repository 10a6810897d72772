//! Hardware readings during a run: clocks, power, activity and memory, sampled by a separate
//! thread. A reading that a GPU, a driver or a container does not provide is absent; it never makes
//! the run fail.
//!
//! - [`gpu`]: readings of a GPU, one method each, and the meter that turns failures into absent
//!   values
//! - [`nvml`]: GPUs through NVIDIA's management library; [`host`]: the process and its machine
//! - [`sampler`]: the sampling thread

pub mod gpu;
pub mod host;
pub mod nvml;
pub mod sampler;

use serde::{Deserialize, Serialize};

/// One set of readings. Shares are from 0 to 1.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sample {
    /// Seconds since the sampler started.
    pub time_s: f64,
    /// Share of time in which a kernel ran, over the driver's last sampling period.
    pub gpu_busy: Option<f64>,
    /// Like [`Sample::gpu_busy`], for memory accesses.
    pub memory_busy: Option<f64>,
    /// Clock of the multiprocessors.
    pub sm_clock_mhz: Option<f64>,
    /// Clock of the memory.
    pub memory_clock_mhz: Option<f64>,
    /// Watts.
    pub power_w: Option<f64>,
    /// Limit of the power in watts.
    pub power_limit_w: Option<f64>,
    /// Energy since the driver was loaded.
    pub energy_j: Option<f64>,
    /// Degrees Celsius.
    pub temperature_c: Option<f64>,
    /// Reasons for throttled clocks; empty if the clocks are not throttled.
    pub throttle: Option<Vec<String>>,
    /// Memory in use on the GPU.
    pub gpu_memory_bytes: Option<u64>,
    /// Memory of the GPU.
    pub gpu_memory_total_bytes: Option<u64>,
    /// PCIe bytes per second to the GPU.
    pub pcie_in_bytes_per_s: Option<f64>,
    /// PCIe bytes per second from the GPU.
    pub pcie_out_bytes_per_s: Option<f64>,
    /// Share of time since the previous reading in which SMs were active. This and the next three need Hopper
    /// or newer (NVML's GPM).
    pub sm_active: Option<f64>,
    /// Resident warps as a share of the maximum.
    pub sm_occupancy: Option<f64>,
    /// Share of time in which tensor cores were active.
    pub tensor_active: Option<f64>,
    /// Share of the memory bandwidth that was used.
    pub dram_active: Option<f64>,
    /// CPU cores used by this process.
    pub processors_used: Option<f64>,
    /// CPU cores used by all other processes.
    pub processors_others: Option<f64>,
    /// Resident memory of the process.
    pub resident_bytes: Option<u64>,
    /// Peak resident memory of the process.
    pub peak_resident_bytes: Option<u64>,
}

/// A source of readings. It is created and used on the sampler's thread.
pub trait Meter {
    /// Writes its readings into a sample.
    fn read(&mut self, sample: &mut Sample);

    /// Readings that were unavailable, each once, with the reason.
    fn missing(&self) -> Vec<(String, String)>;
}
