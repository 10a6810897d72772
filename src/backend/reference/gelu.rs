//! GELU and its gradient.

use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI, SQRT_2};

use super::Reference;
use crate::backend::contract::*;

type R = Reference;

/// Value and slope.
pub fn gelu(form: Gelu, x: f64) -> (f64, f64) {
    match form {
        Gelu::Erf => {
            let cumulative = 0.5 * (1.0 + libm::erf(x * FRAC_1_SQRT_2));
            // 1 / sqrt(2 pi)
            let density = 0.5 * FRAC_2_SQRT_PI * FRAC_1_SQRT_2 * (-0.5 * x * x).exp();
            (x * cumulative, cumulative + x * density)
        }
        Gelu::Tanh => {
            // sqrt(2 / pi)
            let factor = FRAC_2_SQRT_PI / SQRT_2;
            let t = (factor * (x + 0.044715 * x.powi(3))).tanh();
            let inner = factor * (1.0 + 3.0 * 0.044715 * x * x);
            (0.5 * x * (1.0 + t), 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * inner)
        }
    }
}

pub fn gelu_fwd(a: GeluFwd<'_, R>) {
    for (act, x) in a.act.into_slice().iter_mut().zip(a.x.slice()) {
        *act = gelu(a.dims.form, *x).0;
    }
}

pub fn gelu_bwd(a: GeluBwd<'_, R>) {
    for (d, x) in a.dact_in_place.into_slice().iter_mut().zip(a.x.slice()) {
        *d *= gelu(a.dims.form, *x).1;
    }
}
