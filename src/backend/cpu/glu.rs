//! SwiGLU and GeGLU, the linear layers with SwiGLU as epilogue, and their gradients. The linear layers run as
//! a GEMM followed by a pass over its result, so their bits are those of the separate ops.

use rayon::prelude::*;

use super::Cpu;
#[cfg(target_arch = "x86_64")]
use super::avx512_glu;
use super::element::Element;
use super::gelu::{gelu_row, gelu_row_bwd};
use super::math::sigmoid;
use super::matmul::par_matmul;
use super::rows::rows_of_task;
use super::simd::vectorised;
use super::tile::Mat;
#[cfg(target_arch = "x86_64")]
use super::units::has_dot16;
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
        #[cfg(target_arch = "x86_64")]
        if let (None, true, Some(act), Some(gate_up)) = (gelu, has_dot16(), A::narrow_mut(act), A::narrow(gate_up)) {
            for (act, gate_up) in act.chunks_exact_mut(i).zip(gate_up.chunks_exact(2 * i)) {
                let (gate, up) = gate_up.split_at(i);
                // SAFETY: `has_dot16` has detected the CPU features.
                unsafe { avx512_glu::glu_row(act, gate, up) };
            }
            return;
        }
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
    /// Computes SwiGLU of one row.
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
        #[cfg(target_arch = "x86_64")]
        if let (None, true, Some(dgate_up), Some(gate_up), Some(dact)) =
            (gelu, has_dot16(), A::narrow_mut(dgate_up), A::narrow(gate_up), A::narrow(dact))
        {
            let rows = dgate_up.chunks_exact_mut(2 * i).zip(gate_up.chunks_exact(2 * i)).zip(dact.chunks_exact(i));
            for ((dgate_up, gate_up), dact) in rows {
                let ((dgate, dup), (gate, up)) = (dgate_up.split_at_mut(i), gate_up.split_at(i));
                // SAFETY: `has_dot16` has detected the CPU features.
                unsafe { avx512_glu::glu_row_bwd(dgate, dup, gate, up, dact) };
            }
            return;
        }
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

/// Stores gate and up in the workspace if the caller does not request them.
pub(super) fn linear_glu_fwd<A: Element>(cpu: &Cpu<A>, a: LinearGluFwd<'_, Cpu<A>>) {
    let d = a.dims;
    let mut scratch = None;
    let gate_up = match a.gate_up {
        Some(gate_up) => gate_up.into_slice(),
        None => &mut scratch.insert(cpu.room::<A>(d.tokens * 2 * d.intermediate))[..],
    };
    let x = Mat::new(a.x.slice(), d.tokens, d.hidden, d.hidden);
    let weight = Mat::new(a.weight.slice(), 2 * d.intermediate, d.hidden, d.hidden);
    par_matmul(cpu, gate_up, x, weight.t(), Write::Overwrite);
    glu_rows(cpu, a.act.into_slice(), gate_up, (d.intermediate, None));
}

pub(super) fn linear_glu_bwd<A: Element>(cpu: &Cpu<A>, a: LinearGluBwd<'_, Cpu<A>>) {
    let d = a.dims;
    let mut dact = cpu.room::<A>(d.tokens * d.intermediate);
    let dy = Mat::new(a.dy.slice(), d.tokens, d.hidden, d.hidden);
    let weight = Mat::new(a.weight.slice(), d.hidden, d.intermediate, d.intermediate);
    par_matmul(cpu, &mut dact, dy, weight, Write::Overwrite);
    glu_rows_bwd(cpu, a.dgate_up.into_slice(), a.gate_up.slice(), &dact, (d.intermediate, None));
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    #[test]
    fn rows_of_bf16_have_the_bits_of_their_values_in_f32() {
        let cpu = Cpu::<bf16>::on(super::super::Units::F32);
        for i in (1..40).chain([96, 256, 700]) {
            let numbers = |len: usize, factor: usize| -> Vec<bf16> {
                (0..len).map(|at| bf16::from_f32(((at * factor + 17) % 2003) as f32 / 100.0 - 10.0)).collect()
            };
            let (mut gate_up, dact) = (numbers(3 * 2 * i, 7919), numbers(3 * i, 613));
            // Values beyond the range of the exponential, NaN, infinity, a subnormal number, and -0.
            for (x, value) in gate_up.iter_mut().zip([-95.0, 95.0, f32::NAN, f32::INFINITY, 1e-39, -0.0]) {
                *x = bf16::from_f32(value);
            }
            let wide = |from: &[bf16]| -> Vec<f32> { from.iter().map(|x| x.to_f32()).collect() };
            // The sign of a NaN depends on the order in which the compiler multiplies.
            let one = |x: &bf16| if x.is_nan() { bf16::NAN.to_bits() } else { x.to_bits() };
            let narrow = |from: &[f32]| -> Vec<u16> { from.iter().map(|x| one(&bf16::from_f32(*x))).collect() };
            let bits = |from: &[bf16]| -> Vec<u16> { from.iter().map(one).collect() };
            let (mut act, mut dgate_up) = (vec![bf16::ONE; 3 * i], vec![bf16::ONE; 3 * 2 * i]);
            glu_rows(&cpu, &mut act, &gate_up, (i, None));
            glu_rows_bwd(&cpu, &mut dgate_up, &gate_up, &dact, (i, None));
            let (gate_up, dact) = (wide(&gate_up), wide(&dact));
            for row in 0..3 {
                let (gate, up) = gate_up[row * 2 * i..][..2 * i].split_at(i);
                let (mut expected, mut gradients) = (vec![0.0; i], [vec![0.0; i], vec![0.0; i]]);
                glu_row(&mut expected, gate, up);
                assert_eq!(bits(&act[row * i..][..i]), narrow(&expected), "{i} elements, row {row}");
                let [dgate, dup] = &mut gradients;
                glu_row_bwd(dgate, dup, gate, up, &dact[row * i..][..i]);
                assert_eq!(
                    bits(&dgate_up[row * 2 * i..][..2 * i]),
                    narrow(&gradients.concat()),
                    "{i} elements, row {row}"
                );
            }
        }
    }
}
