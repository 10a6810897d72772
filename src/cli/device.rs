//! `--device` and `--dtype`: the one place where a backend is chosen.

use clap::{Args, ValueEnum};
use half::bf16;
use serde::{Deserialize, Serialize};

use crate::backend::Backend;
use crate::backend::cpu::Cpu;
use crate::backend::kernels::Kernels;
use crate::backend::kernels::driver::Driver;
use crate::backend::kernels::emulator::Emulator;
use crate::backend::reference::Reference;
use crate::{Error, Result};

/// `--device`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Device {
    /// The CPU
    Auto,
    /// f32 on all cores
    Cpu,
    /// The CUDA kernels on a GPU (sm_80 or newer), bf16 or f32
    Cuda,
    /// The CUDA kernels on the CPU, thread by thread: for small models, and for those who write kernels
    Emulator,
    /// f64 textbook loops on one core, to check others against
    Reference,
}

/// `--dtype`.
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

/// Where and how precisely to compute.
#[derive(Args, Clone, Copy, Debug, Serialize)]
pub struct DeviceArgs {
    /// Device to compute on
    #[arg(long, value_enum, default_value = "auto")]
    pub device: Device,
    /// Precision of weights and activations [default: bf16 on cuda; f64 on the reference device; else f32]
    #[arg(long, alias = "torch-dtype", value_enum)]
    pub dtype: Option<Dtype>,
}

/// Work that runs on any backend.
pub trait Job {
    type Output;
    /// Does the work.
    fn run<B: Backend>(self, backend: &B) -> Result<Self::Output>;
}

impl DeviceArgs {
    /// Runs `job` on the chosen backend.
    pub fn run<J: Job>(self, job: J) -> Result<J::Output> {
        self.run_probed(job, false)
    }

    /// As [`DeviceArgs::run`]; `probe` times every op call.
    pub fn run_probed<J: Job>(self, job: J, probe: bool) -> Result<J::Output> {
        if probe && !matches!(self.device, Device::Auto | Device::Cpu) {
            return Err(Error::Usage(
                "--profile holds the ops of the cpu device against the CPU's own ceilings; leave out --device".into(),
            ));
        }
        match (self.device, self.dtype) {
            (Device::Auto | Device::Cpu, None | Some(Dtype::F32)) if probe => job.run(&Cpu::probed()),
            (Device::Auto | Device::Cpu, None | Some(Dtype::F32)) => job.run(&Cpu::new()),
            (Device::Auto | Device::Cpu, Some(Dtype::F64)) => {
                Err(Error::Usage("the cpu device computes in f32; use --device reference for f64".into()))
            }
            (Device::Auto | Device::Cpu, Some(Dtype::Bf16)) => Err(Error::Usage(
                "the cpu device computes in f32; bf16 is for --device cuda, and for --device emulator".into(),
            )),
            (Device::Reference, None | Some(Dtype::F64)) => job.run(&Reference),
            (Device::Reference, Some(Dtype::F32 | Dtype::Bf16)) => {
                Err(Error::Usage("the reference device computes in f64; leave out --dtype".into()))
            }
            (Device::Cuda, None | Some(Dtype::Bf16)) => job.run(&Kernels::<_, bf16>::new(Driver::new(0)?)),
            (Device::Cuda, Some(Dtype::F32)) => job.run(&Kernels::<_, f32>::new(Driver::new(0)?)),
            (Device::Emulator, Some(Dtype::Bf16)) => job.run(&Kernels::<_, bf16>::new(Emulator::new()?)),
            (Device::Emulator, None | Some(Dtype::F32)) => job.run(&Kernels::<_, f32>::new(Emulator::new()?)),
            (Device::Cuda | Device::Emulator, Some(Dtype::F64)) => {
                Err(Error::Usage("kernels compute in bf16 or f32; use --device reference for f64".into()))
            }
        }
    }
}
