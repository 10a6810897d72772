//! Cost of an op call according to its contract: the bytes that must move at least once and the FLOPs that
//! are executed. Reports and benchmarks use only these costs. If a call exceeds the roofline, a formula here
//! is wrong.

use super::*;
use crate::backend::{Backend, Write};

/// Minimum memory traffic and executed arithmetic of one call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Operands are read once and results written once. An accumulated result is also read once.
    pub bytes: u64,
    /// Multiplications and additions; an exponential counts as one.
    pub flops: u64,
}

impl Cost {
    fn new(bytes: u64, flops: u64) -> Self {
        Self { bytes, flops }
    }
}

/// Op arguments that determine the cost of the call.
pub trait Costed {
    /// Bytes and FLOPs of the call.
    fn cost(&self) -> Cost;
}

/// Bytes of `n` elements of `Act`.
fn act<B: Backend>(n: usize) -> u64 {
    n as u64 * B::PRECISION.act_bytes()
}

/// Bytes of `n` elements of `Acc`.
fn acc<B: Backend>(n: usize) -> u64 {
    n as u64 * B::PRECISION.acc_bytes()
}

/// Bytes of `n` indices.
fn idx(n: usize) -> u64 {
    4 * n as u64
}

/// Bytes of an output of `n` elements of `Acc`: written, and with [`Write::Add`] also read.
fn out<B: Backend>(n: usize, write: Write) -> u64 {
    acc::<B>(n) * if write == Write::Add { 2 } else { 1 }
}

impl<B: Backend> Costed for EmbeddingFwd<'_, B> {
    fn cost(&self) -> Cost {
        Cost::new(self.dims.bytes(B::PRECISION) + idx(self.dims.tokens), 0)
    }
}

impl<B: Backend> Costed for EmbeddingBwd<'_, B> {
    fn cost(&self) -> Cost {
        let d = self.dims;
        let rows = match self.write {
            Write::Overwrite => acc::<B>(d.vocab * d.hidden),
            Write::Add => 2 * acc::<B>(self.runs.keys.len * d.hidden),
        };
        Cost::new(act::<B>(d.tokens * d.hidden) + rows + idx(d.tokens), (d.tokens * d.hidden) as u64)
    }
}

impl<B: Backend> Costed for NormFwd<'_, B> {
    fn cost(&self) -> Cost {
        let d = self.dims;
        let streams = if self.sum.is_some() { 4 } else { 2 } + usize::from(self.base.is_some());
        Cost::new(act::<B>(streams * d.tokens * d.hidden) + acc::<B>(d.tokens), d.flops())
    }
}

impl<B: Backend> Costed for NormBwd<'_, B> {
    fn cost(&self) -> Cost {
        let d = self.dims;
        let streams = if self.dsum_write == Write::Add { 4 } else { 3 };
        let weight = act::<B>(d.hidden) + out::<B>(d.hidden, self.dweight_write);
        Cost::new(
            act::<B>(streams * d.tokens * d.hidden) + acc::<B>(d.tokens) + weight,
            9 * (d.tokens * d.hidden) as u64,
        )
    }
}

impl<B: Backend> Costed for QkNormFwd<'_, B> {
    fn cost(&self) -> Cost {
        let n = self.dims.elements();
        let passes = if self.x.is_some() { 3 } else { 2 };
        Cost::new(act::<B>(passes * n + self.dims.weights()), 5 * n as u64)
    }
}

impl<B: Backend> Costed for QkNormBwd<'_, B> {
    fn cost(&self) -> Cost {
        let (n, weights) = (self.dims.elements(), self.dims.weights());
        Cost::new(act::<B>(3 * n + weights) + out::<B>(weights, self.write), 12 * n as u64)
    }
}

impl<B: Backend> Costed for LayerNormFwd<'_, B> {
    fn cost(&self) -> Cost {
        let (n, d) = (self.dims.elements(), self.dims);
        Cost::new(act::<B>(2 * n + 2 * d.hidden) + acc::<B>(2 * d.tokens), 8 * n as u64)
    }
}

impl<B: Backend> Costed for LayerNormBwd<'_, B> {
    fn cost(&self) -> Cost {
        let (n, d) = (self.dims.elements(), self.dims);
        let streams = if self.dx_write == Write::Add { 4 } else { 3 };
        let weight = act::<B>(d.hidden) + out::<B>(2 * d.hidden, self.dweight_write);
        Cost::new(act::<B>(streams * n) + acc::<B>(2 * d.tokens) + weight, 14 * n as u64)
    }
}

impl<B: Backend> Costed for Scale<'_, B> {
    fn cost(&self) -> Cost {
        let (n, added) = (self.dims.elements(), u64::from(self.addend.is_some()));
        Cost::new((2 + added) * act::<B>(n), (1 + added) * n as u64)
    }
}

impl<B: Backend> Costed for GeluFwd<'_, B> {
    /// 8 FLOPs per element for an exponential, a division and a polynomial.
    fn cost(&self) -> Cost {
        let n = self.dims.elements();
        Cost::new(act::<B>(2 * n), 8 * n as u64)
    }
}

impl<B: Backend> Costed for GeluBwd<'_, B> {
    fn cost(&self) -> Cost {
        let n = self.dims.elements();
        Cost::new(act::<B>(3 * n), 14 * n as u64)
    }
}

impl<B: Backend> Costed for LinearFwd<'_, B> {
    fn cost(&self) -> Cost {
        let n = if self.residual.is_some() { self.dims.tokens * self.dims.outputs } else { 0 };
        Cost::new(self.dims.bytes(B::PRECISION) + act::<B>(n), self.dims.flops() + n as u64)
    }
}

impl<B: Backend> Costed for LinearGluFwd<'_, B> {
    /// Bytes of the operands and the activation, and of gate and up if they are stored.
    fn cost(&self) -> Cost {
        let d = self.dims;
        let stored = if self.gate_up.is_some() { 3 } else { 1 };
        let elements = d.tokens * d.hidden + 2 * d.intermediate * d.hidden + stored * d.tokens * d.intermediate;
        Cost::new(act::<B>(elements), d.gate_up().flops() + d.glu().flops())
    }
}

impl<B: Backend> Costed for LinearGluBwd<'_, B> {
    /// Bytes of the GEMM's operands, of gate and up, and of the gradients of gate and up.
    fn cost(&self) -> Cost {
        let d = self.dims;
        let n = d.tokens * d.intermediate;
        let elements = d.tokens * d.hidden + d.hidden * d.intermediate + 4 * n;
        Cost::new(act::<B>(elements), d.down().flops() + 10 * n as u64)
    }
}

impl<B: Backend> Costed for LinearBwdInput<'_, B> {
    fn cost(&self) -> Cost {
        let d = self.dims;
        let accumulated = if self.write == Write::Add { act::<B>(d.tokens * d.inputs) } else { 0 };
        Cost::new(d.bytes(B::PRECISION) + accumulated, d.flops())
    }
}

impl<B: Backend> Costed for LinearBwdWeight<'_, B> {
    fn cost(&self) -> Cost {
        let d = self.dims;
        let operands = act::<B>(d.tokens * (d.inputs + d.outputs));
        let norms = self.norms.as_ref().map_or(0, |norms| acc::<B>(norms.len));
        let squares = if self.norms.is_some() { 2 * (d.inputs * d.outputs) as u64 } else { 0 };
        Cost::new(operands + out::<B>(d.inputs * d.outputs, self.write) + norms, d.flops() + squares)
    }
}

impl<B: Backend> Costed for BiasBwd<'_, B> {
    fn cost(&self) -> Cost {
        let n = self.dims.tokens * self.dims.outputs;
        Cost::new(act::<B>(n) + out::<B>(self.dims.outputs, self.write), n as u64)
    }
}

impl<B: Backend> Costed for Rope<'_, B> {
    fn cost(&self) -> Cost {
        Cost::new(self.dims.bytes(B::PRECISION), self.dims.flops())
    }
}

impl<B: Backend> Costed for GluFwd<'_, B> {
    fn cost(&self) -> Cost {
        Cost::new(self.dims.bytes(B::PRECISION), self.dims.flops())
    }
}

impl<B: Backend> Costed for GluBwd<'_, B> {
    fn cost(&self) -> Cost {
        let n = self.dims.tokens * self.dims.intermediate;
        Cost::new(act::<B>(5 * n), 10 * n as u64)
    }
}

impl<B: Backend> Costed for AttentionFwd<'_, B> {
    fn cost(&self) -> Cost {
        let d = &self.dims;
        Cost::new(d.bytes(B::PRECISION) + acc::<B>(d.heads * d.tokens), d.flops())
    }
}

impl<B: Backend> Costed for AttentionBwd<'_, B> {
    fn cost(&self) -> Cost {
        let d = &self.dims;
        let bytes = 2 * d.bytes(B::PRECISION) + acc::<B>(d.heads * d.tokens);
        Cost::new(bytes, d.flops() / 2 * 5)
    }
}

impl<B: Backend> Costed for LinearRopeFwd<'_, B> {
    /// The rotation adds only its position indices to the bytes of the GEMM.
    fn cost(&self) -> Cost {
        let linear = self.linear.cost();
        Cost::new(linear.bytes + idx(self.rotation.dims.tokens), linear.flops + self.rotation.dims.flops())
    }
}

impl<B: Backend> Costed for AttentionRopeBwd<'_, B> {
    /// The rotation adds only its position indices to the bytes of the gradient.
    fn cost(&self) -> Cost {
        let attention = self.attention.cost();
        Cost::new(attention.bytes + idx(self.rotation.dims.tokens), attention.flops + self.rotation.dims.flops())
    }
}

impl<B: Backend> Costed for AttentionCachedFwd<'_, B> {
    fn cost(&self) -> Cost {
        let d = &self.dims;
        Cost::new(d.bytes(B::PRECISION) + idx(d.tokens + 2 * d.spans + 2 * d.sequences), d.flops())
    }
}

impl<B: Backend> Costed for HeadLogprobFwd<'_, B> {
    fn cost(&self) -> Cost {
        let stats = self.stats.as_ref().map_or(0, |stats| acc::<B>(stats.len));
        Cost::new(self.dims.bytes(B::PRECISION) + stats, self.dims.flops())
    }
}

impl<B: Backend> Costed for HeadLogprobBwd<'_, B> {
    /// Two GEMMs compute the recomputed logits and the gradient of the hidden rows. A third computes the
    /// gradient of the head, unless the head is frozen.
    fn cost(&self) -> Cost {
        let d = &self.dims;
        let (dhead, gemms) = head_gradient::<B>(d, self.dhead.is_some(), self.dhead_write);
        Cost::new(d.bytes(B::PRECISION) + act::<B>(d.tokens * d.hidden) + dhead, (2 + gemms) * d.flops())
    }
}

/// Bytes and number of GEMMs of the head gradient; both are 0 if `wanted` is false.
fn head_gradient<B: Backend>(d: &HeadDims, wanted: bool, write: Write) -> (u64, u64) {
    if wanted { (out::<B>(d.vocab * d.hidden, write), 1) } else { (0, 0) }
}

impl<B: Backend> Costed for HeadPreference<'_, B> {
    /// Two GEMMs compute the logits and the gradient of the hidden rows. A third computes the gradient of the
    /// head, unless the head is frozen. The sequence of separate ops computes the logits twice and so needs
    /// one GEMM more.
    fn cost(&self) -> Cost {
        let (d, s) = (&self.dims, self.seqs);
        let (dhead, gemms) = head_gradient::<B>(d, self.dhead.is_some(), self.dhead_write);
        let direct = usize::from(self.direct.is_some());
        let loss = self.comparison.as_ref().map_or(Cost::new(acc::<B>((1 + direct) * s), 0), |c| {
            let weights = c.pair_weights.map_or(0, |_| 2);
            let extra = [c.reference, c.inverse_rows].iter().flatten().count() + weights;
            comparisons::<B>(s, c.comparisons, c.table.uses.len, (direct + extra, c.curves.len()))
        });
        let stats = self.stats.as_ref().map_or(0, |stats| stats.len);
        let per_row = acc::<B>(d.rows + stats) + idx(s + 1);
        let bytes = d.bytes(B::PRECISION) + act::<B>(d.tokens * d.hidden) + dhead + per_row + loss.bytes;
        Cost::new(bytes, (2 + gemms) * d.flops() + loss.flops)
    }
}

/// Cost of `comparisons` comparisons over `seqs` sequences. The comparisons have `uses` terms in total.
/// `extra` is the number of optional values per sequence (reference score, inverse head rows, direct
/// gradient, and two for pair weights).
fn comparisons<B: Backend>(seqs: usize, comparisons: usize, uses: usize, (extra, curves): (usize, usize)) -> Cost {
    let numbers = acc::<B>((2 + extra) * seqs + 7 * comparisons);
    let indices = idx((2 * TERMS + 1) * comparisons + seqs + 1 + uses);
    Cost::new(numbers + indices, (curves * (20 * comparisons + 4 * uses)) as u64)
}

impl<B: Backend> Costed for LogprobFwd<'_, B> {
    fn cost(&self) -> Cost {
        let n = self.rows * self.vocab;
        Cost::new(act::<B>(n) + idx(self.rows) + acc::<B>(2 * self.rows), 3 * n as u64)
    }
}

impl<B: Backend> Costed for LogprobBwd<'_, B> {
    fn cost(&self) -> Cost {
        let n = self.rows * self.vocab;
        Cost::new(2 * act::<B>(n) + idx(self.rows) + acc::<B>(2 * self.rows), 3 * n as u64)
    }
}

impl<B: Backend> Costed for RewardHeadFwd<'_, B> {
    fn cost(&self) -> Cost {
        Cost::new(self.dims.bytes(B::PRECISION) + act::<B>(self.dims.hidden), self.dims.flops())
    }
}

impl<B: Backend> Costed for RewardHeadBwd<'_, B> {
    fn cost(&self) -> Cost {
        let d = &self.dims;
        let weight = act::<B>(d.hidden) + out::<B>(d.hidden, self.dweight_write);
        Cost::new(d.bytes(B::PRECISION) + act::<B>(d.tokens * d.hidden) + weight, 2 * d.flops())
    }
}

impl<B: Backend> Costed for SegmentSumFwd<'_, B> {
    fn cost(&self) -> Cost {
        let tail = if self.tail.is_some() { self.seqs } else { 0 };
        Cost::new(acc::<B>(self.rows + self.seqs + tail) + idx(self.seqs + 1), self.rows as u64)
    }
}

impl<B: Backend> Costed for SegmentSumBwd<'_, B> {
    fn cost(&self) -> Cost {
        let tail = if self.tail.is_some() { self.seqs } else { 0 };
        Cost::new(acc::<B>(self.rows + self.seqs + tail) + idx(self.seqs + 1), 0)
    }
}

impl<B: Backend> Costed for PreferenceFwd<'_, B> {
    fn cost(&self) -> Cost {
        let weights = self.pair_weights.map_or(0, |_| 2);
        let extra = [self.reference, self.inverse_rows, self.direct].iter().flatten().count() + weights;
        comparisons::<B>(self.seqs, self.comparisons, self.table.uses.len, (extra, self.curves.len()))
    }
}

impl<B: Backend> Costed for GradNorm<'_, B> {
    fn cost(&self) -> Cost {
        let read = self.read().into_iter().map(|range| range.len()).sum::<usize>() + self.norms();
        Cost::new(acc::<B>(read), 2 * read as u64)
    }
}

impl<B: Backend> Costed for AdamW<'_, B> {
    /// The gradient is read; moments and weights are read and written. With a full-precision master
    /// copy, the working copy of the weights is only written.
    fn cost(&self) -> Cost {
        let weights = match self.master {
            Some(_) => 2 * acc::<B>(self.len) + act::<B>(self.len),
            None => 2 * act::<B>(self.len),
        };
        Cost::new(acc::<B>(5 * self.len) + weights, 12 * self.len as u64)
    }
}

/// Resource that bounds the time of an op call from below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// Memory bandwidth.
    Memory,
    /// GEMM throughput.
    Gemm,
}

/// Ops whose FLOPs run as GEMMs. For all other ops the time of the FLOPs is negligible compared with that of
/// the memory traffic.
const GEMM_OPS: [&str; 12] = [
    "linear_fwd",
    "linear_bwd_input",
    "linear_bwd_weight",
    "linear_glu_fwd",
    "linear_glu_bwd",
    "attention_fwd",
    "attention_bwd",
    "head_logprob_fwd",
    "head_logprob_bwd",
    "head_preference",
    "linear_rope_fwd",
    "attention_rope_bwd",
];

/// Whether the FLOPs of an op count against GEMM throughput.
pub fn uses_gemm_rate(op: &str) -> bool {
    GEMM_OPS.contains(&op)
}

impl Cost {
    /// Returns a lower bound on the time of the op's calls in seconds, and the resource that sets it. The
    /// bound is the longer of two times: the bytes at `memory` bytes per second and, for GEMM ops, the FLOPs
    /// at `gemm` FLOP/s.
    pub fn floor(self, op: &str, memory: f64, gemm: f64) -> (f64, Bound) {
        let bytes = self.bytes as f64 / memory;
        let flops = if uses_gemm_rate(op) { self.flops as f64 / gemm } else { 0.0 };
        if flops > bytes { (flops, Bound::Gemm) } else { (bytes, Bound::Memory) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::OPS;

    #[test]
    fn gemm_ops_are_ops_and_only_they_pay_for_flops() {
        assert!(GEMM_OPS.iter().all(|op| OPS.contains(op)));
        let cost = Cost { bytes: 10, flops: 100 };
        assert_eq!(cost.floor("linear_fwd", 10.0, 10.0), (10.0, Bound::Gemm));
        assert_eq!(cost.floor("linear_fwd", 1.0, 100.0), (10.0, Bound::Memory));
        assert_eq!(cost.floor("norm_fwd", 10.0, 10.0), (1.0, Bound::Memory));
    }
}
