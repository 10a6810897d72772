//! Row passes: RMSNorm, RoPE, SwiGLU, and the sums that end a split over tokens. Each row is computed from its own
//! inputs by loops of fixed order, so it does not depend on its neighbours; sums over tokens are made of slices of
//! fixed size, added in ascending order.

use rayon::prelude::*;

use super::Cpu;
use super::math::sigmoid;
use super::simd::{LANES, dot, fma, sum_lanes, vectorised};
use crate::backend::Write;
use crate::backend::contract::*;

/// Elements that one task handles at least: about 5 microseconds of work, well above the cost of a task.
const TASK: usize = 1 << 14;

/// Rows of a task for rows of `width` elements.
pub(super) fn rows_of_task(width: usize) -> usize {
    (TASK / width.max(1)).max(1)
}

vectorised! {
    /// `to += row`.
    pub(super) fn add_rows(to: &mut [f32], row: &[f32]) {
        for (to, x) in to.iter_mut().zip(row) {
            *to += x;
        }
    }
}

/// `out (+)= sum of slices`, in ascending order; `slices` holds a whole number of them.
pub(super) fn sum_slices(out: &mut [f32], slices: &[f32], write: Write) {
    let width = out.len();
    out.par_chunks_mut(TASK).enumerate().for_each(|(i, out)| {
        if write == Write::Overwrite {
            out.fill(0.0);
        }
        slices.chunks_exact(width).for_each(|slice| add_rows(out, &slice[i * TASK..][..out.len()]));
    });
}

pub(super) fn norm_fwd(a: NormFwd<'_, Cpu>) {
    let (h, eps) = (a.dims.hidden, a.dims.eps);
    let (rstd, weight, x) = (a.rstd.into_slice(), a.weight.slice(), a.x.slice());
    if h == 0 {
        rstd.fill(0.0);
        return;
    }
    let rows = rows_of_task(h);
    let y = a.y.into_slice().par_chunks_mut(rows * h).zip(rstd.par_chunks_mut(rows)).zip(x.par_chunks(rows * h));
    match (a.residual, a.sum) {
        (Some(residual), Some(sum)) => {
            let sums = sum.into_slice().par_chunks_mut(rows * h).zip(residual.slice().par_chunks(rows * h));
            y.zip(sums).for_each(|(((y, rstd), x), (sum, residual))| {
                for (i, rstd) in rstd.iter_mut().enumerate() {
                    let row = i * h..(i + 1) * h;
                    let sum = &mut sum[row.clone()];
                    add(sum, &x[row.clone()], &residual[row.clone()]);
                    *rstd = norm_row(&mut y[row], sum, weight, eps);
                }
            });
        }
        _ => y.for_each(|((y, rstd), x)| {
            for (i, rstd) in rstd.iter_mut().enumerate() {
                let row = i * h..(i + 1) * h;
                *rstd = norm_row(&mut y[row.clone()], &x[row], weight, eps);
            }
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
    /// One row of RMSNorm; returns its reciprocal root mean square.
    fn norm_row(y: &mut [f32], sum: &[f32], weight: &[f32], eps: f64) -> f32 {
        let mean = f64::from(dot::<FMA>(sum, sum)) / sum.len() as f64;
        let rstd = (1.0 / (mean + eps).sqrt()) as f32;
        for ((y, x), w) in y.iter_mut().zip(sum).zip(weight) {
            *y = x * rstd * w;
        }
        rstd
    }
}

/// Tokens of a slice of the weight gradient.
const NORM_TOKENS: usize = 64;

pub(super) fn norm_bwd(cpu: &Cpu, a: NormBwd<'_, Cpu>) {
    let h = a.dims.hidden;
    if h == 0 {
        return;
    }
    let (weight, add) = (a.weight.slice(), a.dsum_write == Write::Add);
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
            for (i, rstd) in rstd.iter().enumerate() {
                let row = i * h..(i + 1) * h;
                let (dsum, dy, sum) = (&mut dsum[row.clone()], &dy[row.clone()], &sum[row]);
                norm_row_bwd(dsum, partial, dy, sum, weight, *rstd, add);
            }
        });
    sum_slices(a.dweight.into_slice(), &partial, a.dweight_write);
}

vectorised! {
    /// With n = sum rstd and g = dy weight: `dsum (+)= rstd (g - n mean(g n))`, `dweight += dy n`.
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

/// `direction` is 1 for the forward rotation, -1 for the backward.
pub(super) fn rope(a: Rope<'_, Cpu>, direction: f32) {
    let d = a.dims;
    let (width, half) = ((d.heads + d.still) * d.head_dim, d.head_dim / 2);
    if width == 0 || half == 0 {
        return;
    }
    let (cos, sin) = (a.cos.slice(), a.sin.slice());
    let rows = rows_of_task(width);
    a.qkv_in_place.into_slice().par_chunks_mut(rows * width).zip(a.positions.slice().par_chunks(rows)).for_each(
        |(qkv, positions)| {
            for (row, position) in qkv.chunks_exact_mut(width).zip(positions) {
                let table = *position as usize * half..(*position as usize + 1) * half;
                rotate(&mut row[..d.heads * d.head_dim], &cos[table.clone()], &sin[table], direction);
            }
        },
    );
}

vectorised! {
    /// Rotates the heads of one token; a head is twice as long as `cos` and `sin`.
    fn rotate(heads: &mut [f32], cos: &[f32], sin: &[f32], direction: f32) {
        for head in heads.chunks_exact_mut(2 * cos.len()) {
            let (a, b) = head.split_at_mut(cos.len());
            for (((a, b), cos), sin) in a.iter_mut().zip(b).zip(cos).zip(sin) {
                let (x, y, sin) = (*a, *b, direction * sin);
                *a = x * cos - y * sin;
                *b = y * cos + x * sin;
            }
        }
    }
}

pub(super) fn glu_fwd(a: GluFwd<'_, Cpu>) {
    glu_rows(a.act.into_slice(), a.gate_up.slice(), a.dims.intermediate);
}

/// `act` (tokens, intermediate) from `gate_up` (tokens, 2 intermediate).
pub(super) fn glu_rows(act: &mut [f32], gate_up: &[f32], intermediate: usize) {
    let i = intermediate;
    if i == 0 {
        return;
    }
    let rows = rows_of_task(i);
    act.par_chunks_mut(rows * i).zip(gate_up.par_chunks(rows * 2 * i)).for_each(|(act, gate_up)| {
        for (act, gate_up) in act.chunks_exact_mut(i).zip(gate_up.chunks_exact(2 * i)) {
            let (gate, up) = gate_up.split_at(i);
            glu_row(act, gate, up);
        }
    });
}

vectorised! {
    fn glu_row(act: &mut [f32], gate: &[f32], up: &[f32]) {
        for ((act, gate), up) in act.iter_mut().zip(gate).zip(up) {
            *act = gate * sigmoid::<FMA>(*gate) * up;
        }
    }
}

pub(super) fn glu_bwd(a: GluBwd<'_, Cpu>) {
    glu_rows_bwd(a.dgate_up.into_slice(), a.gate_up.slice(), a.dact.slice(), a.dims.intermediate);
}

/// `dgate_up` (tokens, 2 intermediate) from `gate_up` and `dact` (tokens, intermediate).
pub(super) fn glu_rows_bwd(dgate_up: &mut [f32], gate_up: &[f32], dact: &[f32], intermediate: usize) {
    let i = intermediate;
    if i == 0 {
        return;
    }
    let rows = rows_of_task(2 * i);
    let tasks =
        dgate_up.par_chunks_mut(rows * 2 * i).zip(gate_up.par_chunks(rows * 2 * i)).zip(dact.par_chunks(rows * i));
    tasks.for_each(|((dgate_up, gate_up), dact)| {
        let rows = dgate_up.chunks_exact_mut(2 * i).zip(gate_up.chunks_exact(2 * i)).zip(dact.chunks_exact(i));
        for ((dgate_up, gate_up), dact) in rows {
            let (dgate, dup) = dgate_up.split_at_mut(i);
            let (gate, up) = gate_up.split_at(i);
            glu_row_bwd(dgate, dup, gate, up, dact);
        }
    });
}

vectorised! {
    /// d silu(g) / dg = s (1 + g (1 - s)) with s = sigmoid(g).
    fn glu_row_bwd(dgate: &mut [f32], dup: &mut [f32], gate: &[f32], up: &[f32], dact: &[f32]) {
        for ((((dgate, dup), gate), up), dact) in dgate.iter_mut().zip(dup).zip(gate).zip(up).zip(dact) {
            let s = sigmoid::<FMA>(*gate);
            *dgate = dact * up * (s * (1.0 + gate * (1.0 - s)));
            *dup = dact * (gate * s);
        }
    }
}
