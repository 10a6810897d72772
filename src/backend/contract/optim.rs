//! Contracts of the gradient norm and AdamW over the flat parameter arena.

use std::ops::Range;

use super::{Result, expect, expect_len};
use crate::backend::{Backend, View, ViewMut};

/// Entries of the control vector, which lives on the device so that a step needs no value from the host but the
/// learning rate.
pub const CONTROL: usize = 6;
/// Learning rate of the coming update; written by the host.
pub const CONTROL_LEARNING_RATE: usize = 0;
/// Updates applied so far; advanced by `grad_norm` when the gradient is finite.
pub const CONTROL_STEP: usize = 1;
/// Norm of the gradient before clipping.
pub const CONTROL_NORM: usize = 2;
/// Factor on the gradient: `min(1, max_norm / (norm + 1e-6))`, as in PyTorch's `clip_grad_norm_`.
pub const CONTROL_CLIP: usize = 3;
/// 1 when the gradient is finite and the update is to be applied, else 0.
pub const CONTROL_APPLY: usize = 4;
/// Updates skipped so far because a gradient was not finite.
pub const CONTROL_SKIPPED: usize = 5;

/// Elements of the gradient whose sum of squares is known already.
pub struct Told<'a, B: Backend> {
    /// Which elements.
    pub range: Range<usize>,
    /// Norms, whose squares add up to theirs: of all products in the range by [`LinearBwdWeight`](super::LinearBwdWeight).
    pub norms: View<'a, B::Acc>,
}

/// Global norm of the gradient, clip factor and the finite check, in a fixed order of summation.
pub struct GradNorm<'a, B: Backend> {
    pub len: usize,
    /// Largest norm that passes unchanged; infinite for no clipping.
    pub max_norm: f64,
    /// (len)
    pub grads: View<'a, B::Acc>,
    /// Elements that are not read, since norms stand for them.
    pub told: Option<Told<'a, B>>,
    /// (CONTROL)
    pub control: ViewMut<'a, B::Acc>,
}

impl<B: Backend> GradNorm<'_, B> {
    /// Elements that are read: those before the told ones, those after.
    pub(crate) fn read(&self) -> [Range<usize>; 2] {
        let told = self.told.as_ref().map_or(self.len..self.len, |told| told.range.clone());
        [0..told.start, told.end..self.len]
    }

    /// Norms that stand for elements.
    pub(crate) fn norms(&self) -> usize {
        self.told.as_ref().map_or(0, |told| told.norms.len)
    }

    pub(crate) fn check(&self) -> Result<()> {
        let op = "grad_norm";
        expect(op, "max_norm", self.max_norm > 0.0, "a positive number", self.max_norm)?;
        expect_len(op, "grads", self.grads.len, self.len)?;
        if let Some(Told { range, .. }) = &self.told {
            let inside = range.start <= range.end && range.end <= self.len;
            expect(op, "told", inside, format!("a range within 0..{}", self.len), format!("{range:?}"))?;
        }
        expect_len(op, "control", self.control.len, CONTROL)
    }
}

/// `param <- param (1 - lr decay) - lr m̂ / (sqrt(v̂) + eps)` with the clipped gradient, in PyTorch's order of
/// operations. Elements from `decayed` on are not decayed (norm weights and biases).
pub struct AdamW<'a, B: Backend> {
    pub len: usize,
    /// The first `decayed` elements are subject to weight decay.
    pub decayed: usize,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub weight_decay: f64,
    /// (CONTROL) as left by `grad_norm`
    pub control: View<'a, B::Acc>,
    /// (len)
    pub grads: View<'a, B::Acc>,
    /// (len) first moment
    pub m: ViewMut<'a, B::Acc>,
    /// (len) second moment
    pub v: ViewMut<'a, B::Acc>,
    /// (len) full-precision copy; absent where `Act` is as precise as `Acc`
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
