//! Contracts of the gradient norm and of AdamW. Parameters, gradients and optimiser state are flat
//! buffers over all parameters of the model.

use std::ops::Range;

use super::{Result, expect, expect_len};
use crate::backend::{Backend, View, ViewMut};

/// Length of the control vector. The vector lives on the device, so that a step needs no value from the host
/// except the learning rate.
pub const CONTROL: usize = 6;
/// Entry: learning rate of the next update, written by the host.
pub const CONTROL_LEARNING_RATE: usize = 0;
/// Entry: number of updates applied. `grad_norm` increments it if the gradient is finite.
pub const CONTROL_STEP: usize = 1;
/// Entry: norm of the gradient before clipping.
pub const CONTROL_NORM: usize = 2;
/// Entry: clip factor of the gradient, `min(1, max_norm / (norm + 1e-6))` as in PyTorch's
/// `clip_grad_norm_`.
pub const CONTROL_CLIP: usize = 3;
/// Entry: 1 if the gradient is finite and `adamw` must apply the update, else 0.
pub const CONTROL_APPLY: usize = 4;
/// Entry: number of updates skipped because the gradient was not finite.
pub const CONTROL_SKIPPED: usize = 5;

/// A gradient range with norms that are already computed.
pub struct KnownNorms<'a, B: Backend> {
    /// Elements of the gradient.
    pub range: Range<usize>,
    /// Norms whose squares add up to the sum of squares of the range. They are the patch norms of all weight
    /// gradients in the range, as [`LinearBwdWeight`](super::LinearBwdWeight) writes them.
    pub norms: View<'a, B::Acc>,
}

/// Computes the global norm of the gradient, in a fixed order of summation, and the clip factor. Also checks
/// that the norm is finite. Updates the control vector, except the learning rate.
pub struct GradNorm<'a, B: Backend> {
    /// Number of elements.
    pub len: usize,
    /// Largest norm without clipping; infinite to disable clipping.
    pub max_norm: f64,
    /// (len)
    pub grads: View<'a, B::Acc>,
    /// Range that the op does not read, because it uses the known norms instead.
    pub known: Option<KnownNorms<'a, B>>,
    /// (CONTROL)
    pub control: ViewMut<'a, B::Acc>,
}

impl<B: Backend> GradNorm<'_, B> {
    /// Ranges that the op reads: before and after the range with known norms.
    pub(crate) fn read(&self) -> [Range<usize>; 2] {
        let known = self.known.as_ref().map_or(self.len..self.len, |known| known.range.clone());
        [0..known.start, known.end..self.len]
    }

    /// Number of known norms.
    pub(crate) fn norms(&self) -> usize {
        self.known.as_ref().map_or(0, |known| known.norms.len)
    }

    pub(crate) fn check(&self) -> Result<()> {
        let op = "grad_norm";
        expect(op, "max_norm", self.max_norm > 0.0, "a positive number", self.max_norm)?;
        expect_len(op, "grads", self.grads.len, self.len)?;
        if let Some(KnownNorms { range, .. }) = &self.known {
            let inside = range.start <= range.end && range.end <= self.len;
            expect(op, "known", inside, format!("a range within 0..{}", self.len), format!("{range:?}"))?;
        }
        expect_len(op, "control", self.control.len, CONTROL)
    }
}

/// `param <- param (1 - lr decay) - lr m̂ / (sqrt(v̂) + eps)` with the clipped gradient, in
/// PyTorch's order of operations. Elements from `decayed` on (norm weights and biases) have no
/// weight decay. Does nothing if `CONTROL_APPLY` is 0.
pub struct AdamW<'a, B: Backend> {
    /// Number of elements.
    pub len: usize,
    /// Number of leading elements with weight decay.
    pub decayed: usize,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the square root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// (CONTROL) as written by `grad_norm`
    pub control: View<'a, B::Acc>,
    /// (len)
    pub grads: View<'a, B::Acc>,
    /// (len) first moment
    pub m: ViewMut<'a, B::Acc>,
    /// (len) second moment
    pub v: ViewMut<'a, B::Acc>,
    /// (len) full-precision master copy of the parameters; absent if `Act` is as precise as `Acc`
    pub master: Option<ViewMut<'a, B::Acc>>,
    /// (len)
    pub params: ViewMut<'a, B::Act>,
}

impl<B: Backend> AdamW<'_, B> {
    pub(crate) fn check(&self) -> Result<()> {
        let op = "adamw";
        expect(op, "decayed", self.decayed <= self.len, format!("at most {}", self.len), self.decayed)?;
        expect(op, "beta1", (0.0..1.0).contains(&self.beta1), "at least 0, below 1", self.beta1)?;
        expect(op, "beta2", (0.0..1.0).contains(&self.beta2), "at least 0, below 1", self.beta2)?;
        expect_len(op, "control", self.control.len, CONTROL)?;
        expect_len(op, "grads", self.grads.len, self.len)?;
        expect_len(op, "m", self.m.len, self.len)?;
        expect_len(op, "v", self.v.len, self.len)?;
        expect_len(op, "master", self.master.as_ref().map_or(self.len, |x| x.len), self.len)?;
        expect_len(op, "params", self.params.len, self.len)
    }
}
