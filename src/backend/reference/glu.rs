//! SwiGLU and GeGLU, the linear layers with SwiGLU as epilogue, and their gradients.

use super::gelu::gelu;
use super::{Reference, dot};
use crate::backend::contract::*;

type R = Reference;

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// Activation of the gate and its slope: d silu(g) / dg = s + g s (1 - s) with s = sigmoid(g).
fn activation(form: Option<Gelu>, gate: f64) -> (f64, f64) {
    let s = sigmoid(gate);
    form.map_or((gate * s, s + gate * s * (1.0 - s)), |form| gelu(form, gate))
}

pub fn glu_fwd(a: GluFwd<'_, R>) {
    let (i, gate_up) = (a.dims.intermediate, a.gate_up.slice());
    for (row, act) in gate_up.chunks_exact(2 * i).zip(a.act.into_slice().chunks_exact_mut(i)) {
        for k in 0..i {
            act[k] = activation(a.dims.gelu, row[k]).0 * row[i + k];
        }
    }
}

pub fn glu_bwd(a: GluBwd<'_, R>) {
    let (i, gate_up, dact) = (a.dims.intermediate, a.gate_up.slice(), a.dact.slice());
    for (t, out) in a.dgate_up.into_slice().chunks_exact_mut(2 * i).enumerate() {
        for k in 0..i {
            let (gate, up, dact) = (gate_up[t * 2 * i + k], gate_up[t * 2 * i + i + k], dact[t * i + k]);
            let (value, slope) = activation(a.dims.gelu, gate);
            out[k] = dact * up * slope;
            out[i + k] = dact * value;
        }
    }
}

pub fn linear_glu_fwd(a: LinearGluFwd<'_, R>) {
    let (d, x, weight) = (a.dims, a.x.slice(), a.weight.slice());
    let (i, act, mut stored) = (d.intermediate, a.act.into_slice(), a.gate_up.map(|g| g.into_slice()));
    for t in 0..d.tokens {
        let feature = |o: usize| dot(&x[t * d.hidden..][..d.hidden], &weight[o * d.hidden..][..d.hidden]);
        for k in 0..i {
            let (gate, up) = (feature(k), feature(i + k));
            act[t * i + k] = gate * sigmoid(gate) * up;
            if let Some(stored) = &mut stored {
                stored[t * 2 * i + k] = gate;
                stored[t * 2 * i + i + k] = up;
            }
        }
    }
}

pub fn linear_glu_bwd(a: LinearGluBwd<'_, R>) {
    let (d, dy, weight, gate_up) = (a.dims, a.dy.slice(), a.weight.slice(), a.gate_up.slice());
    let i = d.intermediate;
    for (t, out) in a.dgate_up.into_slice().chunks_exact_mut(2 * i.max(1)).enumerate() {
        for k in 0..i {
            let dact = (0..d.hidden).map(|h| dy[t * d.hidden + h] * weight[h * i + k]).sum::<f64>();
            let (gate, up) = (gate_up[t * 2 * i + k], gate_up[t * 2 * i + i + k]);
            let s = sigmoid(gate);
            out[k] = dact * up * (s + gate * s * (1.0 - s));
            out[i + k] = dact * gate * s;
        }
    }
}
