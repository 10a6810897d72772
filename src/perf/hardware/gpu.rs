//! Readings of a GPU, and the meter that collects them.

use std::collections::BTreeMap;

use super::{Meter, Sample};

/// Reason why a reading is unavailable.
pub type Unavailable = String;

/// Activity since the previous reading, as shares from 0 to 1. Each of them may be unavailable separately.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Activity {
    /// Share of time with a warp on a multiprocessor.
    pub sm: Option<f64>,
    /// Resident warps as a share of the maximum.
    pub occupancy: Option<f64>,
    /// Share of time in which tensor cores were active.
    pub tensor: Option<f64>,
    /// Share of the memory bandwidth that was used.
    pub dram: Option<f64>,
}

/// Readings of a GPU, each of which may fail separately. Units are those of [`Sample`].
pub trait GpuSensors {
    /// Share of time in which kernels ran, and in which memory was accessed.
    fn busy(&mut self) -> Result<(f64, f64), Unavailable>;
    /// Clock of the multiprocessors in MHz.
    fn sm_clock(&mut self) -> Result<f64, Unavailable>;
    /// Clock of the memory in MHz.
    fn memory_clock(&mut self) -> Result<f64, Unavailable>;
    /// Watts.
    fn power(&mut self) -> Result<f64, Unavailable>;
    /// Limit of the power in watts.
    fn power_limit(&mut self) -> Result<f64, Unavailable>;
    /// Joules since the driver was loaded.
    fn energy(&mut self) -> Result<f64, Unavailable>;
    /// Degrees Celsius.
    fn temperature(&mut self) -> Result<f64, Unavailable>;
    /// Reasons for a lower clock.
    fn throttle(&mut self) -> Result<Vec<String>, Unavailable>;
    /// Used and total memory in bytes.
    fn memory(&mut self) -> Result<(u64, u64), Unavailable>;
    /// Bytes per second to the GPU.
    fn pcie_in(&mut self) -> Result<f64, Unavailable>;
    /// Bytes per second from the GPU.
    fn pcie_out(&mut self) -> Result<f64, Unavailable>;
    /// Activity since the previous reading.
    fn activity(&mut self) -> Result<Activity, Unavailable>;
}

/// Reads a GPU. A failed reading is absent from the sample, and the reason of its first failure is kept. A
/// reading that was never available is not requested again after [`MAX_FAILURES`] failures, because some
/// failures take long.
pub struct GpuMeter<C> {
    gpu: C,
    fields: BTreeMap<&'static str, Field>,
}

#[derive(Default)]
struct Field {
    reason: Option<Unavailable>,
    failures: u32,
    given: bool,
}

/// Number of failures after which a reading that was never available is given up.
pub const MAX_FAILURES: u32 = 3;

impl<C: GpuSensors> GpuMeter<C> {
    /// A meter of these sensors.
    pub fn new(gpu: C) -> Self {
        Self { gpu, fields: BTreeMap::new() }
    }

    fn ask<T>(&mut self, name: &'static str, of: impl FnOnce(&mut C) -> Result<T, Unavailable>) -> Option<T> {
        let field = self.fields.entry(name).or_default();
        if !field.given && field.failures >= MAX_FAILURES {
            return None;
        }
        match of(&mut self.gpu) {
            Ok(value) => {
                field.given = true;
                Some(value)
            }
            Err(reason) => {
                field.failures += 1;
                field.reason.get_or_insert(reason);
                None
            }
        }
    }
}

impl<C: GpuSensors> Meter for GpuMeter<C> {
    fn read(&mut self, sample: &mut Sample) {
        (sample.gpu_busy, sample.memory_busy) = self.ask("busy", C::busy).unzip();
        sample.sm_clock_mhz = self.ask("sm_clock", C::sm_clock);
        sample.memory_clock_mhz = self.ask("memory_clock", C::memory_clock);
        sample.power_w = self.ask("power", C::power);
        sample.power_limit_w = self.ask("power_limit", C::power_limit);
        sample.energy_j = self.ask("energy", C::energy);
        sample.temperature_c = self.ask("temperature", C::temperature);
        sample.throttle = self.ask("throttle", C::throttle);
        (sample.gpu_memory_bytes, sample.gpu_memory_total_bytes) = self.ask("memory", C::memory).unzip();
        sample.pcie_in_bytes_per_s = self.ask("pcie_in", C::pcie_in);
        sample.pcie_out_bytes_per_s = self.ask("pcie_out", C::pcie_out);
        let activity = self.ask("activity", C::activity).unwrap_or_default();
        sample.sm_active = activity.sm;
        sample.sm_occupancy = activity.occupancy;
        sample.tensor_active = activity.tensor;
        sample.dram_active = activity.dram;
    }

    fn missing(&self) -> Vec<(String, String)> {
        let of = |(name, field): (&&'static str, &Field)| Some(((*name).to_owned(), field.reason.clone()?));
        self.fields.iter().filter_map(of).collect()
    }
}
