//! Gradient norm and AdamW over the flat parameter buffers.

use rayon::prelude::*;

use super::Cpu;
use super::element::Element;
use super::simd::{LANES, vectorised};
use crate::backend::contract::*;
use crate::{Error, Result};

/// Maximum number of slices of a norm.
const NORM_SLICES: usize = 256;
/// Minimum number of elements of a slice.
const NORM_SLICE: usize = 1 << 14;

pub(super) fn grad_norm<A: Element>(a: GradNorm<'_, Cpu<A>>) {
    let [before, after] = a.read().map(|range| &a.grads.slice()[range]);
    let norms = a.known.map_or(&[][..], |known| known.norms.slice());
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

/// Sum of squares in f64, computed in slices on all threads. The slices depend only on the length.
fn sum_of_squares(values: &[f32]) -> f64 {
    let slice = values.len().div_ceil(NORM_SLICES).max(NORM_SLICE);
    let mut sums = [0.0f64; NORM_SLICES];
    sums.par_iter_mut().zip(values.par_chunks(slice)).for_each(|(sum, values)| *sum = squares(values));
    sums.iter().sum()
}

vectorised! {
    /// Sum of squares in f64, on one thread.
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

/// Scalars of one update, rounded to f32.
#[derive(Clone, Copy)]
struct Update {
    clip: f32,
    beta1: f32,
    one_minus_beta1: f32,
    beta2: f32,
    one_minus_beta2: f32,
    /// Square root of the second moment's bias correction.
    correction2: f32,
    eps: f32,
    /// Learning rate divided by the first moment's bias correction.
    step_size: f32,
    /// `1 - lr decay`.
    decay_factor: f32,
}

/// Number of elements that one task updates: 64 KiB of each f32 array (parameters, gradients, both moments).
const ADAMW_CHUNK: usize = 1 << 14;

pub(super) fn adamw<A: Element>(cpu: &Cpu<A>, a: AdamW<'_, Cpu<A>>) -> Result<()> {
    if a.master.is_some() && A::PRECISION == Precision::F32 {
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
        one_minus_beta1: (1.0 - a.beta1) as f32,
        beta2: a.beta2 as f32,
        one_minus_beta2: (1.0 - a.beta2) as f32,
        correction2: (1.0 - a.beta2.powf(step)).sqrt() as f32,
        eps: a.eps as f32,
        step_size: (lr / (1.0 - a.beta1.powf(step))) as f32,
        decay_factor: (1.0 - lr * decay) as f32,
    };
    let (with_decay, without_decay) = (update(a.weight_decay), update(0.0));
    let decayed = a.decayed;
    let params = a.params.into_slice();
    let moments = a.m.into_slice().par_chunks_mut(ADAMW_CHUNK).zip(a.v.into_slice().par_chunks_mut(ADAMW_CHUNK));
    let rest = moments.zip(a.grads.slice().par_chunks(ADAMW_CHUNK)).enumerate();
    let chunk = |i: usize, [m, v]: [&mut [f32]; 2], grads: &[f32], params: &mut [f32]| {
        let split = decayed.saturating_sub(i * ADAMW_CHUNK).min(params.len());
        let (params, params_rest) = params.split_at_mut(split);
        let ((m, m_rest), (v, v_rest)) = (m.split_at_mut(split), v.split_at_mut(split));
        let (grads, grads_rest) = grads.split_at(split);
        apply(params, m, v, grads, with_decay);
        apply(params_rest, m_rest, v_rest, grads_rest, without_decay);
    };
    match a.master {
        Some(master) => {
            let params = params.par_chunks_mut(ADAMW_CHUNK).zip(master.into_slice().par_chunks_mut(ADAMW_CHUNK));
            rest.zip(params).for_each(|((i, ((m, v), grads)), (params, master))| {
                chunk(i, [m, v], grads, master);
                A::round(params, master);
            });
        }
        None => {
            let params = params.par_chunks_mut(ADAMW_CHUNK);
            rest.zip(params).for_each(|((i, ((m, v), grads)), params)| chunk(i, [m, v], grads, &mut cpu.update(params)))
        }
    }
    Ok(())
}

vectorised! {
    /// Updates one chunk of parameters and moments.
    fn apply(params: &mut [f32], m: &mut [f32], v: &mut [f32], grads: &[f32], u: Update) {
        for (((p, m), v), g) in params.iter_mut().zip(m).zip(v).zip(grads) {
            let g = g * u.clip;
            *m = u.beta1 * *m + u.one_minus_beta1 * g;
            *v = u.beta2 * *v + u.one_minus_beta2 * (g * g);
            let denominator = v.sqrt() / u.correction2 + u.eps;
            *p = *p * u.decay_factor - u.step_size * (*m / denominator);
        }
    }
}
