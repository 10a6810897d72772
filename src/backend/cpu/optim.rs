//! Gradient norm and AdamW over the flat arena.

use rayon::prelude::*;

use super::Cpu;
use super::simd::{LANES, vectorised};
use crate::backend::contract::*;
use crate::{Error, Result};

/// Most slices of a norm, and fewest elements of one.
const NORM_SLICES: usize = 256;
const NORM_SLICE: usize = 1 << 14;

pub(super) fn grad_norm(a: GradNorm<'_, Cpu>) {
    let [before, after] = a.read().map(|range| &a.grads.slice()[range]);
    let norms = a.told.map_or(&[][..], |told| told.norms.slice());
    let norm = [before, after, norms].into_iter().map(sum_of_squares).sum::<f64>().sqrt();
    let control = a.control.into_slice();
    control[CONTROL_NORM] = norm as f32;
    if norm.is_finite() {
        control[CONTROL_STEP] += 1.0;
        control[CONTROL_APPLY] = 1.0;
        control[CONTROL_CLIP] = (a.max_norm / (norm + 1e-6)).min(1.0) as f32;
    } else {
        control[CONTROL_SKIPPED] += 1.0;
        control[CONTROL_APPLY] = 0.0;
        control[CONTROL_CLIP] = 0.0;
    }
}

/// By slices on all threads.
fn sum_of_squares(values: &[f32]) -> f64 {
    let slice = values.len().div_ceil(NORM_SLICES).max(NORM_SLICE);
    let mut sums = [0.0f64; NORM_SLICES];
    sums.par_iter_mut().zip(values.par_chunks(slice)).for_each(|(sum, values)| *sum = squares(values));
    sums.iter().sum()
}

vectorised! {
    /// Sum of squares in f64.
    pub(super) fn squares(values: &[f32]) -> f64 {
        let mut lanes = [0.0f64; LANES];
        let blocks = values.chunks_exact(LANES);
        let tail = blocks.remainder();
        for block in blocks {
            for l in 0..LANES {
                lanes[l] += f64::from(block[l]) * f64::from(block[l]);
            }
        }
        for (lane, x) in lanes.iter_mut().zip(tail) {
            *lane += f64::from(*x) * f64::from(*x);
        }
        lanes.iter().sum()
    }
}

/// Scalars of one update.
#[derive(Clone, Copy)]
struct Update {
    clip: f32,
    beta1: f32,
    rest1: f32,
    beta2: f32,
    rest2: f32,
    /// Square root of the second moment's bias correction.
    correction2: f32,
    eps: f32,
    /// Learning rate over the first moment's bias correction.
    step_size: f32,
    /// `1 - lr decay`.
    keep: f32,
}

/// Elements of a task: five streams of 64 KiB.
const ADAMW_CHUNK: usize = 1 << 14;

pub(super) fn adamw(a: AdamW<'_, Cpu>) -> Result<()> {
    if a.master.is_some() {
        return Err(Error::Contract {
            op: "adamw",
            what: "master",
            expected: "none, since parameters are f32".into(),
            got: "a full-precision copy".into(),
        });
    }
    let control = a.control.slice();
    if control[CONTROL_APPLY] == 0.0 {
        return Ok(());
    }
    let (lr, step) = (f64::from(control[CONTROL_LEARNING_RATE]), f64::from(control[CONTROL_STEP]));
    let update = |decay: f64| Update {
        clip: control[CONTROL_CLIP],
        beta1: a.beta1 as f32,
        rest1: (1.0 - a.beta1) as f32,
        beta2: a.beta2 as f32,
        rest2: (1.0 - a.beta2) as f32,
        correction2: (1.0 - a.beta2.powf(step)).sqrt() as f32,
        eps: a.eps as f32,
        step_size: (lr / (1.0 - a.beta1.powf(step))) as f32,
        keep: (1.0 - lr * decay) as f32,
    };
    let (decayed, kept) = (update(a.weight_decay), update(0.0));
    let boundary = a.decayed;
    a.params
        .into_slice()
        .par_chunks_mut(ADAMW_CHUNK)
        .zip(a.m.into_slice().par_chunks_mut(ADAMW_CHUNK))
        .zip(a.v.into_slice().par_chunks_mut(ADAMW_CHUNK))
        .zip(a.grads.slice().par_chunks(ADAMW_CHUNK))
        .enumerate()
        .for_each(|(i, (((params, m), v), grads))| {
            let cut = boundary.saturating_sub(i * ADAMW_CHUNK).min(params.len());
            let (params, params_kept) = params.split_at_mut(cut);
            let ((m, m_kept), (v, v_kept)) = (m.split_at_mut(cut), v.split_at_mut(cut));
            let (grads, grads_kept) = grads.split_at(cut);
            apply(params, m, v, grads, decayed);
            apply(params_kept, m_kept, v_kept, grads_kept, kept);
        });
    Ok(())
}

vectorised! {
    fn apply(params: &mut [f32], m: &mut [f32], v: &mut [f32], grads: &[f32], u: Update) {
        for (((p, m), v), g) in params.iter_mut().zip(m).zip(v).zip(grads) {
            let g = g * u.clip;
            *m = u.beta1 * *m + u.rest1 * g;
            *v = u.beta2 * *v + u.rest2 * (g * g);
            let denominator = v.sqrt() / u.correction2 + u.eps;
            *p = *p * u.keep - u.step_size * (*m / denominator);
        }
    }
}
