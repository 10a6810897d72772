//! SwiGLU and GeGLU, the linear layers with SwiGLU as epilogue, and their gradients. The linear layers run as
//! a GEMM followed by a pass over its result, which gives the bits of the separate ops.

use rayon::prelude::*;

use super::Cpu;
use super::element::Element;
use super::gelu::{gelu_row, gelu_row_bwd};
use super::math::sigmoid;
use super::matmul::par_matmul;
use super::rows::rows_of_task;
use super::simd::vectorised;
use super::tile::Mat;
use crate::backend::Write;
use crate::backend::contract::*;

pub(super) fn glu_fwd<A: Element>(cpu: &Cpu<A>, a: GluFwd<'_, Cpu<A>>) {
    glu_rows(cpu, a.act.into_slice(), a.gate_up.slice(), (a.dims.intermediate, a.dims.gelu));
}

/// Computes `act` (tokens, intermediate) from `gate_up` (tokens, 2 intermediate).
fn glu_rows<A: Element>(cpu: &Cpu<A>, act: &mut [A], gate_up: &[A], (i, gelu): (usize, Option<Gelu>)) {
    if i == 0 {
        return;
    }
    let rows = rows_of_task(i);
    act.par_chunks_mut(rows * i).zip(gate_up.par_chunks(rows * 2 * i)).for_each(|(act, gate_up)| {
        let (mut act, gate_up) = (cpu.store(act), cpu.load(gate_up));
        for (act, gate_up) in act.chunks_exact_mut(i).zip(gate_up.chunks_exact(2 * i)) {
            let (gate, up) = gate_up.split_at(i);
            match gelu {
                None => glu_row(act, gate, up),
                Some(form) => {
                    gelu_row(form, act, gate);
                    multiply(act, up);
                }
            }
        }
    });
}

vectorised! {
    fn multiply(x: &mut [f32], factors: &[f32]) {
        for (x, factor) in x.iter_mut().zip(factors) {
            *x *= factor;
        }
    }
}

vectorised! {
    /// Computes one row.
    fn glu_row(act: &mut [f32], gate: &[f32], up: &[f32]) {
        for ((act, gate), up) in act.iter_mut().zip(gate).zip(up) {
            *act = gate * sigmoid::<FMA>(*gate) * up;
        }
    }
}

pub(super) fn glu_bwd<A: Element>(cpu: &Cpu<A>, a: GluBwd<'_, Cpu<A>>) {
    glu_rows_bwd(cpu, a.dgate_up.into_slice(), a.gate_up.slice(), a.dact.slice(), (a.dims.intermediate, a.dims.gelu));
}

/// Computes `dgate_up` (tokens, 2 intermediate) from `gate_up` and `dact` (tokens, intermediate).
fn glu_rows_bwd<A: Element>(
    cpu: &Cpu<A>,
    dgate_up: &mut [A],
    gate_up: &[A],
    dact: &[A],
    (i, gelu): (usize, Option<Gelu>),
) {
    if i == 0 {
        return;
    }
    let rows = rows_of_task(2 * i);
    let tasks =
        dgate_up.par_chunks_mut(rows * 2 * i).zip(gate_up.par_chunks(rows * 2 * i)).zip(dact.par_chunks(rows * i));
    tasks.for_each(|((dgate_up, gate_up), dact)| {
        let (mut dgate_up, gate_up, dact) = (cpu.store(dgate_up), cpu.load(gate_up), cpu.load(dact));
        let rows = dgate_up.chunks_exact_mut(2 * i).zip(gate_up.chunks_exact(2 * i)).zip(dact.chunks_exact(i));
        for ((dgate_up, gate_up), dact) in rows {
            let (dgate, dup) = dgate_up.split_at_mut(i);
            let (gate, up) = gate_up.split_at(i);
            match gelu {
                None => glu_row_bwd(dgate, dup, gate, up, dact),
                Some(form) => {
                    gelu_row(form, dup, gate);
                    multiply(dup, dact);
                    dgate.copy_from_slice(up);
                    multiply(dgate, dact);
                    gelu_row_bwd(form, dgate, gate);
                }
            }
        }
    });
}

vectorised! {
    /// Gradient of one row: d silu(g) / dg = s (1 + g (1 - s)) with s = sigmoid(g).
    fn glu_row_bwd(dgate: &mut [f32], dup: &mut [f32], gate: &[f32], up: &[f32], dact: &[f32]) {
        for ((((dgate, dup), gate), up), dact) in dgate.iter_mut().zip(dup).zip(gate).zip(up).zip(dact) {
            let s = sigmoid::<FMA>(*gate);
            *dgate = dact * up * (s * (1.0 + gate * (1.0 - s)));
            *dup = dact * (gate * s);
        }
    }
}

/// Stores gate and up in workspace if they are not requested.
pub(super) fn linear_glu_fwd<A: Element>(cpu: &Cpu<A>, a: LinearGluFwd<'_, Cpu<A>>) {
    let d = a.dims;
    let mut scratch = None;
    let gate_up = match a.gate_up {
        Some(gate_up) => gate_up.into_slice(),
        None => &mut scratch.insert(cpu.room::<A>(d.tokens * 2 * d.intermediate))[..],
    };
    let x = Mat::new(a.x.slice(), d.tokens, d.hidden, d.hidden);
    let weight = Mat::new(a.weight.slice(), 2 * d.intermediate, d.hidden, d.hidden);
    par_matmul(cpu, gate_up, x, weight.t(), Write::Overwrite, |_, _| {});
    glu_rows(cpu, a.act.into_slice(), gate_up, (d.intermediate, None));
}

pub(super) fn linear_glu_bwd<A: Element>(cpu: &Cpu<A>, a: LinearGluBwd<'_, Cpu<A>>) {
    let d = a.dims;
    let mut dact = cpu.room::<A>(d.tokens * d.intermediate);
    let dy = Mat::new(a.dy.slice(), d.tokens, d.hidden, d.hidden);
    let weight = Mat::new(a.weight.slice(), d.hidden, d.intermediate, d.intermediate);
    par_matmul(cpu, &mut dact, dy, weight, Write::Overwrite, |_, _| {});
    glu_rows_bwd(cpu, a.dgate_up.into_slice(), a.gate_up.slice(), &dact, (d.intermediate, None));
}
