//! RMSNorm of rows and of query and key heads, and its gradients. A row depends only on its own inputs and is
//! computed in a fixed order. The weight gradient is summed over slices of tokens of fixed size, which are
//! added in ascending order.

use rayon::prelude::*;

use super::Cpu;
use super::element::{Element, Values};
use super::rows::{rows_of_task, sum_slices};
use super::simd::{LANES, dot, fma, sum_lanes, vectorised};
use crate::backend::Write;
use crate::backend::contract::*;

/// Factors of a norm: the weight, or its sum with the offset.
fn factors<'a, A: Element>(cpu: &'a Cpu<A>, weight: &'a [A], offset: f64) -> Values<'a> {
    let weight = cpu.load(weight);
    if offset == 0.0 {
        return weight;
    }
    let mut sums = cpu.scratch.take(weight.len());
    for (sum, w) in sums.iter_mut().zip(weight.iter()) {
        *sum = offset as f32 + w;
    }
    Values::Copy(sums)
}

pub(super) fn norm_fwd<A: Element>(cpu: &Cpu<A>, a: NormFwd<'_, Cpu<A>>) {
    let (h, eps) = (a.dims.hidden, a.dims.eps);
    let (rstd, x) = (a.rstd.into_slice(), a.x.slice());
    let weight = &factors(cpu, a.weight.slice(), a.dims.offset)[..];
    if h == 0 {
        rstd.fill(0.0);
        return;
    }
    let rows = rows_of_task(h);
    let base = a.base.map(|base| base.slice());
    // Adds the base to the rows of a task.
    let add_base = |y: &mut [f32], task: usize| {
        if let Some(base) = base {
            A::add(y, &base[task * rows * h..][..y.len()]);
        }
    };
    let y = a.y.into_slice().par_chunks_mut(rows * h).zip(rstd.par_chunks_mut(rows)).zip(x.par_chunks(rows * h));
    match (a.residual, a.sum) {
        (Some(residual), Some(sum)) => {
            let sums = sum.into_slice().par_chunks_mut(rows * h).zip(residual.slice().par_chunks(rows * h));
            y.zip(sums).enumerate().for_each(|(task, (((y, rstd), x), (sum, residual)))| {
                let mut sum = cpu.store(sum);
                add(&mut sum, &cpu.load(x), &cpu.load(residual));
                // The norm uses the sum as it is stored, because the gradient reads the stored sum.
                A::settle(&mut sum);
                let mut y = cpu.store(y);
                for (i, rstd) in rstd.iter_mut().enumerate() {
                    let row = i * h..(i + 1) * h;
                    *rstd = norm_row(&mut y[row.clone()], &sum[row], weight, eps);
                }
                add_base(&mut y, task);
            });
        }
        _ => y.enumerate().for_each(|(task, ((y, rstd), x))| {
            let (mut y, x) = (cpu.store(y), cpu.load(x));
            for (i, rstd) in rstd.iter_mut().enumerate() {
                let row = i * h..(i + 1) * h;
                *rstd = norm_row(&mut y[row.clone()], &x[row], weight, eps);
            }
            add_base(&mut y, task);
        }),
    }
}

vectorised! {
    /// `sum = x + y`.
    fn add(sum: &mut [f32], x: &[f32], y: &[f32]) {
        for ((sum, x), y) in sum.iter_mut().zip(x).zip(y) {
            *sum = x + y;
        }
    }
}

vectorised! {
    /// Normalises one row and returns its reciprocal root mean square.
    fn norm_row(y: &mut [f32], sum: &[f32], weight: &[f32], eps: f64) -> f32 {
        let mean = f64::from(dot::<FMA>(sum, sum)) / sum.len() as f64;
        let rstd = (1.0 / (mean + eps).sqrt()) as f32;
        let (y, weight) = (&mut y[..sum.len()], &weight[..sum.len()]);
        for i in 0..sum.len() {
            y[i] = sum[i] * rstd * weight[i];
        }
        rstd
    }
}

/// Number of tokens of a slice of the weight gradient.
const NORM_TOKENS: usize = 64;

pub(super) fn norm_bwd<A: Element>(cpu: &Cpu<A>, a: NormBwd<'_, Cpu<A>>) {
    let h = a.dims.hidden;
    if h == 0 {
        return;
    }
    let weight = &factors(cpu, a.weight.slice(), a.dims.offset)[..];
    let add = a.dsum_write == Write::Add;
    let mut partial = cpu.scratch.take(a.dims.tokens.div_ceil(NORM_TOKENS) * h);
    let rows = NORM_TOKENS * h;
    partial
        .par_chunks_mut(h)
        .zip(a.dsum.into_slice().par_chunks_mut(rows))
        .zip(a.dy.slice().par_chunks(rows))
        .zip(a.sum.slice().par_chunks(rows))
        .zip(a.rstd.slice().par_chunks(NORM_TOKENS))
        .for_each(|((((partial, dsum), dy), sum), rstd)| {
            partial.fill(0.0);
            let mut dsum = if add { cpu.update(dsum) } else { cpu.store(dsum) };
            let (dy, sum) = (cpu.load(dy), cpu.load(sum));
            for (i, rstd) in rstd.iter().enumerate() {
                let row = i * h..(i + 1) * h;
                let (dsum, dy, sum) = (&mut dsum[row.clone()], &dy[row.clone()], &sum[row]);
                norm_row_bwd(dsum, partial, dy, sum, weight, *rstd, add);
            }
        });
    sum_slices(a.dweight.into_slice(), &partial, a.dweight_write);
}

vectorised! {
    /// Gradient of one row. With n = sum rstd and g = dy weight:
    /// `dsum (+)= rstd (g - n mean(g n))`, `dweight += dy n`.
    fn norm_row_bwd(
        dsum: &mut [f32], dweight: &mut [f32], dy: &[f32], sum: &[f32], weight: &[f32], rstd: f32, add: bool,
    ) {
        let h = sum.len();
        let (dsum, dweight, dy, weight) = (&mut dsum[..h], &mut dweight[..h], &dy[..h], &weight[..h]);
        let mut lanes = [0.0; LANES];
        let whole = h / LANES * LANES;
        for i in (0..whole).step_by(LANES) {
            let (dy, sum, weight) = (&dy[i..i + LANES], &sum[i..i + LANES], &weight[i..i + LANES]);
            for l in 0..LANES {
                lanes[l] = fma::<FMA>(dy[l] * weight[l], sum[l], lanes[l]);
            }
        }
        for i in whole..h {
            lanes[i - whole] = fma::<FMA>(dy[i] * weight[i], sum[i], lanes[i - whole]);
        }
        let mean = sum_lanes(lanes) * rstd / h as f32;
        if add {
            for i in 0..h {
                let n = sum[i] * rstd;
                dsum[i] += rstd * (dy[i] * weight[i] - n * mean);
                dweight[i] += dy[i] * n;
            }
        } else {
            for i in 0..h {
                let n = sum[i] * rstd;
                dsum[i] = rstd * (dy[i] * weight[i] - n * mean);
                dweight[i] += dy[i] * n;
            }
        }
    }
}

pub(super) fn qk_norm_fwd<A: Element>(cpu: &Cpu<A>, a: QkNormFwd<'_, Cpu<A>>) {
    let d = a.dims;
    let weight = &factors(cpu, a.weight.slice(), d.offset)[..];
    let (width, copied) = (d.width(), d.normalised() * d.head_dim);
    if copied == 0 {
        return;
    }
    let rows = rows_of_task(width);
    let qkv = a.qkv_in_place.into_slice().par_chunks_mut(rows * width);
    let normalise = |row: &mut [f32]| {
        for (at, weights) in d.rows() {
            norm_head(&mut row[at..at + weights.len()], &weight[weights], d.eps);
        }
    };
    match a.x {
        Some(x) => qkv.zip(x.into_slice().par_chunks_mut(rows * copied)).for_each(|(qkv, x)| {
            for (row, x) in qkv.chunks_exact(width).zip(x.chunks_exact_mut(copied)) {
                x.copy_from_slice(&row[..copied]);
            }
            cpu.update(qkv).chunks_exact_mut(width).for_each(normalise);
        }),
        None => qkv.for_each(|qkv| cpu.update(qkv).chunks_exact_mut(width).for_each(normalise)),
    }
}

/// Reciprocal root mean square of a head with this sum of squares.
fn rstd_of(squares: f32, head_dim: usize, eps: f64) -> f32 {
    (1.0 / (f64::from(squares) / head_dim as f64 + eps).sqrt()) as f32
}

vectorised! {
    /// Normalises a head in place.
    fn norm_head(head: &mut [f32], weight: &[f32], eps: f64) {
        let rstd = rstd_of(dot::<FMA>(head, head), head.len(), eps);
        for (x, w) in head.iter_mut().zip(weight) {
            *x = *x * rstd * w;
        }
    }
}

vectorised! {
    /// Reciprocal root mean square of a head.
    fn rstd_of_head(head: &[f32], eps: f64) -> f32 {
        rstd_of(dot::<FMA>(head, head), head.len(), eps)
    }
}

pub(super) fn qk_norm_bwd<A: Element>(cpu: &Cpu<A>, a: QkNormBwd<'_, Cpu<A>>) {
    let d = a.dims;
    let weight = &factors(cpu, a.weight.slice(), d.offset)[..];
    let (width, copied) = (d.width(), d.normalised() * d.head_dim);
    let mut partial = cpu.scratch.take(d.tokens.div_ceil(NORM_TOKENS) * d.weights());
    if copied > 0 {
        partial
            .par_chunks_mut(d.weights())
            .zip(a.dqkv_in_place.into_slice().par_chunks_mut(NORM_TOKENS * width))
            .zip(a.x.slice().par_chunks(NORM_TOKENS * copied))
            .for_each(|((partial, dqkv), x)| {
                partial.fill(0.0);
                let mut dy = vec![0.0; d.weights()];
                let (mut dqkv, x) = (cpu.update(dqkv), cpu.load(x));
                for (row, x) in dqkv.chunks_exact_mut(width).zip(x.chunks_exact(copied)) {
                    for (at, weights) in d.rows() {
                        let (own, dy) = (at..at + weights.len(), &mut dy[..weights.len()]);
                        let (dhead, x) = (&mut row[own.clone()], &x[own]);
                        dy.copy_from_slice(dhead);
                        let (dweight, weight) = (&mut partial[weights.clone()], &weight[weights]);
                        norm_row_bwd(dhead, dweight, dy, x, weight, rstd_of_head(x, d.eps), false);
                    }
                }
            });
    }
    sum_slices(a.dweight.into_slice(), &partial, a.write);
}
