//! `--device` and `--dtype`: the one place where a backend is chosen.

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::backend::Backend;
use crate::backend::cpu::Cpu;
use crate::backend::reference::Reference;
use crate::{Error, Result};

/// `--device`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Device {
    /// The fastest there is: this build knows the CPU
    Auto,
    /// f32 on all cores
    Cpu,
    /// f64 textbook loops on one core, to check others against
    Reference,
}

/// `--dtype`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
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
    /// Precision of weights and activations [default: f32; f64 on the reference device]
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
        match (self.device, self.dtype) {
            (Device::Auto | Device::Cpu, None | Some(Dtype::F32)) if probe => job.run(&Cpu::probed()),
            (Device::Auto | Device::Cpu, None | Some(Dtype::F32)) => job.run(&Cpu::new()),
            (Device::Reference, None | Some(Dtype::F64)) if probe => {
                Err(Error::Usage("the reference device is not made to be fast; --profile needs another one".into()))
            }
            (Device::Reference, None | Some(Dtype::F64)) => job.run(&Reference),
            (Device::Auto | Device::Cpu, Some(Dtype::F64)) => {
                Err(Error::Usage("the cpu device computes in f32; use --device reference for f64".into()))
            }
            (Device::Reference, Some(Dtype::F32)) => {
                Err(Error::Usage("the reference device computes in f64; leave out --dtype".into()))
            }
        }
    }
}
