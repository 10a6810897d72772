//! Gradient norm with clip factor, and AdamW.

use super::Reference;
use crate::backend::contract::*;

pub fn grad_norm(a: GradNorm<'_, Reference>) {
    let read = a.read().map(|range| &a.grads.slice()[range]);
    let known = a.known.map_or(&[][..], |known| known.norms.slice());
    let norm = read[0].iter().chain(read[1]).chain(known).map(|g| g * g).sum::<f64>().sqrt();
    let control = a.control.into_slice();
    control[CONTROL_NORM] = norm;
    if norm.is_finite() {
        control[CONTROL_STEP] += 1.0;
        control[CONTROL_APPLY] = 1.0;
        control[CONTROL_CLIP] = (a.max_norm / (norm + 1e-6)).min(1.0);
    } else {
        control[CONTROL_SKIPPED] += 1.0;
        control[CONTROL_APPLY] = 0.0;
        control[CONTROL_CLIP] = 0.0;
    }
}

pub fn adamw(a: AdamW<'_, Reference>) {
    let control = a.control.slice();
    if control[CONTROL_APPLY] == 0.0 {
        return;
    }
    let (lr, step) = (control[CONTROL_LEARNING_RATE], control[CONTROL_STEP]);
    let (correction1, correction2) = (1.0 - a.beta1.powf(step), 1.0 - a.beta2.powf(step));
    let (grads, m, v, params) = (a.grads.slice(), a.m.into_slice(), a.v.into_slice(), a.params.into_slice());
    for i in 0..a.len {
        let g = grads[i] * control[CONTROL_CLIP];
        let decay = if i < a.decayed { a.weight_decay } else { 0.0 };
        m[i] = a.beta1 * m[i] + (1.0 - a.beta1) * g;
        v[i] = a.beta2 * v[i] + (1.0 - a.beta2) * g * g;
        let denominator = (v[i] / correction2).sqrt() + a.eps;
        params[i] = params[i] * (1.0 - lr * decay) - lr / correction1 * m[i] / denominator;
    }
    if let Some(master) = a.master {
        master.into_slice().copy_from_slice(params);
    }
}
