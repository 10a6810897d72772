//! GPU readings through NVIDIA's management library (NVML). The library comes with the driver and
//! is loaded on demand.

use nvml_wrapper::enum_wrappers::device::{Clock, PcieUtilCounter, TemperatureSensor};
use nvml_wrapper::enums::gpm::GpmMetricId;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::gpm::gpm_metrics_get;
use nvml_wrapper::{Device, GpmSample, Nvml};

use super::gpu::{Activity, GpuSensors, Unavailable};

/// NVML handle of a CUDA device.
pub struct NvmlGpu<'n> {
    nvml: &'n Nvml,
    device: Device<'n>,
    /// Counters of the previous reading.
    before: Option<GpmSample<'n>>,
}

/// Loads the library. The error says in one sentence what is missing.
pub fn load() -> Result<Nvml, Unavailable> {
    Nvml::init().map_err(|why| format!("NVML (libnvidia-ml, part of NVIDIA's driver) is unavailable: {why}"))
}

impl<'n> NvmlGpu<'n> {
    /// Opens the GPU with this UUID (`GPU-...`, as the CUDA driver reports it). Without a UUID it
    /// opens the only GPU of the machine.
    pub fn new(nvml: &'n Nvml, uuid: Option<&str>) -> Result<Self, Unavailable> {
        let device = match uuid {
            Some(uuid) => nvml.device_by_uuid(uuid),
            None if nvml.device_count().map_err(missing)? == 1 => nvml.device_by_index(0),
            None => {
                return Err("there are several GPUs, and the driver does not report the UUID of the one in use".into());
            }
        };
        Ok(Self { nvml, device: device.map_err(missing)?, before: None })
    }
}

fn missing(why: NvmlError) -> Unavailable {
    why.to_string()
}

/// Requested activity counters.
const METRICS: [GpmMetricId; 4] =
    [GpmMetricId::SmUtil, GpmMetricId::SmOccupancy, GpmMetricId::AnyTensorUtil, GpmMetricId::DramBwUtil];

impl GpuSensors for NvmlGpu<'_> {
    fn busy(&mut self) -> Result<(f64, f64), Unavailable> {
        let busy = self.device.utilization_rates().map_err(missing)?;
        Ok((f64::from(busy.gpu) / 100.0, f64::from(busy.memory) / 100.0))
    }

    fn sm_clock(&mut self) -> Result<f64, Unavailable> {
        self.device.clock_info(Clock::SM).map(f64::from).map_err(missing)
    }

    fn memory_clock(&mut self) -> Result<f64, Unavailable> {
        self.device.clock_info(Clock::Memory).map(f64::from).map_err(missing)
    }

    fn power(&mut self) -> Result<f64, Unavailable> {
        self.device.power_usage().map(|milliwatts| 1e-3 * f64::from(milliwatts)).map_err(missing)
    }

    fn power_limit(&mut self) -> Result<f64, Unavailable> {
        self.device.power_management_limit().map(|milliwatts| 1e-3 * f64::from(milliwatts)).map_err(missing)
    }

    fn energy(&mut self) -> Result<f64, Unavailable> {
        self.device.total_energy_consumption().map(|millijoules| 1e-3 * millijoules as f64).map_err(missing)
    }

    fn temperature(&mut self) -> Result<f64, Unavailable> {
        self.device.temperature(TemperatureSensor::Gpu).map(f64::from).map_err(missing)
    }

    fn throttle(&mut self) -> Result<Vec<String>, Unavailable> {
        let reasons = self.device.current_throttle_reasons().map_err(missing)?;
        Ok(reasons.iter_names().map(|(name, _)| name.to_lowercase()).filter(|name| name != "none").collect())
    }

    fn memory(&mut self) -> Result<(u64, u64), Unavailable> {
        self.device.memory_info().map(|memory| (memory.used, memory.total)).map_err(missing)
    }

    /// NVML reports KiB per second over the last 20 ms.
    fn pcie_in(&mut self) -> Result<f64, Unavailable> {
        self.device.pcie_throughput(PcieUtilCounter::Receive).map(|kib| 1024.0 * f64::from(kib)).map_err(missing)
    }

    fn pcie_out(&mut self) -> Result<f64, Unavailable> {
        self.device.pcie_throughput(PcieUtilCounter::Send).map(|kib| 1024.0 * f64::from(kib)).map_err(missing)
    }

    /// Activity since the previous reading; all absent in the first.
    fn activity(&mut self) -> Result<Activity, Unavailable> {
        if !self.device.gpm_support().map_err(missing)? {
            return Err("activity counters need a Hopper or newer GPU".into());
        }
        let now = self.device.gpm_sample().map_err(missing)?;
        let Some(before) = self.before.replace(now) else { return Ok(Activity::default()) };
        let Some(now) = &self.before else { return Ok(Activity::default()) };
        let metrics = gpm_metrics_get(self.nvml, &before, now, &METRICS).map_err(missing)?;
        let share = |at: usize| metrics.get(at)?.as_ref().ok().map(|metric| metric.value / 100.0);
        Ok(Activity { sm: share(0), occupancy: share(1), tensor: share(2), dram: share(3) })
    }
}
