//! Predicted time of ops on a Hopper GPU, from counts that need no GPU:
//!
//! - GEMMs: `backend::kernels::geometry`, by tiles
//! - `attention`: a simulated work list, an item's time by the instructions of the kernel's main loop
//!   (kernels/sass.csv) and the products of the tensor cores
//! - `counted`: a floor by counts of a kernel's accesses on the emulator
//! - row-wise ops, here: the bytes at the copy rate, or the memory accesses that one thread makes one
//!   after the other, whichever takes longer
//!
//! ```text
//! row-wise op = launches + max(bytes / copy, rounds x latency)
//! rounds: accesses of a thread that wait for the one before, over all its rows
//! ```
//!
//! Constants marked as fitted come from one record, the step of
//! `benches/record/nvidia-h200/2026-11-27-8ddee10-step.json`; benches/README.md has the errors.

pub(crate) mod attention;
pub(crate) mod counted;

use crate::backend::kernels::launchers::{BIAS_SLICE, LAYER_NORM_SLICE, NORM_SLICE, WARP};

/// Time of a launch that follows another one, as for GEMMs (`geometry::LAUNCH_NS`).
pub(crate) const LAUNCH_SECONDS: f64 = 1.8e-6;
/// Time of a memory access and of the operations that depend on it, with many accesses in flight. Fitted to
/// the recorded RMSNorms.
const LATENCY_SECONDS: f64 = 0.9e-6;
/// Copy rate that AdamW reaches: seven arrays at a time. Fitted to the recorded AdamW.
const ADAMW_OF_COPY: f64 = 0.86;
/// Blocks per multiprocessor of a launch over rows (`Kernels::row_blocks`), and warps of a block.
const ROW_BLOCKS: usize = 8;
const ROW_WARPS: usize = 4;

/// Tokens per slice of the norm backward and of the bias gradient in the recorded step, and slices of a column
/// that the kernel sum_slices had in flight.
const RECORDED_SLICES: [usize; 2] = [16, 64];
const RECORDED_IN_FLIGHT: usize = 8;

/// Returns the number of launches of a row-wise op's call, and the number of accesses that one thread makes one
/// after the other. `kernel` is the name of the op's first kernel; the bare name of the op stands for the
/// kernels of the recorded step.
fn rounds(kernel: &str, tokens: usize, processors: usize) -> (usize, usize) {
    let blocks = ROW_BLOCKS * processors.max(1);
    let of_rows = tokens.div_ceil(blocks);
    let of_warps = tokens.div_ceil(blocks * ROW_WARPS);
    // sum_slices: eight warps share the slices of a column, with this many loads in flight.
    let sum = |slices: usize, in_flight: usize| slices.div_ceil(8).div_ceil(in_flight);
    let [norm, bias] = RECORDED_SLICES;
    let of_slices = |slice: usize| tokens.div_ceil(slice).div_ceil(blocks);
    let is = |stem: &str| kernel.starts_with(stem) && kernel != stem;
    let of_team = |stem: &str, team: usize| kernel.starts_with(&format!("{stem}_{team}_"));
    let op = ["_bf16", "_f32"].iter().find_map(|element| kernel.strip_suffix(element)).unwrap_or(kernel);
    // Norms whose teams keep a row in registers. A warp processes a quarter of a slice's tokens, or a block
    // all of them.
    let norms = [("norm_fwd", "norm_bwd", NORM_SLICE), ("layer_norm_fwd", "layer_norm_bwd", LAYER_NORM_SLICE)];
    for (fwd, bwd, slice) in norms {
        let sums = |serial: usize| (2, serial * of_slices(slice) + sum(tokens.div_ceil(slice), 16));
        match () {
            _ if of_team(fwd, WARP) => return (1, of_warps),
            _ if is(fwd) => return (1, of_rows),
            _ if of_team(bwd, WARP) => return sums(slice / ROW_WARPS),
            _ if is(bwd) => return sums(slice),
            _ => {}
        }
    }
    match op {
        _ if is("bias_bwd") => (2, BIAS_SLICE.div_ceil(8) + sum(tokens.div_ceil(BIAS_SLICE), 16)),
        // A block processes a row: it reads the row, reads it again from cache after its sum, and writes the
        // result.
        "norm_fwd" | "layer_norm_fwd" => (1, 2 * of_rows),
        // For each token of a slice, a block reads the row twice and the gradient to which the result is
        // added.
        "norm_bwd" | "layer_norm_bwd" => {
            (2, 3 * norm * of_slices(norm) + sum(tokens.div_ceil(norm), RECORDED_IN_FLIGHT))
        }
        // Four loads of the slice's tokens are in flight.
        "bias_bwd" => (2, bias.div_ceil(4) + sum(tokens.div_ceil(bias), RECORDED_IN_FLIGHT)),
        // A warp reads the position or token id, then the row.
        "rope_fwd" | "rope_bwd" | "embedding_fwd" => (1, 2 * of_warps),
        "grad_norm" => (2, 0),
        _ => (1, 0),
    }
}

/// Seconds of `calls` calls of the op of a kernel (as in [`rounds`]) that reads and writes `bytes` in
/// total, for rows of `tokens` tokens.
pub(crate) fn row_wise(kernel: &str, calls: u64, bytes: u64, tokens: usize, (copy, processors): (f64, usize)) -> f64 {
    let (launches, rounds) = rounds(kernel, tokens, processors);
    let rate = if kernel.starts_with("adamw") { ADAMW_OF_COPY * copy } else { copy };
    let by_latency = calls as f64 * rounds as f64 * LATENCY_SECONDS;
    calls as f64 * launches as f64 * LAUNCH_SECONDS + by_latency.max(bytes as f64 / rate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_rows_are_bound_by_latency_and_many_bytes_by_the_copy_rate() {
        let gpu = (4.3e12, 132);
        // 16 rows for each of 1,056 blocks, two accesses a row.
        let norm = row_wise("norm_fwd", 1, 58_000_000, 16_384, gpu);
        assert!((norm - LAUNCH_SECONDS - 32.0 * LATENCY_SECONDS).abs() < 1e-12, "{norm}");
        let copied = row_wise("grad_norm", 1, 4_300_000_000, 16_384, gpu);
        assert!((copied - 2.0 * LAUNCH_SECONDS - 1e-3).abs() < 1e-12, "{copied}");
        assert_eq!(rounds("rope_fwd", 16_352, 132), (1, 8));
        // The forward has four rows per warp. The backward has eight tokens per warp, then sums 512 slices.
        assert_eq!(rounds("norm_fwd_32_bf16", 16_384, 132), (1, 4));
        assert_eq!(rounds("norm_bwd_32_bf16", 16_384, 132), (2, 8 + 4));
        assert_eq!(rounds("norm_bwd_128_bf16", 16_384, 132), (2, 32 + 4));
        assert_eq!(rounds("norm_bwd", 16_384, 132), (2, 48 + 16));
        assert_eq!(rounds("layer_norm_fwd_32_bf16", 16_384, 132), (1, 4));
        assert_eq!(rounds("layer_norm_bwd_128_bf16", 16_384, 132), (2, 32 + 4));
    }
}
