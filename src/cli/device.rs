//! `--device` and `--dtype`: the only place where a backend is selected.

use std::fmt;
use std::str::FromStr;

use clap::{Args, ValueEnum};
use half::bf16;
use serde::{Deserialize, Serialize};

use crate::backend::Backend;
use crate::backend::cpu::{Cpu, Units};
use crate::backend::kernels::Kernels;
use crate::backend::kernels::driver::{self, Driver};
use crate::backend::kernels::emulator::Emulator;
use crate::backend::kernels::own;
use crate::backend::reference::Reference;
use crate::ranks::world;
use crate::terminal::complain;
use crate::{Error, Result};

/// Value of `--device`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// The first GPU that the kernels support, else the CPU.
    Auto,
    /// f32 or bf16 on all cores.
    Cpu,
    /// The CUDA kernels on the GPU with this number (sm_80 or newer), in bf16 or f32.
    Cuda(usize),
    /// The CUDA kernels on the CPU, emulated thread by thread; for small models and for kernel
    /// development.
    Emulator,
    /// f64 textbook loops on one core, as an oracle for the other backends.
    Reference,
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            "emulator" => Ok(Self::Emulator),
            "reference" => Ok(Self::Reference),
            _ => {
                let ordinal = text.strip_prefix("cuda:").and_then(|n| n.parse().ok());
                ordinal.map(Self::Cuda).ok_or_else(|| "one of auto, cpu, cuda, cuda:N, emulator, reference".into())
            }
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(0) => f.write_str("cuda"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
            Self::Emulator => f.write_str("emulator"),
            Self::Reference => f.write_str("reference"),
        }
    }
}

impl Serialize for Device {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// Value of `--dtype`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    #[value(alias = "bfloat16")]
    Bf16,
    #[value(alias = "float32")]
    F32,
    #[value(alias = "float64")]
    F64,
}

/// Device and precision.
#[derive(Args, Clone, Copy, Debug, Serialize)]
pub struct DeviceArgs {
    /// Device to compute on: auto (the first GPU if there is one, else the CPU), cpu, cuda, cuda:N
    /// (GPU number N), emulator (the CUDA kernels on the CPU, for small models), reference (f64 on
    /// one core)
    #[arg(long, default_value = "auto")]
    pub device: Device,
    /// Precision of weights and activations [default: bf16 on cuda and emulator; f64 on reference;
    /// f32 on cpu]
    #[arg(long, alias = "torch-dtype", value_enum)]
    pub dtype: Option<Dtype>,
}

/// Work that runs on any backend.
pub trait Job: Send {
    type Output: Send;
    /// Runs the work.
    fn run<B: Backend>(self, backend: &B) -> Result<Self::Output>;
}

/// Runs `work` on a thread of the pool. On such a thread, an op starts its tasks without a thread switch,
/// which can cost more time than a small op. `work` must not wait for a thread that itself waits for the
/// pool.
pub fn on_pool<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    rayon::scope(|_| work())
}

/// Opens the CPU in bf16 on the selected vector units, and prints a note if they are not faster than f32.
pub(super) fn bf16_cpu() -> Result<Cpu<bf16>> {
    let units = Units::chosen()?;
    if let Some(why) = units.slow() {
        complain(&format!(
            "note: --dtype bf16 is not faster than f32 here, because {why}; it halves the memory of activations"
        ));
    }
    Ok(Cpu::on(units))
}

impl DeviceArgs {
    /// The same arguments as flags, without defaults.
    pub fn flags(self) -> Vec<String> {
        let device = (self.device != Device::Auto).then(|| ["--device".to_owned(), self.device.to_string()]);
        let dtype =
            self.dtype.and_then(|dtype| Some(["--dtype".to_owned(), dtype.to_possible_value()?.get_name().into()]));
        device.into_iter().chain(dtype).flatten().collect()
    }

    /// Whether these arguments select the CPU.
    pub(super) fn is_cpu(self) -> bool {
        match self.device {
            Device::Auto => Driver::new(world::gpu().unwrap_or(0)).is_err(),
            device => device == Device::Cpu,
        }
    }

    /// The same arguments, with bf16 if they name no precision and bf16 is faster than f32 on this CPU.
    pub(super) fn fastest_on_cpu(self) -> Self {
        let fast = self.dtype.is_none() && Units::chosen_or_f32().slow().is_none();
        Self { dtype: if fast { Some(Dtype::Bf16) } else { self.dtype }, ..self }
    }

    /// Runs `job` on the selected backend.
    pub fn run<J: Job>(self, job: J) -> Result<J::Output> {
        self.run_probed(job, false)
    }

    /// Runs `job` on the selected backend. If `probe` is true, every op call is timed.
    pub fn run_probed<J: Job>(self, job: J, probe: bool) -> Result<J::Output> {
        if probe && !matches!(self.device, Device::Auto | Device::Cpu) {
            return Err(Error::Usage(
                "--profile compares ops with the CPU's ceilings, so it needs the cpu device; leave out --device".into(),
            ));
        }
        let own_kernels = std::env::var_os(own::VARIABLE).is_some_and(|folder| !folder.is_empty());
        if own_kernels && matches!(self.device, Device::Cpu | Device::Reference) {
            complain(&format!(
                "warning: {} has no effect on device {}, which runs no kernels",
                own::VARIABLE,
                self.device
            ));
        }
        match (self.device, self.dtype) {
            (Device::Auto, _) if !probe => match Driver::new(world::gpu().unwrap_or(0)) {
                Ok(driver) => Self { device: Device::Cuda(0), ..self }.on_gpu(driver, job),
                Err(why) if own_kernels && driver::is_present() => Err(why),
                Err(why) => {
                    // Without a driver, the machine has no usable GPU, so running on the CPU needs no
                    // warning.
                    if driver::is_present() {
                        complain(&format!("warning: running on the CPU: {why}"));
                    }
                    Self { device: Device::Cpu, ..self }.run_probed(job, probe)
                }
            },
            (Device::Auto | Device::Cpu, None | Some(Dtype::F32)) if probe => on_pool(|| job.run(&Cpu::probed())),
            (Device::Auto | Device::Cpu, None | Some(Dtype::F32)) => on_pool(|| job.run(&Cpu::new())),
            (Device::Auto | Device::Cpu, Some(Dtype::F64)) => {
                Err(Error::Usage("the cpu device computes in f32 or bf16; use --device reference for f64".into()))
            }
            (Device::Auto | Device::Cpu, Some(Dtype::Bf16)) => {
                let cpu = bf16_cpu()?;
                let cpu = if probe { cpu.observed() } else { cpu };
                on_pool(|| job.run(&cpu))
            }
            (Device::Reference, None | Some(Dtype::F64)) => job.run(&Reference),
            (Device::Reference, Some(Dtype::F32 | Dtype::Bf16)) => {
                Err(Error::Usage("the reference device computes in f64; leave out --dtype".into()))
            }
            (Device::Cuda(_) | Device::Emulator, Some(Dtype::F64)) => {
                Err(Error::Usage("kernels compute in bf16 or f32; use --device reference for f64".into()))
            }
            (Device::Cuda(ordinal), _) => self.on_gpu(Driver::new(world::gpu().unwrap_or(ordinal))?, job),
            (Device::Emulator, None | Some(Dtype::Bf16)) => job.run(&Kernels::<_, bf16>::new(Emulator::new()?)),
            (Device::Emulator, Some(Dtype::F32)) => job.run(&Kernels::<_, f32>::new(Emulator::new()?)),
        }
    }

    /// Runs `job` on the selected backend, and times every op call.
    pub fn run_observed<J: Job>(self, job: J) -> Result<J::Output> {
        match (self.device, self.dtype) {
            (Device::Auto | Device::Cpu, _) if self.device == Device::Cpu || Driver::new(0).is_err() => {
                Self { device: Device::Cpu, ..self }.run_probed(job, true)
            }
            (Device::Auto | Device::Cuda(_), dtype) => {
                let ordinal = if let Device::Cuda(ordinal) = self.device { ordinal } else { 0 };
                let driver = Driver::new(ordinal)?;
                match dtype {
                    None | Some(Dtype::Bf16) => job.run(&Kernels::<_, bf16>::probed(driver)),
                    Some(Dtype::F32) => job.run(&Kernels::<_, f32>::probed(driver)),
                    Some(Dtype::F64) => self.run(job),
                }
            }
            (Device::Emulator, None | Some(Dtype::Bf16)) => job.run(&Kernels::<_, bf16>::probed(Emulator::new()?)),
            (Device::Emulator, Some(Dtype::F32)) => job.run(&Kernels::<_, f32>::probed(Emulator::new()?)),
            (Device::Reference, _) => Err(Error::Usage(
                "--device reference: the oracle cannot be studied; choose cpu, cuda or emulator".into(),
            )),
            // `run` rejects the remaining combinations, with the same messages.
            (Device::Cpu | Device::Emulator, _) => self.run(job),
        }
    }

    fn on_gpu<J: Job>(self, driver: Driver, job: J) -> Result<J::Output> {
        let calls = world::calls();
        if world::is_shared() && calls.is_none() {
            return Err(Error::Device(
                "several ranks on GPUs must connect over NCCL, but these are connected over MPI; pass --device cuda or \
                 --device cpu"
                    .into(),
            ));
        }
        match self.dtype {
            None | Some(Dtype::Bf16) => job.run(&Kernels::<_, bf16>::new(driver).with_ranks(calls)),
            Some(Dtype::F32) => job.run(&Kernels::<_, f32>::new(driver).with_ranks(calls)),
            Some(Dtype::F64) => {
                Err(Error::Usage("kernels compute in bf16 or f32; use --device reference for f64".into()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_on_the_cpu_run_on_a_thread_of_the_pool() {
        struct Where;
        impl Job for Where {
            type Output = bool;
            fn run<B: Backend>(self, _: &B) -> Result<bool> {
                Ok(rayon::current_thread_index().is_some())
            }
        }
        for dtype in [None, Some(Dtype::Bf16)] {
            let cpu = DeviceArgs { device: Device::Cpu, dtype };
            assert!(cpu.run(Where).unwrap());
            assert!(cpu.run_probed(Where, true).unwrap());
        }
    }
}
