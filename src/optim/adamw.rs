//! State of AdamW on a backend, and its settings.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::backend::contract::*;
use crate::backend::{Backend, View, ViewMut};
use crate::error::refuse_outside_f32;
use crate::model::decoder::Model;
use crate::model::part::Part;
use crate::{Error, Result};

/// Settings of AdamW and of gradient clipping.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdamWSettings {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Applied to matrices, not to biases and norm weights.
    pub weight_decay: f64,
    /// Gradient norm above which gradients are clipped; 0 for no clipping.
    pub max_grad_norm: f64,
}

impl Default for AdamWSettings {
    /// PyTorch's betas and epsilon, no weight decay, clipping at 1, as in transformers' Trainer.
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, max_grad_norm: 1.0 }
    }
}

impl AdamWSettings {
    /// Returns an error that names the flag for values outside the valid range.
    pub fn check(&self) -> Result<()> {
        let refuse = |flag: &str, value: f64, need: &str| Err(Error::Usage(format!("{flag} {value}: {need}")));
        for (flag, beta) in [("--adam-beta1", self.beta1), ("--adam-beta2", self.beta2)] {
            if !(0.0..1.0).contains(&beta) {
                return refuse(flag, beta, "a number of at least 0 and below 1 is needed");
            }
            if beta as f32 == 1.0 {
                return refuse(flag, beta, "it is 1 in f32, the precision of training; lower it");
            }
            refuse_outside_f32(flag, beta)?;
        }
        if !(self.eps.is_finite() && self.eps > 0.0) {
            return refuse("--adam-epsilon", self.eps, "a finite number above 0 is needed");
        }
        refuse_outside_f32("--adam-epsilon", self.eps)?;
        for (flag, value) in [("--weight-decay", self.weight_decay), ("--max-grad-norm", self.max_grad_norm)] {
            if !(value.is_finite() && value >= 0.0) {
                return refuse(flag, value, "a finite number of at least 0 is needed");
            }
        }
        refuse_outside_f32("--weight-decay", self.weight_decay)?;
        // A huge maximum is valid: it never clips.
        refuse_outside_f32("--max-grad-norm", self.max_grad_norm.min(1.0))?;
        Ok(())
    }
}

/// Result of one update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct UpdateReport {
    /// Gradient norm before clipping.
    pub grad_norm: f64,
    /// False if the gradient was not finite and nothing changed.
    pub applied: bool,
    /// Number of updates skipped since the start of the run.
    pub skipped: u64,
}

impl UpdateReport {
    /// Reads the control vector after an update.
    pub fn of(control: &[f64; CONTROL]) -> Self {
        Self {
            grad_norm: control[CONTROL_NORM],
            applied: control[CONTROL_APPLY] != 0.0,
            skipped: control[CONTROL_SKIPPED] as u64,
        }
    }
}

/// Moments, full-precision master weights if needed, and the control vector.
pub struct AdamWState<B: Backend> {
    /// Settings.
    pub settings: AdamWSettings,
    /// (len)
    pub m: B::Acc,
    /// (len)
    pub v: B::Acc,
    /// (len) present if `Act` is less precise than `Acc`
    pub master: Option<B::Acc>,
    /// (CONTROL)
    pub control: B::Acc,
    /// Parameters that this state covers.
    part: Part,
    /// Range of these parameters in the buffers of weights and gradients.
    slice: Range<usize>,
    len: usize,
    /// Elements of the state with weight decay.
    decayed: usize,
}

/// Elements per copy through the host, when weights are copied between buffers.
const CHUNK: usize = 1 << 20;

impl<B: Backend> AdamWState<B> {
    /// Creates the state of a model's trained parameters, or of this rank's slices of them, before their
    /// first update.
    pub fn new(backend: &B, model: &Model<B>, settings: AdamWSettings) -> Result<Self> {
        let part = model.trained_part();
        Self::of_part(backend, model, settings, (0..part.len(), part))
    }

    /// Like [`AdamWState::new`] for a slice of the trained parameters of a whole model.
    pub(crate) fn of_slice(
        backend: &B,
        model: &Model<B>,
        settings: AdamWSettings,
        slice: Range<usize>,
    ) -> Result<Self> {
        Self::of_part(backend, model, settings, (slice.clone(), Part::slice(slice)))
    }

    fn of_part(
        backend: &B,
        model: &Model<B>,
        settings: AdamWSettings,
        (slice, part): (Range<usize>, Part),
    ) -> Result<Self> {
        let len = slice.len();
        let master = match B::PRECISION {
            Precision::F64 | Precision::F32 => None,
            Precision::Bf16 => {
                let mut master = backend.zeros_acc(len)?;
                let mut chunk = vec![0.0; CHUNK.min(len)];
                for start in (0..len).step_by(CHUNK) {
                    let chunk = &mut chunk[..CHUNK.min(len - start)];
                    let at = slice.start + start;
                    backend.read_act(View::new(model.trained_weights(), at, chunk.len()), chunk)?;
                    backend.write_acc(ViewMut::new(&mut master, start, chunk.len()), chunk)?;
                }
                Some(master)
            }
        };
        Ok(Self {
            settings,
            m: backend.zeros_acc(len)?,
            v: backend.zeros_acc(len)?,
            master,
            control: backend.zeros_acc(CONTROL)?,
            len: model.trained().len,
            decayed: part.before(model.trained().decayed),
            part,
            slice,
        })
    }

    /// Parameters that this state covers.
    pub(crate) fn part(&self) -> &Part {
        &self.part
    }

    /// Range of the covered parameters in the buffers of weights and gradients.
    pub(crate) fn slice(&self) -> Range<usize> {
        self.slice.clone()
    }

    /// Number of trained parameters, including those of other slices.
    pub(crate) fn parameters(&self) -> usize {
        self.len
    }

    /// Enqueues clipping and the update with `grads`, without waiting. `known` is a range of `grads` with known
    /// patch norms, counted from the start of the slice. The control vector then holds the input of
    /// [`UpdateReport::of`].
    pub fn update(
        &mut self,
        backend: &B,
        weights: &mut B::Act,
        (grads, known): (&B::Acc, Option<KnownNorms<'_, B>>),
        learning_rate: f64,
    ) -> Result<()> {
        let s = self.settings;
        let (start, len) = (self.slice.start, self.slice.len());
        backend.write_acc(ViewMut::new(&mut self.control, CONTROL_LEARNING_RATE, 1), &[learning_rate])?;
        backend.grad_norm(GradNorm {
            len,
            max_norm: if s.max_grad_norm == 0.0 { f64::INFINITY } else { s.max_grad_norm },
            grads: View::new(grads, start, len),
            known,
            control: ViewMut::first(&mut self.control, CONTROL),
        })?;
        backend.adamw(AdamW {
            len,
            decayed: self.decayed,
            beta1: s.beta1,
            beta2: s.beta2,
            eps: s.eps,
            weight_decay: s.weight_decay,
            control: View::first(&self.control, CONTROL),
            grads: View::new(grads, start, len),
            m: ViewMut::first(&mut self.m, len),
            v: ViewMut::first(&mut self.v, len),
            master: self.master.as_mut().map(|m| ViewMut::first(m, len)),
            params: ViewMut::new(weights, start, len),
        })
    }
}
