//! What the hardware does beside a run: clocks, power, activity, memory, sampled by a thread of its own. A number that a card,
//! a driver or a container does not give is absent, and nothing ever fails for it.
//!
//! - [`card`]: a graphics card's numbers, one method each, and the meter that turns failures into absent numbers
//! - [`nvml`]: cards through NVIDIA's management library; [`host`]: the process and its machine
//! - [`sampler`]: the thread

pub mod card;
pub mod host;
pub mod nvml;
pub mod sampler;

use serde::{Deserialize, Serialize};

/// One reading. Shares are 0 to 1.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sample {
    /// Seconds since the sampler was started.
    pub time_s: f64,
    /// Share of the time in which a kernel ran, over the driver's last period.
    pub gpu_busy: Option<f64>,
    /// As [`Sample::gpu_busy`], for the memory.
    pub memory_busy: Option<f64>,
    pub sm_clock_mhz: Option<f64>,
    pub memory_clock_mhz: Option<f64>,
    pub power_w: Option<f64>,
    pub power_limit_w: Option<f64>,
    /// Energy since the driver was loaded.
    pub energy_j: Option<f64>,
    pub temperature_c: Option<f64>,
    /// Why clocks are held back; empty for nothing.
    pub throttle: Option<Vec<String>>,
    pub gpu_memory_bytes: Option<u64>,
    pub gpu_memory_total_bytes: Option<u64>,
    /// To the card and from it.
    pub pcie_in_bytes_per_s: Option<f64>,
    pub pcie_out_bytes_per_s: Option<f64>,
    /// Hopper and newer (NVML's GPM), since the reading before: multiprocessors busy, warps resident, tensor cores busy,
    /// bandwidth of memory used.
    pub sm_active: Option<f64>,
    pub sm_occupancy: Option<f64>,
    pub tensor_active: Option<f64>,
    pub dram_active: Option<f64>,
    /// Processors kept busy by this process, and by all others.
    pub processors_used: Option<f64>,
    pub processors_others: Option<f64>,
    /// Memory that the process has, and the most it had.
    pub resident_bytes: Option<u64>,
    pub peak_resident_bytes: Option<u64>,
}

/// Something that readings are taken of. It is made and used on the sampler's thread.
pub trait Meter {
    /// Puts its numbers into a sample.
    fn read(&mut self, sample: &mut Sample);

    /// Numbers that it could not give, with the reason; each once.
    fn missing(&self) -> Vec<(String, String)>;
}
