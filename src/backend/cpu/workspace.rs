//! Workspace of the ops of a step, for the memory plan. The pool keeps as much memory as the op with the
//! largest workspace needs. Workspace that does not grow with the batch is left out, because it is a few MiB
//! per thread.

use super::matmul::spread_bytes;
use super::units::Units;
use crate::backend::contract::Precision;

/// Sizes of a step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StepSizes {
    /// Tokens of the batch.
    pub tokens: usize,
    /// Head rows; 0 without a vocabulary head.
    pub rows: usize,
    /// Elements of a row.
    pub hidden: usize,
    /// Elements of a row: of its queries, and of its fused queries, keys and values.
    pub queries: usize,
    pub fused: usize,
    /// Elements of the MLP's activation, and of the GEMM result before it.
    pub intermediate: usize,
    pub mlp: usize,
    /// Whether the step only runs inference, so that gates are not stored.
    pub infers: bool,
}

/// Bytes of workspace of a step with activations of this precision on these units.
pub(crate) fn workspace_bytes(precision: Precision, units: Units, s: &StepSizes) -> u64 {
    let act = precision.act_bytes() as usize;
    let spread = |width: usize| spread_bytes(s.tokens, width, act);
    let gates = if s.infers { s.mlp } else { s.intermediate };
    let converted = match (precision, units) {
        (Precision::Bf16, _) if units.multiply_bf16() => 2 * s.queries,
        (Precision::Bf16, _) => 2 * s.queries + s.fused,
        (Precision::F32 | Precision::F64, _) => 0,
    };
    let ops = [
        s.tokens * gates * act + spread(s.hidden),
        spread(s.mlp),
        spread(s.intermediate),
        spread(s.fused),
        s.tokens * converted * size_of::<f32>(),
        2 * s.rows * s.hidden * act,
    ];
    ops.into_iter().max().unwrap_or(0) as u64
}
