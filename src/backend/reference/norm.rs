//! RMSNorm and its gradient.

use super::{Reference, dot};
use crate::backend::Write;
use crate::backend::contract::*;

type R = Reference;

/// Factors of the normalised values: `offset + weight`.
fn factors(weight: &[f64], offset: f64) -> Vec<f64> {
    weight.iter().map(|w| offset + w).collect()
}

pub fn norm_fwd(a: NormFwd<'_, R>) {
    let (d, x, weight) = (a.dims, a.x.slice(), factors(a.weight.slice(), a.dims.offset));
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
            let base = a.base.map_or(0.0, |base| base.slice()[t * d.hidden + h]);
            y[t * d.hidden + h] = base + row[h] * rstd[t] * weight[h];
        }
    }
}

/// With n = sum * rstd and g = dy * (offset + weight): dsum = rstd (g - n mean(g n)), dweight = sum over the
/// tokens of dy n.
pub fn norm_bwd(a: NormBwd<'_, R>) {
    let (d, dy, sum, rstd) = (a.dims, a.dy.slice(), a.sum.slice(), a.rstd.slice());
    let weight = factors(a.weight.slice(), d.offset);
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

/// Reciprocal root mean square of a head.
fn rstd_of(head: &[f64], eps: f64) -> f64 {
    1.0 / (dot(head, head) / head.len() as f64 + eps).sqrt()
}

pub fn qk_norm_fwd(a: QkNormFwd<'_, R>) {
    let (d, qkv) = (a.dims, a.qkv_in_place.into_slice());
    let weight = factors(a.weight.slice(), d.offset);
    let mut x = a.x.map(|x| x.into_slice());
    for t in 0..d.tokens {
        for (at, weights) in d.rows() {
            let (fused, copy) = (t * d.width() + at, t * d.normalised() * d.head_dim + at);
            let values = &mut qkv[fused..fused + weights.len()];
            if let Some(x) = &mut x {
                x[copy..copy + weights.len()].copy_from_slice(values);
            }
            let rstd = rstd_of(values, d.eps);
            for (value, weight) in values.iter_mut().zip(&weight[weights]) {
                *value *= rstd * weight;
            }
        }
    }
}

/// Applies the formula of [`norm_bwd`] to each head, or, for a norm over whole rows, once to all query heads
/// and once to all key heads of a token.
pub fn qk_norm_bwd(a: QkNormBwd<'_, R>) {
    let (d, x, weight) = (a.dims, a.x.slice(), factors(a.weight.slice(), a.dims.offset));
    let (dqkv, dweight) = (a.dqkv_in_place.into_slice(), a.dweight.into_slice());
    if a.write == Write::Overwrite {
        dweight.fill(0.0);
    }
    for t in 0..d.tokens {
        for (at, weights) in d.rows() {
            let (fused, copy, width) = (t * d.width() + at, t * d.normalised() * d.head_dim + at, weights.len());
            let (x, dy) = (&x[copy..copy + width], &mut dqkv[fused..fused + width]);
            let (weight, dweight) = (&weight[weights.clone()], &mut dweight[weights]);
            let rstd = rstd_of(x, d.eps);
            let mean = (0..width).map(|i| dy[i] * weight[i] * x[i] * rstd).sum::<f64>() / width as f64;
            for i in 0..width {
                let normalised = x[i] * rstd;
                dweight[i] += dy[i] * normalised;
                dy[i] = rstd * (dy[i] * weight[i] - normalised * mean);
            }
        }
    }
}
