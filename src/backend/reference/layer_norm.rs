//! LayerNorm and its gradient.

use super::Reference;
use crate::backend::Write;
use crate::backend::contract::*;

type R = Reference;

pub fn layer_norm_fwd(a: LayerNormFwd<'_, R>) {
    let (d, x) = (a.dims, a.x.slice());
    let (weight, bias) = a.weight.slice().split_at(d.hidden);
    let (y, stats) = (a.y.into_slice(), a.stats.into_slice());
    let h = d.hidden as f64;
    for t in 0..d.tokens {
        let row = &x[t * d.hidden..][..d.hidden];
        let mean = row.iter().sum::<f64>() / h;
        let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / h;
        let rstd = 1.0 / (variance + d.eps).sqrt();
        (stats[2 * t], stats[2 * t + 1]) = (mean, rstd);
        for i in 0..d.hidden {
            y[t * d.hidden + i] = (row[i] - mean) * rstd * weight[i] + bias[i];
        }
    }
}

/// With n = (x - mean) rstd and g = dy weight: dx = rstd (g - mean(g) - n mean(g n)); dweight = sum
/// over the tokens of dy n; dbias = sum of dy.
pub fn layer_norm_bwd(a: LayerNormBwd<'_, R>) {
    let (d, dy, x, stats, weight) = (a.dims, a.dy.slice(), a.x.slice(), a.stats.slice(), a.weight.slice());
    let (dx, dweight) = (a.dx.into_slice(), a.dweight.into_slice());
    if a.dweight_write == Write::Overwrite {
        dweight.fill(0.0);
    }
    let (dweight, dbias) = dweight.split_at_mut(d.hidden);
    let h = d.hidden as f64;
    for t in 0..d.tokens {
        let row = t * d.hidden..(t + 1) * d.hidden;
        let (dy, x, dx) = (&dy[row.clone()], &x[row.clone()], &mut dx[row]);
        let (mean, rstd) = (stats[2 * t], stats[2 * t + 1]);
        let normalised = |i: usize| (x[i] - mean) * rstd;
        let sum = (0..d.hidden).map(|i| dy[i] * weight[i]).sum::<f64>() / h;
        let product = (0..d.hidden).map(|i| dy[i] * weight[i] * normalised(i)).sum::<f64>() / h;
        for i in 0..d.hidden {
            let gradient = rstd * (dy[i] * weight[i] - sum - normalised(i) * product);
            dx[i] = if a.dx_write == Write::Add { dx[i] + gradient } else { gradient };
            dweight[i] += dy[i] * normalised(i);
            dbias[i] += dy[i];
        }
    }
}
