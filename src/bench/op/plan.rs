//! Plan of an op on a GPU that need not be present: bytes and FLOPs of its contract at the GPU's
//! rates, and the waves of its launch.
//!
//! ```text
//! floor     = max(bytes / copy rate, FLOPs / rate of a large bf16 GEMM)
//! predicted = launch + floor * waves rounded up / waves     a wave: all blocks that run at once
//! ```
//!
//! FLOPs that the kernel does without tensor cores take longer than the floor says. A launch of less
//! than a wave is predicted as if its blocks had the whole bandwidth.

use std::fmt;

use super::super::occupancy::{BlockNeeds, Multiprocessor};
use super::super::sheet::SheetCall;
use crate::backend::contract::Precision;
use crate::backend::kernels::own::Resources;
use crate::perf::data_sheets::{DATA_SHEETS, data_sheet};
use crate::perf::predict::LAUNCH_SECONDS;
use crate::{Error, Result};

/// Floor and predicted time of an entry point on a GPU.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Name of the entry point.
    pub kernel: &'static str,
    /// Precision in which the entry point stores activations.
    pub precision: Precision,
    /// Name of the GPU in the list of data sheets.
    pub gpu: &'static str,
    /// Bytes that the operands move.
    pub bytes: u64,
    /// Floating-point operations.
    pub flops: u64,
    /// Microseconds of the bytes at the rate of a copy.
    pub by_bytes_us: f64,
    /// Microseconds of the FLOPs at the rate of a large GEMM.
    pub by_flops_us: f64,
    /// The larger of `by_bytes_us` and `by_flops_us`.
    pub floor_us: f64,
    /// Blocks of the launch.
    pub blocks: u64,
    /// Blocks of the launch divided by the blocks that the GPU runs at once.
    pub waves: f64,
    /// Blocks that fit on a multiprocessor. This is an upper bound unless the file was compiled for GPUs,
    /// which gives registers and static shared memory.
    pub blocks_per_processor: u32,
    /// Resource that limits the blocks of a multiprocessor.
    pub limit: &'static str,
    /// Predicted microseconds of a call.
    pub predicted_us: f64,
}

/// Plan of a launch. `resources` are reports of ptxas.
pub(super) fn of(call: &SheetCall, gpu: &str, resources: Option<&[Resources]>) -> Result<Plan> {
    let Some(sheet) = data_sheet(gpu) else {
        let known: Vec<&str> = DATA_SHEETS.iter().map(|sheet| sheet.name).collect();
        return Err(Error::Usage(format!("{gpu} is not a known GPU; these are {}", known.join(", "))));
    };
    let target = if sheet.compute_capability.0 == 9 { "sm_90a" } else { "sm_80" };
    let launch = &call.launches[0];
    let report = resources.unwrap_or_default().iter().find(|r| r.kernel == launch.kernel.name && r.target == target);
    let needs = BlockNeeds {
        threads: launch.kernel.threads,
        registers: report.map(|r| r.registers),
        shared: launch.shared_bytes + report.map_or(0, |r| r.shared as usize),
    };
    let (per_processor, limit) = Multiprocessor::of(sheet.compute_capability).blocks(needs);
    let blocks: u64 = launch.grid.0.iter().map(|&n| u64::from(n)).product();
    let held = u64::from(per_processor.max(1)) * sheet.processors as u64;
    let waves = blocks as f64 / held as f64;
    let (bytes, flops) = (call.bytes(), call.flops);
    let (by_bytes, by_flops) = (bytes as f64 / sheet.copy(), flops as f64 / sheet.product());
    let floor = by_bytes.max(by_flops);
    let unfilled = if waves > 1.0 { waves.ceil() / waves } else { 1.0 };
    Ok(Plan {
        kernel: launch.kernel.name,
        precision: call.precision,
        gpu: sheet.name,
        bytes,
        flops,
        by_bytes_us: 1e6 * by_bytes,
        by_flops_us: 1e6 * by_flops,
        floor_us: 1e6 * floor,
        blocks,
        waves,
        blocks_per_processor: per_processor,
        limit,
        predicted_us: 1e6 * (LAUNCH_SECONDS + floor * unfilled),
    })
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bound = if self.by_flops_us > self.by_bytes_us { "FLOPs" } else { "bytes" };
        write!(
            f,
            "{} on {}: {} bytes, {} FLOPs; floor {:.2} us, set by {bound}; {} blocks, {:.2} waves of {} per multiprocessor \
             (limit: {}); predicted {:.2} us",
            self.kernel,
            self.gpu,
            self.bytes,
            self.flops,
            self.floor_us,
            self.blocks,
            self.waves,
            self.blocks_per_processor,
            self.limit,
            self.predicted_us
        )
    }
}
