//! Number of waves of a launch: tiles divided by the blocks that a GPU holds at a time.

use serde::Serialize;

use super::GpuRates;
use crate::backend::contract::uses_gemm_rate;
use crate::backend::kernels::device::Resources;
use crate::backend::kernels::launchers::{KERNELS, RESOURCES};
use crate::backend::kernels::rehearsal::Launched;

/// Launches of one kernel with the same number of tiles.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LaunchEstimate {
    /// Name of the entry point.
    pub kernel: &'static str,
    /// Number of launches.
    pub launches: u64,
    /// Number of tiles or rows of the work, which is the number of blocks without a limit on multiprocessors.
    pub tiles: u64,
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of dynamic shared memory.
    pub shared_bytes: usize,
    /// Resident blocks per multiprocessor; `None` in a build without compiled kernels.
    pub blocks_held: Option<u32>,
    /// Tiles divided by the blocks that the GPU holds at a time.
    pub waves: Option<f64>,
    /// Waves divided by the next whole number; below 1 if the last wave is not full.
    pub efficiency: Option<f64>,
}

/// Limits per multiprocessor of compute capability 9.0 (CUDA programming guide, technical
/// specifications).
const MAX_THREADS: u32 = 2048;
const MAX_BLOCKS: u32 = 32;
const REGISTERS: u32 = 65536;
/// Registers are allocated per warp in units of this size.
const REGISTER_UNIT: u32 = 256;
const SHARED_BYTES: usize = 228 << 10;
/// Shared memory per block that the system reserves.
const SYSTEM_SHARED_BYTES: usize = 1 << 10;

/// Number of blocks that a multiprocessor holds at a time.
fn blocks_per_multiprocessor(threads: u32, registers: u32, shared_bytes: usize) -> u32 {
    let warps = threads.div_ceil(32);
    let of_block = warps * (registers * 32).next_multiple_of(REGISTER_UNIT);
    let by_shared = (SHARED_BYTES / (shared_bytes + SYSTEM_SHARED_BYTES)) as u32;
    (MAX_THREADS / threads).min(MAX_BLOCKS).min(REGISTERS / of_block.max(1)).min(by_shared)
}

pub(super) fn launch_estimate(gpu: &GpuRates, launched: &Launched) -> LaunchEstimate {
    let threads = KERNELS.iter().find(|k| k.name == launched.kernel).map_or(0, |k| k.threads);
    let resources: Option<&Resources> = RESOURCES.iter().find(|r| r.kernel == launched.kernel && r.target == "sm_90a");
    let blocks_held =
        resources.map(|r| blocks_per_multiprocessor(threads, r.registers, launched.shared_bytes + r.shared as usize));
    let waves = blocks_held.map(|b| launched.blocks as f64 / (f64::from(b.max(1)) * gpu.processors as f64));
    LaunchEstimate {
        kernel: launched.kernel,
        launches: launched.count,
        tiles: launched.blocks,
        threads,
        shared_bytes: launched.shared_bytes,
        blocks_held,
        waves,
        efficiency: waves.map(|w| w / w.ceil()),
    }
}

/// Returns the wave efficiency of an op's launches, weighted by their waves; 1 if unknown. Memory-bound ops
/// loop over rows with a grid stride, so they also have 1.
pub(super) fn wave_efficiency(op: &str, launches: &[LaunchEstimate]) -> f64 {
    if !uses_gemm_rate(op) {
        return 1.0;
    }
    let (mut waves, mut whole) = (0.0, 0.0);
    for launch in launches.iter().filter(|l| l.kernel.starts_with(op)) {
        if let Some(w) = launch.waves {
            waves += w * launch.launches as f64;
            whole += w.ceil() * launch.launches as f64;
        }
    }
    if whole > 0.0 { waves / whole } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_multiprocessor_holds_what_its_scarcest_resource_allows() {
        // 128 threads of 168 registers are 4 warps of 5376 registers. A block needs 21504 registers, so 3
        // blocks fit.
        assert_eq!(blocks_per_multiprocessor(128, 168, 0), 3);
        assert_eq!(blocks_per_multiprocessor(256, 32, 0), 8);
        assert_eq!(blocks_per_multiprocessor(32, 16, 0), 32);
        // 228 KiB hold two blocks of 100 KiB with the system's reserve.
        assert_eq!(blocks_per_multiprocessor(128, 32, 100 << 10), 2);
    }

    #[test]
    fn unfilled_waves_stretch_only_gemms() {
        let launch = |kernel, tiles: u64, waves: f64| LaunchEstimate {
            kernel,
            launches: 2,
            tiles,
            threads: 128,
            shared_bytes: 0,
            blocks_held: Some(1),
            waves: Some(waves),
            efficiency: Some(waves / waves.ceil()),
        };
        let launches = [launch("linear_fwd_bf16", 10, 1.25), launch("norm_fwd_bf16", 1, 0.1)];
        assert_eq!(wave_efficiency("linear_fwd", &launches), 0.625);
        assert_eq!(wave_efficiency("norm_fwd", &launches), 1.0);
        assert_eq!(wave_efficiency("linear_bwd_input", &launches), 1.0);
    }
}
