//! LayerNorm and its gradient. A row depends only on its own inputs and is computed in a fixed order.
//! The gradients of weight and bias are summed over slices of tokens of fixed size, which are added
//! in ascending order.

use rayon::prelude::*;

use super::Cpu;
use super::element::Element;
use super::rows::{rows_of_task, sum_slices};
use super::simd::{LANES, fma, sum_lanes, vectorised};
use crate::backend::Write;
use crate::backend::contract::*;

pub(super) fn layer_norm_fwd<A: Element>(cpu: &Cpu<A>, a: LayerNormFwd<'_, Cpu<A>>) {
    let (h, eps) = (a.dims.hidden, a.dims.eps);
    let (stats, weight) = (a.stats.into_slice(), &cpu.load(a.weight.slice())[..]);
    if h == 0 {
        stats.fill(0.0);
        return;
    }
    let rows = rows_of_task(h);
    let tasks = a.y.into_slice().par_chunks_mut(rows * h).zip(stats.par_chunks_mut(2 * rows));
    tasks.zip(a.x.slice().par_chunks(rows * h)).for_each(|((y, stats), x)| {
        let (mut y, x) = (cpu.store(y), cpu.load(x));
        for ((y, stats), x) in y.chunks_exact_mut(h).zip(stats.chunks_exact_mut(2)).zip(x.chunks_exact(h)) {
            stats.copy_from_slice(&norm_row(y, x, weight, eps));
        }
    });
}

vectorised! {
    /// Normalises one row and returns its mean and reciprocal standard deviation.
    fn norm_row(y: &mut [f32], x: &[f32], weight: &[f32], eps: f64) -> [f32; 2] {
        let h = x.len();
        let mut lanes = [0.0; LANES];
        for (i, x) in x.iter().enumerate() {
            lanes[i % LANES] += x;
        }
        let mean = (f64::from(sum_lanes(lanes)) / h as f64) as f32;
        let mut lanes = [0.0; LANES];
        for (i, x) in x.iter().enumerate() {
            lanes[i % LANES] = fma::<FMA>(x - mean, x - mean, lanes[i % LANES]);
        }
        let rstd = (1.0 / (f64::from(sum_lanes(lanes)) / h as f64 + eps).sqrt()) as f32;
        let (weight, bias) = weight.split_at(h);
        for (((y, x), w), b) in y.iter_mut().zip(x).zip(weight).zip(bias) {
            *y = fma::<FMA>((x - mean) * rstd, *w, *b);
        }
        [mean, rstd]
    }
}

/// Number of tokens of a slice of the gradients of weight and bias.
const SLICE_TOKENS: usize = 64;

pub(super) fn layer_norm_bwd<A: Element>(cpu: &Cpu<A>, a: LayerNormBwd<'_, Cpu<A>>) {
    let h = a.dims.hidden;
    if h == 0 {
        return;
    }
    let (weight, add) = (&cpu.load(&a.weight.slice()[..h])[..], a.dx_write == Write::Add);
    let mut partial = cpu.scratch.take(a.dims.tokens.div_ceil(SLICE_TOKENS) * 2 * h);
    let rows = SLICE_TOKENS * h;
    partial
        .par_chunks_mut(2 * h)
        .zip(a.dx.into_slice().par_chunks_mut(rows))
        .zip(a.dy.slice().par_chunks(rows))
        .zip(a.x.slice().par_chunks(rows))
        .zip(a.stats.slice().par_chunks(2 * SLICE_TOKENS))
        .for_each(|((((partial, dx), dy), x), stats)| {
            partial.fill(0.0);
            let mut dx = if add { cpu.update(dx) } else { cpu.store(dx) };
            let (dy, x) = (cpu.load(dy), cpu.load(x));
            for (i, stats) in stats.chunks_exact(2).enumerate() {
                let row = i * h..(i + 1) * h;
                let (dx, dy, x) = (&mut dx[row.clone()], &dy[row.clone()], &x[row]);
                norm_row_bwd(dx, partial, dy, x, weight, stats, add);
            }
        });
    sum_slices(a.dweight.into_slice(), &partial, a.dweight_write);
}

vectorised! {
    /// Gradient of one row. With n = (x - mean) rstd and g = dy weight:
    /// `dx (+)= rstd (g - mean(g) - n mean(g n))`, `dweight += dy n`, `dbias += dy`.
    fn norm_row_bwd(
        dx: &mut [f32], dweight: &mut [f32], dy: &[f32], x: &[f32], weight: &[f32], stats: &[f32], add: bool,
    ) {
        let h = x.len();
        let (mean, rstd) = (stats[0], stats[1]);
        let (dweight, dbias) = dweight.split_at_mut(h);
        let (dx, dy, weight) = (&mut dx[..h], &dy[..h], &weight[..h]);
        let (mut sums, mut products) = ([0.0; LANES], [0.0; LANES]);
        for i in 0..h {
            let g = dy[i] * weight[i];
            sums[i % LANES] += g;
            products[i % LANES] = fma::<FMA>(g, (x[i] - mean) * rstd, products[i % LANES]);
        }
        let (sum, product) = (sum_lanes(sums) / h as f32, sum_lanes(products) / h as f32);
        for i in 0..h {
            let n = (x[i] - mean) * rstd;
            let gradient = rstd * (dy[i] * weight[i] - sum - n * product);
            dx[i] = if add { dx[i] + gradient } else { gradient };
            dweight[i] += dy[i] * n;
            dbias[i] += dy[i];
        }
    }
}
