//! GELU and its gradient.

use rayon::prelude::*;

use super::Cpu;
use super::element::Element;
use super::math::{exp, sigmoid};
use super::rows::rows_of_task;
use super::simd::{fma, vectorised};
use crate::backend::contract::*;

/// 1 / sqrt(2 pi).
const DENSITY: f32 = 0.398_942_3;
/// 2 sqrt(2 / pi) and its product with 0.044715: twice the argument of tanh is x (A + B x²).
const A: f32 = 1.595_769_2;
const B: f32 = 0.071_354_814;

pub(super) fn gelu_fwd<A: Element>(cpu: &Cpu<A>, a: GeluFwd<'_, Cpu<A>>) {
    let task = rows_of_task(1);
    let tasks = a.act.into_slice().par_chunks_mut(task).zip(a.x.slice().par_chunks(task));
    tasks.for_each(|(act, x)| gelu_row(a.dims.form, &mut cpu.store(act), &cpu.load(x)));
}

pub(super) fn gelu_bwd<A: Element>(cpu: &Cpu<A>, a: GeluBwd<'_, Cpu<A>>) {
    let task = rows_of_task(1);
    let tasks = a.dact_in_place.into_slice().par_chunks_mut(task).zip(a.x.slice().par_chunks(task));
    tasks.for_each(|(d, x)| gelu_row_bwd(a.dims.form, &mut cpu.update(d), &cpu.load(x)));
}

/// `act = gelu(x)`.
pub(super) fn gelu_row(form: Gelu, act: &mut [f32], x: &[f32]) {
    match form {
        Gelu::Erf => erf_row(act, x),
        Gelu::Tanh => tanh_row(act, x),
    }
}

/// Multiplies `d` by the slope of GELU at x.
pub(super) fn gelu_row_bwd(form: Gelu, d: &mut [f32], x: &[f32]) {
    match form {
        Gelu::Erf => erf_row_bwd(d, x),
        Gelu::Tanh => tanh_row_bwd(d, x),
    }
}

/// CDF of the standard normal distribution. The tail is t exp(-z² + p(t)) with t = 1 / (1 + z / 2). The
/// polynomial p is from Press et al., Numerical Recipes, section 6.2. The relative error of the tail is below
/// 1.2e-7.
#[inline(always)]
fn cumulative<const FMA: bool>(x: f32) -> f32 {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + 0.5 * z);
    let mut p = 0.170_872_77;
    for c in [
        -0.822_152_2,
        1.488_515_9,
        -1.135_204,
        0.278_868_07,
        -0.186_288_06,
        0.096_784_18,
        0.374_091_96,
        1.000_023_7,
        -1.265_512_2,
    ] {
        p = fma::<FMA>(p, t, c);
    }
    let tail = 0.5 * t * exp::<FMA>(fma::<FMA>(-z, z, p));
    if x > 0.0 { 1.0 - tail } else { tail }
}

vectorised! {
    fn erf_row(act: &mut [f32], x: &[f32]) {
        for (act, x) in act.iter_mut().zip(x) {
            *act = x * cumulative::<FMA>(*x);
        }
    }
}

vectorised! {
    /// Multiplies `d` by the slope, which is the CDF of the standard normal distribution plus x times its
    /// density.
    fn erf_row_bwd(d: &mut [f32], x: &[f32]) {
        for (d, x) in d.iter_mut().zip(x) {
            *d *= cumulative::<FMA>(*x) + x * (DENSITY * exp::<FMA>(-0.5 * x * x));
        }
    }
}

vectorised! {
    /// Writes x (1 + tanh(u)) / 2 to `act`. The factor (1 + tanh(u)) / 2 is the sigmoid of 2 u.
    fn tanh_row(act: &mut [f32], x: &[f32]) {
        for (act, x) in act.iter_mut().zip(x) {
            *act = x * sigmoid::<FMA>(x * fma::<FMA>(B, x * x, A));
        }
    }
}

vectorised! {
    /// Multiplies `d` by the slope, s + x s (1 - s) times the slope of 2 u, where s is the sigmoid of 2 u.
    fn tanh_row_bwd(d: &mut [f32], x: &[f32]) {
        for (d, x) in d.iter_mut().zip(x) {
            let s = sigmoid::<FMA>(x * fma::<FMA>(B, x * x, A));
            *d *= s + x * s * (1.0 - s) * fma::<FMA>(3.0 * B, x * x, A);
        }
    }
}
