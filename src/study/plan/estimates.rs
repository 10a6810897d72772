//! Floors and predicted times of the ops of a plan.

use super::waves::{LaunchEstimate, wave_efficiency};
use super::{GemmEstimate, GpuRates, OpFloor};
use crate::backend::contract::{Bound, uses_gemm_rate};
use crate::backend::kernels::geometry::{Chosen, of_card};
use crate::backend::probe::OpTime;
use crate::perf::predict::row_wise;

/// GEMMs by op and size, with the selected tiles and the time predicted for the GPU.
pub(super) fn gemm_estimates(gpu: &GpuRates, chosen: &[Chosen]) -> Vec<GemmEstimate> {
    let mut products: Vec<GemmEstimate> = Vec::new();
    for c in chosen {
        let cut = of_card(c.sizes, c.choice, gpu.processors);
        let gemm = GemmEstimate {
            op: c.op,
            m: c.sizes.m,
            n: c.sizes.n,
            k: c.sizes.k,
            calls: 1,
            tile: cut.tile.name(),
            parts: cut.splits,
            waves: cut.waves,
            predicted_seconds: cut.seconds,
        };
        match products.iter_mut().find(|p| (p.op, p.m, p.n, p.k) == (gemm.op, gemm.m, gemm.n, gemm.k)) {
            Some(same) => same.calls += 1,
            None => products.push(gemm),
        }
    }
    products
}

/// Returns the predicted seconds of an op other than tree attention. Memory-bound ops are predicted by bytes
/// and latency. GEMM ops are predicted by their selected tiles or, without selected tiles, by their floor
/// divided by the wave efficiency.
pub(super) fn predicted(
    op: &OpFloor,
    kernel: &str,
    products: &[GemmEstimate],
    launches: &[LaunchEstimate],
    (gpu, tokens): (&GpuRates, usize),
) -> f64 {
    if !uses_gemm_rate(&op.op) {
        return row_wise(kernel, op.calls, op.bytes, tokens, (gpu.copy, gpu.processors));
    }
    let of_op = products.iter().filter(|p| p.op == op.op);
    let chosen: f64 = of_op.map(|p| p.calls as f64 * p.predicted_seconds).sum();
    // The predicted times of tiles come from measurements, so the FLOP floor, which may assume a lower GEMM
    // rate, is not a bound.
    if chosen > 0.0 {
        return chosen.max(op.bytes as f64 / gpu.copy);
    }
    op.floor_seconds / wave_efficiency(&op.op, launches)
}

pub(super) fn op_floor(gpu: &GpuRates, op: &OpTime) -> OpFloor {
    let (floor_seconds, bound) = op.cost.floor(op.op, gpu.copy, gpu.product);
    OpFloor {
        op: op.op.into(),
        calls: op.calls,
        flops: op.cost.flops,
        bytes: op.cost.bytes,
        bound: if bound == Bound::Gemm { "product" } else { "copy" },
        floor_seconds,
        predicted_seconds: floor_seconds,
    }
}
