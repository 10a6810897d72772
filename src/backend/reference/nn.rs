//! Embedding, RMSNorm, linear maps, RoPE and SwiGLU.

use super::{Reference, at, dot};
use crate::backend::Write;
use crate::backend::contract::*;

type R = Reference;

pub fn embedding_fwd(a: EmbeddingFwd<'_, R>) {
    let (hidden, ids, table) = (a.dims.hidden, a.ids.slice(), a.table.slice());
    for (t, x) in a.x.into_slice().chunks_exact_mut(hidden).enumerate() {
        x.copy_from_slice(&table[at(ids, t) * hidden..][..hidden]);
    }
}

pub fn embedding_bwd(a: EmbeddingBwd<'_, R>) {
    let (hidden, dx, dtable) = (a.dims.hidden, a.dx.slice(), a.dtable.into_slice());
    let (order, offsets, keys) = (a.runs.order.slice(), a.runs.offsets.slice(), a.runs.keys.slice());
    if a.write == Write::Overwrite {
        dtable.fill(0.0);
    }
    for k in (0..keys.len()).filter(|&k| keys[k] >= 0) {
        for i in at(offsets, k)..at(offsets, k + 1) {
            for h in 0..hidden {
                dtable[at(keys, k) * hidden + h] += dx[at(order, i) * hidden + h];
            }
        }
    }
}

pub fn norm_fwd(a: NormFwd<'_, R>) {
    let (d, x, weight) = (a.dims, a.x.slice(), a.weight.slice());
    let mut sum = x.to_vec();
    if let (Some(residual), Some(out)) = (a.residual, a.sum) {
        for (s, r) in sum.iter_mut().zip(residual.slice()) {
            *s += r;
        }
        out.into_slice().copy_from_slice(&sum);
    }
    let (y, rstd) = (a.y.into_slice(), a.rstd.into_slice());
    for t in 0..d.tokens {
        let row = &sum[t * d.hidden..][..d.hidden];
        rstd[t] = 1.0 / (dot(row, row) / d.hidden as f64 + d.eps).sqrt();
        for h in 0..d.hidden {
            y[t * d.hidden + h] = row[h] * rstd[t] * weight[h];
        }
    }
}

/// With n = sum * rstd and g = dy * weight: dsum = rstd (g - n mean(g n)), dweight = sum over tokens of dy n.
pub fn norm_bwd(a: NormBwd<'_, R>) {
    let (d, dy, sum, rstd, weight) = (a.dims, a.dy.slice(), a.sum.slice(), a.rstd.slice(), a.weight.slice());
    let (dsum, dweight) = (a.dsum.into_slice(), a.dweight.into_slice());
    if a.dweight_write == Write::Overwrite {
        dweight.fill(0.0);
    }
    for t in 0..d.tokens {
        let row = t * d.hidden..(t + 1) * d.hidden;
        let (dy, sum, dsum) = (&dy[row.clone()], &sum[row.clone()], &mut dsum[row]);
        let mean = (0..d.hidden).map(|h| dy[h] * weight[h] * sum[h] * rstd[t]).sum::<f64>() / d.hidden as f64;
        for h in 0..d.hidden {
            let normalised = sum[h] * rstd[t];
            let gradient = rstd[t] * (dy[h] * weight[h] - normalised * mean);
            dsum[h] = if a.dsum_write == Write::Add { dsum[h] + gradient } else { gradient };
            dweight[h] += dy[h] * normalised;
        }
    }
}

pub fn linear_fwd(a: LinearFwd<'_, R>) {
    let (d, x, weight, y) = (a.dims, a.x.slice(), a.weight.slice(), a.y.into_slice());
    let (bias, residual) = (a.bias.map(|b| b.slice()), a.residual.map(|r| r.slice()));
    for t in 0..d.tokens {
        for o in 0..d.outputs {
            let product = dot(&x[t * d.inputs..][..d.inputs], &weight[o * d.inputs..][..d.inputs]);
            let residual = residual.map_or(0.0, |r| r[t * d.outputs + o]);
            y[t * d.outputs + o] = product + bias.map_or(0.0, |b| b[o]) + residual;
        }
    }
}

pub fn linear_bwd_input(a: LinearBwdInput<'_, R>) {
    let (d, dy, weight, dx) = (a.dims, a.dy.slice(), a.weight.slice(), a.dx.into_slice());
    if a.write == Write::Overwrite {
        dx.fill(0.0);
    }
    for t in 0..d.tokens {
        for o in 0..d.outputs {
            for i in 0..d.inputs {
                dx[t * d.inputs + i] += dy[t * d.outputs + o] * weight[o * d.inputs + i];
            }
        }
    }
}

pub fn linear_bwd_weight(a: LinearBwdWeight<'_, R>) {
    let (d, dy, x, dweight) = (a.dims, a.dy.slice(), a.x.slice(), a.dweight.into_slice());
    if a.write == Write::Overwrite {
        dweight.fill(0.0);
    }
    for t in 0..d.tokens {
        for o in 0..d.outputs {
            for i in 0..d.inputs {
                dweight[o * d.inputs + i] += dy[t * d.outputs + o] * x[t * d.inputs + i];
            }
        }
    }
    if let Some(norms) = a.norms {
        let (norms, across) = (norms.into_slice(), d.inputs.div_ceil(PATCH.1));
        norms.fill(0.0);
        for o in 0..d.outputs {
            for i in 0..d.inputs {
                norms[o / PATCH.0 * across + i / PATCH.1] += dweight[o * d.inputs + i].powi(2);
            }
        }
        norms.iter_mut().for_each(|norm| *norm = norm.sqrt());
    }
}

pub fn bias_bwd(a: BiasBwd<'_, R>) {
    let (d, dy, dbias) = (a.dims, a.dy.slice(), a.dbias.into_slice());
    if a.write == Write::Overwrite {
        dbias.fill(0.0);
    }
    for t in 0..d.tokens {
        for o in 0..d.outputs {
            dbias[o] += dy[t * d.outputs + o];
        }
    }
}

/// `direction` is 1 for the forward rotation, -1 for its inverse, which is its transpose.
pub fn rope(a: Rope<'_, R>, direction: f64) {
    let (d, positions, cos, sin) = (a.dims, a.positions.slice(), a.cos.slice(), a.sin.slice());
    let half = d.head_dim / 2;
    let stride = (d.heads + d.still) * d.head_dim;
    let qkv = a.qkv_in_place.into_slice();
    for t in 0..d.tokens {
        for head in 0..d.heads {
            for i in 0..half {
                let (c, s) = (cos[at(positions, t) * half + i], direction * sin[at(positions, t) * half + i]);
                let first = t * stride + head * d.head_dim + i;
                let (x, y) = (qkv[first], qkv[first + half]);
                qkv[first] = x * c - y * s;
                qkv[first + half] = y * c + x * s;
            }
        }
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

pub fn glu_fwd(a: GluFwd<'_, R>) {
    let (i, gate_up) = (a.dims.intermediate, a.gate_up.slice());
    for (row, act) in gate_up.chunks_exact(2 * i).zip(a.act.into_slice().chunks_exact_mut(i)) {
        for k in 0..i {
            act[k] = row[k] * sigmoid(row[k]) * row[i + k];
        }
    }
}

/// d silu(g) / dg = s + g s (1 - s) with s = sigmoid(g).
pub fn glu_bwd(a: GluBwd<'_, R>) {
    let (i, gate_up, dact) = (a.dims.intermediate, a.gate_up.slice(), a.dact.slice());
    for (t, out) in a.dgate_up.into_slice().chunks_exact_mut(2 * i).enumerate() {
        for k in 0..i {
            let (gate, up, dact) = (gate_up[t * 2 * i + k], gate_up[t * 2 * i + i + k], dact[t * i + k]);
            let s = sigmoid(gate);
            out[k] = dact * up * (s + gate * s * (1.0 - s));
            out[i + k] = dact * gate * s;
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
